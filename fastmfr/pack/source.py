"""What a source of images to pack is: a list of images with their people, whose bytes are read later, in any order."""

import re
from array import array
from dataclasses import dataclass
from pathlib import Path

_BELOW_0 = re.compile(r"-[0-9]{1,18}")


@dataclass(frozen=True)
class Reading:
    """How sources are read whose names are not the usual ones.

    Attributes:
        root: the folder that paths in a list are relative to; None finds the folder.
        image: the column of images of a Parquet file; in a tar, the suffix of a sample's image. None takes a usual one.
        label: the column of labels of a Parquet file; in a tar, the suffix of a sample's label, "json:KEY" for a key of
            a .json. None takes a usual one.
        pattern: a regular expression, whose first group found in the name of a tar's member, or in a list's path, is
            the label. None takes labels as they stand there.

    Raises:
        ValueError: the pattern is no regular expression, or has no group.
    """

    root: Path | None = None
    image: str | None = None
    label: str | None = None
    pattern: str | None = None

    def __post_init__(self):
        try:
            groups = 1 if self.pattern is None else re.compile(self.pattern).groups
        except re.error as error:
            raise ValueError(f"want the label pattern as a regular expression, got {self.pattern!r}: {error}") from None
        if not groups:
            raise ValueError(f"want a group in parentheses, the label, in the label pattern, got {self.pattern!r}")

    def label_in(self, name: str) -> int | str:
        """Return the label that the pattern finds in a name; ValueError if it finds none."""
        found = re.search(self.pattern or "", name)
        if not found or not found[1]:
            raise ValueError(f"the label pattern {self.pattern!r} finds no label in its name")
        return label_in_text(found[1])


class Identities:
    """Numbers for names, in the order in which names are first met; one name is one person, whatever the source.

    Names that differ in anything, blanks around them included, are different people.
    """

    def __init__(self):
        self._numbers: dict[str, int] = {}

    def __len__(self):
        return len(self._numbers)

    def number(self, label: object) -> int:
        """Return the number of the person labelled `label`.

        Raises:
            ValueError: the label is neither a name nor a whole number of at least 0.
        """
        if isinstance(label, bool) or not isinstance(label, int | str) or label == "":
            raise ValueError(f"its label is {label!r}; want a whole number or a name")
        if isinstance(label, int) and label < 0:
            raise ValueError(f"its label is {label}, as of an image of nobody known; want at least 0, or a name")
        return self._numbers.setdefault(str(label), len(self._numbers))

    def names(self) -> list[str]:
        """Return the names, by number."""
        return list(self._numbers)


def label_in_text(text: str) -> int | str:
    """Return the label that a line or a small text file holds: a whole number, or a name with all its blanks.

    Raises:
        ValueError: the text is blank.
    """
    name, bare = text.strip("\r\n"), text.strip()
    if not bare:
        raise ValueError(f"its label is {text!r}; want a whole number or a name")
    if _BELOW_0.fullmatch(bare):
        return int(bare)
    return bare if bare.isdecimal() else name


class Source:
    """The images of one source.

    Attributes:
        path: the file or folder.
        identity: the number of the person of each image.
        refused: (key, reason) of each image that could not be listed.
        notes: sentences on what was passed over or is unusual in the source.
    """

    def __init__(self, path: Path):
        """Begin with no image."""
        self.path = path
        self.identity = array("i")
        self.refused: list[tuple[str, str]] = []
        self.notes: list[str] = []

    def key(self, image: int) -> str:
        """Return what a person can find the image by."""
        raise NotImplementedError

    def read(self, image: int) -> bytes:
        """Return the encoded image; ValueError or OSError if the image cannot be read."""
        raise NotImplementedError
