"""The index of a RecordIO file, made from the records if it is missing, or with the records left out that are no use.

    train.idx   a line `key<TAB>byte offset` for each record; the layout of records is in fastmfr/pack/writer.py

Only the first bytes of each record are read. This is the slow way, for files that csrc/recordio.cpp refuses.
"""

import os
import struct
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

MAGIC = struct.pack("<I", 0xCED7230A)
_PREFIX = struct.Struct("<4sI")
_HEAD = 128  # bytes of a record that are looked at: headers, the first labels, the start of the image
_SEARCH = 1 << 20  # bytes read at a time to find the next record after a damaged one
_MOST_KEY = (1 << 32) - 2
_ENDS, _LONGER = "the file ends within it", "it is longer than the rest of the file"
_STARTS = (b"\xff\xd8\xff", b"\x89PNG")


class _Layout(NamedTuple):
    """How a record's header is laid out, as csrc/record.hpp has it."""

    header: struct.Struct  # extra labels, label, id, id2
    label: str  # the type of a label
    exact: int  # labels are exact below


_LAYOUTS = (_Layout(struct.Struct("<IfQQ"), "f", 1 << 24), _Layout(struct.Struct("<I4xdQQ"), "d", 1 << 53))


class Index(NamedTuple):
    """An index made from records.

    Attributes:
        text: the lines of the file.
        left_out: (key or byte offset, reason) of each record that is left out.
        cut_short: whether the last record goes beyond the end of the file.
    """

    text: str
    left_out: list[tuple[str, str]]
    cut_short: bool


def index_of(records: Path, index: Path | None = None) -> Index:
    """Make an index of the records that can be used.

    Args:
        records: the RecordIO file.
        index: its index, whose keys are kept; None finds the records one after the other, and takes the keys out of
            them, or numbers them from 0 if two have the same key.

    Raises:
        OSError: a file cannot be read.
        ValueError: the index is no index, or places a record outside the file.
    """
    file = os.open(records, os.O_RDONLY | os.O_CLOEXEC)
    try:
        size = os.fstat(file).st_size
        entries = list(_listed(index, size)) if index else [(None, at) for at in _walk(file, size)]
        layout = _layout(file, [at for _, at in entries[:64]])
        last = max((at for _, at in entries), default=0)
        offsets, keys, left_out, cut_short = array("Q"), array("Q"), [], False
        for key, at in entries:
            own_key, reason = _look(file, at, size, layout)
            cut_short |= at == last and reason in (_ENDS, _LONGER)
            if reason:
                left_out.append((f"key {key}" if key is not None else f"byte {at:,}", reason))
            else:
                offsets.append(at)
                keys.append(own_key if key is None else key)
    finally:
        os.close(file)
    if index is None and (len(set(keys)) < len(keys) or max(keys, default=0) > _MOST_KEY):
        keys = array("Q", range(len(keys)))
    return Index("".join(f"{key}\t{at}\n" for key, at in zip(keys, offsets, strict=True)), left_out, cut_short)


def _listed(index: Path, size: int) -> Iterator[tuple[int, int]]:
    """(key, offset) of each line of an index."""
    with index.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                key, at = map(int, line.split())
            except ValueError:
                raise ValueError(f"line {number} of {index} is not a key, a tab and a byte offset") from None
            if not (0 <= key <= _MOST_KEY and 0 <= at < size) or at % 4:
                raise ValueError(f"line {number} of {index} is of no record that {size:,} bytes can hold")
            yield key, at


def _walk(file: int, size: int) -> Iterator[int]:
    """The offset of each record, and of each place where one should begin; after such a place the magic is searched."""
    at = 0
    while at + _PREFIX.size <= size:
        magic, word = _PREFIX.unpack(os.pread(file, _PREFIX.size, at))
        if magic != MAGIC or word >> 29 in (0, 1):  # other parts of a record follow its first
            yield at
        end = at + _PREFIX.size + (word % (1 << 29) + 3) // 4 * 4
        if magic == MAGIC and (end == size or (end < size and os.pread(file, 4, end) == MAGIC)):
            at = end
            continue
        found = _next_magic(file, at + 4, size)
        at = end if magic == MAGIC and end < found else found  # the next record is damaged, or the length of this one


def _next_magic(file: int, at: int, size: int) -> int:
    """The offset of the next magic at a multiple of four from `at` on; `size` if there is none."""
    while at < size:
        piece = os.pread(file, _SEARCH, at)
        found = piece.find(MAGIC)
        while found >= 0 and found % 4:
            found = piece.find(MAGIC, found + 1)
        if found >= 0:
            return at + found
        at += _SEARCH
    return size


def _layout(file: int, offsets: list[int]) -> _Layout:
    """The layout under which the first image is found; InsightFace's if there is none."""
    for at in offsets:
        payload = os.pread(file, _HEAD, at)[_PREFIX.size :]
        for layout in _LAYOUTS:
            if payload[layout.header.size :].startswith(_STARTS):
                return layout
    return _LAYOUTS[0]


def _look(file: int, at: int, size: int, layout: _Layout) -> tuple[int, str | None]:
    """(key in its header, why it is of no use or None) of a record."""
    head = os.pread(file, _HEAD, at)
    if len(head) < _PREFIX.size + layout.header.size:
        return 0, _ENDS
    magic, word = _PREFIX.unpack_from(head)
    length = word % (1 << 29)
    if magic != MAGIC or word >> 29 not in (0, 1):
        return 0, "no record begins there"
    if at + _PREFIX.size + length > size:
        return 0, _LONGER
    extra, label, key, _ = layout.header.unpack_from(head, _PREFIX.size)
    labels = _PREFIX.size + layout.header.size
    image = layout.header.size + extra * struct.calcsize(layout.label)
    if image > length:
        return 0, "it is too short for its header and labels"
    if extra:
        (label,) = struct.unpack_from(f"<{layout.label}", head, labels)
    if image < length and not (0 <= label < layout.exact and label == int(label)):
        return 0, f"its label is {label:g}; want a whole number from 0 to {layout.exact - 1:,}"
    return key, None
