"""The bench's rows: kept one by one, made into one file whatever happens, marked where they are quick."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parent.parent / "bench"
FIRST, SECOND = "bench_toy.py::test_first", "bench_toy.py::test_second"
TOY = """
import os, signal
def test_first(compare):
    compare(lambda: None, {"peer": lambda: None}, rounds=4)
def test_second(compare):
    if (number := os.environ.get("TOY_SIGNAL")):
        os.kill(os.getpid(), int(number))
    compare(lambda: None, {}, rounds=4)
"""
FIXED = """
import fastmfr.runtime
environment = fastmfr.runtime.environment
fastmfr.runtime.environment = lambda: environment() | {"commit": "c0ffee00" * 5}
"""


def load(name):
    spec = importlib.util.spec_from_file_location(f"bench_{name}", BENCH / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


keeping = load("keeping")


@pytest.fixture
def toy(tmp_path):
    """A folder with the bench's harness, two cases of no time, and a plugin that names one commit."""
    pytest.importorskip("pytest_benchmark")
    for name in ("conftest", "running", "keeping"):
        shutil.copy(BENCH / f"{name}.py", tmp_path)
    (tmp_path / "bench_toy.py").write_text(TOY)
    (tmp_path / "fixed_commit.py").write_text(FIXED)
    return tmp_path


def bench(toy, *options, signal=None):
    """(exit status, what was printed) of the bench in the folder; the second case sends itself a signal."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    environment |= {
        "PYTHONPATH": os.pathsep.join([str(toy), str(BENCH.parent)])
    }  # no worker of xdist's, which times nothing
    environment |= {"TOY_SIGNAL": str(signal)} if signal else {}
    words = [
        "-m",
        "pytest",
        "-c",
        "/dev/null",
        "--rootdir",
        str(toy),
        "-p",
        "fixed_commit",
        "-o",
        "python_files=bench_*.py",
    ]
    done = subprocess.run([sys.executable, *words, *options, str(toy)], env=environment, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def only_results(toy, ending):
    (path,) = (toy / "results").iterdir()
    assert path.name.endswith(ending), path
    return path


def results(toy):
    return json.loads(only_results(toy, ".json").read_text())


@pytest.mark.slow
def test_a_killed_run_keeps_its_rows_and_the_next_one_goes_on(toy):
    status, said = bench(toy, signal=9)
    assert status == -9
    assert "2 cases to run, each kept in" in said
    assert "how long they take is unknown" in said
    header, row = map(json.loads, only_results(toy, "-c0ffee00.rows.jsonl").read_text().splitlines())
    assert (header["machine_info"]["commit"], header["wanted"]) == ("c0ffee00" * 5, [FIRST, SECOND])
    assert (row["fullname"], row["stats"]["rounds"], row["quick"]) == (FIRST, 4, False)
    assert {"ours", "peer"} <= set(row["extra_info"])

    status, said = bench(toy, "--resume")
    assert status == 0, said
    assert "a run before was killed" in said
    assert "going on with" in said
    assert "1 case to run, kept in" in said
    found = results(toy)
    assert [row["fullname"] for row in found["benchmarks"]] == [FIRST, SECOND]
    assert (found["missing"], found["quick"]) == ([], False)


@pytest.mark.slow
def test_a_run_that_is_ended_makes_its_file_of_the_rows_it_has(toy):
    """By SIGTERM, as time limits do; a handler makes a Ctrl-C of it."""
    assert bench(toy, signal=15)[0] == 2
    found = results(toy)
    assert [row["fullname"] for row in found["benchmarks"]] == [FIRST]
    assert found["missing"] == [SECOND]


@pytest.mark.slow
def test_a_quick_run_takes_few_cases_with_few_rounds_and_says_so(toy):
    text = (toy / "keeping.py").read_text()
    (toy / "keeping.py").write_text(text.replace('"bench_ceilings.py::test_copy"', f'"{SECOND}"'))
    status, said = bench(toy, "--quick")
    assert status == 0, said
    assert "-quick-" in only_results(toy, ".json").name
    (row,), found = results(toy)["benchmarks"], results(toy)
    assert (found["quick"], row["quick"], row["stats"]["rounds"]) == (True, True, keeping.QUICK_ROUNDS)
    assert row["fullname"] == SECOND
    assert keeping.seconds_before([(toy, found)], quick=False) == {}  # no times of a quick run tell of a whole one
    assert list(keeping.seconds_before([(toy, found)], quick=True)) == [SECOND]


@pytest.mark.slow
def test_a_quick_run_ends_at_its_limit_within_a_case_and_keeps_its_rows(toy):
    text = (toy / "keeping.py").read_text().replace('"bench_ceilings.py::test_copy"', f'"{FIRST}", "{SECOND}"')
    (toy / "keeping.py").write_text(text)
    status, said = bench(toy, "--quick", signal=14)  # the alarm, as if the time were over
    assert status == 2
    assert "seconds of a quick run are over" in said
    assert [row["fullname"] for row in results(toy)["benchmarks"]] == [FIRST]
    assert results(toy)["missing"] == [SECOND]


def test_the_quick_cases_are_there():
    named = {}
    for case in keeping.QUICK:
        file, _, name = case.partition("::")
        assert f"def {name.partition('[')[0]}(" in (BENCH / file).read_text(), case
        assert named.setdefault(case, True)
    assert len(named) == len(keeping.QUICK) >= 10


def test_no_page_lists_a_quick_run(monkeypatch, tmp_path):
    sys.path.insert(0, str(BENCH.parent / "docs"))
    try:
        import generate
    finally:
        sys.path.pop(0)
    for name in ("20260101-000000-quick-cpu2-c0ffee00.json", "20260101-000000-cpu2-c0ffee00.json"):
        (tmp_path / name).write_text("{}")
    monkeypatch.setattr(generate, "RESULTS", tmp_path)
    page = generate.results_page()
    assert "-000000-cpu2-" in page
    assert "-quick-" not in page


@pytest.mark.parametrize(
    ("before", "done", "left", "seconds", "new"),
    [
        ({"a": 10, "b": 20}, {}, ["a", "b"], 30, []),
        ({"a": 10, "b": 20}, {"a": 15}, ["b"], 30, []),  # this machine is 1.5 times as slow now
        ({"a": 10, "b": 20}, {"a": 15}, ["b", "c"], 45, ["c"]),  # c: the mean of those done
        ({}, {"a": 10, "b": 30}, ["c", "d"], 40, ["c", "d"]),
        ({"b": 20}, {}, ["b", "c"], None, ["c"]),
        ({}, {}, ["a"], None, ["a"]),
        ({"a": 0.0}, {"a": 5}, ["a"], 0, []),
        ({"a": 10}, {"a": 10}, [], 0, []),
    ],
)
def test_the_time_left(before, done, left, seconds, new):
    assert keeping.time_left(before, done, left) == (seconds, new)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((None, 0, 2, 2), "how long they take is unknown: no earlier results of this kind of machine have their times"),
        ((None, 120, 3, 1), "about 2 min for 2 of them; unknown for the other 1, not timed here before"),
        ((45, 45, 3, 0), "about 45 s left"),
        ((600, 45, 3, 2), "about 10 min left, 2 of these cases by the mean of those done"),
        ((0, 0, 0, 0), "nothing is left"),
    ],
)
def test_what_is_said_of_the_time_left(arguments, said):
    assert keeping.sentence(*arguments) == said


def test_a_line_that_was_cut_is_left_out_and_a_run_at_work_is_left_alone(tmp_path):
    header = {"machine_info": {}, "wanted": ["a", "b"]}
    kept = keeping.Kept(tmp_path, "run", header)
    kept.add({"fullname": "a"})
    assert keeping.made_of_left_over(tmp_path) == []  # held
    (tmp_path / "cut.rows.jsonl").write_text(kept.path.read_text() + '{"fullname": "b", "st')
    assert keeping.made_of_left_over(tmp_path) == [tmp_path / "cut.json"]
    made = json.loads((tmp_path / "cut.json").read_text())
    assert (made["benchmarks"], made["missing"]) == ([{"fullname": "a"}], ["b"])
    kept.end()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cut.json", "run.json"]


def test_only_a_run_of_the_same_commit_machine_and_kind_is_gone_on_with(tmp_path):
    machine = {"cpu": "a", "cores": 2, "gpu": None}
    rows = [{"fullname": "a", "wall_seconds": 1.0}]
    for name, changes in (("1", {}), ("2", {"cores": 4}), ("3", {"commit": "b+"})):
        made = {
            "machine_info": machine | {"commit": "b"} | changes,
            "benchmarks": rows,
            "quick": False,
            "missing": ["c"],
        }
        (tmp_path / f"{name}.json").write_text(json.dumps(made))
    (tmp_path / "4.json").write_text("[]")
    runs = keeping.runs_before(tmp_path, machine)
    assert [path.name for path, _ in runs] == ["3.json", "1.json"]
    found = keeping.to_resume(runs, "b", quick=False)
    assert found is not None
    assert found[0].name == "1.json"
    assert keeping.to_resume(runs, "b+", quick=False) is None
    assert keeping.to_resume(runs, "b", quick=True) is None
    assert keeping.to_resume(runs, None, quick=False) is None
