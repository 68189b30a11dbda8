"""Files of landmarks: each format by example, damaged rows, and which image a row is of."""

import csv

import numpy as np
import pytest
from decode_fakes import FakeDomain, encode, picture
from evaluation_fakes import class_folder

from fastmfr.decode.align import PLACES_52
from fastmfr.decode.shapes import shapes_of
from fastmfr.domains import open_domain
from fastmfr.protocols.landmarks import attach, find_landmarks, read_landmarks

FACE = [round(float(number), 2) for number in (PLACES_52 + 7).ravel()]
TEN = " ".join(map(str, FACE))
NAMES = [
    *("left_eye_x", "left_eye_y", "right_eye_x", "right_eye_y", "nose_x", "nose_y"),
    *("left_mouth_x", "left_mouth_y", "right_mouth_x", "right_mouth_y"),
]


def written(path, *rows):
    path.write_text("".join(f"{row}\n" for row in rows))
    return path


def shuffled(path):
    """A CSV whose columns are in another order, with others among them."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["score", *NAMES[::-1], "Image-ID", "box"])
        writer.writerow([0.99, *FACE[::-1], "ann, ben/1.jpg", "1 2 3 4"])
    return path


@pytest.mark.parametrize(
    ("write", "entry"),
    [
        (lambda path: written(path, f"1.jpg {TEN} 0.9876", f"2.jpg {TEN} 1"), "1.jpg"),
        (
            lambda path: written(path, f"/test/data/African/m.0/m.0_0001.jpg\t7\t{TEN}".replace(" ", "\t")),
            "m.0/m.0_0001.jpg",
        ),
        (lambda path: written(path, f"a b/1.jpg\t{TEN}".replace(" ", "\t").replace("a\tb", "a b")), "a b/1.jpg"),
        (lambda path: written(path, "# made by hand", f"ann\\1.jpg {TEN}"), "ann/1.jpg"),
        (lambda path: written(path, ",".join(["ann/1.jpg", *map(str, FACE)])), "ann/1.jpg"),
        (
            lambda path: written(path, ", ".join(["path", *NAMES]), ", ".join(["ann/1.jpg", *map(str, FACE)])),
            "ann/1.jpg",
        ),
        (lambda path: written(path, "x1,y1,x2,y2,x3,y3,x4,y4,x5,y5,key", ",".join([*map(str, FACE), "k"])), "k"),
        (shuffled, "ann, ben/1.jpg"),
    ],
    ids=["ijb", "rfw", "tabs", "blanks", "csv", "csv with a header", "numbered header", "header in another order"],
)
def test_reads_every_format(tmp_path, write, entry):
    found = read_landmarks(write(tmp_path / "points"))
    row = found.row_of(entry)
    assert row == 0
    assert np.allclose(found.landmark_N52[row].ravel(), FACE)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([f"1.jpg {TEN} 0.9", f"2.jpg {TEN}"], r"line 2 of .* want a name, ten numbers and a score, got '2\.jpg 45"),
        ([f"1.jpg {TEN}", "", "2.jpg 1 2 3"], r"line 3 of .* want a path and ten numbers, got '2\.jpg 1 2 3'"),
        ([f"1.jpg {TEN}", f"2.jpg {TEN}".replace("45.29", "nan")], "line 2 of .* is no row of landmarks"),
        ([f"1.jpg {TEN}", f"2.jpg {TEN}".replace("45.29", "4S.29")], r"line 2 of .* got '2\.jpg 4S\.29"),
        ([f"a/1.jpg 0 {TEN}", f"a/2.jpg {TEN} 0.5 1"], "line 2 of .* want a path, a label and ten numbers"),
        (["1.jpg 1 2 3 4"], "line 1 of .* is neither a row of landmarks nor a header: want a path and ten numbers, "),
        (
            ["path,left_eye_x,left_eye_y", f"1.jpg,{TEN}"],
            "neither a row of landmarks nor a header: .* the columns path, left",
        ),
        ([",".join(["path", *NAMES]), "1.jpg,3"], "line 2 of .* want 11 columns as in the header, ten of them numbers"),
        ([f",{','.join(map(str, FACE))}"], "line 1 of .* is no row"),
        (["1.jpg" + " 5" * 10], r"line 1 of .* five landmarks that are those of no face.* got \[\[5\.0, 5\.0\]"),
        ([f"1.jpg {TEN}", f"1.jpg {TEN}".replace("45.29", "46")], r"two rows with different landmarks of 1\.jpg"),
        (["# nothing"], "has no row of landmarks"),
    ],
)
def test_a_damaged_row_is_named_with_what_was_wanted_and_given(tmp_path, rows, message):
    with pytest.raises(ValueError, match=message):
        read_landmarks(written(tmp_path / "points.txt", *rows))


def test_a_missing_file_and_one_that_is_no_text_are_told(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no file of landmarks"):
        read_landmarks(tmp_path / "none.csv")
    (tmp_path / "points.txt").write_bytes(b"\xff\x00\xfe")
    with pytest.raises(ValueError, match="should be a text file of lines"):
        read_landmarks(tmp_path / "points.txt")


@pytest.mark.parametrize(
    ("entries", "key", "row"),
    [
        (["ann/1.jpg", "bob/1.jpg"], "bob/1.jpg", 1),
        (["faces/ann/1.jpg", "faces/bob/1.jpg"], "bob/1.jpg", 1),  # the file has more folders
        (["ann/1.jpg", "bob/1.jpg"], "data/faces/bob/1.jpg", 1),  # the key has
        (["ann/1.bmp", "ann/2.bmp"], "ann/2.jpg", 1),  # another suffix
        (["x/ann/1.bmp", "x/ann/2.bmp"], "ann/2.jpg", 1),
        (["ann/1.png", "ann/1.jpg"], "ann/1.jpg", 1),
        (["1.jpg", "2.jpg"], "bob/1.jpg", -1),  # a bare name is no image of bob's
        (["train.rec:17", "train.rec:18"], "train.rec:18", 1),
        (["ann/1.jpg"], "ann/11.jpg", -1),
    ],
)
def test_finds_the_row_of_an_image(tmp_path, entries, key, row):
    found = read_landmarks(written(tmp_path / "p.txt", *(f"{entry} {TEN}" for entry in entries)))
    assert found.row_of(key) == row


def test_rows_that_may_be_of_one_image_are_refused(tmp_path):
    found = read_landmarks(written(tmp_path / "p.txt", f"asia/ann/1.jpg {TEN}", f"europe/ann/1.jpg {TEN}"))
    with pytest.raises(ValueError, match=r"several rows that may be of the image ann/1\.jpg"):
        found.row_of("ann/1.jpg")


def a_domain():
    return FakeDomain([encode(picture(130, 130, seed)) for seed in range(4)], name="web")


def test_images_without_a_row_and_exchanged_sides_are_counted_and_the_first_is_named(tmp_path):
    exchanged = " ".join(str(FACE[k]) for k in (2, 3, 0, 1, 4, 5, 8, 9, 6, 7))
    domain = a_domain()
    rows = [f"0.jpg {TEN}", f"2.jpg {exchanged}", f"other.jpg {TEN}"]
    sentence = attach(domain, read_landmarks(written(tmp_path / "p.txt", *rows)))
    assert sentence == f"2 of 4 images are aligned by the landmarks in {tmp_path / 'p.txt'}"
    missing, turned = domain.notes
    assert missing.startswith(f"2 of 4 images have no landmarks in {tmp_path / 'p.txt'}, the first 1.jpg: they are not")
    assert turned.startswith("1 of 2 images have left and right exchanged")
    assert "the first 2.jpg" in turned
    assert np.isnan(domain.landmark_N52).all((1, 2)).tolist() == [False, True, False, True]


def test_landmarks_of_other_images_are_refused(tmp_path):
    with pytest.raises(
        ValueError, match=r"none of the 4 images of web: the file names 'x\.jpg', the first image is '0"
    ):
        attach(a_domain(), read_landmarks(written(tmp_path / "p.txt", f"x.jpg {TEN}")))


def test_landmarks_outside_of_their_image_are_counted(tmp_path):
    domain = a_domain()
    attach(domain, read_landmarks(written(tmp_path / "p.txt", *(f"{k}.jpg {TEN}" for k in range(3)))))
    assert shapes_of(domain, "crop").lines == []
    domain.landmark_N52[1] += 60
    domain.landmark_N52[2] -= 60
    (line,) = shapes_of(domain, "crop").lines
    assert line.startswith("2 of 3 images have landmarks outside of the image, the first 1.jpg")


def test_people_chosen_from_a_domain_keep_their_landmarks(tmp_path):
    domain = open_domain(class_folder(tmp_path / "faces", people=5, images=3))
    before = domain.fingerprint()
    rows = [
        f"p{p:02}/{k}.jpg,{','.join(str(number + 10 * p + k) for number in FACE)}" for p in range(5) for k in range(3)
    ]
    attach(domain, read_landmarks(written(tmp_path / "landmarks.csv", *rows)))
    assert domain.fingerprint() != before
    chosen = domain.people([4, 1]).people([1, 0])
    assert [chosen.key(image) for image in (0, 5)] == ["p01/0.jpg", "p04/2.jpg"]
    moved = chosen.landmark_N52[:, 0, 0] - FACE[0]
    assert np.allclose(moved, [10, 11, 12, 40, 41, 42], atol=1e-4)


def test_files_of_landmarks_are_found_by_their_names(tmp_path):
    assert find_landmarks(tmp_path) is None
    for name in ("ijbc_name_5pts_score.txt", "African_lmk.txt", "landmarks.csv"):
        written(tmp_path / name, "")
        assert find_landmarks(tmp_path / "none", tmp_path).name == name
        (tmp_path / name).unlink()
