"""Open a domain of face images, hold people out of it, join several with their identities apart.

A domain is a class folder (`identity/*.jpg`) or an InsightFace RecordIO folder (train.rec, train.idx). Its images are
numbered 0..images - 1, identity by identity: identity k has the images offsets[k] up to offsets[k + 1].

Shape suffixes: B = a batch of images.
"""

import os
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import numpy as np

from fastmfr.protocols.files import regular_bytes

SUFFIXES = (".jpg", ".jpeg", ".png")


class _Folder:
    """Images under `path`/identity/; keeps file names only."""

    def __init__(self, path):
        self.path = path
        self.identity_names, self.files = [], []
        for identity in sorted(entry.name for entry in _visible(path) if entry.is_dir()):
            if names := _image_names(path / identity):
                self.identity_names.append(identity)
                self.files.append(names)
        if not self.files:
            raise ValueError(
                f"{path} holds no domain: looked for train.rec, and for one folder an identity with images in it "
                f"({', '.join(SUFFIXES)}), and found neither"
            )
        self.offsets = np.fromiter(accumulate(map(len, self.files), initial=0), np.int64, len(self.files) + 1)

    def key(self, image):
        identity = int(np.searchsorted(self.offsets, image, side="right")) - 1
        return f"{self.identity_names[identity]}/{self.files[identity][image - int(self.offsets[identity])]}"

    def jpeg(self, image):
        path = self.path / self.key(image)
        try:
            return np.frombuffer(regular_bytes(path), np.uint8)
        except OSError as error:
            raise ValueError(f"{path} was there when the domain was opened and cannot be read now: {error}") from error

    def jpegs(self, images):
        return [self.jpeg(int(image)) for image in images]

    def identity_name(self, identity):
        return self.identity_names[identity]


class _Records:
    """Images of `path`/train.rec, read in place."""

    def __init__(self, path):
        if not (path / "train.idx").is_file():
            raise FileNotFoundError(f"{path} holds train.rec but not its index, train.idx; copy that too")
        try:
            from fastmfr import _native
        except ImportError as error:
            raise ImportError(
                "the compiled extension is not built; run `pip install -e .` in the repository"
            ) from error
        self._file = _native.RecordFile(str(path))
        self.offsets = self._file.offsets
        self.jpeg, self.jpegs = self._file.jpeg, self._file.jpegs

    def key(self, image):
        return f"train.rec:{self._file.key(image)}"

    def identity_name(self, identity):
        return str(self._file.label(int(self.offsets[identity])))


class Domain:
    """Encoded images grouped by identity; made by `open_domain`.

    `name`, `path`: what it is called, where it lies.
    `offsets`: int64 (identities + 1,), read-only; identity k has the images offsets[k] .. offsets[k + 1] - 1.
    """

    def __init__(self, name, path, source, chosen=None):
        self.name, self.path = name, path
        self._source, self._chosen = source, chosen  # chosen: identities of the source, or None for all
        self.offsets = source.offsets
        if chosen is not None:
            images = source.offsets[chosen + 1] - source.offsets[chosen]
            self.offsets = np.concatenate([[0], np.cumsum(images)])
        self.offsets.flags.writeable = False

    def __repr__(self):
        return f"Domain({self.name!r}, identities={self.identities:,}, images={self.images:,})"

    @property
    def identities(self):
        """How many identities it has; at least 1."""
        return len(self.offsets) - 1

    @property
    def images(self):
        """How many images it has; at least one an identity."""
        return int(self.offsets[-1])

    def jpeg(self, image):
        """The encoded bytes (JPEG or PNG) of one image, read-only uint8; ValueError where they cannot be read."""
        return self._source.jpeg(int(self._in_source(image)))

    def jpegs(self, images):
        """A list of what `jpeg` gives for each of `images`, int64 (B,), read from disk together; fails if one fails."""
        return self._source.jpegs(self._in_source(images))

    def key(self, image):
        """What a person can look an image up by: "s01/03.jpg", or "train.rec:17" for the record of key 17."""
        return self._source.key(int(self._in_source(image)))

    def identity_name(self, identity):
        """The identity's folder name, or its label in the RecordIO file."""
        if not 0 <= identity < self.identities:
            raise IndexError(f"identity {identity} of '{self.name}' was asked for; it has {self.identities:,}")
        return self._source.identity_name(int(identity if self._chosen is None else self._chosen[identity]))

    def people(self, numbers):
        """The domain restricted to the identities `numbers`, which are renumbered 0, 1, ... in that order."""
        numbers = np.asarray(numbers)
        if numbers.ndim != 1 or numbers.dtype.kind not in "iu" or not len(numbers):
            raise ValueError(f"want identity numbers of '{self.name}', one or more in a row, got {numbers!r}")
        if numbers.min() < 0 or numbers.max() >= self.identities or len(np.unique(numbers)) < len(numbers):
            raise ValueError(
                f"want different identity numbers of '{self.name}' from 0 to {self.identities - 1}, got "
                f"{len(numbers)} from {numbers.min()} to {numbers.max()}, {len(np.unique(numbers))} of them different"
            )
        numbers = numbers.astype(np.int64)
        return Domain(self.name, self.path, self._source, numbers if self._chosen is None else self._chosen[numbers])

    def _in_source(self, images):
        """Image numbers of this domain as image numbers of the source."""
        images = np.asarray(images, np.int64)
        if images.size and (images.min() < 0 or images.max() >= self.images):
            got = f"{images.min()} to {images.max()}"
            raise IndexError(f"the images of '{self.name}' are 0 to {self.images - 1}, got {got}")
        if self._chosen is None:
            return images
        identity = np.searchsorted(self.offsets, images, side="right") - 1
        return self._source.offsets[self._chosen[identity]] + images - self.offsets[identity]


def open_domain(path, name=None):
    """Open the class folder or RecordIO folder at `path`; `name` defaults to the folder's own.

    Hidden files, files that are not images, and identity folders without any are passed over. Raises
    FileNotFoundError where something is missing, and ValueError where the folder or its files are not a domain.
    """
    path = Path(path)
    if not path.is_dir():
        raise FileNotFoundError(f"there is no folder {path}; a domain is a folder of identities or with a train.rec")
    source = _Records(path) if (path / "train.rec").is_file() else _Folder(path)
    return Domain(name or path.resolve().name, path, source)


def _visible(folder):
    """The entries of a folder that are not hidden."""
    with os.scandir(folder) as entries:
        return [entry for entry in entries if not entry.name.startswith(".")]


def _image_names(folder):
    """The sorted names of the images in an identity's folder; refuses folders within it."""
    names = []
    for entry in _visible(folder):
        if entry.name.lower().endswith(SUFFIXES):
            names.append(entry.name)
        elif entry.is_dir():
            raise ValueError(
                f"{folder} holds the folder '{entry.name}' where images were looked for: a domain is "
                f"path/identity/image, no deeper; open {folder} itself, or move its images up"
            )
    return sorted(names)


@dataclass(frozen=True)
class Joint:
    """One label space for several domains: the identities of domain d are starts[d] .. starts[d + 1] - 1."""

    domains: tuple
    starts: np.ndarray

    @property
    def identities(self):
        """How many identities all domains have together."""
        return int(self.starts[-1])

    def label(self, domain_B, identity_B):
        """Joint labels, int64 (B,) in [0, identities), of identities given by domain and number within it."""
        domain_B, identity_B = np.asarray(domain_B, np.int64), np.asarray(identity_B, np.int64)
        if domain_B.size and (domain_B.min() < 0 or domain_B.max() >= len(self.starts) - 1):
            got = f"{domain_B.min()} to {domain_B.max()}"
            raise ValueError(f"the domains joined are 0 to {len(self.starts) - 2}, got {got}")
        label_B = self.starts[domain_B] + identity_B
        if ((identity_B < 0) | (label_B >= self.starts[domain_B + 1])).any():
            raise ValueError("an identity number is outside its domain; was the domain restricted after it was joined?")
        return label_B


def join(domains):
    """Number the identities of `domains` through, in their order, so that no two people share a label."""
    counts = [domain.identities for domain in domains]
    if not counts:
        raise ValueError("want at least one domain to join, got none")
    return Joint(tuple(domains), np.fromiter(accumulate(counts, initial=0), np.int64, len(counts) + 1))
