"""Landmarks: files with five points of each image, and which image each row is of. Lines with # are comments.

    *_5pts_score.txt (IJB)   name, ten numbers, score; separated by blanks or tabs
    *_lmk.txt (RFW)          path, label, ten numbers; likewise. Without the label, any list of path and ten numbers
    a CSV file               path, ten numbers; or with a header that names the columns, in any order, among others

The numbers are x and y of the left eye, the right eye, the nose, the left and the right corner of the mouth, in pixels
of the upright image; left and right are as seen in the picture. The first row says which format the file has.
Shape suffixes: N = rows, or images of a set; 5 = points, 2 = (x, y).
"""

import csv
import math
import os
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fastmfr.decode.align import PLACES_SIZE, alignment_maps, exchanged
from fastmfr.image_set import ImageSet

from .class_folder import SUFFIXES
from .files import entry_path
from .lists import lines

PATTERNS = ("*5pts*.txt", "*lmk*.txt", "*landmark*.txt", "*landmark*.csv")  # names of files that are looked for
UNUSED = "none"  # in place of a file: no landmarks are used
_PATHS = ("path", "image", "imageid", "file", "filename", "name", "key")  # what a header may call the column
_POINTS = tuple(f"{part}{axis}" for part in ("lefteye", "righteye", "nose", "leftmouth", "rightmouth") for axis in "xy")
_NUMBERED = tuple(f"{axis}{number}" for number in range(1, 6) for axis in "xy")
_SEVERAL = -2  # in place of a row: there are several


class _Columns(NamedTuple):
    """Which columns hold what, by number, and how a row is described."""

    path: int
    points: list[int]
    wanted: str
    columns: int


class Landmarks:
    """The landmarks of the images that one file names; `read_landmarks` makes them.

    Attributes:
        path: the file.
        entries: the path of each row's image.
        landmark_N52: float32, the landmarks of each row.
    """

    def __init__(self, path: Path, entries: list[str], landmark_N52: np.ndarray):
        """Begin with the rows of a file; ValueError if two rows of one image differ."""
        self.path, self.entries, self.landmark_N52 = path, entries, landmark_N52
        self._by_ends: dict[int, dict[str, int]] = {}
        self._by_name = self._names(entries)
        for row, entry in enumerate(entries):
            first = self._by_name[entry]
            if first != row and not np.array_equal(landmark_N52[first], landmark_N52[row]):
                raise ValueError(
                    f"{path} has two rows with different landmarks of {entry}; want one row an image: keep the face "
                    "that is meant"
                )

    def row_of(self, key: str) -> int:
        """Return the row of an image, -1 if there is none.

        The image's key and the row's path may begin with different folders, and end in different suffixes.

        Raises:
            ValueError: several rows could be meant.
        """
        parts = entry_path(key).strip("/").split("/")
        for name in ("/".join(parts), _stem("/".join(parts))):
            if (row := self._by_name.get(name, -1)) == -1:
                row = self._ends(len(parts)).get(name, -1)
            for start in range(1, len(parts) - 1) if row == -1 else ():  # the key has folders that the file leaves out
                if (row := self._by_name.get("/".join([*parts[start:-1], name.rpartition("/")[2]]), -1)) != -1:
                    break
            if row == _SEVERAL:
                raise ValueError(
                    f"{self.path} has several rows that may be of the image {key}; want paths from the same folder on"
                )
            if row >= 0:
                return row
        return -1

    def _names(self, names: list[str]) -> dict[str, int]:
        """{name: row}, also without suffixes where that leaves one row."""
        rows = {}
        for row, name in enumerate(names):
            rows.setdefault(name, row)
        stems: dict[str, int] = {}
        for name, row in rows.items():
            stem = _stem(name)
            stems[stem] = _SEVERAL if stem in stems else row
        return stems | rows

    def _ends(self, depth: int) -> dict[str, int]:
        """{the last `depth` parts of a name: row}."""
        if depth not in self._by_ends:
            ends: dict[str, int] = {}
            for name, row in self._by_name.items():
                parts = name.split("/")
                if len(parts) > depth:
                    end = "/".join(parts[-depth:])
                    ends[end] = row if ends.get(end, row) == row else _SEVERAL
            self._by_ends[depth] = ends
        return self._by_ends[depth]


def read_landmarks(path: str | os.PathLike) -> Landmarks:
    """Read a file of landmarks, in any of the three formats.

    Raises:
        FileNotFoundError: there is no file.
        ValueError: a row is not as wanted (the message has the line's number and the line), or there is no row.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file of landmarks {path}")
    entries, numbers, at_lines = [], array("d"), array("q")
    columns, split = None, str.split
    for number, line in lines(path):
        if columns is None:
            split = _splitter(line)
            columns, is_header = _columns(split(line), f"line {number} of {path}", line)
            if is_header:
                continue
        try:
            fields = split(line)
            entries.append(_entry(fields[columns.path]))
            numbers.extend(_finite(fields, columns))
        except (ValueError, IndexError):
            raise ValueError(
                f"line {number} of {path} is no row of landmarks: want {columns.wanted}, got {line[:100]!r}"
            ) from None
        at_lines.append(number)
    if not entries:
        raise ValueError(f"{path} has no row of landmarks; want a line `path`, ten numbers an image")
    landmark_N52 = np.frombuffer(numbers, np.float64).reshape(-1, 5, 2).astype(np.float32)
    broken = np.isnan(alignment_maps(landmark_N52, PLACES_SIZE)[:, 0, 0])
    if broken.any():
        row = int(np.argmax(broken))
        raise ValueError(
            f"line {at_lines[row]} of {path} has five landmarks that are those of no face, want different points, got "
            f"{landmark_N52[row].tolist()}"
        )
    return Landmarks(path, entries, landmark_N52)


def find_landmarks(*places: Path) -> Path | None:
    """Find the first file in one of the folders `places` whose name is that of a file of landmarks."""
    return next((path for place in places for pattern in PATTERNS for path in sorted(place.glob(pattern))), None)


def attach(images: ImageSet, landmarks: Landmarks) -> str:
    """Have a set's images aligned by their landmarks; its `notes` say what is missing or looks wrong.

    Args:
        images: the set; its `landmark_N52` is set.
        landmarks: the landmarks.

    Returns:
        A sentence that says how many images are aligned.

    Raises:
        ValueError: the landmarks are of none of the images, or an image may have several rows.
    """
    row_N = np.array([landmarks.row_of(images.key(image)) for image in range(images.images)], np.int64)
    has_row_N = row_N >= 0
    if not has_row_N.any():
        raise ValueError(
            f"{landmarks.path} has landmarks of none of the {images.images:,} images of {images.name}: the file names "
            f"{landmarks.entries[0]!r}, the first image is {images.key(0)!r}"
        )
    images.landmark_N52 = np.where(has_row_N[:, None, None], landmarks.landmark_N52[row_N], np.float32(np.nan))
    images.notes += tuple(_notes(images, landmarks.path, has_row_N))
    return f"{has_row_N.sum():,} of {images.images:,} images are aligned by the landmarks in {landmarks.path}"


def _notes(images: ImageSet, path: Path, has_row_N: np.ndarray) -> Iterator[str]:
    if count := int((~has_row_N).sum()):
        yield (
            f"{count:,} of {images.images:,} images have no landmarks in {path}, the first "
            f"{images.key(int(np.argmin(has_row_N)))}: they are not aligned, but brought to size by data.fit"
        )
    assert images.landmark_N52 is not None
    if (wrong_N := exchanged(images.landmark_N52)).any():
        yield (
            f"{wrong_N.sum():,} of {has_row_N.sum():,} images have left and right exchanged in {path}, the first "
            f"{images.key(int(np.argmax(wrong_N)))}: such a face is turned over. Left and right are meant as seen in "
            "the picture; if most images are named, exchange the columns"
        )


def _splitter(line: str) -> Callable[[str], list[str]]:
    """How the lines of a file with this line are split into fields."""
    if "," in line:
        return lambda text: [field.strip() for field in (next(csv.reader([text])) if '"' in text else text.split(","))]
    return (lambda text: text.split("\t")) if line.count("\t") >= 10 else str.split


def _columns(fields: list[str], where: str, line: str) -> tuple[_Columns, bool]:
    """What the first line says about the columns, and whether the line is a header."""
    values = [_number(field) for field in fields[1:]]
    if None not in values and len(values) == 10:
        return _Columns(0, [*range(1, 11)], "a path and ten numbers", 11), False
    if None not in values and len(values) == 11:
        if 0 <= float(fields[-1]) <= 1:
            return _Columns(0, [*range(1, 11)], "a name, ten numbers and a score", 12), False
        return _Columns(0, [*range(2, 12)], "a path, a label and ten numbers", 12), False
    names = [field.lower().translate({ord(mark): None for mark in "_- ."}) for field in fields]
    for points in (_POINTS, _NUMBERED):
        if all(point in names for point in points):
            path = next((names.index(name) for name in _PATHS if name in names), 0)
            places = [names.index(point) for point in points]
            wanted = f"{len(names)} columns as in the header, ten of them numbers"
            return _Columns(path, places, wanted, len(names)), True
    raise ValueError(
        f"{where} is neither a row of landmarks nor a header: want a path and ten numbers, a name, ten numbers and a "
        "score, a path, a label and ten numbers, or a header with the columns path, left_eye_x, left_eye_y, "
        "right_eye_x, right_eye_y, nose_x, nose_y, left_mouth_x, left_mouth_y, right_mouth_x, right_mouth_y; got "
        f"{line[:100]!r}"
    )


def _finite(fields: list[str], columns: _Columns) -> list[float]:
    """The ten numbers of a row. Raises ValueError for another number of fields, or for what is no finite number."""
    if len(fields) != columns.columns:
        raise ValueError
    numbers = [float(fields[place]) for place in columns.points]
    if not all(map(math.isfinite, numbers)):
        raise ValueError
    return numbers


def _number(field: str) -> float | None:
    try:
        return float(field)
    except ValueError:
        return None


def _entry(field: str) -> str:
    """A row's path as names are looked up. Raises ValueError if there is none."""
    entry = entry_path(field).strip("/")
    if not entry:
        raise ValueError
    return entry


def _stem(name: str) -> str:
    """A name without the suffix of an image, if it has one."""
    stem, dot, suffix = name.rpartition(".")
    return stem if stem and f"{dot}{suffix}".lower() in SUFFIXES else name
