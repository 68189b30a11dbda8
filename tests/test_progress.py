"""How far a long task is, where the output is piped: a line at every tenth, and one every half minute."""

import io

import pytest

from fastmfr.progress import Meter, duration, new_console, progress_of, rate_text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (89, "89 s"), (90, "2 min"), (3600, "60 min"), (5400, "1.5 h")],
)
def test_times_read_well(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize(("rate", "text"), [(0.0, "0"), (0.451, "0.45"), (8.3, "8.3"), (10.4, "10"), (7500.0, "7,500")])
def test_a_slow_rate_is_not_shown_as_none(rate, text):
    assert rate_text(rate) == text


def lines(monkeypatch, seconds_a_step, steps, total):
    """What a meter prints for `steps` steps of so many seconds."""
    clock = iter(range(steps + 1))
    monkeypatch.setattr("fastmfr.progress.time.perf_counter", lambda: seconds_a_step * next(clock))
    file = io.StringIO()
    with Meter(new_console(file, width=200), "pretrain", 0, total) as meter:
        for step in range(1, steps + 1):
            meter.step(step, 100 * step)
    return file.getvalue().splitlines()


def test_a_quick_task_has_a_line_at_every_tenth(monkeypatch):
    said = lines(monkeypatch, 0.01, 50, 50)
    assert [line.split(" · ")[0] for line in said] == [f"pretrain {step}/50" for step in range(5, 51, 5)]


def test_a_slow_task_has_a_line_every_half_minute(monkeypatch):
    said = lines(monkeypatch, 12.0, 9, 10_000)
    assert said == [
        "pretrain 3/10,000 · 33.3 h left · 8.3 images/s",
        "pretrain 6/10,000 · 33.3 h left · 8.3 images/s",
        "pretrain 9/10,000 · 33.3 h left · 8.3 images/s",
    ]


@pytest.mark.parametrize(
    ("found", "said"),
    [(60, ["faces 80/100 · 2 s left · 10 images/s", "faces 100/100 · 0 s left · 10 images/s"]), (100, [])],
)
def test_what_was_there_before_a_task_counts_in_no_rate(monkeypatch, found, said):
    clock = iter([0.0, 2.0, 4.0])
    monkeypatch.setattr("fastmfr.progress.time.perf_counter", lambda: next(clock))
    file = io.StringIO()
    with progress_of("faces", new_console(file, width=200)) as progress:
        for done in range(found, 101, 20):
            progress(done, 100)
    assert file.getvalue().splitlines() == said
