import numpy as np
import pytest
from evaluation_fakes import class_folder
from helpers import command

from fastmfr.domains import open_domain
from fastmfr.pack import RecordWriter
from fastmfr.protocols import read_folds
from fastmfr.protocols.drawing import ListSettings, draw_lists, write_lists

main = command("split")


def rows(path):
    return [line.split("\t") for line in path.read_text().splitlines() if not line.startswith("#")]


def texts(folder):
    return {path.name: path.read_text() for path in sorted(folder.iterdir())}


@pytest.fixture
def faces(tmp_path):
    return class_folder(tmp_path / "faces", people=10)


def test_no_one_is_on_both_sides_and_every_image_of_the_trained_is_listed(faces, tmp_path):
    write_lists(open_domain(faces), ListSettings(scored=4, gallery=1), tmp_path / "lists")
    train, gallery, probe = (rows(tmp_path / "lists" / f"{kind}.txt") for kind in ("train", "gallery", "probe"))
    trained, enrolled, looked_up = ({person for _, person in listed} for listed in (train, gallery, probe))
    assert (len(trained), len(enrolled)) == (6, 4)
    assert enrolled == looked_up
    assert not trained & enrolled
    assert (len(train), len(gallery), len(probe)) == (18, 4, 8)
    assert len({path for path, _ in train + gallery + probe}) == 30
    assert all((tmp_path / "lists" / path).is_file() for path, _ in train + gallery + probe)


def test_what_is_drawn_depends_on_seed_and_names_only(faces, tmp_path):
    domain = open_domain(faces)
    assert draw_lists(domain, ListSettings()) == draw_lists(domain, ListSettings())
    assert draw_lists(domain, ListSettings(seed=1)) != draw_lists(domain, ListSettings())
    whole = write_lists(domain, ListSettings(scored=0.3), tmp_path / "a")
    reordered = open_domain(faces).people(np.random.default_rng(0).permutation(10))
    assert [len(images) for images in whole[0].images.values()] == [21, 3, 6]
    write_lists(reordered, ListSettings(scored=0.3), tmp_path / "b")
    assert texts(tmp_path / "a") == texts(tmp_path / "b")
    write_lists(domain, ListSettings(scored=0.3), tmp_path / "a")  # once more, over the same lists
    with pytest.raises(ValueError, match="is there and holds something else"):
        write_lists(domain, ListSettings(scored=0.3, seed=5), tmp_path / "a")
    assert texts(tmp_path / "a") == texts(tmp_path / "b")


def test_a_header_says_how_a_list_was_made_and_evaluation_reads_the_lists(faces, tmp_path, capsys):
    lists = tmp_path / "lists"
    assert main([str(faces), "--out", str(lists), "--scored", "4", "--probes", "1", "--folds", "10"]) == 0
    assert "fold 10: train 6 people, 18 images; gallery 4 people, 4 images; probe 4 people" in capsys.readouterr().out
    first, second = (lists / "gallery_3.txt").read_text().splitlines()[:2]
    assert first == "# gallery, fold 3 of 10: 4 people, 4 images; path<TAB>identity"
    assert second == f"# python -m fastmfr split {faces} --scored 4 --gallery 1 --probes 1 --folds 10 --seed 2019"
    images, folds = read_folds(lists)
    assert len(folds) == 10
    assert len({tuple(sorted(images.key(image) for image in pairs.gallery)) for pairs in folds}) > 5
    for pairs in folds:
        assert sorted(pairs.gallery_id) == sorted(pairs.probe_id)
        assert len(images.jpeg(pairs.gallery[0])) > 100


def test_gallery_and_probe_by_patterns_of_names(tmp_path):
    class_folder(tmp_path / "faces", people=4, images=2, form="p{person}/vis-{image}.jpg")
    class_folder(tmp_path / "faces", people=5, images=3, form="p{person}/nir-{image}.jpg")
    settings = ListSettings(scored=4, gallery=2, gallery_like="vis-*", probe_like="nir-*")
    write_lists(open_domain(tmp_path / "faces"), settings, tmp_path / "lists")
    gallery, probe = (rows(tmp_path / "lists" / f"{kind}.txt") for kind in ("gallery", "probe"))
    assert sorted(path.split("/")[-1] for path, _ in gallery) == ["vis-0.jpg"] * 4 + ["vis-1.jpg"] * 4
    assert (len(gallery), len(probe)) == (8, 12)
    assert {path.split("/")[-1][:3] for path, _ in probe} == {"nir"}
    assert [person for _, person in rows(tmp_path / "lists" / "train.txt")] == ["p4"] * 3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(scored=11), "11 of the 10 people of .* were to be scored, and 10 have 1 gallery image and 1 probe image"),
        (dict(scored=1), "1 of the 10 people"),
        (dict(scored=0.1), "1 of the 10 people"),
        (dict(gallery=3), "5 of the 10 people of .* and 0 have 3 gallery images and 1 probe image"),
        (dict(probe_like="nir*"), r"0 have 1 gallery image and 1 probe image like nir\*"),
        (dict(scored=2.5), "a whole number of people, got 2.5"),
        (dict(scored=0), "got 0"),
        (dict(gallery=0), "want gallery of at least 1, got 0"),
        (dict(folds=-1), "want folds of at least 0"),
    ],
)
def test_refuses_what_cannot_be_split_with_a_sentence(faces, tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        write_lists(open_domain(faces), ListSettings(**settings), tmp_path / "lists")
    assert not (tmp_path / "lists").exists()


def test_refuses_records_and_names_that_cannot_stand_in_a_list(faces, tmp_path, capsys):
    with RecordWriter(tmp_path / "packed") as writer:
        for person in range(4):
            for image in sorted((faces / "p00").iterdir()):
                writer.add(person, image.read_bytes())
    assert main([str(tmp_path / "packed"), "--out", str(tmp_path / "lists")]) == 1
    assert "is a RecordIO folder" in capsys.readouterr().err
    (faces / "p00" / "0.jpg").rename(faces / "p00" / "a\tb.jpg")
    with pytest.raises(ValueError, match="cannot stand in a list"):
        write_lists(open_domain(faces), ListSettings(scored=9), tmp_path / "lists")
