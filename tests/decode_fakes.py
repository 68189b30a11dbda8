"""Domains in memory for the tests of fastmfr.decode: good images, and bad ones."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from fastmfr.decode import ImageStream, Preprocess, dali_installed
from fastmfr.image_set import ImageSet

needs_dali = pytest.mark.skipif(not dali_installed(), reason="nvidia-dali is not installed")
EITHER = [pytest.param("cpu", marks=needs_dali), "pillow"]  # decoders that give what a CPU gives
PLAIN = Preprocess(size=8, mean=0.0, std=1.0, flip=0.0)  # with it, a stream gives grey levels


class FakeDomain(ImageSet):
    """Encoded images in memory, `per_identity` of them a person; an exception in place of an image is raised."""

    def __init__(self, encoded, per_identity=4, name="studio"):
        self.encoded, self.name = encoded, name
        self.offsets = np.array([*range(0, len(encoded), per_identity), len(encoded)])

    def jpeg(self, image):
        if isinstance(self.encoded[image], Exception):
            raise self.encoded[image]
        return np.frombuffer(self.encoded[image], np.uint8)

    def key(self, image):
        return f"{image}.jpg"


def encode(picture, kind="JPEG", **options):
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def picture(width, height, seed=0):
    coarse = np.random.default_rng(seed).integers(0, 256, (height // 8 + 2, width // 8 + 2, 3), np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def level(number):
    """An 8 x 8 PNG of one grey, so that the pixels of a batch tell which images it was made of."""
    return encode(Image.new("L", (8, 8), number), "PNG")


def in_turn(batch_images, images):
    """Requests of domain 0 that go through its images in order, over and over."""
    return lambda i: (np.zeros(batch_images, np.int64), (np.arange(batch_images) + i * batch_images) % images)


def batches(encoded, preprocess=PLAIN, batch_images=4, **options):
    domain = FakeDomain(encoded)
    options = {"last": max(1, len(encoded) // batch_images), **options}
    with ImageStream(
        [domain], in_turn(batch_images, domain.images), preprocess, batch_images=batch_images, **options
    ) as stream:
        return dict(stream), stream.bad


def levels(encoded, **options):
    """The grey level of every image that a stream over `encoded` gives, and the stream's report of bad images."""
    images, bad = batches(encoded, **options)
    return torch.cat([image_B3HW[:, 0, 0, 0] for image_B3HW in images.values()]).int().tolist(), bad


def flip_bits(encoded):
    """Damage to the compressed pixels, which only decoding finds: PNG has a checksum."""
    middle = encoded.index(b"IDAT") + 10
    return encoded[:middle] + bytes([encoded[middle] ^ 0xFF]) + encoded[middle + 1 :]


GOOD = encode(picture(40, 40))
SMALL_PNG = encode(picture(8, 8), "PNG")
