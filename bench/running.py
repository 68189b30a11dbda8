"""A run of the bench as it goes on: each row is kept at once, and a line says how many cases are left and how long."""

import signal
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import keeping
import pytest

from fastmfr.runtime import environment

RESULTS = Path(__file__).parent / "results"


def short(item):
    """FILE::CASE of a test."""
    return item.nodeid.rpartition("/")[2]


class Running:
    """What a run has done: rows are kept, and after each case a line says how many are left and how long they take."""

    def __init__(self, session):
        config, where = session.config, environment()
        self._quick, self._terminal = config.getoption("quick"), config.pluginmanager.get_plugin("terminalreporter")
        self._benchmarks = config._benchmarksession.benchmarks
        self._start, self._limit = time.monotonic(), config.getoption("deadline")
        if self._quick and not self._limit:
            signal.signal(signal.SIGALRM, _end_quick)
            signal.setitimer(signal.ITIMER_REAL, keeping.QUICK_SECONDS)
        for path in keeping.made_of_left_over(RESULTS):
            self._say(f"a run before was killed; its rows are in {path}")
        runs, wanted = keeping.runs_before(RESULTS, where), [item.nodeid for item in session.items]
        name, rows = _name(where, self._quick), []
        if config.getoption("resume"):
            name, rows, others = self._resumed(runs, where, name)
            wanted = list(dict.fromkeys([*others, *wanted]))
        have = {row["fullname"] for row in rows}
        config.hook.pytest_deselected(items=[item for item in session.items if item.nodeid in have])
        session.items[:] = [item for item in session.items if item.nodeid not in have]
        self._before, self._done = keeping.seconds_before(runs, self._quick), {}
        self._left = [item.nodeid for item in session.items]
        commit = config.hook.pytest_benchmark_generate_commit_info(config=config)
        now = datetime.now(UTC).isoformat()
        header = {"machine_info": where, "commit_info": commit, "datetime": now}
        header |= {"version": version("pytest-benchmark"), "quick": self._quick, "wanted": wanted}
        self._kept = keeping.Kept(RESULTS, name, header, rows)
        cases = f"{len(self._left)} cases to run, each" if len(self._left) != 1 else "1 case to run,"
        self._say(f"{cases} kept in {self._kept.path} when it is done; {self._time_left()}")

    def begin(self, item):
        if self._limit and time.monotonic() - self._start > self._limit:
            pytest.skip(f"{self._limit:.0f} seconds are over")
        self._began = time.monotonic()

    def passed(self, item):
        """Keep the rows of a case."""
        took = time.monotonic() - self._began
        for row in self._benchmarks:
            if row.fullname == item.nodeid:  # single timings are left out: medians, spread and ratios are kept
                self._kept.add(row.as_dict(include_data=False) | {"quick": self._quick, "wall_seconds": round(took, 2)})
        self._done[item.nodeid] = took
        self.without_row(item)

    def without_row(self, item):
        """Note that a case is over: done, failed or skipped."""
        if item.nodeid not in self._left:  # a failure while a case is taken down
            return
        self._left.remove(item.nodeid)
        took = f" in {keeping.span(self._done[item.nodeid])}" if item.nodeid in self._done else ": no row"
        self._say(f"{short(item)}{took}; {len(self._left)} left to run, {self._time_left()}")

    def end(self):
        signal.setitimer(signal.ITIMER_REAL, 0)
        path = self._kept.end()
        if path.is_file():
            self._say(f"results in {path}")

    def _resumed(self, runs, where, name):
        """The name, rows and cases of the run to go on with; those of a new run where there is none."""
        found = keeping.to_resume(runs, where["commit"], self._quick)
        if found is None:
            self._say("no run of this commit, with no file changed since, was cut on this kind of machine: all cases")
            return name, [], []
        self._say(f"going on with {found[0]}")
        return found[0].stem, found[1]["benchmarks"], found[1]["wanted"]

    def _time_left(self):
        seconds, new = keeping.time_left(self._before, self._done, self._left)
        known = sum(self._before[name] for name in self._left if name in self._before)
        return keeping.sentence(seconds, known, len(self._left), len(new))

    def _say(self, text):
        self._terminal.ensure_newline()
        self._terminal.write_line(text)
        self._terminal.flush()


def _end_quick(*_):
    pytest.exit(f"{keeping.QUICK_SECONDS} seconds of a quick run are over; --deadline SECONDS gives it more", 2)


def _name(where, quick):
    """A name of its own for each run: when, on what, at which commit."""
    device = (where["gpu"] or f"cpu{where['cores']}").replace(" ", "-")
    commit = (where["commit"] or "unknown")[:8] + ("+" if (where["commit"] or "").endswith("+") else "")
    return f"{datetime.now():%Y%m%d-%H%M%S}-{'quick-' if quick else ''}{device}-{commit}"
