"""Runs that are stopped, killed, changed and resumed: nothing is lost, and nothing goes on as something else."""

import json
import os
import shutil
import signal
import subprocess
import sys
from datetime import datetime

import pytest
from small_runs import arguments, interrupted, main, only_run, records

from fastmfr.run_folder import in_use, steps_of_weights
from fastmfr.stopping import Stop, raising, status_of_stop
from fastmfr.training import Logbook


def said(capsys):
    return " ".join(capsys.readouterr().err.split())


def weights(folder, model="mfr"):
    return (folder / f"{model}.safetensors").read_bytes()


@pytest.fixture(scope="module")
def finished(faces, tmp_path_factory):
    """The folder of a run that was trained to its end, and its arguments; no test changes it."""
    place = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        argv = arguments(faces, place, patch)
        assert main(argv) == 0
    return only_run(place), argv


@pytest.fixture
def copy(finished, small, tmp_path):
    """A copy of it that a test may change."""
    return shutil.copytree(finished[0], tmp_path / "run")


def test_a_run_that_was_stopped_in_either_stage_goes_on_to_the_same_numbers(small, tmp_path, monkeypatch):
    small = [*small, "--save_every=2"]
    assert main([*small, f"--folder={tmp_path / 'whole'}"]) == 0
    (whole,) = (tmp_path / "whole").iterdir()

    interrupted(small, monkeypatch, ("pretrain", 3))
    folder = only_run(tmp_path)
    interrupted(["--resume", str(folder)], monkeypatch, ("meta", 2))
    assert main(["--resume", str(folder)]) == 0
    for model in ("base", "mfr"):
        assert (folder / f"{model}.safetensors").read_bytes() == (whole / f"{model}.safetensors").read_bytes()
    for stage in ("pretrain", "meta"):
        mine, theirs = records(folder, stage), records(whole, stage)
        assert [line["step"] for line in mine] == [line["step"] for line in theirs]
        assert [line["loss"] for line in mine] == [line["loss"] for line in theirs]
    mine, theirs = (json.loads((run / "results.json").read_text()) for run in (folder, whole))
    assert mine["targets"] == theirs["targets"]
    assert mine["gap"] == theirs["gap"]


def test_sigterm_ends_a_run_with_its_status_and_how_to_go_on(small, tmp_path, capsys, monkeypatch):
    record = Logbook.record

    def terminated(self, stage, step, **values):
        record(self, stage, step, **values)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Logbook, "record", terminated)
    assert main(small) == 143
    assert [path.name for path in (only_run(tmp_path) / "checkpoints").iterdir()] == ["pretrain-00000001"]
    assert f"stopped; go on with: python -m fastmfr.train --resume {only_run(tmp_path)}" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--seed=3"], "seed was 2019, now 3"),
        (["--model.width=0.25"], "model.width was 0.0625, now 0.25"),
        (["--pretrain.margin=arcface"], "pretrain.margin was 'cosface', now 'arcface'"),
        (
            ["--pretrain.batch_identities=4", "--data.flip=0"],
            "data.flip was 0.5, now 0.0; pretrain.batch_identities was 8, now 4",
        ),
        (
            ["--data.holdout=0.2"],
            ", now 0.2. A resumed run may change threads, save_every, pretrain.steps, meta.steps and",
        ),
        (["--meta.steps=2"], "has taken 3 steps of meta; want --meta.steps of at least 3, got 2"),
        (["--pretrain.steps=8"], "has begun meta-training from the weights of 6 pretraining steps"),
    ],
)
def test_what_may_not_change_is_refused_with_both_values_and_nothing_is_written(copy, capsys, argv, words):
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file() and path.name != ".lock"}
    assert main(["--resume", str(copy), *argv]) == 1
    assert words in said(capsys)
    assert before == {path: path.read_bytes() for path in copy.rglob("*") if path.is_file() and path.name != ".lock"}


def test_a_finished_stage_goes_on_from_its_last_state(copy, finished, tmp_path):
    assert main(["--resume", str(copy), "--meta.steps=5", "--save_every=7", "--evaluate.far=0.1"]) == 0
    assert [record["step"] for record in records(copy, "meta")] == [0, 1, 2, 3, 4]
    assert steps_of_weights(copy / "mfr.safetensors") == 5
    assert "steps: 5" in (copy / "config.yaml").read_text()
    assert list(json.loads((copy / "results.json").read_text())["targets"]["nir"]["models"]["mfr"]["tar_at_far"]) == [
        "0.1"
    ]
    assert main([*finished[1], f"--folder={tmp_path / 'whole'}", "--meta.steps=5"]) == 0
    (whole,) = (tmp_path / "whole").iterdir()
    assert weights(copy) == weights(whole)
    assert weights(copy, "base") == weights(whole, "base")


def test_a_finished_stage_without_states_does_not_begin_anew(copy, capsys):
    shutil.rmtree(copy / "checkpoints")
    assert main(["--resume", str(copy), "--meta.steps=5"]) == 1
    assert "checkpoints/ has no state of that step to go on from" in said(capsys)
    assert main(["--resume", str(copy)]) == 0


def test_a_source_domain_may_move_but_not_change(copy, faces, tmp_path, capsys):
    moved = shutil.copytree(faces["street"], tmp_path / "moved")
    argv = ["--resume", str(copy), f"--data.sources.studio={faces['studio']}", f"--data.sources.street={moved}"]
    assert main(argv) == 0
    first, second, *_ = sorted(moved.iterdir())
    first.rename(moved / "other")
    second.rename(first)
    (moved / "other").rename(second)
    assert main(argv) == 1
    assert "street has changed since" in (text := said(capsys))
    assert "24 people and 96 images, but not the same. A resumed run needs the same images" in text
    shutil.rmtree(second)
    assert main(argv) == 1
    assert "24 people and 96 images then, 23 people and 92 images now" in said(capsys)


def test_a_target_may_be_added_unless_people_of_a_source_are_held_out_for_it(copy, faces, tmp_path, capsys):
    targets = [f"--data.targets.nir={faces['nir']}"]
    assert main(["--resume", str(copy), *targets, f"--data.targets.studio={faces['studio']}"]) == 1
    assert "data.targets was [], now ['studio']" in said(capsys)
    more = shutil.copytree(faces["nir"], tmp_path / "more")
    assert main(["--resume", str(copy), *targets, f"--data.targets.more={more}"]) == 0
    assert list(json.loads((copy / "results.json").read_text())["targets"]) == ["nir", "more"]


def test_a_run_in_use_is_left_alone(copy, capsys):
    with in_use(copy):
        assert main(["--resume", str(copy)]) == 1
    assert f"is in use by another process, {os.getpid()};" in said(capsys)


def test_a_damaged_record_is_a_sentence(copy, capsys):
    (copy / "made_with.json").write_text('{"settings": 3')
    assert main(["--resume", str(copy)]) == 1
    assert "made_with.json is damaged" in said(capsys)


def test_two_runs_of_one_second_have_two_folders(small, tmp_path, monkeypatch):
    class Stopped:
        """A clock that shows one second for ever."""

        now = staticmethod(lambda: datetime(2026, 1, 1))

    monkeypatch.setattr("fastmfr.train.datetime", Stopped)
    brief = [*small, "--pretrain.steps=0", "--meta.steps=0"]
    assert main(brief) == main(brief) == 0
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {
        "quickstart-20260101-000000",
        "quickstart-20260101-000000-2",
    }


TWICE = """
import os, signal
from fastmfr.stopping import Stop
signal.signal(signal.{name}, signal.SIG_DFL)  # a shell's background job ignores SIGINT
with Stop(lambda text: print(text, flush=True)):
    for _ in range(2):
        os.kill(os.getpid(), signal.{name})
print("went on")
"""


@pytest.mark.parametrize(("name", "status"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])
def test_the_first_signal_waits_and_the_second_does_not(name, status, request):
    sentences = []
    number = getattr(signal, name)
    before = signal.signal(number, signal.SIG_DFL)
    request.addfinalizer(lambda: signal.signal(number, before))
    with raising():
        with pytest.raises(KeyboardInterrupt) as stopped, Stop(sentences.append) as stop:  # noqa: PT012 in two moments
            stop.if_asked()
            os.kill(os.getpid(), number)
            assert stop.asked
            stop.if_asked()
        assert status_of_stop(stopped.value) == status
        with pytest.raises(KeyboardInterrupt), Stop(sentences.append) as stop, stop.at_once():
            os.kill(os.getpid(), number)
    assert len(sentences) == 1
    twice = subprocess.run([sys.executable, "-c", TWICE.format(name=name)], capture_output=True, text=True)
    assert twice.returncode == status
    assert "went on" not in twice.stdout
    assert "once more to stop at once" in twice.stdout


def test_a_signal_that_is_ignored_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with raising(), Stop(print) as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop.asked
    finally:
        signal.signal(signal.SIGHUP, before)
