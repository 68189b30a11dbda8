"""Procedural faces, and the same faces turned, scaled and shifted in larger pictures, with their landmarks there."""

import io

import numpy as np
from PIL import Image

from fastmfr import synthetic
from fastmfr.decode.align import PLACES_52

PEOPLE, IMAGES, SIDE = 8, 4, 112
PICTURE = 260  # pixels a side of the larger pictures


def crops():
    """uint8 (people, images, 112, 112, 3): faces whose landmarks count as being at ArcFace's places.

    The images of a person are one face in different light, so that a network that nobody trained tells people apart.
    """
    faces = synthetic.render("studio", np.arange(PEOPLE), np.zeros(PEOPLE, int), size=SIDE).astype(float)
    light = np.random.default_rng(0).uniform(-15, 15, (PEOPLE, IMAGES, 1, 1, 3))
    return (faces[:, None] + light).clip(0, 255).astype(np.uint8)


def moved(crop_HW3, seed):
    """(a picture with the face somewhere in it, the landmarks there)."""
    rng = np.random.default_rng((7, *seed))
    turn = rng.uniform(1.0, 1.5) * np.exp(1j * rng.uniform(-0.9, 0.9))
    shift = PICTURE / 2 + rng.uniform(-20, 20) + 1j * (PICTURE / 2 + rng.uniform(-20, 20)) - turn * (1 + 1j) * SIDE / 2
    back = 1 / turn  # from the picture to the crop; Pillow counts corners of pixels, landmarks count their middles
    corner = (0.5 + 0.5j) - back * (shift + (0.5 + 0.5j))
    data = (back.real, -back.imag, corner.real, back.imag, back.real, corner.imag)
    picture = Image.fromarray(crop_HW3).transform(
        (PICTURE, PICTURE), Image.Transform.AFFINE, data, Image.Resampling.BICUBIC, fillcolor=(90, 110, 80)
    )
    points = (PLACES_52 @ np.array([1, 1j])) * turn + shift
    return picture, np.stack([points.real, points.imag], 1)


def png(image):
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, "PNG")
    return buffer.getvalue()


def numbers(landmark_52):
    return [f"{number:.3f}" for number in landmark_52.ravel()]


def ijb(folder, faces, *, move):
    """A folder as IJB comes, moved faces with their landmarks beside them; two templates a person."""
    (folder / "loose_crop").mkdir(parents=True)
    (folder / "meta").mkdir()
    listed, points = [], []
    for person, images in enumerate(faces):
        for image, crop in enumerate(images):
            name = f"{person * IMAGES + image + 1}.png"
            listed.append(f"{name} {2 * person + image // 2} {image}\n")
            if move:
                crop, landmark_52 = moved(crop, (person, image))
                points.append(f"{' '.join([name, *numbers(landmark_52)])} 0.99\n")
            (folder / "loose_crop" / name).write_bytes(png(crop))
    pairs = [f"{a} {b} {int(a // 2 == b // 2)}\n" for a in range(2 * len(faces)) for b in range(a)]
    (folder / "meta" / "ijbx_face_tid_mid.txt").write_text("".join(listed))
    (folder / "meta" / "ijbx_template_pair_label.txt").write_text("".join(pairs))
    if move:
        (folder / "meta" / "ijbx_name_5pts_score.txt").write_text("".join(points))
    return folder


def rfw(folder, faces, *, move):
    """A folder as RFW comes, with one race."""
    points, pairs = [], []
    (folder / "test/txts/African").mkdir(parents=True)
    for person, images in enumerate(faces):
        place = folder / "test/data/African" / f"m.{person}"
        place.mkdir(parents=True)
        for image, crop in enumerate(images, start=1):
            name = f"m.{person}_{image:04}"
            if move:
                crop, landmark_52 = moved(crop, (person, image))
                path = f"/test/data/African/m.{person}/{name}.jpg"
                points.append("\t".join([path, str(person), *numbers(landmark_52)]) + "\n")
            (place / f"{name}.png").write_bytes(png(crop))
        pairs += [f"m.{person}\t{a}\t{b}\n" for a in range(1, IMAGES + 1) for b in range(1, a)]
        pairs += [f"m.{person}\t{a}\tm.{(person + a) % len(faces)}\t{b}\n" for a in range(1, 4) for b in (1, 2)]
    (folder / "test/txts/African/African_pairs.txt").write_text("".join(pairs))
    if move:
        (folder / "test/txts/African/African_lmk.txt").write_text("".join(points))
    return folder
