"""Procedural faces beside photographs: who is drawn, what is read off the cosines, the command as a whole."""

import os
import shutil
import sys
from dataclasses import replace
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import numpy as np
import pytest
import torch

from fastmfr import synthetic
from fastmfr.backbone import build_backbone
from fastmfr.config import Config, Data, Model, Synthetic
from fastmfr.domains import open_domain
from fastmfr.evaluate import score
from fastmfr.protocols import gallery_probe
from fastmfr.results import Scores, TarAtFar
from fastmfr.weights import open_model, save_weights

BENCH = Path(__file__).parent.parent / "bench"
sys.path.append(str(BENCH))

from faces.measure import REAL, SEEN, UNSEEN, Measured, Pixels, draw_domains, measure, seen_domains  # noqa: E402
from faces.page import COLUMNS, page  # noqa: E402

spec = spec_from_file_location("faces_command", BENCH / "faces.py")  # the folder beside it has its name
command = module_from_spec(spec)
spec.loader.exec_module(command)

SOURCES = {"studio": "synthetic:studio", "lamp": "synthetic:tungsten"}
CONFIG = Config(
    data=Data(sources=SOURCES, size=32, synthetic=Synthetic(identities=5, images=3, size=32)), model=Model(width=0.0625)
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run folder whose model has learned nothing."""
    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    save_weights(build_backbone(CONFIG), folder / "base.safetensors")
    (folder / "config.yaml").write_text(CONFIG.to_yaml())
    return folder


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """Stands for photographs: a class folder of three people, whose name is no procedural domain's."""
    folder = tmp_path_factory.mktemp("real") / "album"
    synthetic.write_folders(folder, "aged", identities=3, images=3, size=32)
    return folder


@pytest.fixture(autouse=True)
def _at_once(monkeypatch):
    """One process draws, and Pillow decodes: more processes and DALI's pipelines take a second each to start."""
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    monkeypatch.setattr("faces.measure.checked_decoder", lambda wanted, device: "pillow")


def measured(kind, tar, genuine=(0.2, 0.4), impostor=(0.0, 0.1), gap=None):
    scores = Scores(tar_at_far={"0.01": TarAtFar(tar=tar, interval=[tar - 0.1, tar + 0.1])}, auc=0.9, identities=7)
    return Measured("some", kind, scores, np.array(genuine), np.array(impostor), 0.25, gap)


def cells(text, name):
    (line,) = [line for line in text.splitlines() if line.startswith(f"| {name} |")]
    return dict(zip(COLUMNS, [cell.strip() for cell in line.strip("|").split("|")], strict=True))


def test_hard_pairs_are_counted_by_the_papers_thresholds():
    row = measured(UNSEEN, 0.5, genuine=[0.29, 0.3, 0.9, 0.31], impostor=[0.04, 0.05, -1, 0.03, 0.0])
    assert row.hard_genuine == 0.25
    assert row.hard_impostor == 0.2


def test_d_prime_is_the_distance_of_the_means_in_standard_deviations():
    rng = np.random.default_rng(0)
    row = measured(UNSEEN, 0.5, genuine=rng.normal(0.8, 0.1, 20_000), impostor=rng.normal(0.3, 0.1, 20_000))
    assert row.d_prime == pytest.approx(5, rel=0.03)


def test_the_page_says_what_is_lost_against_the_domains_trained_on():
    rows = [
        replace(measured(SEEN, 0.8), name="one"),
        replace(measured(SEEN, 0.6), name="two"),
        replace(measured(REAL, 0.3), name="album"),
        replace(measured(UNSEEN, 0.9, gap=0.456), name="other"),
    ]
    text = page(rows, "What was measured.", [0.1, 0.234])
    assert "\nWhat was measured.\n" in text
    assert cells(text, "one")["against seen"] == ""
    assert cells(text, "album")["against seen"] == "-40.0"
    assert cells(text, "other")["against seen"] == "+20.0"
    assert cells(text, "other")["gap"] == "0.46"
    assert cells(text, "one")["pixels"] == "25.0"
    assert "learned nothing, TAR on the photographs: 10.0, 23.4." in text
    assert cells(text, "two")["95 %"] == "50.0 to 70.0"


def test_the_people_drawn_are_others_than_the_runs(tmp_path):
    (studio,) = draw_domains(CONFIG, ["studio"], 4, tmp_path)
    assert (studio.identities, studio.images) == (4, 12)
    (folder,) = tmp_path.iterdir()
    assert folder.name == "6-10x3-32px-twins0.0"  # 0 to 4 are the run's; an even number is the first of twins
    again = synthetic.make(
        tmp_path / "again", domains=("studio",), identities=range(6, 10), images=3, size=32, workers=1
    )
    assert (again["studio"] / "train.rec").read_bytes() == (folder / "studio" / "train.rec").read_bytes()


def test_the_domains_trained_on_are_those_of_both_stages_by_the_names_of_their_faces():
    config = replace(CONFIG, data=replace(CONFIG.data, pretrain={"a": "synthetic:street", "b": "faces/b"}))
    assert seen_domains(config) == ["street", "studio", "tungsten"]


def test_a_domain_is_measured_as_evaluate_scores_it(run, photographs):
    model, domain = open_model(run), open_domain(photographs)
    other = open_domain(photographs, "other")
    first, second = measure(model, [(domain, REAL), (other, UNSEEN)])
    images = [photographs / domain.key(image) for image in range(domain.images)]
    scores = score(model.embed(images), gallery_probe(domain.offsets), (0.1, 0.2))
    assert first.scores.auc == pytest.approx(scores.auc, abs=1e-6)
    assert (len(first.genuine_G), len(first.impostor_P)) == (6, 12)
    assert first.gap is None
    assert second.gap == pytest.approx(0, abs=1e-5)


def test_pixels_are_compared_by_their_pattern_not_by_their_brightness():
    image_B3HW = torch.rand(2, 3, 4, 4)
    pattern_BD = torch.nn.functional.normalize(Pixels()(image_B3HW))
    assert pattern_BD.shape == (2, 16)
    assert torch.allclose(torch.nn.functional.normalize(Pixels()(3 * image_B3HW + 5)), pattern_BD, atol=1e-5)
    assert not torch.allclose(pattern_BD[0], pattern_BD[1], atol=0.1)


@pytest.mark.usefixtures("undrawn")
def test_one_command_leaves_a_page_and_a_picture(run, photographs, tmp_path, capsys):
    arguments = [str(run), f"--real={photographs}", f"--out={tmp_path}", "--unseen", "nir", "--people=3", "--twins=0.5"]
    assert command.main(arguments) == 0
    text = (tmp_path / "faces.md").read_text()
    assert capsys.readouterr().out.startswith(text)
    kinds = {name: cells(text, name)["kind"] for name in ("studio", "tungsten", "nir", "album")}
    assert kinds == {"studio": SEEN, "tungsten": SEEN, "nir": UNSEEN, "album": REAL}
    assert "50 % of the people drawn are twins" in text
    assert cells(text, "album")["TAR"] == "nan"  # 12 impostor pairs tell nothing of FAR 1e-2
    assert (tmp_path / "faces.png").is_file()


@pytest.mark.parametrize(
    ("change", "arguments", "sentence"),
    [
        ({}, ["--people=1"], "want --people of at least 2, got 1"),
        ({"sources": {"a": "faces/a", "b": "faces/b"}}, [], "want a run with a procedural domain among its sources"),
        ({}, ["--real=nowhere"], "nowhere"),
    ],
)
def test_refuses_in_a_sentence(run, change, arguments, sentence, tmp_path, capsys):
    weights = tmp_path / "run" / "base.safetensors"
    weights.parent.mkdir()
    weights.write_bytes((run / "base.safetensors").read_bytes())
    (weights.parent / "config.yaml").write_text(replace(CONFIG, data=replace(CONFIG.data, **change)).to_yaml())
    assert command.main([str(weights), f"--out={tmp_path / 'out'}", *arguments]) == 1
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_refuses_photographs_called_like_a_procedural_domain(run, photographs, tmp_path, capsys):
    shutil.copytree(photographs, tmp_path / "nir")
    assert command.main([str(run), f"--real={tmp_path / 'nir'}", f"--out={tmp_path / 'out'}"]) == 1
    assert "is called like a procedural domain; rename the folder" in capsys.readouterr().err
