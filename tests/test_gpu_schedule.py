"""The schedule of `make gpu`: whatever a stage does, its figures and those of the others are kept."""

import importlib.util
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parent.parent / "bench"
FAKES = {
    "fake_well": "from card import lines\nlines.write('well', what='figure', median_seconds=1.0, who='a')",
    "fake_failing": "print('the reason')\nraise SystemExit(3)",
    "fake_crashing": "import os\nprint('before it', flush=True)\nos.abort()",
    "fake_hanging": "from card import lines\nlines.write('hanging', what='first')\nimport time\ntime.sleep(600)",
}


@pytest.fixture
def gpu(monkeypatch, tmp_path):
    """The module bench/gpu.py; stages find the fake modules."""
    monkeypatch.syspath_prepend(str(BENCH))
    spec = importlib.util.spec_from_file_location("bench_gpu", BENCH / "gpu.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "bench_gpu", module)  # dataclasses look it up
    spec.loader.exec_module(module)
    for name, text in FAKES.items():
        (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv(module.lines.FILE, "")
    monkeypatch.setattr(module, "LOGS", tmp_path)
    return module


def run(gpu, figures, *names, seconds=60, limit=30, alone=True):
    figures.touch()
    stages = [gpu.Stage(name, f"fake_{name}", limit, alone=alone) for name in names]
    left_out = gpu.run(gpu.to_do(stages, figures), figures, seconds, rehearse=True)
    found = gpu.lines.read(figures)
    return left_out, {row["what"]: row for row in found if row["stage"] == "schedule"}, found


def test_a_stage_that_fails_or_crashes_is_told_with_its_last_words_and_costs_no_other(gpu, tmp_path):
    left_out, ended, found = run(gpu, tmp_path / "figures.jsonl", "failing", "crashing", "well", alone=False)
    assert left_out == []
    assert (ended["failing"]["ended"], ended["failing"]["output"]) == ({"status": 3}, "the reason\n")
    assert ended["crashing"]["ended"] == {"status": -6}
    assert "before it" in ended["crashing"]["output"]
    assert ended["well"]["ended"] == {"status": 0}
    assert [row["what"] for row in found if row["stage"] == "well"] == ["figure"]


def test_a_stage_over_its_limit_is_killed_and_keeps_the_figures_it_had(gpu, tmp_path):
    _, ended, found = run(gpu, tmp_path / "figures.jsonl", "hanging", limit=3)
    assert ended["hanging"]["ended"] == {"killed_after": 3}
    assert [row["what"] for row in found if row["stage"] == "hanging"] == ["first"]


def test_what_no_time_is_left_for_is_named_and_done_by_the_next_call(gpu, tmp_path):
    figures = tmp_path / "figures.jsonl"
    assert run(gpu, figures, "well", "failing", seconds=1)[:2] == (["well", "failing"], {})
    assert set(run(gpu, figures, "well", "failing")[1]) == {"well", "failing"}
    before = figures.read_text().count('"what": "well"')
    run(gpu, figures, "well", "failing")  # what failed is tried again, what went well is not
    assert figures.read_text().count('"what": "well"') == before
    assert figures.read_text().count('"what": "failing"') == 2


def test_a_line_that_was_cut_is_left_out(gpu, tmp_path):
    (tmp_path / "figures.jsonl").write_text('{"stage": "a", "what": "b"}\n{"stage": "a", "wh')
    assert gpu.lines.read(tmp_path / "figures.jsonl") == [{"stage": "a", "what": "b"}]


def test_the_table_holds_every_figure_and_every_failure(gpu):
    figures = [
        {"stage": "ceilings", "what": "copy", "who": "torch", "median_seconds": 1.0, "tb_per_second": 3.0},
        {"stage": "test", "what": "tests/a.py::b", "outcome": "failed", "error": "E\nAssertionError: 1 is not 2"},
        {"stage": "margin", "what": "forward", "who": "a peer", "failed": "RuntimeError: out of memory"},
        {"stage": "operators", "what": "rows", "who": "ours", "median_seconds": 0.001, "tb_per_second": 1.5},
    ]
    text = "\n".join(gpu.table(figures))
    for wanted in ("0 passed or skipped, 1 failed", "1 is not 2", "out of memory", "50 % of copy", "1.000 ms"):
        assert wanted in text


def test_without_a_gpu_it_says_what_runs_instead(gpu, monkeypatch, tmp_path):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--out", str(tmp_path / "figures.jsonl")])
    with pytest.raises(SystemExit, match="--rehearse"):
        gpu.main()


@pytest.mark.slow
def test_a_rehearsal_of_what_is_small_leaves_figures_of_every_stage(gpu, monkeypatch, tmp_path, capsys):
    wanted = ["ceilings", "operators"]
    figures = tmp_path / "figures.jsonl"
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--rehearse", "--only", ",".join(wanted), "--out", str(figures)])
    monkeypatch.delenv("PYTHONPATH")
    with pytest.raises(SystemExit) as ended:
        gpu.main()
    assert ended.value.code == 0, capsys.readouterr().out
    assert {row["stage"] for row in gpu.lines.read(figures)} >= {*wanted, "environment", "schedule"}
