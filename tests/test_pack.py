"""Packing: every kind of source comes out as a domain with the same bytes, and what is bad is named."""

import io
import os

import numpy as np
import pytest
from helpers import command
from pack_fakes import FACES, folder, hugging_face, listing, people, picture, plain_parquet, shards, tar
from PIL import Image

from fastmfr.pack.build import pack
from fastmfr.pack.images import ordered_map
from fastmfr.pack.writer import RecordWriter

main = command("pack")


def packed_twice(path):
    pack(folder(path / "faces", FACES), path / "once")
    return [path / "once"]


SOURCES = {
    "folder": lambda path: folder(path, FACES),
    "list": listing,
    "list with spaces": lambda path: listing(path, " "),
    "tar": shards,
    "parquet": plain_parquet,
    "Hugging Face": hugging_face,
    "records": packed_twice,
}


@pytest.mark.parametrize("make", SOURCES.values(), ids=SOURCES)
def test_every_kind_of_source_comes_out_with_the_same_bytes(tmp_path, make):
    packed = pack(make(tmp_path / "source"), tmp_path / "out", workers=2)
    assert people(tmp_path / "out") == FACES
    assert (packed.images, packed.identities, packed.dropped, packed.refused) == (6, 3, 0, [])
    assert sorted(os.listdir(tmp_path / "out"))[:4] == ["identities.txt", "property", "train.idx", "train.idx.fastmfr"]
    assert (tmp_path / "out" / "property").read_text() == "3,10,12\n"


def test_the_order_does_not_depend_on_threads(tmp_path):
    faces = {f"{n:03}": [picture(n)] * 3 for n in range(100)}
    for workers in (1, 4):
        pack(folder(tmp_path / f"in{workers}", faces), tmp_path / f"out{workers}", workers=workers)
    one, four = ((tmp_path / f"out{n}" / "train.rec").read_bytes() for n in (1, 4))
    assert one == four
    assert list(ordered_map(lambda n: n * n, range(50), 3)) == [n * n for n in range(50)]


def test_people_with_numbers_for_names_come_in_the_order_of_the_numbers(tmp_path):
    members = [
        (f"{label}.{end}", content)
        for label in (10, 9, 200)
        for end, content in (("jpg", picture(label)), ("cls", b"%d\n" % label))
    ]
    pack([tar(tmp_path / "a.tar", members)], tmp_path / "out")
    assert list(people(tmp_path / "out").items()) == [(str(n), [picture(n)]) for n in (9, 10, 200)]


def test_one_name_in_two_sources_is_one_person(tmp_path):
    first = folder(tmp_path / "a", {"ann": [picture(1)]})
    second = folder(tmp_path / "b", {"ann": [picture(2)], "bob": [picture(3)]})
    assert pack(first + second, tmp_path / "out").shared == 1
    assert people(tmp_path / "out") == {"ann": [picture(1), picture(2)], "bob": [picture(3)]}


def test_bad_images_are_left_out_and_named(tmp_path, capsys):
    [source] = folder(tmp_path / "a", FACES | {"dan": [b""]})
    (source / "bob" / "z.jpg").write_bytes(picture(3)[:-50])
    (source / "bob" / "t\tab.txt").write_text("no image")
    assert main([str(source), str(tmp_path / "out")]) == 0
    assert people(tmp_path / "out") == FACES
    assert [line.split("\t") for line in (tmp_path / "out" / "refused.txt").read_text().splitlines()] == [
        ["bob/t\\tab.txt", "neither JPEG nor PNG, BMP, WebP or TIFF"],
        ["bob/z.jpg", "JPEG cut short: no end marker"],
        ["dan/0.jpg", "empty"],
    ]
    said = capsys.readouterr().out
    assert "packed 6 images of 3 people" in said
    assert "1 people were left out: no good image" in said
    assert "3 images were refused" in said
    assert "1 x neither JPEG nor PNG" in said
    assert "pack 9/9" in said


def test_a_file_that_a_list_names_and_nobody_has_is_refused(tmp_path):
    (tmp_path / "ok.jpg").write_bytes(picture(1))
    (tmp_path / "list.txt").write_text("ok.jpg 1\ngone.jpg 1\n")
    [(key, reason)] = pack([tmp_path / "list.txt"], tmp_path / "out").refused
    assert key == "gone.jpg"
    assert "No such file" in reason


def test_resized_images_are_jpegs_of_that_shorter_side_and_others_stay(tmp_path):
    exact, wide, tall = picture(1, "PNG", (20, 16)), picture(2, size=(64, 32)), picture(3, "PNG", (8, 12))
    pack(folder(tmp_path / "a", {"ann": [exact, tall, wide]}), tmp_path / "out", resize=16)
    images = people(tmp_path / "out")["ann"]
    assert images[0] == exact
    sizes = [(Image.open(io.BytesIO(encoded)).size, Image.open(io.BytesIO(encoded)).format) for encoded in images]
    assert sizes == [((20, 16), "PNG"), ((16, 24), "JPEG"), ((32, 16), "JPEG")]
    means = [np.asarray(Image.open(io.BytesIO(encoded)), float).mean(axis=(0, 1)) for encoded in (tall, images[1])]
    np.testing.assert_allclose(*means, atol=4)  # still the same picture: on average its colours stay


def test_people_with_few_good_images_are_left_out_on_request(tmp_path):
    [source] = folder(tmp_path / "a", FACES)
    (source / "ann" / "2.jpg").write_bytes(b"bad")  # three files, two of them good
    packed = pack([source], tmp_path / "out", min_images=3)
    assert people(tmp_path / "out") == {"cy": FACES["cy"]}
    assert (packed.identities, packed.dropped) == (1, 2)
    with pytest.raises(ValueError, match="no one has 9 images or more"):
        pack(folder(tmp_path / "b", FACES), tmp_path / "none", min_images=9)


def test_decoding_finds_damage_that_markers_do_not_show(tmp_path):
    damaged = bytearray(picture(2, "PNG", (40, 40)))
    damaged[200] ^= 0xFF
    [source] = folder(tmp_path / "a", {"ann": [picture(1), bytes(damaged)]})
    assert pack([source], tmp_path / "quick").images == 2
    packed = pack([source], tmp_path / "slow", decode=True)
    assert people(tmp_path / "slow") == {"ann": [picture(1)]}
    assert "does not decode" in packed.refused[0][1]


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError("disk full")], ids=["interrupted", "disk full"])
def test_a_pack_that_stops_leaves_no_records(tmp_path, monkeypatch, capsys, error):
    add = RecordWriter.add

    def stops(self, identity, encoded):
        if self.images == 4:
            raise error
        add(self, identity, encoded)

    monkeypatch.setattr(RecordWriter, "add", stops)
    [source] = folder(tmp_path / "a", FACES)
    assert main([str(source), str(tmp_path / "out")]) == (130 if error is KeyboardInterrupt else 1)
    assert not (tmp_path / "out").exists()
    assert ("holds no train.rec" if error is KeyboardInterrupt else "disk full") in capsys.readouterr().err


def test_nothing_good_is_an_error_that_says_why(tmp_path, capsys):
    [source] = folder(tmp_path / "a", {"ann": [b"no image"]})
    assert main([str(source), str(tmp_path / "out")]) == 1
    assert "the first, ann/0.jpg, because: neither JPEG nor PNG" in capsys.readouterr().err
    assert os.listdir(tmp_path / "out") == ["refused.txt"]


def broken_sources(path):
    (path / "deep" / "ann" / "more" / "images").mkdir(parents=True)
    (path / "empty").mkdir()
    (path / "a.tar").write_bytes(b"PK\3\4" * 500)
    tar(path / "whole.tar", [("a.jpg", picture(1)), ("a.cls", b"1")])
    (path / "cut.tar").write_bytes((path / "whole.tar").read_bytes()[:700])
    for name, content in [("a.tar.gz", b"\x1f\x8b"), ("a.jpg", picture(1)), ("bad.txt", b"a.jpg\n"), ("no.txt", b"\n")]:
        (path / name).write_bytes(content)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("gone", "there is no"),
        ("deep", "holds the folder 'more'"),
        ("empty", "holds nothing to pack"),
        ("a.tar", "not a whole, uncompressed tar"),
        ("cut.tar", "not a whole, uncompressed tar"),
        ("a.tar.gz", "is compressed"),
        ("a.jpg", "is no source"),
        ("bad.txt", "line 1 of .* is not a path"),
        ("no.txt", "list no image at all"),
    ],
)
def test_what_is_no_source_is_refused_with_a_sentence(tmp_path, name, sentence):
    broken_sources(tmp_path)
    with pytest.raises((ValueError, FileNotFoundError), match=sentence):
        pack([tmp_path / name], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_output_that_cannot_be_is_refused(tmp_path):
    [source] = folder(tmp_path / "a", FACES)
    with pytest.raises(ValueError, match="lies within the source"):
        pack([source], source / "packed")
    assert sorted(os.listdir(source)) == sorted(FACES)
    pack([source], tmp_path / "out")
    with pytest.raises(FileExistsError, match=r"already holds a train\.rec"):
        pack([source], tmp_path / "out")
    with pytest.raises(ValueError, match="want resize of at least 1, got 0"):
        pack([source], tmp_path / "other", resize=0)
