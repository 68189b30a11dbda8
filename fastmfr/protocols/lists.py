"""Text files that say what is compared: gallery and probe lists, and lists of pairs. Lines with # are comments.

    gallery.txt, probe.txt       path<TAB>identity, or path alone, whose folder is then the identity; or mxnet's .lst
    gallery_1.txt, probe_1.txt   the same in folds; also vis_gallery_1.txt with nir_probe_1.txt (CASIA NIR-VIS 2.0)
    pairs.txt, *_pairs.txt       path path 0|1 [fold]; or name number number, and name number name number (LFW, RFW)

Columns are separated by tabs or, in a line without a tab, by spaces. Paths are relative to the list's folder, or to a
folder above if only that folder holds the first images.
Shape suffix: N pairs.
"""

import os
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .class_folder import SUFFIXES
from .files import entry_path, list_text
from .gallery import GalleryProbe
from .images import ImageFiles, find_image

_NUMBER = re.compile(r"(-?[0-9]+)(?:\.0*)?")  # whole


@dataclass(frozen=True)
class PairList:
    """Pairs of images.

    Attributes:
        first: int64 (N,), the number of each pair's first image.
        second: int64 (N,), the number of each pair's second image.
        is_mate: bool (N,), whether both images show one person.
        fold: int64 (N,), the fold of each pair; None for ten folds in order.
        people: int64 (2, N), the persons of both images; None if unknown.
    """

    first: np.ndarray
    second: np.ndarray
    is_mate: np.ndarray
    fold: np.ndarray | None = None
    people: np.ndarray | None = None

    def without(self, images: Collection[int]) -> "PairList":
        """Return the list without the pairs of these images, such as images that could not be decoded."""
        gone = np.fromiter(images, np.int64, len(images))
        kept = ~(np.isin(self.first, gone) | np.isin(self.second, gone))
        return PairList(
            self.first[kept],
            self.second[kept],
            self.is_mate[kept],
            None if self.fold is None else self.fold[kept],
            None if self.people is None else self.people[:, kept],
        )


class Numbers(dict):
    """Numbers for names, in the order in which names are first met."""

    def __missing__(self, name: object) -> int:
        self[name] = len(self)
        return self[name]


def read_folds(folder: str | os.PathLike, name: str | None = None) -> tuple[ImageFiles, tuple[GalleryProbe, ...]]:
    """Read the gallery and probe lists in `folder`, or in its folder `protocols`.

    Args:
        folder: the folder.
        name: what reports call the set; by default the name of the folder.

    Returns:
        The images of all lists, and the gallery and probe of each fold; lists without a number are one fold. The
        images' `notes` say if a gallery and its probe list have images in common.

    Raises:
        ValueError: there is no list, or a list has no partner or names no image.
    """
    folder = Path(folder)
    lists = folder_lists(folder)
    if not lists:
        raise ValueError(f"{folder} holds no gallery.txt with a probe.txt, nor folds of them (gallery_1.txt, ...)")
    images, people = Numbers(), Numbers()
    folds = []
    for gallery, probe in lists:
        rows = [_read_listed(path, people, images) for path in (gallery, probe)]
        folds.append(GalleryProbe(*rows[0], *rows[1]))
    root = image_root(lists[0][0], list(images))
    listed = ImageFiles(name or folder.resolve().name, root, list(images))
    listed.notes = _both_enrolled_and_looked_up(listed, folds)
    return listed, tuple(folds)


def _both_enrolled_and_looked_up(images: ImageFiles, folds: list[GalleryProbe]) -> tuple[str, ...]:
    """A sentence if images are in the gallery and in the probe list of one fold."""
    both = [image for fold in folds for image in np.intersect1d(fold.gallery, fold.probe).tolist()]
    if not both:
        return ()
    return (
        f"{len(both):,} of {sum(len(np.unique(fold.probe)) for fold in folds):,} images looked up are "
        f"enrolled too, in the gallery of the same fold, the first {images.key(both[0])}: each finds itself, so the "
        "figures are too good. Remove them from one list",
    )


def folder_lists(folder: Path) -> list[tuple[Path, Path]]:
    """Find the (gallery, probe) lists of a folder, in the order of folds; ValueError if a list has no partner."""
    for place in (folder, folder / "protocols"):
        by_fold: dict[int, dict[str, Path]] = {}
        for path in sorted(place.glob("*.txt")):
            if found := re.fullmatch(r"(?:[a-z]+_)?(gallery|probe)(?:_(\d+))?\.txt", path.name, re.IGNORECASE):
                by_fold.setdefault(int(found[2] or 0), {})[found[1].lower()] = path
        for fold, lists in by_fold.items():
            if len(lists) < 2:
                raise ValueError(
                    f"{place} holds {lists.popitem()[1].name} without its partner; a fold "
                    f"{fold or ''} wants a gallery list and a probe list".replace("  ", " ")
                )
        if by_fold:
            return [(by_fold[fold]["gallery"], by_fold[fold]["probe"]) for fold in sorted(by_fold)]
    return []


def _read_listed(path: Path, people: Numbers, images: Numbers) -> tuple[np.ndarray, np.ndarray]:
    """(image numbers, identity numbers), int64, of a list of `path [identity]`."""
    rows = []
    for number, line in lines(path):
        entry, label = path_and_identity(line)
        if not label:
            raise ValueError(
                f"line {number} of {path} names no identity: want path<TAB>identity, or a path in the "
                f"identity's folder, got {line[:100]!r}"
            )
        rows.append((images[entry], people[label]))
    if not rows:
        raise ValueError(f"{path} names no image")
    image, identity = np.array(rows, np.int64).T
    return image, identity


def path_and_label(line: str) -> tuple[str, str]:
    """Return the path and the label of a line of a list as they stand there; "" if there is no label.

    A line is `path<TAB>label`, `path label` or a path alone; or one of mxnet's, `number<TAB>label<TAB>path` and
    `1<TAB>path<TAB>label`, with what follows left out. A blank parts path and label, unless what stands behind the
    blank ends as the name of an image does: blanks occur in names.
    """
    columns = line.split("\t")
    if len(columns) > 2 and columns[0].strip().isdecimal():  # mxnet's: a label there may be written as 3.000000
        first, is_label = columns[1], _NUMBER.fullmatch(columns[1].strip())
        path, label = (columns[-1], first) if is_label else (first, columns[2])
        whole = _NUMBER.fullmatch(label.strip())
        return path, whole[1] if whole else label
    path, _, label = line.rpartition("\t") if len(columns) > 1 else line.rstrip().rpartition(" ")
    if not path.strip() or (len(columns) == 1 and label.lower().endswith(SUFFIXES)):
        return line, ""
    return path, label


def path_and_identity(line: str) -> tuple[str, str]:
    """Return the path and the identity of a line, as of `path_and_label`; without a label it is the path's folder."""
    path, label = path_and_label(line)
    path = entry_path(path)
    return path, label.strip() or Path(path).parent.name


def lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (number, text) of each line that is neither empty nor a comment; ValueError if the file is no text."""
    try:
        text = list_text(path)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} should be a text file of lines, but it is not: {error}") from error
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip() and not line.startswith("#"):
            yield number, line.strip("\r\n ")


def image_root(listing: Path, entries: list[str]) -> Path:
    """Find the folder that a list's entries are relative to.

    That is the first folder that holds one of the first ten entries: the list's folder or one of the two above. If none
    does, it is the list's folder.
    """
    folder = listing.resolve().parent
    above = (folder, *folder.parents[:2])
    return next((root for root in above if any(find_image(root, entry) for entry in entries[:10])), folder)


def read_pairs(
    path: str | os.PathLike, name: str | None = None, root: str | os.PathLike | None = None
) -> tuple[ImageFiles, PairList]:
    """Read a list of pairs.

    Args:
        path: the list.
        name: what reports call the set; by default the name of the list without its suffix.
        root: the folder that paths are relative to; by default `image_root` finds the folder.

    Returns:
        The images, and the pairs.

    Raises:
        FileNotFoundError: there is no list.
        ValueError: a line is no pair (the message shows the line), or there is no line.
    """
    path = Path(path)
    images, rows, folds = _read_pair_lines(path)
    first_N, second_N, is_mate_N, fold_N = np.array(rows, np.int64).T
    if folds:
        fold_N = np.arange(len(rows)) * folds // len(rows)
    entries = list(images)
    listed = ImageFiles(name or path.stem, Path(root) if root else image_root(path, entries), entries)
    if count := int((first_N == second_N).sum()):
        listed.notes = (
            f"{count:,} of {len(rows):,} pairs compare an image with itself, the first "
            f"{entries[first_N[np.argmax(first_N == second_N)]]}: the figures are too good. Remove these pairs",
        )
    pairs = PairList(
        first_N,
        second_N,
        is_mate_N.astype(bool),
        None if fold_N.min() < 0 else fold_N,
        _people(entries, first_N, second_N, is_mate_N.astype(bool)),
    )
    return listed, pairs


def _read_pair_lines(path: Path) -> tuple[Numbers, list[tuple[int, int, bool, int]], int]:
    """The images, (first, second, whether of one person, fold or -1) of each line, and LFW's number of folds or 0."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no list of pairs {path}")
    images, rows, folds = Numbers(), [], 0
    for number, line in lines(path):
        columns = [column.strip() for column in (line.split("\t") if "\t" in line else line.split())]
        try:
            if not rows and len(columns) <= 2 and all(column.isdecimal() for column in columns):
                folds = _fold(columns[0]) if len(columns) == 2 else 0  # LFW's header: folds, pairs of a kind in a fold
                continue
            first, second, is_mate, fold = _pair(columns)
        except (ValueError, IndexError):
            raise ValueError(
                f"line {number} of {path} is no pair: want `path path 0|1 [fold]`, `name number number` "
                f"or `name number name number`, got {line[:100]!r}"
            ) from None
        rows.append((images[first], images[second], is_mate, fold))
    if not rows:
        raise ValueError(f"{path} names no pair")
    return images, rows, folds


def _pair(columns: list[str]) -> tuple[str, str, bool, int]:
    """(first path, second path, whether of one person, fold or -1) of a line's columns."""
    if len(columns) in (3, 4) and columns[1].isdecimal():
        name, other = columns[0], columns[0] if len(columns) == 3 else columns[2]
        first, second = (f"{who}/{who}_{int(k):04d}.jpg" for who, k in ((name, columns[1]), (other, columns[-1])))
        return first, second, len(columns) == 3, -1
    first, second, flag, *fold = columns
    if flag not in ("0", "1") or len(fold) > 1:
        raise ValueError
    return entry_path(first), entry_path(second), flag == "1", _fold(fold[0]) if fold else -1


def _fold(text: str) -> int:
    """Raises ValueError for what is no number, or is beyond 32 bits."""
    number = int(text)
    if not -(2**31) <= number < 2**31:
        raise ValueError(f"want a fold within 32 bits, got {text[:20]}")
    return number


def _people(entries: list[str], first_N: np.ndarray, second_N: np.ndarray, is_mate_N: np.ndarray) -> np.ndarray | None:
    """Both persons of each pair, int64 (2, N), if the folders of the images are people; else None."""
    people = Numbers()
    person = np.array([people[str(Path(entry).parent)] for entry in entries], np.int64)
    people_2N = np.stack([person[first_N], person[second_N]])
    return people_2N if np.array_equal(people_2N[0] == people_2N[1], is_mate_N) else None
