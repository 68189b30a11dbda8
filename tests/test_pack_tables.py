"""Parquet files and lists as sources: the columns that people have, and rows that are no use."""

import sys

import pytest
from pack_fakes import FACES, SHUFFLED, folder, parquet, people, picture

from fastmfr.pack.build import pack


def test_rows_of_parquet_without_image_or_label_are_refused(tmp_path):
    rows = [
        ({"bytes": picture(1), "path": None}, 3),
        ({"bytes": None, "path": "x.jpg"}, 3),
        (None, 3),
        ({"bytes": picture(2), "path": None}, None),
    ]
    packed = pack([parquet(tmp_path / "a.parquet", rows)], tmp_path / "out")
    assert people(tmp_path / "out") == {"3": [picture(1)]}
    assert [key for key, _ in packed.refused] == ["a.parquet:1", "a.parquet:2", "a.parquet:3"]


def test_parquet_files_that_cannot_be_read_are_refused_with_a_sentence(tmp_path, monkeypatch):
    (tmp_path / "a.parquet").write_bytes(b"PAR1 no")
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pyarrow.table({"picture": [b""], "label": [1]}), tmp_path / "b.parquet")
    whole = (tmp_path / "b.parquet").read_bytes()
    (tmp_path / "d.parquet").write_bytes(whole.replace(b"picture", b"pictur\xad"))
    for name, sentence in [
        ("a", "cannot be read as Parquet"),
        ("b", "has no column image; .* found picture, label"),
        ("d", "cannot be read as Parquet .*invalid start byte"),
    ]:
        with pytest.raises(ValueError, match=sentence):
            pack([tmp_path / f"{name}.parquet"], tmp_path / "out")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ImportError, match="run `pip install pyarrow`"):
        pack([tmp_path / "b.parquet"], tmp_path / "out")


@pytest.mark.parametrize("names", [("jpg", "cls"), ("img", "identity"), ("image_path", "person_id")])
def test_columns_of_common_names_are_taken_and_named(tmp_path, names):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    folder(tmp_path, FACES)
    stored = {"jpg": lambda name, k: FACES[name][k], "img": lambda name, k: {"bytes": FACES[name][k]}}
    files = {name: sorted(path.name for path in (tmp_path / name).iterdir()) for name in FACES}
    image = stored.get(names[0], lambda name, k: f"{name}\\{files[name][k]}")
    table = {
        names[0]: [image(name, k) for name, k in SHUFFLED],
        names[1]: [name for name, _ in SHUFFLED],
        "age": [3] * 6,
    }
    parquet.write_table(pyarrow.table(table), tmp_path / "a.parquet")
    packed = pack([tmp_path / "a.parquet"], tmp_path / "out")
    assert people(tmp_path / "out") == FACES
    said = f"its column {names[0]!r} was taken for images, {names[1]!r} for labels"
    assert packed.notes == [f"{tmp_path / 'a.parquet'}: {said}"]


def test_rows_that_name_a_file_are_read_within_the_folder_only(tmp_path):
    (tmp_path / "in" / "ann").mkdir(parents=True)
    for place in ("in/ann/1.jpg", "out.jpg"):
        (tmp_path / place).write_bytes(picture(1))
    (tmp_path / "in" / "link.jpg").symlink_to(tmp_path / "out.jpg")
    outside = ["../out.jpg", str(tmp_path / "out.jpg"), "link.jpg"]
    rows = [({"bytes": None, "path": path}, 2.0) for path in ["ann/1.jpg", *outside]]
    packed = pack([parquet(tmp_path / "in" / "a.parquet", rows)], tmp_path / "packed")
    assert people(tmp_path / "packed") == {"2": [picture(1)]}
    assert ["outside the folder of the Parquet file" in reason for _, reason in packed.refused] == [True] * 3


LINES = {  # of the images ann/0.jpg, ann/1.png and bob/0.jpg
    "im2rec": "0\t7.000000\tann/0.jpg\n1\t7.000000\tann/1.png\n2\t8.000000\tbob/0.jpg\n",
    "im2rec with several labels": "0\t7\t0.5\tann/0.jpg\n1\t7\t0.5\tann/1.png\n2\t8\t1.5\tbob/0.jpg\n",
    "InsightFace": "1\tann/0.jpg\t7\n1\tann/1.png\t7\n1\tbob/0.jpg\t8\n",
    "InsightFace with landmarks": "0\tann/0.jpg\t7\t1\t2\n0\tann/1.png\t7\t3\t4\n0\tbob/0.jpg\t8\t5\t6\n",
}


@pytest.mark.parametrize("form", LINES)
def test_lists_of_mxnet_are_read_in_both_orders_of_columns(tmp_path, form):
    folder(tmp_path, FACES)
    (tmp_path / "train.lst").write_text(LINES[form] + LINES[form].splitlines()[2].replace("8", "-1") + "\n")
    packed = pack([tmp_path / "train.lst"], tmp_path / "out")
    assert people(tmp_path / "out") == {"7": FACES["ann"], "8": FACES["bob"]}
    assert [(key, "its label is -1" in reason) for key, reason in packed.refused] == [("bob/0.jpg", True)]
