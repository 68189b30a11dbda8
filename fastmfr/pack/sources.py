"""List class folders, RecordIO folders and lists of files as sources; open any source by what its path is."""

import os
from pathlib import Path
from typing import BinaryIO

import numpy as np

from fastmfr.domains import open_domain
from fastmfr.protocols.class_folder import PassedOver, list_people
from fastmfr.protocols.files import entry_path, list_text, refuse_unless_regular, regular_bytes
from fastmfr.protocols.lists import image_root, path_and_label
from fastmfr.protocols.records import find_records

from .names import NAMES, kept_apart, known_names
from .parquet import list_parquet
from .source import Identities, Reading, Source, label_in_text
from .tar import list_tar

FIRST = 10  # files of a list by which its folder is found


class _Files(Source):
    """Images that are files, named by their path below `root`."""

    def __init__(self, path: Path, root: Path):
        super().__init__(path)
        self._root, self._files = root, []

    def find_root(self, listing: Path, root: Path | None) -> None:
        """Take the folder `root`, or the one that the files of a list are relative to."""
        self._root = root or image_root(listing, self._files[:FIRST])

    def append(self, file: str, identity: int) -> None:
        self._files.append(file)
        self.identity.append(identity)

    def key(self, image: int) -> str:
        return self._files[image]

    def read(self, image: int) -> bytes:
        return regular_bytes(self._root / self._files[image])


class _Records(Source):
    """Images of a RecordIO folder, to be packed again: resized, or without people of few images."""

    def __init__(self, path: Path, identities: Identities):
        super().__init__(path)
        self._domain = open_domain(path)
        self.notes += self._domain.notes
        known = known_names(self._domain.path)
        labels = [self._domain.identity_name(identity) for identity in range(self._domain.identities)]
        names = {label: known.get(label, label) for label in labels}
        if repeated := len(names) - len(set(names.values())):
            self.notes.append(
                f"{path / NAMES} has {repeated:,} labels under the name of another label; they stay different people"
            )
        for name, count in zip(kept_apart(names).values(), np.diff(self._domain.offsets).tolist(), strict=True):
            self.identity.extend([identities.number(name)] * count)

    def key(self, image: int) -> str:
        return self._domain.key(image)

    def read(self, image: int) -> bytes:
        return bytes(self._domain.jpeg(image))


def _list_folder(path: Path, identities: Identities) -> Source:
    """A class folder: every file that is not hidden counts, so that a file that is no image is refused and reported."""
    source, passed = _Files(path, path), PassedOver()
    for name, files in list_people(path, lambda entry: True, passed):
        for file in files:
            source.append(f"{name}/{file}", identities.number(name))
    if not source.identity:
        raise ValueError(
            f"{path} holds nothing to pack: looked for one folder an identity with images in it, and for train.rec"
            f"{''.join(f'; {note}' for note in passed.notes(path))}"
        )
    source.notes += passed.notes(path)
    return source


def _list_list(path: Path, identities: Identities, reading: Reading) -> Source:
    """A text file of lines as of `path_and_label`.

    Folders are separated by / or \\. Empty lines and lines that begin with # are skipped.
    """
    source = _Files(path, path.parent)
    try:
        text = list_text(path)
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is no source: want a class folder, a .tar or .parquet file, or a text file of lines "
            "`path<TAB>label`, got a file that is none of these"
        ) from error
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        file, label = path_and_label(line)
        if not entry_path(file) or not (label.strip() or reading.pattern):
            raise ValueError(f"line {number} of {path} is not a path, a tab or space, and a label: {line[:100]!r}")
        try:
            found = reading.label_in(entry_path(file)) if reading.pattern else label_in_text(label)
            source.append(entry_path(file), identities.number(found))
        except ValueError as reason:
            source.refused.append((entry_path(file), str(reason)))
    source.find_root(path, reading.root)
    return source


def open_source(
    path: str | os.PathLike, identities: Identities, spill: BinaryIO, reading: Reading | None = None
) -> Source:
    """List the source at `path`: a class folder, RecordIO folder, .tar or .parquet file, or a list of files.

    Args:
        path: the file or folder.
        identities: the numbers of people met so far; people new to them are added.
        spill: a binary file that takes the image bytes of formats without access to single images.
        reading: names that are not the usual ones.

    Raises:
        FileNotFoundError: nothing is at `path`.
        ValueError: `path` is no source, or is damaged.
        ImportError: the file is Parquet, and pyarrow is missing.
    """
    path, reading = Path(path), reading or Reading()
    if find_records(path):
        return _Records(path, identities)
    if path.is_dir():
        return _list_folder(path, identities)
    if not path.exists():
        raise FileNotFoundError(f"there is no {path}; a source is a class folder, a .tar or .parquet file, or a list")
    refuse_unless_regular(path)
    if path.suffix.lower() == ".tar":
        return list_tar(path, identities, reading)
    if path.suffix.lower() == ".parquet":
        return list_parquet(path, identities, spill, reading)
    if path.name.lower().endswith((".tar.gz", ".tgz", ".tar.zst", ".tar.bz2", ".tar.xz")):
        raise ValueError(f"{path} is compressed, so that its images cannot be reached one by one; unpack it to a .tar")
    return _list_list(path, identities, reading)
