"""Rows of a bench run, kept one by one: a run that is cut, by Ctrl-C, a time limit or a kill, keeps what it had.

Each finished case is a line of NAME.rows.jsonl, below a line with the environment. When the run ends, however it ends,
NAME.json is made of these lines; after a kill the next run does so. Nothing here knows pytest.
"""

import fcntl
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

QUICK = (  # cases of a quick run, a small one of each kind; the longest ones last
    "bench_ceilings.py::test_copy",
    "bench_ceilings.py::test_product",
    "bench_kernels.py::test_batchnorm_and_prelu_with_its_double_backward",
    "bench_kernels.py::test_flat_updates[look_ahead]",
    "bench_kernels.py::test_flat_updates[meta_sgd]",
    "bench_kernels.py::test_classifier_rows",
    "bench_margin_softmax.py::test_values_and_gradients_beside_pytorch_metric_learning[CosFaceLoss]",
    "bench_margin_softmax.py::test_second_derivative[B64-C10000-D512]",
    "bench_meta.py::test_a_whole_rotation_that_shares_per_domain[3-56px]",
    "bench_meta.py::test_meta_batches_with_their_update[3]",
    "bench_sampler.py::test_batches[100000]",
    "bench_meta.py::test_one_exact_split[56px]",
    "bench_decode.py::test_cached_images",
    "bench_evaluate.py::test_pairs",
)
QUICK_ROUNDS = 3  # at most
QUICK_SECONDS = 285  # after which a quick run ends, even within a case: with what comes before and after, 5 minutes
MACHINE = ("cpu", "cores", "gpu")  # what makes a machine of the same kind, out of `environment()`
ENDING = ".rows.jsonl"


class Kept:
    """The lines of one run in a folder, held with a lock as long as the run goes on.

    `header` has the environment under "machine_info", and "commit_info", "datetime", "version", "quick" and "wanted",
    the names of the cases. `before` are rows of an earlier part of the run.
    """

    def __init__(self, folder: Path, name: str, header: Mapping, before: Sequence[Mapping] = ()):
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / f"{name}{ENDING}"
        self._file = self.path.open("x")
        fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self._write(header)
        for row in before:
            self.add(row)

    def add(self, row: Mapping) -> None:
        """Keeps a row: once this returns, a kill does not lose it."""
        self._write(row)

    def end(self) -> Path:
        """Makes the results file of the lines, and gives its path."""
        path = made_of_lines(self.path)
        self._file.close()
        return path

    def _write(self, line):
        self._file.write(json.dumps(line, default=str) + "\n")
        self._file.flush()


def made_of_lines(path: Path) -> Path:
    """Makes NAME.json of NAME.rows.jsonl, and removes the lines. A last line that was cut is left out."""
    lines = []
    for line in path.read_text().splitlines():
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            break
    header, rows = (lines[0], lines[1:]) if lines else ({"wanted": []}, [])
    has = {row["fullname"] for row in rows}
    missing = [name for name in header["wanted"] if name not in has]
    made = path.with_name(path.name.removesuffix(ENDING) + ".json")
    if rows:
        partial = path.with_name(path.name + ".partial")
        partial.write_text(json.dumps({**header, "benchmarks": rows, "missing": missing}, indent=4))
        partial.replace(made)
    path.unlink()
    return made


def made_of_left_over(folder: Path) -> list[Path]:
    """Makes the results files of runs that were killed, and gives their paths; those at work are left alone."""
    made = []
    for path in sorted(folder.glob(f"*{ENDING}")):
        with path.open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            made.append(made_of_lines(path))
    return [path for path in made if path.is_file()]


def runs_before(folder: Path, machine: Mapping) -> list[tuple[Path, dict]]:
    """The results files of benches on a machine of this kind, the newest first."""
    found = []
    for path in sorted(folder.glob("*.json"), reverse=True):
        try:
            results = json.loads(path.read_text())
            there = results["machine_info"]
            if results["benchmarks"] and all(there.get(key) == machine[key] for key in MACHINE):
                found.append((path, results))
        except (ValueError, KeyError, TypeError, AttributeError):
            continue  # a file of another kind
    return found


def to_resume(runs: Sequence[tuple[Path, dict]], commit: str | None, quick: bool) -> tuple[Path, dict] | None:
    """The newest run of the same commit that lacks cases; a tree with changed files may be another one by now."""
    if not commit or commit.endswith("+"):
        return None
    same = [run for run in runs if run[1]["machine_info"].get("commit") == commit and run[1].get("quick") == quick]
    return same[0] if same and same[0][1].get("missing") else None


def seconds_before(runs: Sequence[tuple[Path, dict]], quick: bool) -> dict[str, float]:
    """{case: its seconds on the clock, set-up and peers included} in the newest run that has them, quick ones apart."""
    known = {}
    for _, results in reversed(runs):
        if bool(results.get("quick")) == quick:
            known |= {row["fullname"]: row["wall_seconds"] for row in results["benchmarks"] if "wall_seconds" in row}
    return known


def time_left(
    before: Mapping[str, float], done: Mapping[str, float], left: Sequence[str]
) -> tuple[float | None, list[str]]:
    """(seconds that the cases `left` will take, or None where nothing tells; those of them not seen before).

    Cases seen before take what they took, times how much longer than before the cases done took; others take the mean
    of those done.
    """
    seen = [name for name in done if name in before]
    was = sum(before[name] for name in seen)
    pace = sum(done[name] for name in seen) / was if was else 1.0
    new = [name for name in left if name not in before]
    if new and not done:
        return None, new
    mean = statistics.mean(done.values()) if done else 0.0
    return pace * sum(before[name] for name in left if name in before) + mean * len(new), new


def sentence(seconds: float | None, known: float, cases: int, new: int) -> str:
    """How long `cases` will take, in words; `known`: the seconds of those seen before, `new`: how many were not."""
    if not cases:
        return "nothing is left"
    if seconds is not None and not new:
        return f"about {span(seconds)} left"
    if seconds is not None:
        return f"about {span(seconds)} left, {new} of these cases by the mean of those done"
    if new == cases:
        return "how long they take is unknown: no earlier results of this kind of machine have their times"
    return f"about {span(known)} for {cases - new} of them; unknown for the other {new}, not timed here before"


def span(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
