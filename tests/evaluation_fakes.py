"""Small evaluation sets of every kind, of the same few people."""

import io
import pickle

import numpy as np
from PIL import Image

PEOPLE, IMAGES, SIZE = 12, 3, 16


def face(person, image):
    """The encoded JPEG of a person: one pattern a person, with noise that differs from image to image."""
    pattern = np.random.default_rng(person).integers(0, 256, (4, 4, 3)).repeat(4, 0).repeat(4, 1)
    noise = np.random.default_rng((person, image)).normal(0, 12, pattern.shape)
    buffer = io.BytesIO()
    Image.fromarray((pattern + noise).clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def class_folder(path, people=PEOPLE, images=IMAGES, form="p{person:02}/{image}.jpg"):
    """Images below `path`, named by `form`."""
    for person in range(people):
        for image in range(images):
            file = path / form.format(person=person, image=image)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(face(person, image))
    return path


class Named:
    """Names images and people by their numbers."""

    def key(self, image):
        return f"image {image}"

    def identity_name(self, identity):
        return f"person {identity}"


def trials():
    """(person, image), (person, image), same: 60 pairs, in ten folds of three genuine and three impostor pairs."""
    rng = np.random.default_rng(0)
    for number in range(60):
        same = number % 6 < 3
        first, other = rng.choice(PEOPLE, 2, replace=False)
        a, b = rng.choice(IMAGES, 2, replace=False)
        yield (first, a), (first if same else other, b), same


def lfw_bin(path, as_stored=bytes, **pickling):
    """What InsightFace's tools write: a pickle of (2 N encoded images, N flags)."""
    rows = list(trials())
    images = [as_stored(face(*one)) for first, second, _ in rows for one in (first, second)]
    path.write_bytes(pickle.dumps((images, [same for *_, same in rows]), **pickling))
    return path
