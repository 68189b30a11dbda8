"""The images that evaluation lists name, as the decoder takes them: numbered, each read when its turn comes.

They are numbered in the order in which they are first named; an image that several lists name has one number.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from .files import entry_path, regular_bytes

SUFFIXES = (".jpg", ".jpeg", ".png")


class _Numbered:
    """What the decoder asks of a domain. Every image counts as an identity of its own: lists say who is who."""

    def __init__(self, name: str, images: int):
        self.name, self.images = name, images
        self.offsets = np.arange(images + 1)

    def jpeg(self, image: int) -> np.ndarray:
        raise NotImplementedError

    def jpegs(self, images) -> list[np.ndarray]:
        """A list of what `jpeg` gives for each of `images`."""
        return [self.jpeg(int(image)) for image in images]


class ImageFiles(_Numbered):
    """Image files below `root`, named by `entries`, with / or \\ between folders.

    Where an entry is not there, or is no JPEG or PNG by its name, the same name with another suffix is looked for: the
    lists of NIR-VIS sets name the original .bmp, and crops are kept as .jpg or .png.
    """

    def __init__(self, name: str, root: Path, entries: Sequence[str]):
        super().__init__(name, len(entries))
        self._root, self._entries = root, [entry_path(entry) for entry in entries]

    def key(self, image: int) -> str:
        """The image as its list names it."""
        return self._entries[image]

    def jpeg(self, image: int) -> np.ndarray:
        """The encoded bytes, uint8; ValueError where there is no such file, or it cannot be read."""
        path = find_image(self._root, self._entries[image])
        if path is None:
            raise ValueError(f"there is no image {self._entries[image]} below {self._root}")
        try:
            return np.frombuffer(regular_bytes(path), np.uint8)
        except OSError as error:
            raise ValueError(f"{path} cannot be read: {error}") from error


class EncodedImages(_Numbered):
    """Encoded images held in memory, a few kB each."""

    def __init__(self, name: str, encoded: Sequence[bytes | bytearray]):
        super().__init__(name, len(encoded))
        self._encoded = encoded

    def key(self, image: int) -> str:
        """The image's number."""
        return str(image)

    def jpeg(self, image: int) -> np.ndarray:
        """The encoded bytes, uint8, read-only."""
        return np.frombuffer(self._encoded[image], np.uint8)


def find_image(root: Path, entry: str) -> Path | None:
    """The file of a list's entry, under its own suffix or that of an image; None where there is none.

    Only regular files count: a stranger's list may name a device, which would never end.
    """
    path = root / entry
    candidates = [path] if path.suffix.lower() in SUFFIXES else []
    candidates += [Path(f"{stem}{suffix}") for stem in (path, path.with_suffix("")) for suffix in SUFFIXES]
    return next((found for found in candidates if found.is_file()), None)
