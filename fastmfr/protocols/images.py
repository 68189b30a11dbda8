"""The images that evaluation lists name, as the decoder takes them: numbered, and read when needed.

Images are numbered in the order in which they are first named; an image that several lists name has one number. Lists
say who is who, so here every image counts as one identity.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fastmfr.image_set import ImageSet

from .class_folder import SUFFIXES
from .files import entry_path, regular_bytes

_CROPS = (".jpg", ".jpeg", ".png")
_TRIED = [write(suffix) for suffix in SUFFIXES for write in (str, str.upper, str.title)]  # .jpg .JPG .Jpg ...


class ImageFiles(ImageSet):
    """Image files that a list names.

    If an entry is not there, or is no JPEG or PNG by its name, the same name with another suffix, in lower or upper
    case, is looked for: the lists of NIR-VIS sets name the original .bmp, and crops are kept as .jpg or .png.
    """

    def __init__(self, name: str, root: Path, entries: Sequence[str]):
        """Number the files.

        Args:
            name: what reports call the set.
            root: the folder that the entries are relative to.
            entries: the path of each image, with / or \\ between folders.
        """
        self.name, self.offsets = name, np.arange(len(entries) + 1)
        self._root, self._entries = root, [entry_path(entry) for entry in entries]

    def key(self, image: int) -> str:
        """Return the image's path as its list names it."""
        return self._entries[image]

    def jpeg(self, image: int) -> np.ndarray:
        """Return the encoded bytes, uint8; ValueError if there is no such file, or it cannot be read."""
        path = find_image(self._root, self._entries[image])
        if path is None:
            raise ValueError(f"there is no image {self._entries[image]} below {self._root}")
        try:
            return np.frombuffer(regular_bytes(path), np.uint8)
        except OSError as error:
            raise ValueError(f"{path} cannot be read: {error}") from error


class EncodedImages(ImageSet):
    """Encoded images held in memory, a few kB each."""

    def __init__(self, name: str, encoded: Sequence[bytes | bytearray]):
        """Number the `encoded` images of the set that reports call `name`."""
        self.name, self.offsets = name, np.arange(len(encoded) + 1)
        self._encoded = encoded

    def key(self, image: int) -> str:
        """Return the image's number, as text."""
        return str(image)

    def jpeg(self, image: int) -> np.ndarray:
        """Return the encoded bytes, uint8, read-only."""
        return np.frombuffer(self._encoded[image], np.uint8)


def find_image(root: Path, entry: str) -> Path | None:
    """Find the file of a list's entry, under its own suffix or that of an image in any case; None if there is none.

    Only regular files count: a stranger's list may name a device, whose content never ends.
    """
    path = root / entry
    candidates = [path] if path.suffix.lower() in _CROPS else []
    candidates += [Path(f"{stem}{suffix}") for stem in (path, path.with_suffix("")) for suffix in _TRIED]
    return next((found for found in [*candidates, path] if found.is_file()), None)
