"""A list means the same whoever saved it: with a byte order mark, \\ between folders, CRLF, .\\ in front, or UTF-16."""

import codecs

import pytest
from evaluation_fakes import class_folder, face

from fastmfr.config import parse
from fastmfr.pack.build import pack
from fastmfr.pack.names import known_names
from fastmfr.protocols import read_folds, read_pairs, read_templates

SAVED = {
    "as here": lambda text: text.encode(),
    "byte order mark": lambda text: codecs.BOM_UTF8 + text.encode(),
    "CRLF": lambda text: text.replace("\n", "\r\n").encode(),
    "CR": lambda text: text.replace("\n", "\r").encode(),
    "backslashes": lambda text: text.replace("/", "\\").encode(),
    "dot in front": lambda text: text.replace("p0", ".\\p0").replace("/", "\\").encode(),
    "Notepad": lambda text: codecs.BOM_UTF8 + text.replace("/", "\\").replace("\n", "\r\n").encode(),
    "PowerShell": lambda text: text.replace("\n", "\r\n").encode("utf-16"),
    "UTF-16, the other way": lambda text: codecs.BOM_UTF16_BE + text.encode("utf-16-be"),
}


@pytest.fixture(params=SAVED, ids=str)
def save(request):
    return lambda path, text: path.write_bytes(SAVED[request.param](text))


def images_of(images):
    return [bytes(image) for image in images.jpegs(range(images.images))]


def test_packed_lists(tmp_path, save):
    class_folder(tmp_path)
    save(tmp_path / "list.txt", "p00/0.jpg\tann\np01/0.jpg\tbob lee\n# no more\n\np00/1.jpg\tann\n")
    packed = pack([tmp_path / "list.txt"], tmp_path / "out")
    assert (packed.images, packed.identities, packed.refused) == (3, 2, [])
    assert known_names(tmp_path / "out") == {"0": "ann", "1": "bob lee"}


def test_a_packed_list_without_tabs(tmp_path, save):
    class_folder(tmp_path)
    save(tmp_path / "list.txt", "p00/0.jpg ann\np01/0.jpg bob\n")
    assert pack([tmp_path / "list.txt"], tmp_path / "out").images == 2


def test_gallery_and_probe_lists(tmp_path, save):
    class_folder(tmp_path)
    save(tmp_path / "gallery.txt", "".join(f"p{person:02}/0.jpg\n" for person in range(4)))
    save(tmp_path / "probe.txt", "".join(f"p{person:02}/1.jpg\n" for person in range(4)))
    images, (pairs,) = read_folds(tmp_path)
    assert images_of(images) == [face(person, image) for image in range(2) for person in range(4)]
    assert pairs.gallery_id.tolist() == pairs.probe_id.tolist() == [0, 1, 2, 3]


def test_lists_of_pairs(tmp_path, save):
    class_folder(tmp_path)
    save(tmp_path / "pairs.txt", "p00/0.jpg\tp00/1.jpg\t1\np00/0.jpg\tp01/0.jpg\t0\n")
    images, pairs = read_pairs(tmp_path / "pairs.txt")
    assert images_of(images) == [face(0, 0), face(0, 1), face(1, 0)]
    assert pairs.is_mate.tolist() == [True, False]
    assert pairs.people is not None


def test_an_lfw_list_keeps_its_header(tmp_path, save):
    class_folder(tmp_path, form="p{person}/p{person}_{image:04}.jpg")
    save(tmp_path / "pairs.txt", "2 1\np0 0 1\np0 0 p1 1\np1 0 1\np1 0 p0 1\n")
    images, pairs = read_pairs(tmp_path / "pairs.txt")
    assert images_of(images)[:2] == [face(0, 0), face(0, 1)]
    assert pairs.fold is not None
    assert pairs.fold.tolist() == [0, 0, 1, 1]


def test_templates(tmp_path, save):
    class_folder(tmp_path)
    save(tmp_path / "a_tid_mid.txt", "p00/0.jpg 1 0\np00/1.jpg 2 1\np01/0.jpg 3 2\np00/0.jpg 1 3\n")
    save(tmp_path / "a_template_pair_label.txt", "1 2 1\n1 3 0\n")
    images, templates = read_templates(tmp_path)
    assert images_of(images) == [face(0, 0), face(0, 1), face(1, 0)]
    assert (templates.templates, templates.image.tolist()) == (3, [0, 1, 2, 0])


def test_one_image_named_in_two_ways_is_one(tmp_path):
    class_folder(tmp_path)
    (tmp_path / "pairs.txt").write_text("p00/0.jpg p00/1.jpg 1\n.\\p00\\0.jpg ./p01/0.jpg 0\n")
    images, pairs = read_pairs(tmp_path / "pairs.txt")
    assert (images.images, pairs.first.tolist()) == (3, [0, 0])


@pytest.mark.parametrize("saved", ["byte order mark", "CRLF"])
def test_recipes_and_names_of_packed_people(tmp_path, saved):
    (tmp_path / "mine.yaml").write_bytes(SAVED[saved]("recipe: mine\nseed: 7\n"))
    config, _ = parse(["--config", str(tmp_path / "mine.yaml")])
    assert (config.recipe, config.seed) == ("mine", 7)
    (tmp_path / "identities.txt").write_bytes(SAVED[saved]("0\tann\n1\tbob\n"))
    assert known_names(tmp_path) == {"0": "ann", "1": "bob"}
