"""What bench/growth.py measures at growing sizes can be called, and its lines and its picture say what was measured."""

import sys
from contextlib import contextmanager
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
from PIL import Image

BENCH = Path(__file__).parent.parent / "bench"
sys.path.append(str(BENCH))

from card import lines  # noqa: E402
from growing.curves import Curve, curves, head, meta, opening, sizes  # noqa: E402
from growing.picture import draw, slope  # noqa: E402

spec = spec_from_file_location("growth_command", BENCH / "growth.py")
command = module_from_spec(spec)
spec.loader.exec_module(command)


def figures(*pairs):
    return [{"size": size, "median_seconds": value, "p20_p80_seconds": [value, value]} for size, value in pairs]


def test_sizes_grow_by_half_decades():
    assert sizes(1000, 100_000) == [1000, 3000, 10_000, 30_000, 100_000]
    assert [curve.sizes[0] for curve in curves(False)] == [10_000, 3, 1000]
    assert [curve.sizes[-1] for curve in curves(True)][1:] == [16, 1_000_000]


def test_the_slope_is_that_of_the_larger_sizes():
    assert slope(figures((1, 5.0), (10, 5.0), (100, 5.0), (1000, 50.0), (10_000, 500.0))) == pytest.approx(1.0)
    assert slope(figures((3, 2.0), (6, 8.0))) == pytest.approx(2.0)


def test_every_call_can_be_made(tmp_path):
    with head(12, 4, 8) as calls:
        assert calls["head step"]() is None
    with meta(3, 2, 16, 1 / 16) as calls:
        steps = {name: step() for name, step in calls.items()}
    assert [len(step.losses["total"]) for step in steps.values()] == [3, 3]
    with opening(700, tmp_path) as calls:
        found = {name: call() for name, call in calls.items()}
        text = found.pop("records, by their text index")
        drawn = found.pop("sampler and its first batch")
    assert text is None
    assert len(drawn.gallery) == 64
    assert [(domain.identities, domain.images) for domain in found.values()] == [(70, 700)] * 2
    assert list(tmp_path.iterdir()) == []


def test_the_command_writes_a_line_for_each_figure_and_the_picture(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv(lines.FILE, "")
    made = []

    @contextmanager
    def counted(size, folder):
        assert folder.is_dir()
        yield {"a": lambda: made.append(size), "b": lambda: None}

    fake = Curve("head", "Counting", "sizes", [1, 10, 100], counted, 1.0, {"fact": 7})
    monkeypatch.setattr(command, "curves", lambda large: [fake])
    assert command.main(["--out", str(tmp_path), "--seconds", "0", "--most", "10"]) == 0
    assert made == [1] * 4 + [10] * 4  # one that is not timed, and at least three that are
    found = list(lines.read(tmp_path / "growth.jsonl"))
    assert [line["stage"] for line in found] == ["machine"] + ["growth"] * 4 + ["slope"] * 2
    assert [(line["line"], line["size"], line["fact"], line["rounds"]) for line in found[1:5]] == [
        *(("a", 1, 7, 3), ("b", 1, 7, 3), ("a", 10, 7, 3), ("b", 10, 7, 3))
    ]
    with Image.open(tmp_path / "growth.png") as picture:
        assert picture.width > 500
    assert f"wrote {tmp_path / 'growth.jsonl'}" in capsys.readouterr().out


def test_too_small_a_size_is_told(tmp_path, capsys):
    assert command.main(["--out", str(tmp_path), "--only", "meta", "--most", "2"]) == 1
    assert "no size of meta is as small as --most 2" in capsys.readouterr().err


def test_a_curve_of_one_size_is_drawn_too(tmp_path):
    one = Curve("head", "One", "sizes", [1], None, 1.0, {})
    assert draw([(one, {"a": figures((1, 2.0))})], tmp_path / "one.png").stat().st_size > 0
