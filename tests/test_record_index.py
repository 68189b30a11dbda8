"""RecordIO files without a usable index, under other names, and with records that are damaged or of nobody."""

import struct

import pytest
from pack_fakes import FACES, folder, people
from recordio_files import FLOAT32, FLOAT64, contents, flat, jpeg, native, part, payload, write

from fastmfr.domains import open_domain
from fastmfr.native import FileChanged
from fastmfr.pack import RecordWriter
from fastmfr.pack.build import pack
from fastmfr.protocols.record_index import index_of


@pytest.mark.parametrize("layout", [FLOAT32, FLOAT64])
def test_a_missing_index_is_made_of_the_records_and_kept(tmp_path, layout):
    index = write(tmp_path, native([2, 3, 1], layout)) / "train.idx"
    text, want = index.read_text(), contents(open_domain(tmp_path))
    index.unlink()
    domain = open_domain(tmp_path)
    assert contents(domain) == want
    assert domain.notes == (f"{tmp_path / 'train.rec'} had no index; train.idx was made of it",)
    assert index.read_text() == text
    again = open_domain(tmp_path)
    assert again.notes == ()
    assert again.fingerprint() == domain.fingerprint()


def test_images_in_several_parts_and_equal_keys_are_indexed(tmp_path):
    with RecordWriter(tmp_path / "faces") as writer:
        for key in range(3):
            writer.add(key, jpeg(key) + b"\x0a\x23\xd7\xce" * 3)
    text = (tmp_path / "faces" / "train.idx").read_text()
    assert index_of(tmp_path / "faces" / "train.rec").text == text
    records = [(k, part(payload(float(k), 7, jpeg(k)))) for k in range(3)]  # all of key 7
    write(tmp_path / "same", records)
    assert index_of(tmp_path / "same" / "train.rec").text == (tmp_path / "same" / "train.idx").read_text()


def test_a_folder_that_cannot_be_written_to_is_read_all_the_same(tmp_path, monkeypatch):
    def fails(path, text):
        raise OSError(30, "Read-only file system")

    (write(tmp_path, flat([1, 1, 2])) / "train.idx").unlink()
    monkeypatch.setattr("fastmfr.protocols.records.write_text", fails)
    domain = open_domain(tmp_path)
    assert contents(domain) == [jpeg(key) for key in range(3)]
    assert "cannot be kept beside it: [Errno 30] Read-only file system" in domain.notes[0]
    assert domain.fingerprint() == open_domain(tmp_path).fingerprint()
    assert not (tmp_path / "train.idx").exists()


@pytest.mark.parametrize("names", [("faces.rec", "faces.idx"), ("faces.rec", "train.idx"), ("faces.rec", None)])
def test_records_under_another_name_are_opened_and_packed(tmp_path, names):
    write(tmp_path / "in", native([2, 3]))
    (tmp_path / "in" / "train.rec").rename(tmp_path / "in" / names[0])
    if names[1]:
        (tmp_path / "in" / "train.idx").rename(tmp_path / "in" / names[1])
    else:
        (tmp_path / "in" / "train.idx").unlink()
    domain = open_domain(tmp_path / "in")
    assert (contents(domain), domain.key(4)) == ([jpeg(key) for key in range(1, 6)], "faces.rec:5")
    domain.fingerprint()
    with pytest.raises(ValueError, match=r"JPEG without a frame header"):
        pack([tmp_path / "in"], tmp_path / "out")  # found, but these are no real images


def test_several_files_of_records_are_refused_by_name(tmp_path):
    for name in ("a.rec", "b.rec"):
        (tmp_path / name).touch()
    with pytest.raises(ValueError, match=r"holds a.rec, b.rec, and want one domain; name one of them, .*a.rec"):
        open_domain(tmp_path)


def test_a_file_of_records_is_opened_and_packed_by_its_own_path(tmp_path):
    pack(folder(tmp_path / "faces", FACES), tmp_path / "in")
    for name in ("train.rec", "train.idx"):
        (tmp_path / "in" / name).rename(tmp_path / "in" / name.replace("train", "b"))
    (tmp_path / "in" / "a.rec").touch()
    domain = open_domain(tmp_path / "in" / "b.rec")
    assert (domain.name, domain.images) == ("b.rec", 6)
    pack([tmp_path / "in" / "b.rec"], tmp_path / "out")
    assert people(tmp_path / "out") == FACES
    for opened in (open_domain, lambda path: pack([path], tmp_path / "out2")):
        with pytest.raises(FileNotFoundError, match="there is no"):
            opened(tmp_path / "gone.rec")


DAMAGE = {
    "no record begins there": lambda good: b"XXXX" + good[4:],
    "it is longer than the rest of the file": lambda good: good[:4] + struct.pack("<I", 1 << 20) + good[8:],
    "it is too short for its header and labels": lambda good: good[:8] + struct.pack("<I", 99) + good[12:],
    "its label is -1": lambda good: good[:12] + struct.pack("<f", -1) + good[16:],
    "its label is 0.5": lambda good: good[:12] + struct.pack("<f", 0.5) + good[16:],
    "its label is nan": lambda good: good[:12] + struct.pack("<f", float("nan")) + good[16:],
}


@pytest.mark.parametrize("with_index", [True, False])
@pytest.mark.parametrize("reason", DAMAGE)
def test_one_useless_record_of_a_flat_file_is_left_out_and_named(tmp_path, reason, with_index):
    records = flat([3, 1, 3, 1, 2])
    records[2] = (2, DAMAGE[reason](records[2][1]))
    index = write(tmp_path, records) / "train.idx"
    if not with_index:
        index.unlink()
    domain = open_domain(tmp_path)
    assert contents(domain) == [jpeg(key) for key in (1, 3, 4, 0)]
    assert [domain.identity_name(k) for k in range(3)] == ["1", "2", "3"]
    assert f"1 records of {tmp_path / 'train.rec'} are left out" in domain.notes[0]
    assert ("(key 2: " if with_index else "(byte ") in domain.notes[0]
    assert reason in domain.notes[0]
    domain.fingerprint()


def test_a_file_cut_short_or_mostly_useless_is_refused_as_before(tmp_path):
    records = write(tmp_path, flat([1, 1, 2])) / "train.rec"
    whole = records.read_bytes()
    records.write_bytes(whole[:-8])
    with pytest.raises(ValueError, match=r"record 2 of .* cannot be read"):
        open_domain(tmp_path)
    write(tmp_path, flat([-1, -1, 2]))
    with pytest.raises(ValueError, match=r"record 0 of .* its label is -1"):
        open_domain(tmp_path)
    (tmp_path / "train.idx").unlink()
    records.write_bytes(b"no records at all")
    with pytest.raises(ValueError, match=r"train.rec holds no record that can be used"):
        open_domain(tmp_path)


def test_a_file_under_another_name_that_is_refused_or_changes_is_named_as_it_is(tmp_path):
    write(tmp_path, flat([1, 1, 2]))
    (tmp_path / "train.rec").rename(tmp_path / "faces.rec")
    domain = open_domain(tmp_path)
    (tmp_path / "faces.rec").write_bytes(b"")
    with pytest.raises(FileChanged, match="was changed while it was in use"):
        domain.jpeg(0)
    with pytest.raises(ValueError, match=rf"^{tmp_path / 'faces.rec'} is empty"):
        open_domain(tmp_path)
