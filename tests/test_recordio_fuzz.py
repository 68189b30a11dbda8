"""RecordIO files from anywhere: whatever the bytes are, reading them gives images or a sentence, never a crash.

`test_recordio_damage.py` holds what each kind of damage must lead to; here hypothesis looks for damage nobody thought
of. The reader follows offsets and lengths that it finds in files, so a mistake would read memory that is not its own:
`make sanitize` makes every such read fatal.
"""

import os
import struct
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from recordio_files import FLOAT32, FLOAT64, flat, in_parts, native, payload, write

from fastmfr import _native
from fastmfr.domains import open_domain
from fastmfr.pack import MAGIC

FORMATS = {
    "float32": native([2, 3, 1]),
    "float64": native([2, 1, 2], FLOAT64),
    "flat": flat([1, 0, 1, 2]),
    "parts": in_parts(3),
}
HEAD = 80  # bytes of a kept index before its entries
IMAGES = {"float32": 6, "float64": 5, "flat": 4, "parts": 3}

fuzz = settings(
    max_examples=60, deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow]
)

# Where whole numbers go wrong: around powers of two, at the width of each field, in two's complement, beyond 64 bits.
edges = st.sampled_from(
    [
        0,
        1,
        3,
        4,
        8,
        24,
        32,
        2**24 - 1,
        2**24,
        2**29 - 1,
        2**29,
        2**31,
        2**32 - 1,
        2**32,
        2**53,
        2**63 - 1,
        2**63,
        2**64 - 4,
        2**64 - 1,
        10**18 - 1,
        10**18,
        10**30,
    ]
)
words = st.builds(lambda n: (n % 2**32).to_bytes(4, "little"), edges | st.integers(0, 2**32 - 1))
numbers = st.builds(str, edges | st.integers(-8, 400)) | st.sampled_from(["-0", "+4", "1e3", "0x10", "4.0", "nan", ""])
index_lines = st.builds("{}{}{}".format, numbers, st.sampled_from(["\t", " ", "\t\t", "", "\r"]), numbers)
label = st.floats(width=32) | st.sampled_from([0.0, 1.0, 2.0, 5.0, 7.0, 2.0**24])


def joined(lines):
    return "\n".join(lines).encode()


@st.composite
def records(draw):
    """The bytes of one part of a record: nearly right, each field now and then anything."""
    labels = tuple(draw(st.lists(label, max_size=3)))
    image = draw(st.binary(max_size=24)) + draw(st.sampled_from([b"", b"\xff\xd8\xff\xe0", MAGIC]))
    body = payload(labels or draw(label), draw(st.integers(0, 9)), image, draw(st.sampled_from([FLOAT32, FLOAT64])))
    body = draw(st.just(body) | st.builds(lambda word: word + body[4:], words) | st.binary(max_size=40))
    flag = draw(st.sampled_from([0, 0, 0, 1, 2, 3, 7]))
    prefix = draw(st.just(MAGIC + struct.pack("<I", flag << 29 | len(body))) | st.builds(MAGIC.__add__, words))
    return prefix + body + bytes(-len(body) % 4)


def flip(data, at, other):
    return data[:at] + bytes([data[at] ^ (other % 255 + 1)]) + data[at + 1 :]


def truncate(data, at, other):
    return data[:at]


def cut_out(data, at, other):
    return data[:at] + data[other:]


def duplicate(data, at, other):
    return data[:other] + data[min(at, other) :]


def splice(data, at, other):
    return data[:at] + data[other : other + 48] + data[at:]


def swap_lines(data, at, other):
    lines = data.splitlines(keepends=True)
    first, second = at % len(lines), other % len(lines)
    lines[first], lines[second] = lines[second], lines[first]
    return b"".join(lines)


@st.composite
def damage(draw, data):
    """`data` after one to four accidents."""
    for _ in range(draw(st.integers(1, 4))):
        at, other = (draw(st.integers(0, len(data) - 1)) for _ in range(2))
        happens = draw(st.sampled_from([flip, flip, truncate, cut_out, duplicate, splice, swap_lines, "word"]))
        if happens == "word":  # where the fields lie
            at -= at % 4
            data = data[:at] + draw(words) + data[at + 4 :]
        else:
            data = happens(data, at, other) or b"\n"
    return data


def damaged_lines(text):
    """`text`, an index, with one line replaced by numbers of any size, or two lines swapped."""
    lines = text.decode().splitlines()
    replaced = st.builds(
        lambda at, line: [*lines[:at], line, *lines[at + 1 :]], st.integers(0, len(lines) - 1), index_lines
    )
    shuffled = st.permutations(lines)
    swapped = st.builds(
        lambda order: [f"{line.split()[0]}\t{other.split()[1]}" for line, other in zip(lines, order, strict=True)],
        shuffled,
    )
    return (replaced | shuffled | swapped).map(joined)


def asked(folder, read):
    """What `read()` gives, or None where it refuses in a sentence that names the folder; any other error is raised."""
    try:
        return read()
    except (ValueError, FileNotFoundError) as refusal:
        if str(folder) in str(refusal):
            return None
        raise


def images_read(folder):
    """How many images of the folder can be read, asking everything there is to ask of it."""
    file = asked(folder, lambda: _native.RecordFile(f"{folder}/train.rec", f"{folder}/train.idx"))
    domain = asked(folder, lambda: open_domain(folder))
    assert file is None or domain is not None
    if domain is None:
        return 0
    if file is None:  # some records are of no use: the others are read
        return sum(asked(folder, lambda i=i: bytes(domain.jpeg(i))) is not None for i in range(domain.images))
    assert (file.offsets[0], file.offsets[-1]) == (0, file.images)
    assert (np.diff(file.offsets) > 0).all()
    everything = [asked(folder, lambda i=i: bytes(file.jpeg(i))) for i in range(file.images)]
    for image, encoded in enumerate(everything):
        assert 0 <= file.key(image) < 2**32
        assert asked(folder, lambda i=image: file.label(i)) is None or encoded is not None
        assert asked(folder, lambda i=image: bytes(domain.jpeg(i))) == encoded
    together = asked(folder, lambda: [bytes(one) for one in file.jpegs(np.arange(file.images))])
    assert together == (None if None in everything else everything)
    for outside in (file.images, 2**63, 2**64 - 1):
        with pytest.raises(IndexError):
            file.jpeg(outside)
    with pytest.raises(IndexError):
        file.jpegs(np.array([-1]))
    return sum(encoded is not None for encoded in everything)


def images_of(rec, idx):
    """How many images can be read of a folder with these two files."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "train.rec").write_bytes(rec)
        (Path(folder) / "train.idx").write_bytes(idx)
        return images_read(folder)


def files_of(kind):
    """The bytes of train.rec, train.idx and the index kept beside them."""
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), FORMATS[kind])
        assert images_read(folder) == IMAGES[kind]
        return tuple((Path(folder) / name).read_bytes() for name in ("train.rec", "train.idx", "train.idx.fastmfr"))


@fuzz
@given(st.binary(max_size=300), st.binary(max_size=60) | st.lists(index_lines, max_size=5).map(joined))
def test_any_bytes_as_both_files(rec, idx):
    images_of(rec, idx)


@fuzz
@given(st.lists(records(), min_size=1, max_size=6), st.lists(index_lines, max_size=2), st.booleans())
def test_records_with_any_fields(parts, lines, in_order):
    starts = np.cumsum([0, *map(len, parts[:-1])])
    rows = [f"{key}\t{start}" for key, start in enumerate(starts)]
    images_of(b"".join(parts), joined(rows + lines if in_order else lines + rows))


@pytest.mark.parametrize("kind", FORMATS)
@fuzz
@given(st.data())
def test_damage_to_a_sound_file(kind, data):
    rec, idx, _ = files_of(kind)
    where = data.draw(st.sampled_from(["rec", "idx", "lines", "both"]))
    if where in ("rec", "both"):
        rec = data.draw(damage(rec))
    if where in ("idx", "both"):
        idx = data.draw(damage(idx))
    elif where == "lines":
        idx = data.draw(damaged_lines(idx))
    images_of(rec, idx)


@st.composite
def overwritten(draw, data, places):
    """`data` with one to six words at `places` replaced; as long as before."""
    length = len(data)
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.sampled_from(places))
        word = draw(words | st.integers(0, 2 * length).map(lambda n: n.to_bytes(4, "little")))  # or just beyond its end
        data = (data[:at] + word + data[at + 4 :])[:length]
    return data


def checksum(data):
    """The sum that csrc/index.cpp keeps."""
    total = 0
    for (word,) in struct.iter_unpack("<Q", data):
        total = (total ^ word) * 0x9E3779B97F4A7C15 % 2**64
        total ^= total >> 32
    return struct.pack("<Q", total)


def sealed(index):
    """A kept index with checksums that are right, as a stranger can make it."""
    index = index[: len(index) // 8 * 8]
    head = checksum(index[HEAD:]) + index[24:HEAD]
    return index[:8] + checksum(head) + head + index[HEAD:]


def test_a_kept_index_is_sealed_as_it_was():
    for kind in FORMATS:
        *_, index = files_of(kind)
        assert sealed(index) == index


@pytest.mark.parametrize("kind", FORMATS)
@fuzz
@given(st.data())
def test_damage_to_the_kept_index(kind, data):
    """Also where train.rec is damaged since, with the size and time that the kept index goes by."""
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), FORMATS[kind])
        open_domain(folder)  # which keeps the index
        rec, kept = Path(folder) / "train.rec", Path(folder) / "train.idx.fastmfr"
        facts, whole, index = rec.stat(), rec.read_bytes(), kept.read_bytes()
        entries = range(HEAD, HEAD + 16 * IMAGES[kind], 4)
        damaged = data.draw(damage(index) | overwritten(index, entries) | overwritten(index, entries[2::4]))
        forged = len(damaged) >= HEAD and data.draw(st.booleans())
        kept.write_bytes(sealed(damaged) if forged else damaged)
        harmed = data.draw(st.booleans())
        if harmed:
            starts = np.cumsum([0, *(len(packed) for _, packed in FORMATS[kind][:-1])])
            rec.write_bytes(data.draw(overwritten(whole, [int(start) + 4 for start in starts])))  # their lengths
            os.utime(rec, ns=(facts.st_atime_ns, facts.st_mtime_ns))
        read = images_read(folder)
        assert forged or harmed or read == IMAGES[kind]
