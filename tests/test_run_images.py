"""How a run brings its images to size: the line about images that are not square, and landmarks of domains."""

import io
from collections import Counter

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from small_runs import IMAGES, PEOPLE, main, only_run

from fastmfr.__main__ import main as fastmfr
from fastmfr.decode.align import PLACES_52
from fastmfr.decode.shapes import fit_line
from fastmfr.domains import open_domain

ONE_STAGE = ["--meta.steps=0", "--pretrain.steps=2", "--data.decode=pillow", "--data.validation=0"]


@pytest.fixture
def tall(faces, tmp_path):
    """The domain nir, with images that are higher than wide."""
    domain = open_domain(faces["nir"])
    for image in range(domain.images):
        path = tmp_path / "tall" / f"{domain.identity_of(image)}" / f"{image}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture = Image.open(io.BytesIO(bytes(domain.jpeg(image)))).convert("RGB").resize((32, 40))
        picture.save(path)
    return tmp_path / "tall"


def places(domain, path, size=32):
    """Landmarks of a domain that is aligned already."""
    numbers = ",".join(f"{number:.6f}" for number in (PLACES_52 * size / 112).ravel())
    path.write_text("".join(f"{domain.key(image)},{numbers}\n" for image in range(domain.images)))
    return path


def test_a_run_says_which_images_are_not_square_and_follows_data_fit(small, tall, tmp_path, capsys):
    words = [*small, *ONE_STAGE, f"--data.targets.nir={tall}"]
    assert main(words) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert f"nir: {PEOPLE * IMAGES} images of 32 x 40 pixels; data.fit crop cuts 8 rows, 20 %" in said
    assert "studio: 96 images of" not in said
    first = only_run(tmp_path)
    assert main([*words, "--data.fit=pad"]) == 0
    assert "data.fit pad adds black, 8 columns, 20 % of the longer side" in " ".join(capsys.readouterr().out.split())
    (second,) = [folder for folder in (tmp_path / "runs").iterdir() if folder != first]
    assert "fit: pad\n" in (second / "config.yaml").read_text()


def test_a_resumed_run_keeps_its_fit(small, tmp_path, capsys):
    assert main([*small, *ONE_STAGE]) == 0
    capsys.readouterr()
    assert main(["--resume", str(only_run(tmp_path)), "--data.fit=stretch", "--pretrain.steps=3"]) == 1
    assert "data.fit was 'crop', now 'stretch'" in capsys.readouterr().err


def test_a_run_aligns_the_domains_that_have_landmarks(small, faces, tmp_path, capsys):
    """The landmarks are at their places, so aligning changes no pixel, and training comes to the same bits."""
    assert main([*small, *ONE_STAGE]) == 0
    plain = only_run(tmp_path)
    capsys.readouterr()
    file = places(open_domain(faces["studio"]), tmp_path / "studio.csv")
    assert main([*small, *ONE_STAGE, f"--data.landmarks.studio={file}"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    images = PEOPLE * IMAGES
    assert f"align studio: {images} of {images} images are aligned by the landmarks in" in said
    (aligned,) = [folder for folder in (tmp_path / "runs").iterdir() if folder != plain]
    assert f"studio: {file}" in (aligned / "config.yaml").read_text()
    weights = [load_file(folder / "base.safetensors") for folder in (plain, aligned)]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    shifted = places(open_domain(faces["studio"]), file, size=40)
    assert main(["--resume", str(aligned), "--pretrain.steps=3"]) == 1
    assert "the source domain studio has changed" in capsys.readouterr().err
    assert shifted == file


def test_landmarks_of_no_domain_and_of_other_images_are_refused(small, faces, tmp_path, capsys):
    file = places(open_domain(faces["nir"]), tmp_path / "nir.csv")
    assert main([*small, f"--data.landmarks.nri={file}"]) == 1
    assert "data.landmarks names nri, which is no domain of this run; want names out of" in capsys.readouterr().err
    file.write_text("other.jpg" + " 1 2 3 4 5 6 7 8 9 11")
    assert main([*small, f"--data.landmarks.nir={file}"]) == 1
    assert "has landmarks of none of the 96 images of nir" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("sizes", "fit", "line"),
    [
        ({(112, 112): 5}, "crop", None),
        ({(92, 112): 400}, "crop", "400 images of 92 x 112 pixels; data.fit crop cuts 20 rows, 18 %"),
        ({(112, 92): 3, (9, 9): 1}, "crop", "3 of 4 images of 112 x 92 pixels; data.fit crop cuts 20 columns, 18 %"),
        (
            {(112, 92): 3},
            "pad",
            "3 images of 112 x 92 pixels; data.fit pad adds black, 20 rows, 18 % of the longer side",
        ),
        ({(92, 112): 3}, "stretch", "3 images of 92 x 112 pixels; data.fit stretch makes faces 1.22 times as wide"),
        (
            {(90, 100): 3, (100, 50): 4, (8, 8): 1},
            "crop",
            "7 of 8 images are not square, most often 100 x 50 (4); data.fit crop cuts 10 to 50 % of the longer side",
        ),
        (
            {(90, 100): 3, (100, 50): 4},
            "stretch",
            "7 of 7 images are not square, most often 100 x 50 (4); data.fit stretch makes faces up to 2.00 times as "
            "wide or high",
        ),
    ],
)
def test_what_a_policy_does_is_said_in_a_line(sizes, fit, line):
    assert fit_line(Counter(sizes), fit) == line


def test_inspect_says_what_fit_would_do(tall, capsys):
    assert fastmfr(["inspect", str(tall)]) == 0
    assert "tall: 96 images of 32 x 40 pixels; data.fit crop cuts 8 rows, 20 %" in capsys.readouterr().out
    assert fastmfr(["inspect", str(tall), "--fit", "stretch"]) == 0
    assert "data.fit stretch makes faces 1.25 times as wide" in capsys.readouterr().out
