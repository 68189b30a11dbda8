"""Lists of pairs become InsightFace .bin files, with the bytes that InsightFace's own tool writes."""

import pickle

import pytest
from helpers import command
from PIL import Image

from fastmfr.pack.pairs import PROTOCOL, pack_pairs
from fastmfr.protocols import read_bin

main = command("pack")
PAIRS = "anna 1 2\nanna 1 berta 1\nberta 1 2\nberta 2 anna 2\n"


@pytest.fixture
def faces_of_two(tmp_path):
    """A folder of two people as LFW has them, two images each, and a list of four pairs."""
    for name, seed in (("anna", 1), ("berta", 5)):
        (tmp_path / "faces" / name).mkdir(parents=True)
        for image in (1, 2):
            picture = Image.new("RGB", (16, 16), (seed * 20, image * 40, 0))
            picture.save(tmp_path / "faces" / name / f"{name}_{image:04d}.jpg")
    (tmp_path / "pairs.txt").write_text(PAIRS)
    return tmp_path


def as_insightface_writes_it(root):
    """What lfw2pack.py of InsightFace dumps: the files' bytes, two a pair, and whether they are of one person."""
    names = ["anna_0001", "anna_0002", "anna_0001", "berta_0001", "berta_0001", "berta_0002", "berta_0002", "anna_0002"]
    encoded = [(root / "faces" / name[:-5] / f"{name}.jpg").read_bytes() for name in names]
    return encoded, [True, False, True, False]


def test_a_bin_has_the_bytes_that_insightface_writes_and_is_read_back(faces_of_two, capsys):
    out = faces_of_two / "lfw.bin"
    assert main(["--pairs", str(faces_of_two / "pairs.txt"), str(faces_of_two / "faces"), str(out)]) == 0
    wanted = as_insightface_writes_it(faces_of_two)
    assert out.read_bytes() == pickle.dumps(wanted, PROTOCOL)
    assert pickle.loads(out.read_bytes(), encoding="bytes") == wanted  # as InsightFace's verification loads it
    images, pairs = read_bin(out)
    assert [bytes(images.jpeg(number)) for number in range(8)] == wanted[0]
    assert pairs.is_mate.tolist() == wanted[1]
    said = " ".join(capsys.readouterr().out.split())
    assert "packed 4 pairs, 2 of one person each, into" in said
    assert "images all of 16 x 16 pixels" in said
    assert "4 pairs in 10 folds: a .bin holds no folds, and is read as 10 equal ones in order" in said


def test_pairs_with_folds_come_in_the_order_of_their_folds(tmp_path):
    lines = [f"{k}a.png {k}b.png {k % 2} {(k + 3) % 10}" for k in range(20)]
    (tmp_path / "some_pairs.txt").write_text("\n".join(lines))
    for k in range(20):
        for half in "ab":
            Image.new("RGB", (16, 16), (k, ord(half), 0)).save(tmp_path / f"{k}{half}.png")
    packed = pack_pairs(tmp_path / "some_pairs.txt", tmp_path, tmp_path / "some.bin")
    encoded, flags = pickle.loads((tmp_path / "some.bin").read_bytes())
    order = sorted(range(20), key=lambda k: (k + 3) % 10)
    assert encoded[::2] == [(tmp_path / f"{k}a.png").read_bytes() for k in order]
    assert flags == [bool(k % 2) for k in order]
    assert (packed.pairs, packed.mates, packed.notes) == (20, 10, [])


def test_other_formats_become_png_and_images_can_be_resized(tmp_path):
    for name, side in (("a.bmp", 20), ("b.webp", 24)):
        Image.new("RGB", (side, side), (9, 9, 9)).save(tmp_path / name)
    (tmp_path / "pairs.txt").write_text("a.bmp b.webp 1\n")
    pack_pairs(tmp_path / "pairs.txt", tmp_path, tmp_path / "plain.bin")
    assert all(image.startswith(b"\x89PNG") for image in pickle.loads((tmp_path / "plain.bin").read_bytes())[0])
    packed = pack_pairs(tmp_path / "pairs.txt", tmp_path, tmp_path / "small.bin", resize=16)
    assert packed.sizes == {(16, 16): 2}


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["faces", "lfw"], "want a file that ends in .bin to write pairs to, got "),
        (["nowhere", "lfw.bin"], "there is no folder"),
        (["faces", "pairs.bin"], "pairs.bin is there already"),
        (["faces", "faces", "lfw.bin"], "want one folder and one file behind --pairs"),
        (["faces", "lfw.bin", "--min-images=2"], "want no --min-images with --pairs"),
        (["faces", "lfw.bin", "--resize=0"], "want resize of at least 1, got 0"),
        (["pairs", "lfw.bin"], "4 images of the pairs cannot be used, the first, anna/anna_0001.jpg, because: there"),
    ],
)
def test_what_cannot_be_packed_is_told_and_leaves_nothing(words, sentence, faces_of_two, capsys):
    (faces_of_two / "pairs").mkdir()
    (faces_of_two / "pairs.bin").write_bytes(b"mine")
    typed = [word if word.startswith("--") else str(faces_of_two / word) for word in words]
    assert main(["--pairs", str(faces_of_two / "pairs.txt"), *typed]) == 1
    assert sentence in " ".join(capsys.readouterr().err.split())
    assert not (faces_of_two / "lfw.bin").exists()
    assert (faces_of_two / "pairs.bin").read_bytes() == b"mine"
