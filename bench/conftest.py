"""The bench's harness: every run writes one file into bench/results, with the environment it must be read beside.

Timings of one machine drift, so contenders are never timed one after the other: `compare` runs them in turn, round by
round, and what counts is the median of the ratios within a round.
"""

import statistics
import time
from datetime import datetime
from pathlib import Path

import pytest
import torch

from fastmfr.runtime import environment

RESULTS = Path(__file__).parent / "results"


def pytest_configure(config):
    """Each run is kept under a name of its own: when, on what, at which commit."""
    if config.getoption("benchmark_json", None) is None:
        where = environment()
        device = (where["gpu"] or f"cpu{where['cores']}").replace(" ", "-")
        commit = (where["commit"] or "unknown")[:8] + ("+" if (where["commit"] or "").endswith("+") else "")
        RESULTS.mkdir(exist_ok=True)
        config.option.benchmark_json = str(RESULTS / f"{datetime.now():%Y%m%d-%H%M%S}-{device}-{commit}.json")


def pytest_benchmark_update_machine_info(machine_info):
    """What pytest-benchmark records of the machine, replaced by what a run of fastmfr records."""
    machine_info.clear()
    machine_info.update(environment())


def pytest_benchmark_update_json(output_json):
    """Single timings are left out: medians, spread and ratios are kept, and the file stays readable."""
    for row in output_json["benchmarks"]:
        row["stats"].pop("data", None)


@pytest.fixture
def compare(benchmark):
    """compare(ours, peers={name: function}, rounds, **facts): times all in turn; the peers' figures go into extra_info.

    For each peer: seconds (median and 20th to 80th percentile) and `times_ours`, the median over the rounds of its time
    over ours. Raises nothing and asserts nothing: a bench holds speed, it does not judge it.
    """

    def seconds(function):
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        start = time.perf_counter()
        function()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter() - start

    def run(ours, peers, rounds=10, **facts):
        spent = {name: [] for name in (*peers, "ours")}
        for function in (ours, *peers.values()):
            function()  # warm: caches, allocators, lazy initialisation

        def in_turn():
            for name, peer in peers.items():
                spent[name].append(seconds(peer))

        def timed():
            spent["ours"].append(seconds(ours))

        benchmark.pedantic(timed, setup=in_turn, rounds=rounds)
        benchmark.extra_info |= facts
        for name in peers:
            ratios = [theirs / mine for theirs, mine in zip(spent[name], spent["ours"], strict=True)]
            deciles = statistics.quantiles(spent[name], n=10)
            benchmark.extra_info[name] = {
                "median_seconds": statistics.median(spent[name]),
                "p20_p80_seconds": [deciles[1], deciles[7]],
                "times_ours": round(statistics.median(ratios), 3),
            }

    return run


def pytest_terminal_summary(terminalreporter, config):
    """The peers, which pytest-benchmark's own table does not know."""
    session = getattr(config, "_benchmarksession", None)
    rows = session.benchmarks if session else []
    for row in rows:
        for name, figures in row.extra_info.items():
            if isinstance(figures, dict) and "times_ours" in figures:
                terminalreporter.write_line(f"{row.name}: {name} takes {figures['times_ours']:.2f} x our time")
    if rows and config.option.benchmark_json:
        terminalreporter.write_line(f"results in {config.option.benchmark_json}")
