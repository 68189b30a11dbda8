"""What a source of images to pack is: a list of images with their people, whose bytes are read later, in any order."""

from array import array
from pathlib import Path


class Identities:
    """Numbers for names, in the order in which names are first met; one name is one person, whatever the source."""

    def __init__(self):
        self._numbers: dict[str, int] = {}

    def __len__(self):
        return len(self._numbers)

    def number(self, label: object) -> int:
        """Return the number of the person labelled `label`; ValueError unless that is a whole number or a name."""
        name = str(label).strip()
        if isinstance(label, bool) or not isinstance(label, int | str) or not name:
            raise ValueError(f"its label is {label!r}; want a whole number or a name")
        return self._numbers.setdefault(name, len(self._numbers))

    def names(self) -> list[str]:
        """Return the names, by number."""
        return list(self._numbers)


class Source:
    """The images of one source.

    Attributes:
        path: the file or folder.
        identity: the number of the person of each image.
        refused: (key, reason) of each image that could not be listed.
    """

    def __init__(self, path: Path):
        """Begin with no image."""
        self.path = path
        self.identity = array("i")
        self.refused: list[tuple[str, str]] = []

    def key(self, image: int) -> str:
        """Return what a person can find the image by."""
        raise NotImplementedError

    def read(self, image: int) -> bytes:
        """Return the encoded image; ValueError or OSError if the image cannot be read."""
        raise NotImplementedError
