"""Embedding images that are aligned first, and what exported cards say of aligning and fit."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from moved_faces import crops, moved, numbers, png
from small_runs import untrained_run

from fastmfr.__main__ import main
from fastmfr.export.card import _preparation
from fastmfr.weights import open_model


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return untrained_run(tmp_path_factory.mktemp("run"), "--data.size=48", "--data.decode=pillow")


@pytest.fixture
def faces(tmp_path):
    """(a class folder of four moved faces, their landmarks (4, 5, 2), the file of these)."""
    landmarks, rows = [], []
    for person in range(4):
        picture, landmark_52 = moved(crops()[person, 0], (person, 0))
        path = tmp_path / "faces" / str(person) / "0.png"
        path.parent.mkdir(parents=True)
        path.write_bytes(png(picture))
        landmarks.append(landmark_52)
        rows.append(",".join([f"{person}/0.png", *numbers(landmark_52)]))
    (tmp_path / "points.csv").write_text("\n".join(rows))
    return tmp_path / "faces", np.round(np.array(landmarks), 3).astype(np.float32), tmp_path / "points.csv"


def test_the_command_and_the_model_align_alike(run, faces, tmp_path, capsys):
    folder, landmark_N52, file = faces
    typed = ["embed", str(run), str(folder), "--out", str(tmp_path / "out")]
    assert main([*typed, "--landmarks", str(file)]) == 0
    assert "4 of 4 images are aligned by the landmarks in" in " ".join(capsys.readouterr().out.split())
    rows = np.load(tmp_path / "out/embeddings.npy")
    model, images = open_model(run), sorted(folder.glob("*/*.png"))
    want = model.embed(images, mirror="none", landmarks=landmark_N52).numpy()
    assert np.allclose(rows, want, atol=1e-5)
    as_they_are = model.embed(images, mirror="none").numpy()
    placed = model.embed([crops()[person, 0] for person in range(4)], mirror="none").numpy()
    assert ((rows * placed).sum(1) > (as_they_are * placed).sum(1) + 0.1).all()  # nearer to the faces before the move
    assert main(typed) == 1
    assert "source.landmarks was '" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("landmarks", "message"),
    [
        (np.zeros((3, 5, 2)), r"want landmarks \(4, 5, 2\), got \(3, 5, 2\)"),
        (np.zeros((4, 5, 2)), "five different points"),
        (np.full((4, 5, 2), np.nan), "want landmarks that are finite"),
    ],
)
def test_landmarks_that_align_nothing_are_refused(run, faces, landmarks, message):
    with pytest.raises(ValueError, match=message):
        open_model(run).embed(sorted(faces[0].glob("*/*.png")), landmarks=landmarks)


def test_a_folder_that_was_begun_before_there_was_a_fit_goes_on(run, faces, tmp_path, capsys):
    typed = ["embed", str(run), str(faces[0]), "--out", str(tmp_path / "out")]
    assert main(typed) == 0
    record = json.loads((tmp_path / "out/embeddings.json").read_text())
    assert record["settings"].pop("fit") == "crop"
    assert record["source"].pop("landmarks") is None
    (tmp_path / "out/embeddings.json").write_text(json.dumps(record))
    assert main(typed) == 0
    capsys.readouterr()
    assert main([*typed, "--data.fit", "pad"]) == 1
    assert "settings.fit was 'crop', now 'pad'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("fit", "words"),
    [
        ("crop", "Resize the shorter side to 48 pixels, with antialiasing, and crop the centre, 48 x 48."),
        ("pad", "add black at both ends of the other side, 48 x 48."),
        ("stretch", "Resize both sides, with antialiasing, to 48 x 48 pixels."),
    ],
)
def test_a_card_says_how_images_are_brought_to_size(run, fit, words):
    config = open_model(run).config
    config = replace(config, data=replace(config.data, fit=fit))
    facts = SimpleNamespace(model=open_model(run, config), scored={})
    assert any(line.endswith(words) for line in _preparation(facts))


def test_a_card_says_which_domains_were_aligned(run):
    config = open_model(run).config
    as_they_were = SimpleNamespace(model=open_model(run, config), scored={})
    assert next(_preparation(as_they_were)).endswith("fastmfr took the training images as they were.")
    config = replace(config, data=replace(config.data, landmarks={"a": "a.csv", "set": "other.csv"}))
    aligned = SimpleNamespace(model=open_model(run, config), scored={})
    assert next(_preparation(aligned)).endswith("by five landmarks to ArcFace's places: a.")
