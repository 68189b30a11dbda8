"""Class folders as people have them: images under any name, and what systems leave behind, passed over and counted."""

import os

import numpy as np
import pytest
from evaluation_fakes import class_folder
from helpers import command
from pack_fakes import FACES, folder, picture

from fastmfr.domains import open_domain
from fastmfr.inspect import survey
from fastmfr.pack.build import pack
from fastmfr.protocols import ImageFiles, read_pairs

FORMS = {
    "0.bmp": "BMP",
    "1.webp": "WEBP",
    "2.jfif": "JPEG",
    "3.jpe": "JPEG",
    "4.tif": "TIFF",
    "5.TIFF": "TIFF",
    "6": "JPEG",
    "7.png_large": "PNG",
    "8.JPG": "JPEG",
    "9.dat": "BMP",
}


def person(path, names=FORMS):
    path.mkdir(parents=True)
    for k, (name, form) in enumerate(names.items()):
        (path / name).write_bytes(picture(k, form))


def test_an_image_is_found_under_any_name_and_packed_as_what_trainers_read(tmp_path):
    person(tmp_path / "faces" / "ann")
    domain = open_domain(tmp_path / "faces")
    assert [domain.key(image) for image in range(domain.images)] == [f"ann/{name}" for name in sorted(FORMS)]
    assert domain.notes == ()
    found = survey(domain, workers=1)
    assert (found.formats, found.broken) == ({"BMP": 2, "WEBP": 1, "JPEG": 4, "TIFF": 2, "PNG": 1}, [])
    packed = pack([tmp_path / "faces"], tmp_path / "out")
    assert (packed.images, packed.refused) == (len(FORMS), [])
    assert survey(open_domain(tmp_path / "out"), workers=1).formats == {"JPEG": 4, "PNG": 6}


@pytest.fixture
def left_behind(tmp_path):
    """A class folder of FACES with what systems, archivers and people leave in one."""
    [faces] = folder(tmp_path / "faces", FACES)
    for name in ("__MACOSX/ann", "ann/@eaDir/0.jpg", "@eaDir", ".cache", "empty", "ann/void", "bob/__MACOSX"):
        (faces / name).mkdir(parents=True)
    for name in ("__MACOSX/ann/._0.jpg", "ann/@eaDir/0.jpg/THUMB.jpg", ".DS_Store", "ann/.DS_Store", "ann/notes.txt"):
        (faces / name).write_bytes(b"Mac OS X")
    for name in ("readme.jpg", "bob/BM.txt", "bob/none"):
        (faces / name).write_bytes(b"BMW of " * (name != "bob/none"))
    (faces / "loop").symlink_to("loop")
    (faces / "again").symlink_to(faces)
    (faces / "cy" / "up").symlink_to("..")
    (faces / "cy" / "gone").symlink_to("nowhere")
    os.mkfifo(faces / "cy" / "pipe")
    return faces


SAID = (
    "1 files beside the folders of people (as 'readme.jpg'), "
    "5 files that are no JPEG, PNG, BMP, WebP or TIFF (as 'ann/notes.txt'), "
    "4 folders made by a system or an archiver (as '@eaDir'), 2 folders without an image (as 'ann/void'), "
    "3 hidden entries (as '.DS_Store'), 3 links that lead back (as 'again')"
)


def test_what_is_left_behind_is_passed_over_and_counted_in_one_sentence(left_behind):
    domain = open_domain(left_behind)
    assert [domain.identity_name(k) for k in range(domain.identities)] == sorted(FACES)
    assert [bytes(domain.jpeg(k)) for k in range(domain.images)] == [one for faces in FACES.values() for one in faces]
    assert domain.notes == (f"passed over in {left_behind}: {SAID}",)
    assert domain.people([0]).notes == domain.notes


def test_packing_and_inspection_say_what_was_passed_over(left_behind, tmp_path, capsys):
    assert command("inspect")([str(left_behind)]) == 0
    assert f"passed over in {left_behind}: {SAID}" in capsys.readouterr().out
    assert command("pack")([str(left_behind), str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert "4 folders made by a system or an archiver" in said
    assert "packed 6 images of 3 people" in said
    refused = (tmp_path / "out" / "refused.txt").read_text()
    assert [line.partition("\t")[0] for line in refused.splitlines()] == [
        "ann/notes.txt",
        "bob/BM.txt",
        "bob/none",
        "cy/gone",
        "cy/pipe",
    ]


def test_a_folder_of_nothing_but_leftovers_says_so(tmp_path):
    (tmp_path / "a" / "__MACOSX" / "ann").mkdir(parents=True)
    for opened in (open_domain, lambda path: pack([path], tmp_path / "out")):
        with pytest.raises(ValueError, match=r"passed over in .*1 folders made by a system or an archiver"):
            opened(tmp_path / "a")


@pytest.mark.parametrize("suffix", [".JPG", ".Jpg", ".JPEG", ".PNG", ".bmp", ".WEBP", ".tif"])
def test_pairs_are_found_whatever_the_suffix_and_its_case(tmp_path, suffix):
    folder = class_folder(tmp_path / "people", people=2)
    for path in sorted(folder.glob("*/*.jpg")):
        path.rename(path.with_name(f"{path.parent.name}_000{path.stem}{suffix}"))
    (folder / "pairs.txt").write_text("p00\t0\t1\np00\t1\tp01\t2\n")
    images, pairs = read_pairs(folder / "pairs.txt")
    assert [bytes(images.jpeg(image))[:2] for image in range(images.images)] == [b"\xff\xd8"] * 3
    assert pairs.is_mate.tolist() == [True, False]


def test_the_file_that_a_list_names_is_read_if_there_is_no_crop_of_it(tmp_path):
    for name, content in {"a.bmp": b"1", "b.bmp": b"2", "b.JPG": b"3", "c.raw": b"4"}.items():
        (tmp_path / name).write_bytes(content)
    listed = ImageFiles("listed", tmp_path, ["a.bmp", "b.bmp", "c.raw"])
    assert [bytes(one) for one in listed.jpegs(np.arange(3))] == [b"1", b"3", b"4"]
