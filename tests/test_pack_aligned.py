"""Packing with landmarks: crops that are aligned, and what is said of images that cannot be."""

import io

import numpy as np
import pytest
from helpers import command
from moved_faces import crops, moved, numbers, png
from pack_fakes import people
from PIL import Image

from fastmfr.pack.build import pack

main = command("pack")
NAMES = ("ann", "bob")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A class folder of moved faces, two a person, and a CSV of their landmarks beside it."""
    place, rows = (
        tmp_path_factory.mktemp("source"),
        ["path," + ",".join(f"{axis}{n}" for n in range(1, 6) for axis in "xy")],
    )
    for person, name in enumerate(NAMES):
        (place / "faces" / name).mkdir(parents=True)
        for image in range(2):
            picture, landmark_52 = moved(crops()[person, image], (person, image))
            (place / "faces" / name / f"{image}.png").write_bytes(png(picture))
            rows.append(",".join([f"faces/{name}/{image}.png", *numbers(landmark_52)]))
    (place / "landmarks.csv").write_text("\n".join(rows))
    return place


def pixels(encoded):
    return np.asarray(Image.open(io.BytesIO(encoded))).astype(float)


def test_crops_are_packed_with_the_faces_in_place(source, tmp_path, capsys):
    assert main([str(source / "faces"), str(tmp_path / "out"), "--landmarks", str(source / "landmarks.csv")]) == 0
    assert "packed 4 images of 2 people" in capsys.readouterr().out
    assert (tmp_path / "out/property").read_text() == "2,112,112\n"
    for person, name in enumerate(NAMES):
        for image, encoded in enumerate(people(tmp_path / "out")[name]):
            off = np.abs(pixels(encoded) - crops()[person, image])[4:-4, 4:-4]
            assert off.mean() < 4


def test_crops_have_the_size_that_is_asked_for(source, tmp_path):
    packed = pack([source / "faces"], tmp_path / "out", landmarks=[source / "landmarks.csv"], resize=56)
    assert packed.sizes == {(56, 56): 4}
    want = Image.fromarray(crops()[0, 0]).resize((56, 56), Image.Resampling.BOX)
    assert np.abs(pixels(people(tmp_path / "out")["ann"][0]) - np.asarray(want))[2:-2, 2:-2].mean() < 8


def test_images_without_landmarks_are_refused_and_counted(source, tmp_path, capsys):
    fewer = tmp_path / "fewer.csv"
    fewer.write_text("\n".join((source / "landmarks.csv").read_text().splitlines()[:-1]))
    assert main([str(source / "faces"), str(tmp_path / "out"), "--landmarks", str(fewer)]) == 0
    said = capsys.readouterr().out
    assert "1 images were left out, for they have no landmarks, the first bob/1.png" in said
    assert f"  1 x no landmarks in {fewer}" in said
    assert (tmp_path / "out/refused.txt").read_text() == f"bob/1.png\tno landmarks in {fewer}\n"


def test_landmarks_outside_and_exchanged_ones_are_counted(source, tmp_path):
    header, *rows = [line.split(",") for line in (source / "landmarks.csv").read_text().splitlines()]
    rows[1][1:] = [str(float(number) + 300) for number in rows[1][1:]]
    rows[2][1:] = [rows[2][1 + k] for k in (2, 3, 0, 1, 4, 5, 8, 9, 6, 7)]
    odd = tmp_path / "odd.csv"
    odd.write_text("\n".join(map(",".join, [header, *rows])))
    notes = pack([source / "faces"], tmp_path / "out", landmarks=[odd], workers=1).notes
    assert notes == [
        "1 images have landmarks outside of the image, the first ann/1.png",
        f"1 of 4 rows of {odd} have left and right exchanged, the first of faces/bob/0.png: such a face is turned over",
    ]


def test_a_file_for_each_source_or_one_for_all(source, tmp_path):
    (tmp_path / "more/cy").mkdir(parents=True)
    picture, landmark_52 = moved(crops()[4, 0], (4, 0))
    (tmp_path / "more/cy/1.png").write_bytes(png(picture))
    own = tmp_path / "own.txt"
    own.write_text(" ".join(["cy/1.png", *numbers(landmark_52)]))
    sources = [source / "faces", tmp_path / "more"]
    assert pack(sources, tmp_path / "both", landmarks=[source / "landmarks.csv", own]).images == 5
    assert pack(sources, tmp_path / "one", landmarks=[source / "landmarks.csv"]).refused == [
        ("cy/1.png", f"no landmarks in {source / 'landmarks.csv'}")
    ]
    with pytest.raises(ValueError, match="want one file of landmarks for all sources, or 2, one each; got 3"):
        pack(sources, tmp_path / "three", landmarks=[own] * 3)
