import io
import json

import torch
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer.event_file_writer import AtomicCounter

from fastmfr.training.logbook import Logbook


def logbook(folder, **console):
    return Logbook(folder, Console(file=io.StringIO(), width=160, highlight=False, **console))


def records(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_record_is_a_line_and_what_is_not_finite_is_null(tmp_path):
    with logbook(tmp_path) as book:
        book.record("meta", 3, loss=torch.tensor(1.5), ratio=float("nan"), positives=torch.tensor(4))
    assert records(tmp_path) == [{"stage": "meta", "step": 3, "loss": 1.5, "ratio": None, "positives": 4.0}]
    assert list((tmp_path / "tensorboard").iterdir())


def test_rewinding_drops_later_steps_of_that_stage_and_cut_lines(tmp_path):
    with logbook(tmp_path) as book:
        for step in range(4):
            book.record("pretrain", step, loss=1)
            book.record("meta", step, loss=1)
        book.record("meta/nir", 2, auc=1)
        with (tmp_path / "metrics.jsonl").open("a") as file:
            file.write('{"stage": "meta", "st')
        book.rewind("meta", 2)
        book.record("meta", 2, loss=2)
    kept = [(record["stage"], record["step"]) for record in records(tmp_path)]
    assert [step for stage, step in kept if stage == "pretrain"] == [0, 1, 2, 3]
    assert [step for stage, step in kept if stage == "meta"] == [0, 1, 2]


def test_a_resumed_run_records_each_step_once_in_tensorboard_too(tmp_path, monkeypatch):
    """Of the stage that goes on, and not of the one before, which had more steps."""
    # Files of one second and process are read in the order of their numbers as text: "10" before "9".
    monkeypatch.setattr("tensorboard.summary.writer.event_file_writer._global_uid", AtomicCounter(100))
    with logbook(tmp_path) as book:
        for stage in ("pretrain", "meta"):
            book.rewind(stage, 0)
            for step in range(9 if stage == "pretrain" else 5):
                book.record(stage, step, loss=step)
        book.record("meta/nir", 4, auc=0.5)
    for first, last in ((2, 4), (3, 6)):  # stopped and resumed twice
        with logbook(tmp_path) as book:
            book.rewind("meta", first)
            for step in range(first, last):
                book.record("meta", step, loss=10 + step)
    points = {}
    for folder in (tmp_path / "tensorboard").iterdir():
        found = EventAccumulator(str(folder)).Reload()
        points |= {tag: [(point.step, point.value) for point in found.Scalars(tag)] for tag in found.Tags()["scalars"]}
    assert points["pretrain/loss"] == [(step, step) for step in range(9)]
    assert points["meta/loss"] == [(0, 0), (1, 1), (2, 12), (3, 13), (4, 14), (5, 15)]
    assert not points.get("meta/nir/auc")


def test_a_bad_image_is_noted_once_also_over_a_resume(tmp_path):
    with logbook(tmp_path) as book:
        book.note_bad({"a/1.jpg": "cut\nshort"})
        book.note_bad({"a/1.jpg": "cut\nshort", "b/2.jpg": "empty"})
    with logbook(tmp_path) as book:
        book.note_bad({"b/2.jpg": "empty", "c/3.jpg": "no picture"})
        assert list(book.bad) == ["a/1.jpg", "b/2.jpg", "c/3.jpg"]
    assert (tmp_path / "bad_images.tsv").read_text() == "a/1.jpg\tcut short\nb/2.jpg\tempty\nc/3.jpg\tno picture\n"


def test_without_a_terminal_a_line_comes_at_every_tenth(tmp_path):
    with logbook(tmp_path) as book:
        with book.progress("pretrain", 0, 30) as meter:
            for step in range(30):
                speed, wait = meter.step(step + 1, (step + 1) * 8, waited=0.0, note="loss 1.0")
        lines = book.console.file.getvalue().splitlines()
    assert len(lines) == 10
    assert lines[-1].startswith("pretrain 30/30 · 0 s left · ")
    assert lines[0].endswith("images/s · 0 % waiting for data · loss 1.0")
    assert speed > 0
    assert wait == 0


def test_on_a_terminal_there_is_a_bar(tmp_path):
    with logbook(tmp_path, force_terminal=True) as book, book.progress("meta", 1, 3) as meter:
        for step in (1, 2):
            meter.step(step + 1, step * 8)
        text = book.console.file.getvalue()
    assert "meta" in text
