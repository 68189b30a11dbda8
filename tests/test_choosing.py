"""The model that a run hands out is the best of its candidates on people whom no stage has met."""

import json
import re
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import command
from safetensors.torch import load_file
from small_runs import interrupted, only_run

from fastmfr.backbone import build_backbone
from fastmfr.config import parse
from fastmfr.distributed import ALONE
from fastmfr.evaluate.validation import Validated, validate
from fastmfr.results import META, PRETRAIN, Candidate, Choice, Results
from fastmfr.run_folder import steps_of_weights, weights_of
from fastmfr.training.averages import Averages
from fastmfr.training.choosing import RECORD, Candidates, Choosing
from fastmfr.weights import save_weights

main = command("train")


def people(*directions):
    """Rows and people of a domain: two equal images in each direction (degrees)."""
    angle = torch.deg2rad(torch.tensor(directions, dtype=torch.float64)).repeat_interleave(2)
    return torch.stack([angle.cos(), angle.sin()], 1), np.arange(len(directions)).repeat(2)


def test_a_model_that_tells_everybody_apart_has_the_score_1():
    found = validate({"a": people(0, 40, 80), "b": people(120, 160, 200)})
    assert (found.score, found.together, found.within) == (1.0, 1.0, {"a": 1.0, "b": 1.0})


def test_people_of_two_domains_that_look_alike_cost_the_half_that_is_over_all():
    spread = np.arange(0, 360, 24.0)  # 15 people: 420 impostor pairs a domain, of which FAR 1e-2 accepts 4
    rows, person_N = people(*spread)
    noisy = rows + 0.02 * torch.randn(rows.shape, dtype=rows.dtype, generator=torch.Generator().manual_seed(0))
    found = validate({"a": (noisy, person_N), "b": (rows, person_N)})
    assert found.within == {"a": 1.0, "b": 1.0}
    assert found.together < 0.6
    assert found.score == (found.together + 1) / 2


def network(seed=0):
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))


def test_averages_are_those_of_the_weights_after_every_step():
    trained = network()
    begin = trained[0].weight.detach().clone()
    averages = Averages(trained, decay=0.5, begin=2)
    seen, ema = [], begin
    for done in range(1, 6):
        with torch.no_grad():
            trained[0].weight.add_(0.1 * done)
        averages.update(done)
        seen.append(trained[0].weight.detach().clone())
        ema = ema.lerp(seen[-1], max(0.5, 9 / (done + 9)))
    torch.testing.assert_close(averages.ema[0].weight, ema)
    torch.testing.assert_close(averages.mean[0].weight, torch.stack(seen[2:]).mean(0))
    assert not any(value.requires_grad for value in averages.parameters())


@pytest.mark.parametrize("rebuilt", [True, False])
def test_statistics_are_made_again_for_averaged_weights_or_taken_over(rebuilt):
    trained = network()
    averages = Averages(trained, decay=0.0, begin=0)
    with torch.no_grad():
        trained[0].weight.mul_(2)
        trained[1].running_mean.fill_(7)
    averages.update(1)
    batches = list(torch.randn(3, 8, 3))
    for _, averaged in averages.finished((lambda: batches) if rebuilt else None):
        wanted = (
            torch.stack([trained[0](batch).mean(0) for batch in batches]).mean(0) if rebuilt else torch.full((4,), 7.0)
        )
        torch.testing.assert_close(averaged[1].running_mean, wanted)
        assert averaged[1].momentum == trained[1].momentum


def candidate(score, stage=META, steps=1, weights="last"):
    return Candidate(of_stage=stage, steps=steps, weights=weights, score=score, together=score, within={"a": score})


def test_of_candidates_with_equal_scores_the_last_is_the_best():
    assert Choice().best is None
    candidates = [candidate(0.5, PRETRAIN), candidate(0.7), candidate(0.7, steps=2), candidate(0.6, steps=3)]
    assert Choice(candidates=candidates).best is candidates[2]


def fake_run(tmp_path, scores, method="mfr", **settings):
    """A run whose networks, one after the other, have these scores on the people kept for validation."""
    domain = SimpleNamespace(identities=6, offsets=np.arange(0, 13, 2), person=None)
    left = iter(scores)

    def embed(network, domain, drawn):
        is_good = next(left)
        return people(*range(0, 240, 40)) if is_good else people(*[0] * 6)

    choose = SimpleNamespace(every=None, patience=2, ema=0.9, mean_from=0.5, **settings)
    recorded = []
    return SimpleNamespace(
        folder=tmp_path,
        config=SimpleNamespace(seed=0, save_every=1, choose=choose, meta=SimpleNamespace(method=method)),
        people=SimpleNamespace(validation={"a": domain}),
        ranks=ALONE,
        logbook=SimpleNamespace(record=lambda *place, **values: recorded.append((place, values))),
        timed=lambda part: nullcontext(),
        embed=embed,
    ), recorded


def test_the_best_so_far_is_on_disk_and_the_record_goes_on_after_a_kill(tmp_path):
    run, recorded = fake_run(tmp_path, [0, 1, 0])
    choosing = Choosing(run)
    for steps, seed in ((1, 1), (2, 2), (3, 3)):
        choosing.consider(network(seed), PRETRAIN, steps)
    assert choosing.choice.best.steps == steps_of_weights(choosing.path) == 2
    again = Choosing(run)
    assert again.choice == choosing.choice
    assert again.knows(PRETRAIN, 2, "last")
    assert not again.knows(PRETRAIN, 4, "last")
    assert [place for place, _ in recorded] == [
        ("pretrain/validation", 0),
        ("pretrain/validation", 1),
        ("pretrain/validation", 2),
    ]
    assert again.explain().startswith("Handed out: base after 2 steps, 100.0 on 6 people of the sources")


@pytest.mark.parametrize("method", ["no_meta", "mldg", "first_order"])
def test_the_choice_names_the_model_of_stage_two_after_its_method(tmp_path, method):
    run, _ = fake_run(tmp_path, [1, 1, 1, 0], method)
    choosing = Choosing(run)
    choosing.consider(network(), PRETRAIN, 2)
    choosing.consider(network(), META, 3)
    assert choosing.explain().startswith(f"Handed out: {method} after 3 steps, 100.0 on 6 people")
    choosing.consider(network(), META, 3, "mean")
    choosing.consider(network(), META, 4)
    said = Choosing(run).explain()
    assert said.startswith(f"Handed out: mean of the weights of {method} after 3 steps")
    assert re.search(rf"\(base 100\.0, {method} \d", said)
    assert "mfr" not in said


@pytest.mark.parametrize("content", ["{", "[]", '{"candidates": [{"of_stage": 1}]}', "[" * 100_000])
def test_a_damaged_record_is_said_and_begun_again(tmp_path, content):
    run, _ = fake_run(tmp_path, [1])
    said = []
    run.logbook.warn = said.append
    (tmp_path / RECORD).write_text(content)
    choosing = Choosing(run)
    assert not choosing.choice.candidates
    assert "cannot be read" in said[0]
    choosing.consider(network(), META, 1)
    assert Choosing(run).choice.best.steps == 1


def test_stage_two_ends_when_it_has_been_no_better_for_as_many_scores_as_patience_says(tmp_path):
    run, _ = fake_run(tmp_path, [1, 0, 0, 0])
    choosing, trained = Choosing(run), network()
    pretraining = Candidates(choosing, run, PRETRAIN, 2, trained)
    pretraining.consider(2)
    candidates = Candidates(choosing, run, META, 5, trained)
    ends = []
    for done in (1, 2):
        candidates.update(done)
        candidates.consider(done)
        ends.append(candidates.steps)
    assert ends == [5, 2]
    again = Choosing(run)
    assert again.steps_of(META, 5) == 2
    assert again.steps_of(META, 6) == 6
    assert again.steps_of(PRETRAIN, 2) == 2


def test_without_people_for_validation_there_are_no_candidates_and_no_averages(tmp_path):
    run, _ = fake_run(tmp_path, [])
    run.people.validation = {}
    choosing = Choosing(run)
    candidates = Candidates(choosing, run, META, 5, network())
    candidates.update(1)
    candidates.consider(1)
    candidates.finish(None)
    assert not choosing.is_on
    assert not list(candidates.averages.parameters())
    assert list(tmp_path.iterdir()) == []


def test_the_weights_that_a_run_begins_with_are_a_candidate_and_can_be_handed_out(small, tmp_path, monkeypatch):
    config = parse([*small])[0]
    save_weights(build_backbone(config), tmp_path / "begun.safetensors")
    left = iter([0.9, 0.5, 0.4, 0.3])  # they, stage two and its averages
    scored = lambda *_: Validated(next(left), 0.5, {"studio": 0.5})  # noqa: E731
    monkeypatch.setattr("fastmfr.training.choosing.validate", scored)
    begun = f"--model.weights={tmp_path / 'begun.safetensors'}"
    assert main([*small, begun, "--pretrain.steps=0", "--data.validation=0.25"]) == 0
    folder = only_run(tmp_path)
    chosen, begun = (load_file(path) for path in (folder / "chosen.safetensors", tmp_path / "begun.safetensors"))
    assert chosen.keys() == begun.keys()
    assert all(torch.equal(chosen[name], begun[name]) for name in begun)
    found = Results.load(folder / "results.json")
    assert found.choice.candidates[0].key == found.choice.best.key == (PRETRAIN, 0, "last")
    assert str(found.choice.candidates[0]) == "the weights that the run began with"
    assert {candidate.of_stage for candidate in found.choice.candidates[1:]} == {META}
    assert list(found.targets["nir"].models) == ["base", "mfr", "chosen"]


def keys(folder):
    candidates = json.loads((folder / RECORD).read_text())["candidates"]
    return [(found["of_stage"], found["steps"], found["weights"]) for found in candidates]


def test_a_run_hands_out_its_best_candidate_and_goes_on_to_the_same_choice(small, tmp_path, monkeypatch, capsys):
    argv = [*small, "--data.validation=0.25", "--choose.every=2", "--save_every=2", "--meta.batch_norm=batch"]
    assert main(argv) == 0
    whole = only_run(tmp_path)
    assert keys(whole) == [
        *((PRETRAIN, steps, "last") for steps in (2, 4, 6)),
        *((PRETRAIN, 6, weights) for weights in ("ema", "mean")),
        *((META, steps, "last") for steps in (2, 3)),
        *((META, 3, weights) for weights in ("ema", "mean")),
    ]
    results = Results.load(whole / "results.json")
    assert results.choice.why in " ".join(capsys.readouterr().out.split())
    assert results.choice.people == 12
    assert list(results.targets["nir"].models) == ["base", "mfr", "chosen"]
    assert weights_of(whole) == whole / "chosen.safetensors"
    whole.rename(tmp_path / "whole")
    interrupted(argv, monkeypatch, stop=("meta", 1))
    stopped = only_run(tmp_path)
    assert main(["--resume", str(stopped)]) == 0
    assert keys(stopped) == keys(tmp_path / "whole")
    for name in (RECORD, "chosen.safetensors", "mfr.safetensors"):
        assert (stopped / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_run_whose_second_stage_gets_no_better_ends_it_early_and_stays_ended(small, tmp_path, monkeypatch, capsys):
    left = iter([0.9, 0.8, 0.8, 0.5, 0.4, 0.3, 0.3])  # base and its averages, two steps of stage two and its averages
    monkeypatch.setattr("fastmfr.training.choosing.validate", lambda *_: Validated(next(left), 0.5, {"studio": 0.5}))
    argv = ["--data.validation=0.25", "--choose.patience=2", "--choose.every=1", "--pretrain.steps=1"]
    assert main([*small, *argv, "--meta.steps=4"]) == 0
    folder = only_run(tmp_path)
    assert "meta ended after 2 of 4 steps" in " ".join(capsys.readouterr().out.split())
    assert steps_of_weights(folder / "mfr.safetensors") == 2
    assert Results.load(folder / "results.json").choice.best.key == (PRETRAIN, 1, "last")
    assert (folder / "chosen.safetensors").read_bytes() == (folder / "base.safetensors").read_bytes()
    assert main(["--resume", str(folder)]) == 0
    assert steps_of_weights(folder / "mfr.safetensors") == 2
    assert next(left, None) is None
