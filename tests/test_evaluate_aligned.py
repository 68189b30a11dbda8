"""Sets as IJB and RFW come, of faces turned and shifted by known amounts, through the whole of `evaluate`."""

import json

import numpy as np
import pytest
from moved_faces import crops, ijb, moved, png, rfw
from small_runs import untrained_run

from fastmfr.__main__ import main
from fastmfr.decode import Preprocess, decode_reference
from fastmfr.evaluate import open_sets


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run folder of a network nobody trained: which pixels are where decides on its embeddings."""
    return untrained_run(tmp_path_factory.mktemp("run"), "--data.size=112", "--evaluate.far=[0.1]")


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """{name: path} of the sets, with faces in place and moved."""
    place, faces = tmp_path_factory.mktemp("sets"), crops()
    return {
        f"{kind.__name__}-{name}": kind(place / f"{kind.__name__}-{name}", faces, move=name == "moved")
        for kind in (ijb, rfw)
        for name in ("placed", "moved")
    }


def evaluated(run, sets, out, *options):
    words = [word for name, path in sets.items() for word in ("--set", f"{name}={path}")]
    status = main(["evaluate", str(run), *words, "--out", str(out), *options])
    return status, json.loads(out.read_text())["sets"] if out.exists() else {}


@pytest.mark.parametrize(("kind", "ending"), [("ijb", ""), ("rfw", "/african")])
def test_moved_faces_score_as_unmoved_ones_if_they_are_aligned_and_worse_if_not(
    run, sets, tmp_path, capsys, kind, ending
):
    mine = {name: path for name, path in sets.items() if name.startswith(kind)}
    status, found = evaluated(run, mine, tmp_path / "aligned.json")
    said = " ".join(capsys.readouterr().out.split())
    assert status == 0
    assert f"{kind}-moved{ending}: 32 of 32 images are aligned by the landmarks in" in said
    assert f"{kind}-placed{ending}: " not in said.partition("written to")[0].replace(f"{kind}-placed{ending}: FAR", "")
    placed, aligned = (found[f"{kind}-{name}{ending}"]["auc"] for name in ("placed", "moved"))
    moved_alone = {f"{kind}-moved": mine[f"{kind}-moved"]}
    status, found = evaluated(run, moved_alone, tmp_path / "as_is.json", f"--data.landmarks.{kind}-moved", "none")
    as_is = found[f"{kind}-moved{ending}"]["auc"]
    assert status == 0
    assert aligned == pytest.approx(placed, abs=0.02)
    assert aligned > as_is + 0.1


def test_aligned_crops_are_the_faces_before_they_were_moved():
    for person, image in ((0, 0), (3, 2), (7, 3)):
        crop = crops()[person, image]
        picture, landmark_52 = moved(crop, (person, image))
        look = Preprocess(size=112, mean=0.0, std=1.0)
        got = decode_reference(png(picture), look, False, landmark_52).transpose(1, 2, 0)
        off = np.abs(got - crop)[4:-4, 4:-4]
        assert off.mean() < 3
        assert np.abs(np.asarray(picture.resize((112, 112))).astype(float) - crop)[4:-4, 4:-4].mean() > 15


def test_landmarks_may_be_named_for_any_set(run, sets, tmp_path, capsys):
    """The same pairs without RFW's folders, so that no file lies beside the list."""
    races = sets["rfw-moved"] / "test"
    pairs = (races / "txts/African/African_pairs.txt").read_text()
    (races / "data/African/pairs.txt").write_text(pairs)
    named = ["--data.landmarks.mine", str(races / "txts/African/African_lmk.txt")]
    status, found = evaluated(run, {"mine": races / "data/African"}, tmp_path / "e.json", *named)
    assert status == 0, capsys.readouterr().err
    assert "mine: 32 of 32 images are aligned" in " ".join(capsys.readouterr().out.split())
    (races / "data/African/pairs.txt").unlink()
    _, beside = evaluated(run, {"rfw": sets["rfw-moved"]}, tmp_path / "b.json")
    assert found["mine"]["auc"] == beside["rfw/african"]["auc"]


def test_missing_rows_and_damaged_ones_are_told(run, tmp_path, capsys):
    folder = ijb(tmp_path / "ijb", crops(), move=True)
    points = folder / "meta/ijbx_name_5pts_score.txt"
    rows = points.read_text().splitlines()
    points.write_text("\n".join(rows[1:]))
    assert evaluated(run, {"ijbx": folder}, tmp_path / "e.json")[0] == 0
    said = " ".join(capsys.readouterr().out.split())
    assert f"ijbx: 1 of 32 images have no landmarks in {points}, the first 1.png" in said
    points.write_text("\n".join([*rows[:3], "4.png 3 5"]))
    assert evaluated(run, {"ijbx": folder}, tmp_path / "e2.json")[0] == 1
    err = " ".join(capsys.readouterr().err.split())
    assert (
        f"not scored ijbx: line 4 of {points} is no row of landmarks: want a name, ten numbers and a score, got" in err
    )
    assert "--data.landmarks.ijbx none scores the images as they are" in err


def test_a_name_that_is_no_set_is_refused(run, sets, tmp_path, capsys):
    status, _ = evaluated(run, {"ijb": sets["ijb-moved"]}, tmp_path / "e.json", "--data.landmarks.ijbb", "none")
    assert status == 1
    assert "data.landmarks names ijbb, which is no set; want one of ijb" in capsys.readouterr().err


def test_a_folder_of_templates_is_opened_with_and_without_its_landmarks(sets):
    (aligned,) = open_sets("ijb", sets["ijb-moved"])
    (as_is,) = open_sets("ijb", sets["ijb-moved"], landmarks="none")
    (placed,) = open_sets("ijb", sets["ijb-placed"])
    assert aligned.images.landmark_N52.shape == (32, 5, 2)
    assert as_is.images.landmark_N52 is None
    assert as_is.images.notes == placed.images.notes == ()
