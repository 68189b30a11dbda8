"""Encoded images by number, grouped by identity: what decoding, scoring and inspection ask of any set of images."""

import numpy as np
from numpy.typing import ArrayLike

__all__ = ["ImageSet", "part_of"]


class ImageSet:
    """Encoded images, numbered from 0 up to `images` - 1, identity by identity.

    A subclass sets `name` and `offsets`, and defines `jpeg` and `key`.

    Attributes:
        name: what reports call the set.
        offsets: int64 (identities + 1,). Identity k has the images offsets[k] up to offsets[k + 1] - 1.
        notes: sentences that a user should read before relying on figures of the set.
        landmark_N52: five points of each image to align it by, float32 (images, 5, 2), NaN for an image without; None
            if no image has any. See fastmfr.protocols.landmarks.
    """

    name: str
    offsets: np.ndarray
    notes: tuple[str, ...] = ()
    landmark_N52: np.ndarray | None = None

    @property
    def identities(self) -> int:
        """The number of identities."""
        return len(self.offsets) - 1

    @property
    def images(self) -> int:
        """The number of images."""
        return int(self.offsets[-1])

    @property
    def single(self) -> int:
        """The number of identities with one image, of which no pair can be made."""
        return int((np.diff(self.offsets) == 1).sum())

    def jpeg(self, image: int) -> np.ndarray:
        """Return the encoded bytes of one image, read-only uint8; ValueError if they cannot be read."""
        raise NotImplementedError

    def jpegs(self, images: np.ndarray) -> list[np.ndarray]:
        """Return `jpeg` of each of `images`, int64 (B,); one failure fails the call."""
        return [self.jpeg(int(image)) for image in images]

    def key(self, image: int) -> str:
        """Return what a person can find an image by, such as its path."""
        raise NotImplementedError

    def label_of(self, image: int) -> str:
        """Return "name/key" of an image, as reports and lists of bad images call it."""
        return f"{self.name}/{self.key(image)}"

    def identity_of(self, images: ArrayLike) -> np.ndarray:
        """Return the identity number, int64, of each image number in [0, images); the shape is kept."""
        return part_of(self.offsets, images)


def part_of(starts: ArrayLike, numbers: ArrayLike) -> np.ndarray:
    """Find the part k of a row of parts that holds each number: the last one with starts[k] <= number.

    Args:
        starts: the first number of each part, ascending.
        numbers: numbers of at least starts[0], of any shape.

    Returns:
        int64, of the shape of `numbers`.
    """
    return np.searchsorted(starts, numbers, side="right") - 1
