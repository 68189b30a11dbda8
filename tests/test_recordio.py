"""RecordIO: every variant of the format that users hold, and the writer."""

import gc
import os
import random
import re

import numpy as np
import pytest
from recordio_files import FLOAT32, FLOAT64, contents, flat, jpeg, native, part, payload, write

from fastmfr.domains import open_domain
from fastmfr.native import FileChanged
from fastmfr.pack import MAGIC, RecordWriter


def test_what_the_writer_wrote_is_read_back(tmp_path):
    images = [(0, jpeg(1)), (0, jpeg(2)), (2, jpeg(3)), (2, b"\xff\xd8\xff" + MAGIC * 3 + b"ab"), (7, jpeg(5))]
    with RecordWriter(tmp_path / "faces", size=(120, 100)) as writer:
        for identity, encoded in images:
            writer.add(identity, encoded)
    domain = open_domain(tmp_path / "faces")
    assert contents(domain) == [encoded for _, encoded in images]
    assert domain.offsets.tolist() == [0, 2, 4, 5]
    assert [domain.identity_name(k) for k in range(3)] == ["0", "2", "7"]
    assert domain.key(4) == "train.rec:5"
    assert (tmp_path / "faces" / "property").read_text() == "8,120,100\n"  # classes: one more than the largest label


def test_the_writer_lays_out_records_as_insightface_does(tmp_path):
    with RecordWriter(tmp_path / "faces") as writer:
        writer.add(0, jpeg(1))
        writer.add(1, jpeg(2))
    want = native([1, 1])
    assert (tmp_path / "faces" / "train.rec").read_bytes() == b"".join(packed for _, packed in want)
    keys = [int(line.split("\t")[0]) for line in (tmp_path / "faces" / "train.idx").read_text().splitlines()]
    assert keys == [key for key, _ in want]


# The magic at every place a split can meet: alone, at either end, doubled, unaligned (no split), in the header's id.
@pytest.mark.parametrize(
    "image",
    [MAGIC, MAGIC + b"tail", b"head" + MAGIC, b"four" + MAGIC * 2 + b"x", b"odd" + MAGIC + b"x", b"abcd" + MAGIC[:3]],
)
def test_images_that_contain_the_magic_come_back_whole(tmp_path, image):
    with RecordWriter(tmp_path / "faces") as writer:
        writer.add(0, jpeg(0))
        writer.add(0, image)
    domain = open_domain(tmp_path / "faces")
    assert bytes(domain.jpeg(1)) == image
    assert [bytes(view) for view in domain.jpegs(np.array([1, 0]))] == [image, jpeg(0)]


def test_a_magic_within_the_header_is_joined_too(tmp_path):
    whole = payload(3.0, 0, jpeg(1))
    whole = whole[:8] + MAGIC + whole[12:]  # the low half of the id
    records = [(0, part(whole[:8], 1) + part(whole[12:], 3)), (1, part(payload(3.0, 1, jpeg(2))))]
    assert contents(open_domain(write(tmp_path, records))) == [jpeg(1), jpeg(2)]


@pytest.mark.parametrize("layout", [FLOAT32, FLOAT64], ids=["float32", "float64"])
def test_native_files_open_with_either_width_of_label(tmp_path, layout):
    domain = open_domain(write(tmp_path, native([2, 3, 1], layout)))
    assert domain.offsets.tolist() == [0, 2, 5, 6]
    assert contents(domain) == [jpeg(key) for key in range(1, 7)]
    assert domain.identity_name(2) == "2"


def test_labels_that_follow_the_header_name_the_identity(tmp_path):
    records = [(k, part(payload((float(k // 2), 9.0), k, jpeg(k)))) for k in range(4)]
    domain = open_domain(write(tmp_path, records))
    assert (domain.offsets.tolist(), domain.identity_name(1)) == ([0, 2, 4], "1")


def test_flat_files_are_grouped_by_label_whatever_their_order(tmp_path):
    domain = open_domain(write(tmp_path, flat([5, 1, 5, 0, 1, 5])))
    assert domain.offsets.tolist() == [0, 1, 3, 6]
    assert [domain.key(i) for i in range(6)] == [f"train.rec:{key}" for key in (3, 1, 4, 0, 2, 5)]
    assert contents(domain) == [jpeg(key) for key in (3, 1, 4, 0, 2, 5)]


def test_flat_files_with_float64_labels_open(tmp_path):
    records = [(k, part(payload(float(2**24 + 1 + k // 2), k, jpeg(k), FLOAT64))) for k in range(4)]
    domain = open_domain(write(tmp_path, records))
    assert [domain.identity_name(k) for k in range(2)] == ["16777217", "16777218"]


def test_keys_beyond_float32_are_grouped_by_label(tmp_path):
    start = 2**24 - 3  # the ranges of these keys round to neighbours
    domain = open_domain(write(tmp_path, native([1, 3, 2, 5], start=start)))
    assert domain.offsets.tolist() == [0, 1, 4, 6, 11]
    assert contents(domain) == [jpeg(start + i) for i in range(11)]


def test_ranges_that_contradict_each_other_give_way_to_the_labels(tmp_path):
    records = native([2, 2])
    records[-1] = (records[-1][0], part(payload((2, 5), 6)))  # overlaps the first identity
    assert open_domain(write(tmp_path, records)).offsets.tolist() == [0, 2, 4]


def test_a_record_without_a_line_in_the_index_is_left_out(tmp_path):
    domain = open_domain(write(tmp_path, native([2, 3, 1]), missing=(2, 6)))
    assert domain.offsets.tolist() == [0, 1, 4]
    assert contents(domain) == [jpeg(key) for key in (1, 3, 4, 5)]


def test_the_text_index_may_be_shuffled_and_have_windows_line_ends(tmp_path):
    lines = (write(tmp_path, native([2, 3])) / "train.idx").read_text().splitlines()
    random.Random(0).shuffle(lines)
    (tmp_path / "train.idx").write_bytes("\r\n".join([*lines, "", ""]).encode())
    assert contents(open_domain(tmp_path)) == [jpeg(key) for key in range(1, 6)]


def test_views_are_read_only_and_outlive_their_domain(tmp_path):
    domain = open_domain(write(tmp_path, native([2, 3])))
    offsets, view = domain.offsets, domain.jpeg(3)
    many = domain.jpegs(np.arange(5))
    del domain
    gc.collect()
    assert bytes(view) == jpeg(4)
    assert offsets.tolist() == [0, 2, 5]
    assert [bytes(image) for image in many] == [jpeg(key) for key in range(1, 6)]
    assert not any(array.flags.writeable for array in (view, offsets, *many))


def test_a_folder_whose_name_is_not_utf_8_is_read_and_named(tmp_path):
    folder = write(tmp_path / os.fsdecode(b"caf\xe9"), native([2, 3]))
    domain = open_domain(folder)
    assert contents(domain) == [jpeg(key) for key in range(1, 6)]
    with open(folder / "train.idx.fastmfr", "ab") as kept:
        kept.write(bytes(8))
    assert str(folder) in open_domain(folder).notes[0]
    os.truncate(folder / "train.rec", 160)
    with pytest.raises(FileChanged, match=re.escape(str(folder))):
        domain.jpeg(4)
    with pytest.raises(ValueError, match=re.escape(str(folder))):
        open_domain(folder)


def test_records_under_another_name_keep_their_index_and_are_named(tmp_path):
    write(tmp_path, native([2, 3]))
    for kind in ("rec", "idx"):
        (tmp_path / f"train.{kind}").rename(tmp_path / f"faces.{kind}")
    domain = open_domain(tmp_path)
    assert (tmp_path / "faces.idx.fastmfr").exists()
    os.truncate(tmp_path / "faces.rec", 160)
    with pytest.raises(FileChanged, match=re.escape(str(tmp_path / "faces.rec"))):
        domain.jpeg(4)


def test_the_kept_index_is_used_until_a_file_changes(tmp_path):
    index = write(tmp_path, native([2, 3])) / "train.idx"
    first = contents(open_domain(tmp_path))
    assert (tmp_path / "train.idx.fastmfr").exists()
    facts = os.stat(index)
    index.write_bytes(b"?" * facts.st_size)
    os.utime(index, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    assert contents(open_domain(tmp_path)) == first  # the text is not read again
    os.utime(index, ns=(facts.st_atime_ns, facts.st_mtime_ns + 1))
    with pytest.raises(ValueError, match=r"line 1 of .*train.idx is not a key"):
        open_domain(tmp_path)


def test_a_kept_index_without_a_checksum_is_replaced_without_a_word(tmp_path):
    kept = write(tmp_path, native([2, 3])) / "train.idx.fastmfr"
    kept.write_bytes(b"FMFRIDX1" + bytes(200))  # as older versions wrote it
    domain = open_domain(tmp_path)
    assert contents(domain) == [jpeg(key) for key in range(1, 6)]
    assert kept.read_bytes().startswith(b"FMFRIDX2")
    assert not domain.notes


def test_a_pipe_in_place_of_the_kept_index_keeps_nobody_waiting(tmp_path):
    os.mkfifo(write(tmp_path, native([2, 3])) / "train.idx.fastmfr")
    assert open_domain(tmp_path).images == 5


def test_an_index_longer_than_what_is_read_at_once(tmp_path):
    index = write(tmp_path, native([2, 3])) / "train.idx"
    first, *lines = index.read_text().splitlines()
    blank = " " * 999 + "\n"  # not a divisor of 2**20: some line lies across the border
    index.write_text("\n".join([first, blank * 1500, *lines]))
    assert contents(open_domain(tmp_path)) == [jpeg(key) for key in range(1, 6)]
    index.write_text("\n".join([first, blank * 1500, *lines[:-1], "x"]))
    with pytest.raises(ValueError, match=r"line 1509 of .*train.idx is not a key"):
        open_domain(tmp_path)


def test_records_larger_than_what_is_read_at_once(tmp_path):
    large = [jpeg(key, size) for key, size in enumerate((70_000, 40, 200_000))]
    large[2] = large[2][:100_000] + MAGIC + large[2][100_000:]
    with RecordWriter(tmp_path) as writer:
        for encoded in large:
            writer.add(0, encoded)
    domain = open_domain(tmp_path)
    assert contents(domain) == [bytes(view) for view in domain.jpegs(np.arange(3))] == large
    lines = (tmp_path / "train.idx").read_text().splitlines(keepends=True)
    (tmp_path / "train.idx").write_text("".join([*lines[:2], *lines[4:]]))  # image 1 alone: all bytes after it are room
    assert contents(open_domain(tmp_path)) == large[:1]


def test_a_folder_that_cannot_keep_an_index_opens_all_the_same(tmp_path):
    folder = write(tmp_path, native([2, 3]))
    (folder / "train.idx.fastmfr").mkdir()
    assert open_domain(folder).images == 5
    assert sorted(os.listdir(folder)) == ["train.idx", "train.idx.fastmfr", "train.rec"]


def test_the_writer_refuses_what_it_cannot_store(tmp_path):
    with RecordWriter(tmp_path / "faces") as writer:
        writer.add(1, jpeg(1))
        with pytest.raises(ValueError, match="got 0 after 1; sort the images by identity"):
            writer.add(0, jpeg(2))
        with pytest.raises(ValueError, match="does not fit a float32 label"):
            writer.add(2**24, jpeg(2))
        with pytest.raises(ValueError, match="is empty"):
            writer.add(1, b"")
    with pytest.raises(FileExistsError, match=r"already holds a train\.rec"):
        RecordWriter(tmp_path / "faces")


def test_a_writer_that_fails_leaves_nothing_behind(tmp_path):
    with pytest.raises(ValueError, match="no image was added"), RecordWriter(tmp_path / "none"):
        pass
    with pytest.raises(ValueError, match="is empty"), RecordWriter(tmp_path / "cut") as writer:
        [writer.add(0, encoded) for encoded in (jpeg(1), b"")]
    assert not (tmp_path / "none").exists()
    assert not (tmp_path / "cut").exists()
