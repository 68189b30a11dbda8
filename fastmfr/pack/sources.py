"""What can be packed. A source is listed first, without the bytes of its images, and then read in any order."""

import os
from array import array
from pathlib import Path

from fastmfr.domains import open_domain
from fastmfr.protocols.files import entry_path, list_text, refuse_unless_regular, regular_bytes


class Identities:
    """Numbers for names, in the order in which they are first met; one name is one person, in whatever source."""

    def __init__(self):
        self._numbers = {}

    def __len__(self):
        return len(self._numbers)

    def number(self, label):
        """The number of the person labelled `label`, a whole number or a text; ValueError says what else it is."""
        name = str(label).strip()
        if isinstance(label, bool) or not isinstance(label, int | str) or not name:
            raise ValueError(f"its label is {label!r}; want a whole number or a name")
        return self._numbers.setdefault(name, len(self._numbers))

    def names(self):
        """The names, by number."""
        return list(self._numbers)


class Source:
    """The images of one source; image i is of person `identity[i]`. `refused`: (key, reason) of what was not listed."""

    def __init__(self, path):
        self.path = path
        self.identity = array("i")
        self.refused = []

    def key(self, image: int) -> str:
        """What a person can look the image up by."""
        raise NotImplementedError

    def read(self, image: int) -> bytes:
        """The encoded image; ValueError or OSError where it cannot be read."""
        raise NotImplementedError


class _Files(Source):
    """Images that are files, named by their path below `root`."""

    def __init__(self, path, root):
        super().__init__(path)
        self._root, self._files = root, []

    def append(self, file, identity):
        self._files.append(file)
        self.identity.append(identity)

    def key(self, image):
        return self._files[image]

    def read(self, image):
        return regular_bytes(self._root / self._files[image])


class _Records(Source):
    """Images of a RecordIO folder, to be packed anew: resized, or without people of few images."""

    def __init__(self, path, identities):
        super().__init__(path)
        self._domain = open_domain(path)
        names = known_names(path)
        for identity in range(self._domain.identities):
            label = self._domain.identity_name(identity)
            count = int(self._domain.offsets[identity + 1] - self._domain.offsets[identity])
            self.identity.extend([identities.number(names.get(label, label))] * count)

    def key(self, image):
        return self._domain.key(image)

    def read(self, image):
        return bytes(self._domain.jpeg(image))


def known_names(folder) -> dict[str, str]:
    """{label: name}, both text, of the identities.txt in a packed folder; empty where there is none."""
    try:
        text = list_text(Path(folder) / "identities.txt")
    except FileNotFoundError:
        return {}
    parts = (line.partition("\t") for line in text.split("\n"))
    return {label: name for label, tab, name in parts if tab}


def _list_folder(path, identities):
    """A class folder: every file that is not hidden counts, so that what is no image gets refused and reported."""
    source = _Files(path, path)
    for folder in sorted((entry for entry in _visible(path) if entry.is_dir()), key=lambda entry: entry.name):
        for entry in sorted(_visible(folder.path), key=lambda entry: entry.name):
            if entry.is_dir():
                raise ValueError(
                    f"{folder.path} holds the folder '{entry.name}' where images were looked for: a class "
                    "folder is path/identity/image, no deeper; pack that one, or move its images up"
                )
            source.append(f"{folder.name}/{entry.name}", identities.number(folder.name))
    if not source.identity:
        raise ValueError(
            f"{path} holds nothing to pack: looked for one folder an identity with images in it, and for train.rec"
        )
    return source


def _visible(folder):
    with os.scandir(folder) as entries:
        return [entry for entry in entries if not entry.name.startswith(".")]


def _list_list(path, identities):
    """A text file of lines `path<TAB>label`, or `path label` where no tab is; paths are relative to the file.

    Folders are apart by / or \\. Empty lines and those that begin with # are skipped.
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
        file, _, label = line.rpartition("\t") if "\t" in line else line.rstrip().rpartition(" ")
        if not entry_path(file) or not label.strip():
            raise ValueError(f"line {number} of {path} is not a path, a tab or space, and a label: {line[:100]!r}")
        source.append(entry_path(file), identities.number(label))
    return source


def open_source(path, identities, spill):
    """List the source at `path`: a class folder, RecordIO folder, .tar or .parquet file, or a list of files.

    Numbers people by `identities`. `spill`: a binary file for the bytes of formats without access to single images.
    Raises FileNotFoundError where nothing is there, and ValueError where it is no source or is damaged.
    """
    path = Path(path)
    if path.is_dir():
        return _Records(path, identities) if (path / "train.rec").is_file() else _list_folder(path, identities)
    if not path.exists():
        raise FileNotFoundError(f"there is no {path}; a source is a class folder, a .tar or .parquet file, or a list")
    refuse_unless_regular(path)
    if path.suffix.lower() == ".tar":
        from .tar import list_tar

        return list_tar(path, identities)
    if path.suffix.lower() == ".parquet":
        from .parquet import list_parquet

        return list_parquet(path, identities, spill)
    if path.name.lower().endswith((".tar.gz", ".tgz", ".tar.zst", ".tar.bz2", ".tar.xz")):
        raise ValueError(f"{path} is compressed, so that its images cannot be reached one by one; unpack it to a .tar")
    return _list_list(path, identities)
