"""WebDataset shards as a source: consecutive members that share a name up to its last dot are one sample.

A sample is an image, `key.jpg`, `key.png` or the like, with `key.cls` (the label as text) or `key.json` (with "label"
in it). In a tar without any label the folder of an image is its label, as in a class folder that was put into a tar.
`Reading` says which member is the image and which the label, or what of a name is the label, if these are others.
Members are found once and read in place; none is unpacked, so no name in a tar ever becomes a path. Every member that
is not taken is reported: it is refused, or counted if the rest of its sample is taken.
"""

import json
import os
import re
import tarfile
from array import array
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from fastmfr.decode.encoded import START, format_of
from fastmfr.protocols.class_folder import SUFFIXES

from .source import Identities, Reading, Source, label_in_text

IMAGES = tuple(suffix[1:] for suffix in SUFFIXES)
USUAL = 3  # the first of IMAGES, which are taken if a sample has a second image of another format
LABELS = ("cls", "json")
LABEL_BYTES = 1 << 20  # real labels take a few bytes; a label of gigabytes is not read
BLOCK = 512
# what tarfile raises on damage; the last three on bad sizes
DAMAGE = (tarfile.TarError, EOFError, OSError, OverflowError, MemoryError, ValueError)
_NAME = re.compile(r"(.*[^/])\.([^./]*)", re.DOTALL)
_NEITHER = "neither an image nor a label by its name"


class _Tar(Source):
    """Images at byte ranges of a tar file. Each read opens the file: there may be more shards than open files."""

    def __init__(self, path: Path):
        super().__init__(path)
        self._offsets, self._lengths = array("q"), array("q")

    def append(self, member: tarfile.TarInfo, identity: int) -> None:
        self.identity.append(identity)
        self._offsets.append(member.offset_data)
        self._lengths.append(member.size)

    def take_over(self, other: "_Tar", image: int, identity: int) -> None:
        """Append an image of another list of the same file."""
        self.identity.append(identity)
        self._offsets.append(other._offsets[image])
        self._lengths.append(other._lengths[image])

    def starts_image(self, member: tarfile.TarInfo) -> bool:
        """Whether a member's content is that of an image."""
        return format_of(self._at(member.offset_data, min(member.size, START))) is not None

    def key(self, image: int) -> str:
        header = tarfile.TarInfo.frombuf(self._at(self._offsets[image] - BLOCK, BLOCK), "utf-8", "surrogateescape")
        return f"{self.path.name}:{header.name}"  # not kept: the names of 50 million members are 5 GB

    def read(self, image: int) -> bytes:
        encoded = self._at(self._offsets[image], self._lengths[image])
        if len(encoded) < self._lengths[image]:
            raise ValueError("cut short: the tar file ends within it")
        return encoded

    def _at(self, offset: int, length: int) -> bytes:
        descriptor = os.open(self.path, os.O_RDONLY)
        try:
            return os.pread(descriptor, length, offset)
        finally:
            os.close(descriptor)


@dataclass(frozen=True)
class _Suffixes:
    """The suffixes of images and of labels, none if names hold the labels, and the key of the label in a .json."""

    images: tuple[str, ...]
    labels: tuple[str, ...]
    key: str

    @classmethod
    def of(cls, reading: Reading) -> "_Suffixes":
        label, _, key = (reading.label or "").partition(":")
        images = (reading.image.lower().lstrip("."),) if reading.image else IMAGES
        labels = () if reading.pattern else (label.lower().lstrip("."),) if label else LABELS
        return cls(images, labels, key or "label")


class _Sample:
    """Members of one key: one at most of each suffix of an image or label, and what lies beside them."""

    def __init__(self, key: str, suffixes: _Suffixes):
        self.key, self.beside, self._suffixes = key, list[tarfile.TarInfo](), suffixes
        self.members: dict[str, tarfile.TarInfo] = {}

    @property
    def labelled(self) -> bool:
        return any(suffix in self.members for suffix in self._suffixes.labels)

    @property
    def whole(self) -> bool:
        return self.labelled and any(suffix in self.members for suffix in self._suffixes.images)

    def add(self, key: str, suffix: str, member: tarfile.TarInfo) -> bool:
        """Take a member if it belongs to this sample; tell whether it does."""
        known, extends = suffix in self._suffixes.images + self._suffixes.labels, key.startswith(f"{self.key}.")
        if key == self.key and known and suffix not in self.members:
            self.members[suffix] = member
        elif (not known and (key == self.key or extends)) or (extends and not self.whole):
            self.beside.append(member)  # such as 01.txt or 01.mask.png of sample 01
        else:
            return False
        return True


class _Listing:
    """The source that a tar's samples become."""

    def __init__(self, path: Path, identities: Identities, reading: Reading):
        self.source, self.suffixes, self._reading = _Tar(path), _Suffixes.of(reading), reading
        self._identities, self._labelled, self._passed = identities, False, Counter()
        self._unlabelled, self._folders = _Tar(path), Identities()  # images without a label, and their folders

    def refuse(self, name: str, reason: object) -> None:
        self.source.refused.append((f"{self.source.path.name}:{name}", str(reason)))

    def take(self, tar: tarfile.TarFile, sample: _Sample) -> None:
        if self._reading.pattern:
            self._take_by_name(sample)
            return
        if not sample.labelled:
            for member in (*sample.members.values(), *sample.beside):
                self._hold_image(member)
            return
        self._labelled = True
        images = [member for suffix, member in sample.members.items() if suffix in self.suffixes.images]
        try:
            image = _image(sample.members, self.suffixes)
            self.source.append(image, self._identities.number(_label(tar, sample.members, self.suffixes)))
        except ValueError as reason:
            self.refuse(sample.key, reason)
            for member in sample.beside:
                self.refuse(member.name, f"it belongs to {sample.key}, which was refused")
            return
        self._passed.update(PurePosixPath(one.name).suffix for one in (*images, *sample.beside) if one is not image)

    def _take_by_name(self, sample: _Sample) -> None:
        """Take the images of a sample under the label in their names."""
        for member in sample.members.values():
            try:
                self.source.append(member, self._identities.number(self._reading.label_in(member.name)))
            except ValueError as reason:
                self.refuse(member.name, reason)
        self._passed.update(PurePosixPath(one.name).suffix for one in sample.beside)

    def _hold_image(self, member: tarfile.TarInfo) -> None:
        """Keep an image without a label until it is known whether the tar has labels at all."""
        path = PurePosixPath(member.name)
        if path.suffix and path.suffix[1:].lower() not in self.suffixes.images:
            self._passed[path.suffix] += 1
        else:
            self._unlabelled.append(member, self._folders.number(path.parent.name or "."))

    def done(self) -> Source:
        """The source, once all samples are taken."""
        folders = self._folders.names()
        for image, folder in enumerate(self._unlabelled.identity):
            if self._labelled or folders[folder] == ".":
                beside = " or ".join(f".{suffix}" for suffix in self.suffixes.labels)
                reason = f"no label: want {beside} beside the image, or no label in the tar and folders of people"
                self.source.refused.append((self._unlabelled.key(image), reason))
            else:
                self.source.take_over(self._unlabelled, image, self._identities.number(folders[folder]))
        if self._passed:
            counts = ", ".join(f"{count:,} of {suffix!r}" for suffix, count in sorted(self._passed.items()))
            self.source.notes.append(f"passed over in {self.source.path}, members beside images by suffix: {counts}")
        return self.source


def list_tar(path: Path, identities: Identities, reading: Reading) -> Source:
    """List the samples of the shard at `path`, with people numbered by `identities`.

    A sample without one image and one label is refused, with the reason.

    Raises:
        ValueError: the file is damaged or compressed.
    """
    listing = _Listing(path, identities, reading)
    try:
        with tarfile.open(path, "r:", encoding="utf-8", errors="surrogateescape") as tar:
            for sample in _samples(tar, listing.suffixes, listing.source.starts_image, listing.refuse):
                listing.take(tar, sample)
            return listing.done()
    except DAMAGE as error:
        raise ValueError(f"{path} is not a whole, uncompressed tar file ({error}); unpack or fetch it again") from error


def _samples(
    tar: tarfile.TarFile,
    suffixes: _Suffixes,
    starts_image: Callable[[tarfile.TarInfo], bool],
    refuse: Callable[[str, str], None],
) -> Iterator[_Sample]:
    """Every sample with an image or a label; what belongs to none is refused."""
    current = None
    while (member := tar.next()) is not None:
        tar.members = []  # pyright: ignore[reportAttributeAccessIssue]  # tarfile keeps every member in memory
        if member.size < 0:
            raise tarfile.ReadError("a member of negative size")  # the next one would be this one again
        if member.isdir():
            continue
        if not member.isfile() or member.issparse():
            refuse(member.name, "a link or a special file; want a regular one")
            continue
        name = _NAME.fullmatch(member.name)
        key, suffix = (name[1], name[2].lower()) if name else (member.name, "")
        if not name and starts_image(member):
            suffix = suffixes.images[0]
        if current and current.add(key, suffix, member):
            continue
        if suffix not in suffixes.images + suffixes.labels:
            refuse(member.name, _NEITHER)
            continue
        if current:
            yield current
        current = _Sample(key, suffixes)
        current.add(key, suffix, member)
    if current:
        yield current


def _image(members: dict[str, tarfile.TarInfo], suffixes: _Suffixes) -> tarfile.TarInfo:
    found = [members[suffix] for suffix in suffixes.images[:USUAL] if suffix in members]
    found = found or [members[suffix] for suffix in suffixes.images[USUAL:] if suffix in members]
    if len(found) != 1:
        raise ValueError("more than one image of this key" if found else "no image beside the label")
    return found[0]


def _label(tar: tarfile.TarFile, members: dict[str, tarfile.TarInfo], suffixes: _Suffixes) -> object:
    """The label in the sample's member of a label, of any type that JSON has if that is a .json."""
    suffix = next(suffix for suffix in suffixes.labels if suffix in members)
    member = members[suffix]
    if member.size > LABEL_BYTES:
        raise ValueError(f"its label has {member.size:,} bytes; want a number or a name")
    file = tar.extractfile(member)
    assert file is not None  # it is a regular member
    content = file.read()
    if suffix != "json":
        return label_in_text(content.decode("utf-8", "backslashreplace"))
    try:
        found = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ValueError("its .json is not JSON") from error
    if not isinstance(found, dict) or suffixes.key not in found:
        raise ValueError(f'its .json holds no "{suffixes.key}"')
    return found[suffixes.key]
