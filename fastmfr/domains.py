"""Open a domain of face images, restrict the domain to some people, join several domains under one set of labels.

A domain is a class folder (`identity/image`) or an InsightFace RecordIO folder (train.rec, train.idx). Its images are
numbered 0..images - 1, identity by identity: identity k has the images offsets[k] up to offsets[k + 1].

Shape suffixes: B = a batch of images.
"""

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from fastmfr.image_set import ImageSet, part_of
from fastmfr.protocols.class_folder import PassedOver, is_image, list_people
from fastmfr.protocols.files import regular_bytes
from fastmfr.protocols.records import Records, find_records

__all__ = ["SIZED", "Domain", "Joint", "join", "open_domain", "people_of"]

SIZED = 100_000  # images of a folder up to which the size of every file is part of its fingerprint


class _Folder:
    """Images under `path`/identity/; keeps file names only."""

    def __init__(self, path: Path):
        self.path, passed = path, PassedOver()
        people = list_people(path, is_image, passed)
        self.identity_names, self.files = [name for name, _ in people], [files for _, files in people]
        if not self.files:
            raise ValueError(
                f"{path} holds no domain: looked for train.rec, and for one folder an identity with images in it, and "
                f"found neither{''.join(f'; {note}' for note in passed.notes(path))}"
            )
        self.notes = passed.notes(path)
        self.offsets = np.fromiter(accumulate(map(len, self.files), initial=0), np.int64, len(self.files) + 1)

    def key(self, image: int) -> str:
        identity = int(part_of(self.offsets, image))
        return f"{self.identity_names[identity]}/{self.files[identity][image - int(self.offsets[identity])]}"

    def jpeg(self, image: int) -> np.ndarray:
        path = self.path / self.key(image)
        try:
            return np.frombuffer(regular_bytes(path), np.uint8)
        except OSError as error:
            raise ValueError(f"{path} was there when the domain was opened and cannot be read now: {error}") from error

    def jpegs(self, images: np.ndarray) -> list[np.ndarray]:
        return [self.jpeg(int(image)) for image in images]

    def identity_name(self, identity: int) -> str:
        return self.identity_names[identity]

    def add_to(self, digest: Any) -> None:
        """Hash the names of all files, and sizes: of all if they are few, else of each identity's first."""
        few = int(self.offsets[-1]) <= SIZED
        for identity, names in zip(self.identity_names, self.files, strict=True):
            digest.update("\0".join(["", identity, *names]).encode("utf-8", "surrogateescape"))
            for name in names if few else names[:1]:
                digest.update(b"%d" % _size(self.path / identity / name))


def _size(path):
    """The size of a file in bytes, -1 if it is gone."""
    try:
        return path.stat().st_size
    except OSError:
        return -1


class Domain(ImageSet):
    """Encoded images grouped by identity; `open_domain` makes one.

    Attributes:
        name: what reports call the domain.
        path: the folder of the domain.
        offsets: int64 (identities + 1,), read-only. Identity k has the images offsets[k] up to offsets[k + 1] - 1, at
            least one.
        notes: sentences on what was passed over when the domain was opened.
        person: int64 (identities,), the person of each identity: two identities, of this domain or of another one,
            with one number are one person. None: every identity is a person of its own.
    """

    def __init__(
        self,
        name: str,
        path: Path,
        source: _Folder | Records,
        chosen: np.ndarray | None = None,
        person: np.ndarray | None = None,
    ):
        """Make a domain of the identities `chosen`, int64, of an opened source; None chooses all."""
        self.name, self.path, self.person = name, path, person
        self._source, self._chosen, self.notes = source, chosen, source.notes
        self.offsets = source.offsets
        if chosen is not None:
            images = source.offsets[chosen + 1] - source.offsets[chosen]
            self.offsets = np.concatenate([[0], np.cumsum(images)])
        self.offsets.flags.writeable = False

    @property
    def has_records(self) -> bool:
        """Whether the images are records of one file; else each is a file."""
        return isinstance(self._source, Records)

    def __repr__(self):
        return f"Domain({self.name!r}, identities={self.identities:,}, images={self.images:,})"

    def jpeg(self, image: int) -> np.ndarray:
        """Return the encoded bytes (JPEG or PNG) of one image, read-only uint8; ValueError if they cannot be read."""
        return self._source.jpeg(int(self._in_source(image)))

    def jpegs(self, images: ArrayLike) -> list[np.ndarray]:
        """Return `jpeg` of each of `images`, int64 (B,), read from disk together; one failure fails the call."""
        return self._source.jpegs(self._in_source(images))

    def key(self, image: int) -> str:
        """Return what a person can find an image by: "s01/03.jpg", or "train.rec:17" for the record of key 17."""
        return self._source.key(int(self._in_source(image)))

    def identity_name(self, identity: int) -> str:
        """Return the identity's folder name, or the identity's label in the RecordIO file."""
        if not 0 <= identity < self.identities:
            raise IndexError(f"identity {identity} of '{self.name}' was asked for; it has {self.identities:,}")
        return self._source.identity_name(int(identity if self._chosen is None else self._chosen[identity]))

    def fingerprint(self) -> str:
        """Return a hash of what the domain holds, without reading an image; another one where images have changed.

        It is made of the identities chosen, and of a folder's file names and sizes (above 100,000 images: the size of
        each identity's first file), or of the size of train.rec and the content of train.idx; and of the landmarks.
        """
        digest = hashlib.sha256(self.offsets.tobytes())
        if self._chosen is not None:
            digest.update(self._chosen.tobytes())
        if self.landmark_N52 is not None:
            digest.update(self.landmark_N52.tobytes())
        if self.person is not None:
            digest.update(self.person.tobytes())
        self._source.add_to(digest)
        return digest.hexdigest()

    def people(self, numbers: ArrayLike) -> "Domain":
        """Restrict the domain to the identities `numbers`, which are renumbered 0, 1, ... in that order.

        Args:
            numbers: different identity numbers of this domain, at least one.

        Raises:
            ValueError: a number is given twice or outside the domain, or no number is given.
        """
        numbers = np.asarray(numbers)
        if numbers.ndim != 1 or numbers.dtype.kind not in "iu" or not len(numbers):
            raise ValueError(f"want identity numbers of '{self.name}', one or more in a row, got {numbers!r}")
        if numbers.min() < 0 or numbers.max() >= self.identities or len(np.unique(numbers)) < len(numbers):
            raise ValueError(
                f"want different identity numbers of '{self.name}' from 0 to {self.identities - 1}, got "
                f"{len(numbers)} from {numbers.min()} to {numbers.max()}, {len(np.unique(numbers))} of them different"
            )
        numbers = numbers.astype(np.int64)
        place = numbers if self._chosen is None else self._chosen[numbers]
        person = None if self.person is None else self.person[numbers]
        chosen = Domain(self.name, self.path, self._source, place, person)
        if self.landmark_N52 is not None:
            moved = self.offsets[numbers] - chosen.offsets[:-1]
            image_N = np.arange(chosen.images) + np.repeat(moved, np.diff(chosen.offsets))
            chosen.landmark_N52 = self.landmark_N52[image_N]
        return chosen

    def with_persons(self, person: ArrayLike) -> "Domain":
        """Return the domain with the person of each identity, whole numbers (identities,), as of `Domain.person`."""
        person = np.asarray(person, np.int64)
        if person.shape != (self.identities,):
            raise ValueError(
                f"want a person for each of the {self.identities:,} identities of '{self.name}', got {person.shape}"
            )
        named = Domain(self.name, self.path, self._source, self._chosen, person)
        named.landmark_N52 = self.landmark_N52
        return named

    def _in_source(self, images: ArrayLike) -> np.ndarray:
        """Image numbers of this domain as image numbers of the source."""
        images = np.asarray(images, np.int64)
        if images.size and (images.min() < 0 or images.max() >= self.images):
            got = f"{images.min()} to {images.max()}"
            raise IndexError(f"the images of '{self.name}' are 0 to {self.images - 1}, got {got}")
        if self._chosen is None:
            return images
        identity = self.identity_of(images)
        return self._source.offsets[self._chosen[identity]] + images - self.offsets[identity]


def open_domain(path: str | os.PathLike, name: str | None = None) -> Domain:
    """Open the class folder or RecordIO folder at `path`.

    Hidden files, files that are no images, folders without an image and links that lead back are passed over, and
    counted in the domain's `notes`. A file is an image by its suffix or by its content.

    Args:
        path: a folder of one folder per identity, or a folder with train.rec and train.idx. The two may have another
            name, if they are alone in the folder or `path` is the .rec file; an index that is missing is made and kept
            beside the records.
        name: what reports call the domain; by default the name of the folder.

    Raises:
        FileNotFoundError: the folder is missing.
        ValueError: the folder or its files are no domain.
    """
    path = Path(path)
    found = find_records(path)
    if not found and not path.is_dir():
        raise FileNotFoundError(f"there is no folder {path}; a domain is a folder of identities or with a train.rec")
    source = Records(*found) if found else _Folder(path)
    return Domain(name or path.resolve().name, path if path.is_dir() else path.parent, source)


@dataclass(frozen=True)
class Joint:
    """One label space for several domains: the identities of domain d are starts[d] .. starts[d + 1] - 1.

    If identities are one person, `labels` holds the label of each of these numbers; labels are then numbered in the
    order in which people are first met.
    """

    domains: tuple[Domain, ...]
    starts: np.ndarray
    labels: np.ndarray | None = None

    @property
    def identities(self) -> int:
        """The number of labels: of the people of all domains together."""
        return int(self.starts[-1] if self.labels is None else self.labels.max() + 1)

    @property
    def images(self) -> int:
        """The number of images of all domains together."""
        return sum(domain.images for domain in self.domains)

    @property
    def people(self) -> list[np.ndarray] | None:
        """By domain the label of each identity, int64 (identities,); None if no two identities are one person."""
        return None if self.labels is None else np.split(self.labels, self.starts[1:-1])

    def who(self) -> list[tuple[str, str] | int]:
        """Return the person of each label, in a way that other joined domains know: (domain, name), or the number."""
        return list(dict.fromkeys(person for domain in self.domains for person in _who(domain)))

    def label(self, domain_B: ArrayLike, identity_B: ArrayLike) -> np.ndarray:
        """Number identities in the joint label space.

        Args:
            domain_B: the place of each identity's domain in `domains`.
            identity_B: the number of each identity within its domain.

        Returns:
            Joint labels, int64 (B,), in [0, identities).

        Raises:
            ValueError: a domain or an identity does not exist.
        """
        domain_B, identity_B = np.asarray(domain_B, np.int64), np.asarray(identity_B, np.int64)
        if domain_B.size and (domain_B.min() < 0 or domain_B.max() >= len(self.starts) - 1):
            got = f"{domain_B.min()} to {domain_B.max()}"
            raise ValueError(f"the domains joined are 0 to {len(self.starts) - 2}, got {got}")
        label_B = self.starts[domain_B] + identity_B
        if ((identity_B < 0) | (label_B >= self.starts[domain_B + 1])).any():
            raise ValueError("an identity number is outside its domain; was the domain restricted after it was joined?")
        return label_B if self.labels is None else self.labels[label_B]


def join(domains: Sequence[Domain]) -> Joint:
    """Number the identities of all `domains` in order, so that two have one label only if they are one person."""
    counts = [domain.identities for domain in domains]
    if not counts:
        raise ValueError("want at least one domain to join, got none")
    starts = np.fromiter(accumulate(counts, initial=0), np.int64, len(counts) + 1)
    persons = [domain.person for domain in domains if domain.person is not None]
    return Joint(tuple(domains), starts, _labels(np.concatenate(persons)) if len(persons) == len(counts) else None)


def people_of(domains: Mapping[str, Domain]) -> dict[str, np.ndarray] | None:
    """Return the person of each identity, int64 (identities,), by domain; None if nobody is in two domains."""
    people = join(list(domains.values())).people
    return None if people is None else dict(zip(domains, people, strict=True))


def _who(domain: Domain) -> list:
    """The person of each identity of a domain."""
    if domain.person is not None:
        return domain.person.tolist()
    return [(domain.name, domain.identity_name(identity)) for identity in range(domain.identities)]


def _labels(person: np.ndarray) -> np.ndarray | None:
    """The number of each person in the order in which people are first met; None if all are different."""
    distinct, first, number = np.unique(person, return_index=True, return_inverse=True)
    if len(distinct) == len(person):
        return None
    rank = np.empty(len(distinct), np.int64)
    rank[np.argsort(first)] = np.arange(len(distinct))
    return rank[number]
