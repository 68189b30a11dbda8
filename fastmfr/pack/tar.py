"""WebDataset shards as a source: consecutive members that share a name up to its first dot are one sample.

A sample is `key.jpg`, `key.jpeg` or `key.png` with `key.cls` (the label as text) or `key.json` (with "label" in it).
Members are found once and read in place; none is unpacked, so no name in a tar ever becomes a path.
"""

import json
import os
import re
import tarfile
from array import array
from collections.abc import Iterator
from pathlib import Path

from .source import Identities, Source, label_in_text

IMAGES = ("jpg", "jpeg", "png")
LABELS = ("cls", "json")
LABEL_BYTES = 1 << 20  # real labels take a few bytes; a label of gigabytes is not read
BLOCK = 512
# what tarfile raises on damage; the last three on bad sizes
DAMAGE = (tarfile.TarError, EOFError, OSError, OverflowError, MemoryError, ValueError)
_NAME = re.compile(r"((?:.*/)?[^./]+)\.([^/]*)", re.DOTALL)


class _Tar(Source):
    """Images at byte ranges of a tar file. Each read opens the file: there may be more shards than open files."""

    def __init__(self, path: Path):
        super().__init__(path)
        self._offsets, self._lengths = array("q"), array("q")

    def append(self, member: tarfile.TarInfo, identity: int) -> None:
        self.identity.append(identity)
        self._offsets.append(member.offset_data)
        self._lengths.append(member.size)

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


def list_tar(path: Path, identities: Identities) -> Source:
    """List the samples of the shard at `path`, with people numbered by `identities`.

    A sample without one image and one label is refused, with the reason.

    Raises:
        ValueError: the file is damaged or compressed.
    """
    source = _Tar(path)
    try:
        with tarfile.open(path, "r:", encoding="utf-8", errors="surrogateescape") as tar:
            for key, members in _samples(tar):
                try:
                    image, label = _image(members), _label(tar, members)
                    source.append(image, identities.number(label))
                except ValueError as reason:
                    source.refused.append((f"{path.name}:{key}", str(reason)))
    except DAMAGE as error:
        raise ValueError(f"{path} is not a whole, uncompressed tar file ({error}); unpack or fetch it again") from error
    return source


def _samples(tar: tarfile.TarFile) -> Iterator[tuple[str | None, dict[str, tarfile.TarInfo]]]:
    """(key, {suffix: member}) of every sample with an image or a label."""
    current, members = None, {}
    while (member := tar.next()) is not None:
        tar.members = []  # pyright: ignore[reportAttributeAccessIssue]  # tarfile keeps every member in memory
        if member.size < 0:
            raise tarfile.ReadError("a member of negative size")  # the next one would be this one again
        name = _NAME.fullmatch(member.name)
        suffix = name[2].lower() if name else None
        if not name or suffix not in IMAGES + LABELS or not member.isfile() or member.issparse():
            continue
        if name[1] != current or suffix in members:
            if members:
                yield current, members
            current, members = name[1], {}
        members[suffix] = member
    if members:
        yield current, members


def _image(members: dict[str, tarfile.TarInfo]) -> tarfile.TarInfo:
    found = [members[suffix] for suffix in IMAGES if suffix in members]
    if len(found) != 1:
        raise ValueError("more than one image of this key" if found else "no image beside the label")
    return found[0]


def _label(tar: tarfile.TarFile, members: dict[str, tarfile.TarInfo]) -> object:
    """The label in the sample's .cls or .json, of any type that JSON has."""
    member = members.get("cls") or members.get("json")
    if member is None:
        raise ValueError("no label: want .cls or .json beside the image")
    if member.size > LABEL_BYTES:
        raise ValueError(f"its label has {member.size:,} bytes; want a number or a name")
    file = tar.extractfile(member)
    assert file is not None  # it is a regular member
    content = file.read()
    if member is members.get("cls"):
        return label_in_text(content.decode("utf-8", "backslashreplace"))
    try:
        found = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ValueError("its .json is not JSON") from error
    if not isinstance(found, dict) or "label" not in found:
        raise ValueError('its .json holds no "label"')
    return found["label"]
