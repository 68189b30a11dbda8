"""RecordIO: every way in which a file, or its kept index, can be broken."""

import os
import random
import struct

import numpy as np
import pytest
from recordio_files import contents, flat, in_parts, jpeg, native, part, payload, write

from fastmfr.decode.source import Reader
from fastmfr.decode.verdicts import Verdicts
from fastmfr.domains import open_domain
from fastmfr.native import FileChanged


def damaged(sound):
    """(what happened, the bytes) of every way to damage a kept index a little: one bit of each byte, cut, longer."""
    for at in range(len(sound)):
        yield f"bit {at % 8} of byte {at}", sound[:at] + bytes([sound[at] ^ 1 << at % 8]) + sound[at + 1 :]
        if at % 16 == 0:
            yield f"cut at {at}", sound[:at]
            yield f"zeros from {at}", sound[:at] + bytes(len(sound) - at)
            yield (
                f"words at {at} exchanged",
                sound[:at] + sound[at + 8 : at + 16] + sound[at : at + 8] + sound[at + 16 :],
            )
    yield "longer", sound + bytes(8)


def test_a_damaged_kept_index_is_made_again_with_a_note(tmp_path):
    kept = write(tmp_path, flat([1, 0, 1, 2, 0])) / "train.idx.fastmfr"
    first, sound = open_domain(tmp_path), kept.read_bytes()
    assert not first.notes
    for what, content in damaged(sound):
        if content == sound:
            continue
        kept.write_bytes(content)
        domain = open_domain(tmp_path)
        assert contents(domain) == contents(first), what
        assert domain.offsets.tolist() == first.offsets.tolist(), what
        assert [domain.key(image) for image in range(5)] == [first.key(image) for image in range(5)], what
        (note,) = domain.notes
        assert note.startswith(f"{kept}, a copy of the index"), what
        assert note.endswith("is damaged; it is made again"), what
        assert kept.read_bytes() == sound, what


@pytest.mark.parametrize(
    ("rec", "idx", "sentence"),
    [
        (b"", "0\t0\n", "train.rec is empty"),
        (part(payload(1.0, 0, jpeg(0))), "", "train.idx is empty"),
        (part(payload(1.0, 0, jpeg(0))), "\n\n", "lists no record"),
        (b"PK\3\4" * 30, "0\t0\n", "is not RecordIO with JPEG or PNG images"),
        (part(payload(1.0, 0, jpeg(0))), "0\t0\n0\t0\n", "lists key 0 twice"),
        (part(payload(1.0, 0, jpeg(0))), "0\t99999\n", "places record 0 at byte 99999: the file is truncated"),
        (part(payload(1.0, 0, jpeg(0))), "0 0 0\n", "line 1 of .* is not a key, a tab and a byte offset"),
        (part(payload(1.0, 0, jpeg(0))), "0\t-4\n", "line 1 of"),
        (part(payload(1.0, 0, jpeg(0))), "99999999999999999999\t0\n", "line 1 of"),
        (part(payload(1.5, 0, jpeg(0))), "0\t0\n", "label is 1.5"),
        (part(payload(float("nan"), 0, jpeg(0))), "0\t0\n", "label is nan"),
        (part(payload(-1.0, 0, jpeg(0))), "0\t0\n", "label is -1"),
        (part(payload(2.0**24, 0, jpeg(0))), "0\t0\n", "label is 16777216"),
        (part(payload((1, 1), 0)), "0\t0\n", "holds no image"),
        (part(payload(1.0, 0, jpeg(0))) * 2, "0\t0\n1\t6\n", "at byte 6, cannot be read"),
    ],
)
def test_broken_files_are_refused_with_the_reason(tmp_path, rec, idx, sentence):
    (tmp_path / "train.rec").write_bytes(rec)
    (tmp_path / "train.idx").write_text(idx)
    with pytest.raises(ValueError, match=sentence):
        open_domain(tmp_path)


def test_an_index_cut_short_is_refused(tmp_path):
    index = write(tmp_path, native([2, 3])) / "train.idx"
    index.write_text("".join(index.read_text().splitlines(keepends=True)[:-2]))
    with pytest.raises(ValueError, match=r"ends at key 5, but .* announces records up to 7"):
        open_domain(tmp_path)


@pytest.mark.parametrize(
    ("broken", "sentence"),
    [
        (lambda good: b"XXXX" + good[4:], "does not begin with the RecordIO magic"),
        (lambda good: good[:4] + struct.pack("<I", 1 << 20) + good[8:], "longer than the room"),
        (lambda good: good[:4] + struct.pack("<I", 10) + good[8:], "too short to hold a header"),
        (lambda good: good[:8] + struct.pack("<I", 2**32 - 1) + good[12:], "more labels than it holds"),
        (lambda good: good[:7] + bytes([good[7] | 1 << 5]) + good[8:], "it ends too soon"),
        (lambda good: good[:7] + bytes([good[7] | 3 << 5]) + good[8:], "begins in the middle"),
    ],
)
def test_one_damaged_record_leaves_the_others_readable(tmp_path, broken, sentence):
    records = native([2, 3])
    records[2] = (2, broken(records[2][1]))
    domain = open_domain(write(tmp_path, records))
    with pytest.raises(ValueError, match=rf"record 2 of .*train.rec, at byte \d+, cannot be read: .*{sentence}"):
        domain.jpeg(1)
    with pytest.raises(ValueError, match="record 2 of"):
        domain.jpegs(np.array([0, 1]))
    assert [bytes(domain.jpeg(i)) for i in (0, 2, 3, 4)] == [jpeg(key) for key in (1, 3, 4, 5)]


def test_a_multi_part_record_without_its_end_is_refused(tmp_path):
    records = native([2, 3])
    records[2] = (2, part(payload(0.0, 2, jpeg(2) + b"ab"), 1) + part(b"next", 0))
    with pytest.raises(ValueError, match="last part is missing"):
        open_domain(write(tmp_path, records)).jpeg(1)


def test_every_truncation_of_a_native_file_is_refused(tmp_path):
    folder = write(tmp_path, native([2, 3, 1]))
    whole = (folder / "train.rec").read_bytes()
    for length in range(0, len(whole), 3):
        (folder / "train.rec").write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"train\.rec"):
            open_domain(folder)


def read_everything(folder):
    """How many images can be read; nothing but a ValueError that names a file may come of those that cannot."""
    read, sentences = 0, []
    try:
        domain = open_domain(folder)
        assert domain.offsets[0] == 0
        assert (np.diff(domain.offsets) > 0).all()
        for image in range(domain.images):
            try:
                read += len(bytes(domain.jpeg(image))) > 0
            except ValueError as refusal:
                sentences.append(str(refusal))
    except ValueError as refusal:
        sentences.append(str(refusal))
    assert all(str(folder) in sentence for sentence in sentences)
    return read


@pytest.mark.parametrize("name", ["train.rec", "train.idx", "train.idx.fastmfr"])
@pytest.mark.parametrize(
    ("kind", "records", "images"),
    [("native", native([2, 3, 1]), 6), ("flat", flat([1, 0, 1, 2]), 4), ("parts", in_parts(3), 3)],
)
def test_random_damage_gives_data_or_a_sentence(tmp_path, kind, records, images, name):
    write(tmp_path, records)
    assert read_everything(tmp_path) == images
    sound, rng, most = (tmp_path / name).read_bytes(), random.Random(f"{kind} {name}"), 0
    for _ in range(60):
        damaged = bytearray(sound)
        for _ in range(rng.choice([1, 2, 8])):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        if rng.random() < 0.2:
            del damaged[rng.randrange(len(damaged)) :]
        (tmp_path / name).write_bytes(damaged)
        if name != "train.idx.fastmfr":  # what is tested is the file, not an index kept from before
            (tmp_path / "train.idx.fastmfr").unlink(missing_ok=True)
        most = max(most, read_everything(tmp_path))
    assert most > 0  # the damage was not always so large that nothing could be read


@pytest.mark.parametrize("read", [lambda domain: domain.jpeg(4), lambda domain: domain.jpegs(np.arange(5))])
def test_a_file_cut_short_while_it_is_open_is_named_and_ends_no_process(tmp_path, read):
    domain = open_domain(write(tmp_path, native([2, 3])))
    os.truncate(tmp_path / "train.rec", 160)  # within the second image
    assert bytes(domain.jpeg(0)) == jpeg(1)
    with pytest.raises(FileChanged, match=r"train.rec was changed while .* had 528 bytes .* has 160 now; put the file"):
        read(domain)
    with pytest.raises(FileChanged):
        domain.identity_name(1)


def test_a_file_overwritten_while_it_is_open_is_named(tmp_path):
    domain = open_domain(write(tmp_path, native([2, 3])))
    (tmp_path / "train.rec").write_bytes(bytes(528))
    with pytest.raises(FileChanged, match=r"had 528 bytes when it was opened, and was written to since"):
        domain.jpeg(0)


def test_no_substitute_is_read_from_a_file_that_was_cut_short(tmp_path):
    reader = Reader([open_domain(write(tmp_path, native([2, 3])))], Verdicts(), 112)
    os.truncate(tmp_path / "train.rec", 160)
    with pytest.raises(FileChanged):
        reader.read(np.zeros(2, int), np.array([0, 4]))
