"""The ablation runner: a small run and its resumption, arms that are matched, figures that can be drawn anew."""

import json
import sys
from dataclasses import replace
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from fastmfr import synthetic
from fastmfr.evaluate import identification, verification
from fastmfr.meta import PairBatch
from fastmfr.protocols import gallery_probe
from fastmfr.training.data import Splits, images_of

BENCH = Path(__file__).parent.parent / "bench"
sys.path.append(str(BENCH))

from proof.arms import ARMS, pooled_images, settings_of  # noqa: E402
from proof.rows import Rows, Task  # noqa: E402
from proof.scores import FIGURES, by_person  # noqa: E402
from proof.settings import FIRST_SEED, POOLS, SCALES, changed, config_of, targets_of  # noqa: E402
from proof.table import difference_interval, report  # noqa: E402

spec = spec_from_file_location("proof_command", BENCH / "proof.py")  # the folder beside it has its name
command = module_from_spec(spec)
spec.loader.exec_module(command)

PEOPLE, IMAGES, TOY = 30, 5, SCALES["toy"]


@pytest.fixture(scope="module")
def scored():
    """(embedding_ND, lists) of 30 people who are told apart, but not perfectly."""
    rng = np.random.default_rng(0)
    noisy = np.repeat(rng.normal(size=(PEOPLE, 16)), IMAGES, 0) + rng.normal(size=(PEOPLE * IMAGES, 16))
    embedding_ND = torch.nn.functional.normalize(torch.from_numpy(noisy))
    return embedding_ND, gallery_probe(np.arange(0, PEOPLE * IMAGES + 1, IMAGES))


@pytest.fixture(scope="module")
def faces(tmp_path_factory):
    """A folder with the toy's faces, made once and by one process."""
    root = tmp_path_factory.mktemp("proof")
    made = root / "faces" / f"{TOY.identities}x{TOY.images}-{TOY.drawn}px"
    synthetic.make(
        made, domains=POOLS["reported"], identities=TOY.identities, images=TOY.images, size=TOY.drawn, workers=1
    )
    return root


def row(value, seconds=2.0, people=10, target="nir"):
    figures = {name: [value] * people for name in FIGURES}
    return {"seconds": seconds, "scores": {target: {"probes": [9] * people, **figures}}}


def test_tuning_and_reporting_share_no_domain_and_no_seed():
    assert not set(POOLS["tuning"]) & set(POOLS["reported"])
    assert FIRST_SEED["tuning"] + 50 < FIRST_SEED["reported"]


def test_figures_by_person_add_up_to_the_figures(scored):
    embedding_ND, pairs = scored
    found = by_person(embedding_ND, pairs, PEOPLE, (1e-2, 1e-3, 1e-4))
    gallery_GD, probe_PD = embedding_ND[pairs.gallery], embedding_ND[pairs.probe]
    truth = verification(probe_PD @ gallery_GD.T, pairs.probe_id[:, None] == pairs.gallery_id, (1e-2, 1e-3))
    rank1 = identification(gallery_GD, pairs.gallery_id, probe_PD, pairs.probe_id)
    mean = {name: np.average(value, weights=found["probes"]) for name, value in found.items()}
    assert 0 < mean["tar_0.001"] < mean["tar_0.01"] < 1
    assert mean["tar_0.01"] == pytest.approx(truth["tar_at_far"][1e-2]["tar"], abs=1e-6)
    assert mean["tar_0.001"] == pytest.approx(truth["tar_at_far"][1e-3]["tar"], abs=1e-6)
    assert mean["auc"] == pytest.approx(truth["auc"], abs=1e-6)
    assert mean["rank1"] == pytest.approx(rank1, abs=1e-6)
    assert mean["eer"] == pytest.approx(truth["eer"], abs=1 / len(pairs.probe))
    assert "tar_0.0001" not in found  # 3480 impostor pairs cannot measure that


def test_a_person_whose_enrolled_image_is_bad_keeps_the_place_and_weighs_nothing(scored):
    embedding_ND, pairs = scored
    found = by_person(embedding_ND, pairs.without([pairs.gallery[3]]), PEOPLE, (1e-2,))
    assert found["probes"] == [IMAGES - 1 if person != 3 else 0 for person in range(PEOPLE)]
    assert {len(values) for values in found.values()} == {PEOPLE}


def test_every_arm_is_matched_in_steps_and_images(tmp_path):
    config = config_of(SCALES["cpu"], "reported", 101, "nir", None, tmp_path)
    offsets = np.arange(0, 2001, 10)
    sources = SimpleNamespace(domains=[SimpleNamespace(name=name, offsets=offsets) for name in config.data.sources])
    for name, arm in ARMS.items():
        settings = settings_of(arm, config, 0.005)
        splits = Splits(sources, settings)
        images = sum(len(images_of(*splits.pairs(i))[0]) for i in range(splits.of_a_step))
        assert (settings.meta.steps, images) == (config.meta.steps, 384), name


def test_pooled_arms_see_the_images_of_the_splits():
    halves = []
    for first in (0, 10):
        gallery, probe = (
            torch.arange(start, start + 3.0).view(3, 1, 1, 1).expand(3, 3, 2, 2) for start in (first, first + 5)
        )
        halves.append(PairBatch(gallery, probe, torch.zeros(3, dtype=torch.int64)))
    seen = pooled_images(*halves)[:, 0, 0, 0].tolist()
    assert seen == [0, 1, 2, 10, 11, 12, 5, 6, 7, 15, 16, 17]  # galleries, then probes: chunk(2) makes pairs of them


def test_interval_of_the_same_difference_everywhere_is_that_difference():
    mine, theirs = ([row(value)["scores"]["nir"]] * 4 for value in (0.7, 0.5))
    assert difference_interval(mine, theirs, ["nir"] * 4, "rank1") == pytest.approx([0.2, 0.2])


def test_interval_holds_the_people_and_the_runs():
    rng = np.random.default_rng(1)

    def cells(runs, people, of_run, of_person):
        shared = of_person * rng.normal(size=people)
        return [{"probes": [9] * people, "auc": (of_run * rng.normal() + shared).tolist()} for _ in range(runs)]

    def width(mine):
        nothing = [{"probes": score["probes"], "auc": [0.0] * len(score["auc"])} for score in mine]
        low, high = difference_interval(mine, nothing, ["nir"] * len(mine), "auc")
        return high - low

    # about 4 standard errors: 4 sqrt(1 / 20) either way
    assert width(cells(20, 500, 1.0, 0.0)) == pytest.approx(0.9, rel=0.5)
    assert width(cells(20, 20, 0.0, 1.0)) == pytest.approx(0.9, rel=0.5)  # more runs on the same people do not help


def test_tables_count_only_what_all_arms_have(tmp_path):
    rows = Rows(tmp_path, {})
    for seed, value in ((1, 0.8), (2, 0.7), (3, 0.0)):
        rows.add(Task(seed, "nir", "mfr"), row(value))
        if seed < 3:
            rows.add(Task(seed, "nir", "base_agg"), row(0.5))
    text = report(rows.by_task, ["base_agg", "mfr"])
    assert "runs of each arm: 2" in text
    assert "| MFR | 75.0 ± 7.1 |" in text
    assert "| MFR | +25.00 [+20.00, +30.00] |" in text
    assert report(rows.by_task, ["base_agg", "mldg"]).startswith("No seed and domain has all arms")


def test_domains_left_out_are_told_together_and_apart(tmp_path):
    rows = Rows(tmp_path, {})
    for target, value in (("nir", 0.75), ("sketch", 0.25)):
        for arm, more in (("no_meta", 0), ("mfr", value - 0.5)):
            rows.add(Task(1, target, arm), row(0.5 + more, target=target))
    together, nir, sketch = report(rows.by_task, ["no_meta", "mfr"]).split("## Left out: ")
    assert "| MFR | +0.00 [-25.00, +25.00] |" in together
    assert "| MFR | +25.00 [+25.00, +25.00] |" in nir
    assert "| MFR | -25.00 [-25.00, -25.00] |" in sketch


def test_real_photographs_get_tables_of_their_own(tmp_path):
    rows = Rows(tmp_path, {})
    for arm, value in (("base_agg", 0.5), ("mfr", 0.75)):
        one = row(value)
        one["scores"] |= row(value / 2, target="orl")["scores"]
        rows.add(Task(1, "nir", arm), one)
    left_out, real = report(rows.by_task, ["base_agg", "mfr"]).split("## Unseen: orl")
    assert "| MFR | 75.0 |" in left_out
    assert "| MFR | 37.5 |" in real


def test_rows_of_other_settings_are_refused(tmp_path):
    Rows(tmp_path, {"beta": 0.05}).add(Task(1, "nir", "mfr"), row(0.5))
    assert Task(1, "nir", "mfr") in Rows(tmp_path, {"beta": 0.05}).by_task
    with pytest.raises(ValueError, match="rows of other settings"):
        Rows(tmp_path, {"beta": 0.1})


def test_time_left_is_read_off_the_rows_there_are(tmp_path):
    rows = Rows(tmp_path, {})
    tasks = [Task(seed, "nir", arm) for seed in (1, 2, 3) for arm in ("base", "mfr")]
    assert rows.left(tasks, TOY) == 3 * (TOY.base_seconds + TOY.arm_seconds)
    rows.add(tasks[0], row(0.5, seconds=70.0))
    assert rows.left(tasks, TOY) == 2 * 70.0 + 3 * TOY.arm_seconds


@pytest.mark.parametrize("words", [["beta"], ["nothing=1"]])
def test_refuses_a_setting_that_is_none(words):
    with pytest.raises(ValueError, match="want NAME=VALUE of the settings identities"):
        changed(TOY, words)


def test_settings_are_changed_by_name():
    assert changed(TOY, ["beta=0.1", "meta_steps=5"]) == replace(TOY, beta=0.1, meta_steps=5)


def test_targets_are_of_the_pool():
    assert targets_of(SCALES["cpu"], "reported", None) == ["nir", "sketch"]
    assert targets_of(SCALES["cpu"], "tuning", None) == list(POOLS["tuning"])
    with pytest.raises(ValueError, match="want targets out of the pool 'reported'"):
        targets_of(TOY, "reported", ["glasses"])


def run(folder, *arms, more=()):
    return command.main(
        ["--folder", str(folder), "--scale=toy", "--seeds=1", "--targets=nir", "--threads=1", "--arms", *arms, *more]
    )


def test_a_small_run_is_finished_by_the_same_command(faces, capsys):
    assert run(faces, "base_agg", "first_order", more=("--minutes", "0")) == 0
    assert "minutes are over" in capsys.readouterr().out
    assert run(faces, "base_agg", "first_order") == 0
    assert "[3/3]" in capsys.readouterr().out
    lines = [json.loads(line) for line in (faces / "rows.jsonl").read_text().splitlines()]
    assert [line["arm"] for line in lines] == ["base", "base_agg", "first_order"]
    assert [line.get("steps") for line in lines] == [None, TOY.meta_steps, TOY.meta_steps]
    assert len({json.dumps(line["scores"]) for line in lines}) == 3  # each arm has moved away from the base

    (faces / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines[1:2]))
    assert run(faces, "hard_pair", "first_order", more=("--dry-run",)) == 0
    assert "base, hard_pair, first_order" in capsys.readouterr().out
    assert run(faces, "hard_pair", "first_order") == 0
    said = capsys.readouterr().out
    assert "base_agg" not in said
    again = {(line := json.loads(text))["arm"]: line for text in (faces / "rows.jsonl").read_text().splitlines()}
    assert again["base"]["scores"] == lines[0]["scores"]  # the base was found, not trained anew
    assert again["first_order"]["scores"] == lines[2]["scores"]
    assert "| hard pairs alone, no meta step |" in (faces / "table.md").read_text()


def test_a_wrong_folder_of_photographs_is_told_before_anything_runs(tmp_path, capsys):
    assert run(tmp_path, "mfr", more=("--real", str(tmp_path / "nowhere"))) == 1
    assert "there is no folder" in capsys.readouterr().err
    assert not (tmp_path / "rows.jsonl").exists()
