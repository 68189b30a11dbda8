"""Sources whose columns, members and folders have other names than the usual ones."""

import json

import pytest
from helpers import command
from pack_fakes import FACES, folder, people, tar

from fastmfr.pack.source import Reading
from fastmfr.protocols.lists import path_and_identity, path_and_label

main = command("pack")


def pack(*words):
    return main(list(map(str, words)))


def sample(name, k, number, label):
    """The members of one sample: a mask, the face and the label `label`, (suffix, bytes)."""
    return [(f"{number}.webp", b"a mask"), (f"{number}.jpg", FACES[name][k]), (f"{number}.{label[0]}", label[1])]


CY_AND_BOB = [("cy", 0), ("bob", 0), ("cy", 1), ("cy", 2)]


def shard(path, label):
    members = [sample(name, k, n, label(name)) for n, (name, k) in enumerate(CY_AND_BOB)]
    return tar(path, [member for some in members for member in some])


@pytest.mark.parametrize(
    ("label", "words"),
    [
        (lambda name: ("who", name.encode()), ["--label", "who"]),
        (lambda name: ("json", json.dumps({"label": 3, "person": name}).encode()), ["--label", "json:person"]),
    ],
)
def test_a_tar_is_read_by_the_suffixes_of_its_images_and_labels(label, words, tmp_path):
    shard(tmp_path / "faces.tar", label)
    assert pack(tmp_path / "faces.tar", tmp_path / "out", *words, "--image=jpg") == 0
    assert people(tmp_path / "out") == {"bob": FACES["bob"], "cy": FACES["cy"]}


def test_labels_are_found_in_the_names_of_a_tar_and_of_a_list(tmp_path, capsys):
    names = [(f"cam/{name}_c{k}.jpg", FACES[name][k]) for name, k in CY_AND_BOB]
    tar(tmp_path / "faces.tar", [*names, ("cam/odd.jpg", FACES["cy"][0])])
    pattern = r"--label-pattern=/([a-z]+)_c\d"
    assert pack(tmp_path / "faces.tar", tmp_path / "out", pattern) == 0
    assert people(tmp_path / "out") == {"bob": FACES["bob"], "cy": FACES["cy"]}
    assert "finds no label in its name" in (tmp_path / "out" / "refused.txt").read_text()
    (tmp_path / "elsewhere" / "cam").mkdir(parents=True)
    for name, content in names:
        (tmp_path / "elsewhere" / name).write_bytes(content)
    (tmp_path / "list.txt").write_text("".join(f"{name}\n" for name, _ in names))
    assert pack(tmp_path / "list.txt", tmp_path / "two", pattern, "--root", tmp_path / "elsewhere") == 0
    assert people(tmp_path / "two") == {"bob": FACES["bob"], "cy": FACES["cy"]}


def test_a_list_of_mxnet_finds_its_images_below_a_root_or_beside_or_above_it(tmp_path):
    folder(tmp_path / "data" / "images", FACES)
    lines = ["0\t0.000000\tann/0.jpg", "1\t1.000000\tbob/0.jpg"]
    (tmp_path / "train.lst").write_text("\n".join(lines))
    assert pack(tmp_path / "train.lst", tmp_path / "out", "--root", tmp_path / "data" / "images") == 0
    assert people(tmp_path / "out") == {"0": FACES["ann"][:1], "1": FACES["bob"]}
    (tmp_path / "data" / "images" / "lists").mkdir()
    (tmp_path / "data" / "images" / "lists" / "train.lst").write_text("\n".join(lines))
    assert pack(tmp_path / "data" / "images" / "lists" / "train.lst", tmp_path / "above") == 0
    assert people(tmp_path / "above") == people(tmp_path / "out")


def test_a_parquet_file_is_read_by_the_names_of_its_columns(tmp_path, capsys):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    columns = {"image": [b"no"] * 3, "crop": FACES["cy"], "label": ["?"] * 3, "who": ["cy"] * 3}
    parquet.write_table(pyarrow.table(columns), tmp_path / "faces.parquet")
    words = [tmp_path / "faces.parquet", tmp_path / "out"]
    assert pack(*words, "--image=crop", "--label=who") == 0
    assert people(tmp_path / "out") == {"cy": FACES["cy"]}
    assert pack(*words[:1], tmp_path / "two", "--label=whom") == 1
    text = " ".join(capsys.readouterr().err.split())
    assert "has no column whom; want `image` and `label`, found image, crop, label, who" in text


@pytest.mark.parametrize(
    ("pattern", "sentence"),
    [("(", "want the label pattern as a regular expression, got '\\('"), ("a+", "want a group in parentheses")],
)
def test_a_pattern_that_finds_no_label_ever_is_refused(pattern, sentence):
    with pytest.raises(ValueError, match=sentence):
        Reading(pattern=pattern)


@pytest.mark.parametrize(
    ("line", "path", "label"),
    [
        ("a/1.jpg\tanna", "a/1.jpg", "anna"),
        ("a/1.jpg anna", "a/1.jpg", "anna"),
        ("a/my photo.JPG", "a/my photo.JPG", ""),
        ("a/my photo.jpg\tanna b", "a/my photo.jpg", "anna b"),
        ("a/1.jpg", "a/1.jpg", ""),
        ("17\t3.000000\ta\\1.jpg", "a\\1.jpg", "3"),
        ("1\ta/1.jpg\t12\t0 0 5 5", "a/1.jpg", "12"),
    ],
)
def test_one_reader_serves_the_lists_of_pack_embed_and_evaluate(line, path, label):
    assert path_and_label(line) == (path, label)
    assert path_and_identity(line) == (path.replace("\\", "/"), label or "a")
