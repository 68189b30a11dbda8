"""Class folders, path/identity/image: which files are images of whom, and what is passed over, counted."""

import os
from collections.abc import Callable
from pathlib import Path

from fastmfr.decode.encoded import START, format_of

SUFFIXES = (".jpg", ".jpeg", ".png", ".jfif", ".jpe", ".bmp", ".webp", ".tif", ".tiff")  # files taken unread
_MADE_BY_SYSTEMS = frozenset(  # folders that archivers, network storages and file managers leave behind, lower case
    ("__macosx", "@eadir", "#recycle", "$recycle.bin", "lost+found", "system volume information")
)
HIDDEN, SYSTEM, EMPTY, LINK, BESIDE, NO_IMAGE = (
    "hidden entries",
    "folders made by a system or an archiver",
    "folders without an image",
    "links that lead back",
    "files beside the folders of people",
    "files that are no JPEG, PNG, BMP, WebP or TIFF",
)


class PassedOver:
    """What was passed over in a folder: how many entries of each kind, and the first of each."""

    def __init__(self):
        """Begin with nothing."""
        self.counts: dict[str, int] = {}
        self._first: dict[str, str] = {}

    def add(self, kind: str, entry: str) -> None:
        """Count one entry, named by its path below the folder."""
        self.counts[kind] = self.counts.get(kind, 0) + 1
        self._first.setdefault(kind, entry)

    def notes(self, path: Path) -> tuple[str, ...]:
        """Return one sentence on what was passed over in the folder `path`; nothing if nothing was."""
        if not self.counts:
            return ()
        said = (f"{count:,} {kind} (as {self._first[kind]!r})" for kind, count in sorted(self.counts.items()))
        return (f"passed over in {path}: {', '.join(said)}",)


def list_people(path: Path, wanted: Callable[[os.DirEntry], bool], passed: PassedOver) -> list[tuple[str, list[str]]]:
    """List a class folder.

    Args:
        path: the folder.
        wanted: whether a file is to be listed whose suffix, in an identity's folder, is not that of an image.
        passed: counts what is passed over: hidden entries, links that lead back, empty folders, folders
            that systems make, files that are not wanted.

    Returns:
        (identity, names of its files), both sorted, of each identity with files.

    Raises:
        ValueError: an identity's folder holds a folder that is not empty.
    """
    people = []
    for folder in _sorted(path):
        if folder.name.startswith("."):
            passed.add(HIDDEN, folder.name)
        elif (is_folder := _is_folder(folder, path)) is None:
            passed.add(LINK, folder.name)
        elif not is_folder:
            passed.add(BESIDE, folder.name)
        elif folder.name.lower() in _MADE_BY_SYSTEMS:
            passed.add(SYSTEM, folder.name)
        elif files := _files(folder, path, wanted, passed):
            people.append((folder.name, files))
        else:
            passed.add(EMPTY, folder.name)
    return people


def is_image(entry: os.DirEntry) -> bool:
    """Tell whether a file is an image, by its content."""
    try:
        if not entry.is_file():  # reading a pipe or a device may never end
            return False
        with open(entry.path, "rb", buffering=0) as file:
            return format_of(file.read(START)) is not None
    except OSError:
        return False


def _files(folder: os.DirEntry, path: Path, wanted: Callable[[os.DirEntry], bool], passed: PassedOver) -> list[str]:
    """The sorted names of the wanted files in an identity's folder."""
    names = []
    for entry in _sorted(folder.path):
        name = f"{folder.name}/{entry.name}"
        if entry.name.startswith("."):
            passed.add(HIDDEN, name)
        elif entry.name.lower().endswith(SUFFIXES):  # links among them are not followed now: there may be millions
            names.append(entry.name)
        elif (is_folder := _is_folder(entry, path)) is None:
            passed.add(LINK, name)
        elif is_folder and entry.name.lower() in _MADE_BY_SYSTEMS:
            passed.add(SYSTEM, name)
        elif is_folder and not os.listdir(entry.path):
            passed.add(EMPTY, name)
        elif is_folder:
            raise ValueError(
                f"{folder.path} holds the folder '{entry.name}' where images were looked for: a domain is "
                f"path/identity/image, no deeper; open {folder.path} itself, or move its images up"
            )
        elif wanted(entry):
            names.append(entry.name)
        else:
            passed.add(NO_IMAGE, name)
    return names


def _sorted(folder: str | os.PathLike) -> list[os.DirEntry]:
    with os.scandir(folder) as entries:
        return sorted(entries, key=lambda entry: entry.name)


def _is_folder(entry: os.DirEntry, path: Path) -> bool | None:
    """Whether an entry is a folder; None if it is a link to itself, or to a folder above it."""
    try:
        is_folder = entry.is_dir()
    except OSError:
        return None
    leads_back = is_folder and entry.is_symlink() and path.resolve().is_relative_to(os.path.realpath(entry.path))
    return None if leads_back else is_folder
