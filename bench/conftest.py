"""The bench's harness: every run writes one file into bench/results, with the environment it must be read beside.

running.py keeps each row as soon as its case is done, and says how long the rest will take. `--quick` takes few cases
with few rounds, to see that all works: its file says "quick", and its times are no figures.

Timings of one machine drift, so contenders are never timed one after the other: `compare` runs them in turn, round by
round, and what counts is the median of the ratios within a round.
"""

import ctypes
import multiprocessing
import resource
import signal
import statistics
import time
from pathlib import Path

import keeping
import pytest
import torch
from running import Running, short

from fastmfr.runtime import keep_freed_memory

RUN = pytest.StashKey[Running]()


def pytest_addoption(parser):
    parser.addoption("--deadline", type=float, help="seconds after which no further bench begins")
    parser.addoption("--quick", action="store_true", help="at most 5 minutes on two cores; its times are no figures")
    parser.addoption("--resume", action="store_true", help="go on with the newest run of this commit that was cut")


def pytest_configure(config):
    """Memory is kept as the trainer does it, for all contenders alike. A time limit's SIGTERM ends as Ctrl-C does."""
    keep_freed_memory()
    signal.signal(signal.SIGTERM, signal.default_int_handler)


def pytest_collection_modifyitems(config, items):
    """The ceilings of the machine first: what comes after is read beside them."""
    items.sort(key=lambda item: item.path.stem != "bench_ceilings")
    if config.getoption("quick"):
        place = {name: number for number, name in enumerate(keeping.QUICK)}
        kept = [item for item in items if short(item) in place]
        config.hook.pytest_deselected(items=[item for item in items if short(item) not in place])
        items[:] = sorted(kept, key=lambda item: place[short(item)])


@pytest.hookimpl(tryfirst=True)
def pytest_collection_finish(session):
    if session.items and not session.config.option.collectonly:
        session.config.stash[RUN] = Running(session)


def pytest_runtest_setup(item):
    item.config.stash[RUN].begin(item)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if call.when == "call" and report.passed:
        item.config.stash[RUN].passed(item)
    elif call.when == "call" or report.failed or report.skipped:
        item.config.stash[RUN].without_row(item)
    return report


def pytest_sessionfinish(session):
    """However the run ends, its results file is made of the rows that it has; a kill alone leaves that to the next."""
    if run := session.config.stash.get(RUN, None):
        run.end()


def cpu_seconds():
    """CPU time so far of this process and of its children, those that ended and those at work."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    clocks = [~child.pid << 3 | 2 for child in multiprocessing.active_children()]  # as clock_getcpuclockid(3) has it
    return time.process_time() + ended.ru_utime + ended.ru_stime + sum(map(time.clock_gettime, clocks))


def settled_cpu_seconds():
    """`cpu_seconds` once all who run ahead have filled their queues: that work is due to the call that made room.

    Looking on costs about 0.1 ms itself; whoever is still busy after two seconds is not waited for.
    """
    spent = cpu_seconds()
    for _ in range(100):
        time.sleep(0.02)
        before, spent = spent, cpu_seconds()
        if spent - before < 0.001:
            break
    return spent


def seconds(function):
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    kept = function()  # noqa: F841  (freed when the clock has stopped)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def figures(mine, theirs, units):
    """What is recorded of one contender, from its (seconds, CPU seconds) of every round; ratios are per unit."""
    seconds, cpu = (statistics.median(column) / units for column in zip(*theirs, strict=True))
    deciles = statistics.quantiles([turn[0] / units for turn in theirs], n=10)
    ratios = [
        (wall / units / my_wall, cpu_time / units / my_cpu)
        for (my_wall, my_cpu), (wall, cpu_time) in zip(mine, theirs, strict=True)
    ]
    times, cpu_times = (round(statistics.median(column), 3) for column in zip(*ratios, strict=True))
    return {
        "median_seconds": seconds,
        "p20_p80_seconds": [deciles[1], deciles[7]],
        "median_cpu_seconds": cpu,
        "times_ours": times,
        "cpu_times_ours": cpu_times,
    }


def peak_bytes(function):
    """Memory that a call needs at most beside what was there before it; on the CPU as Linux counts resident pages."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    ctypes.CDLL(None).malloc_trim(0)  # what was freed before goes back to Linux, to be counted when it is taken again
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = _resident("VmRSS")
    function()
    return _resident("VmHWM") - before


def _resident(name):
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


@pytest.fixture
def compare(benchmark, request):
    """compare(ours, peers={name: function}, rounds, **facts): times all in turn; the figures go into extra_info.

    For each: seconds (median and 20th to 80th percentile), CPU seconds (median), `times_ours` and `cpu_times_ours`,
    the medians over the rounds of its times over ours. `units` says how many units of work (batches, images) a call of
    a contender does, 1 where it does not: then all figures are per unit. Without `warm` nobody has a call to warm up.
    Raises nothing and asserts nothing: a bench holds speed, it does not judge it.
    """

    def run(ours, peers, rounds=10, units=None, warm=True, **facts):
        units = {"ours": 1} | (units or {})
        rounds = min(rounds, keeping.QUICK_ROUNDS) if request.config.getoption("quick") else rounds
        spent = {name: [] for name in ("ours", *peers)}
        for function in (ours, *peers.values()) if warm else ():
            function()  # caches, allocators, lazy initialisation

        def in_turn():
            for name, peer in peers.items():
                begin = settled_cpu_seconds()
                wall = seconds(peer)
                spent[name].append((wall, settled_cpu_seconds() - begin))
            spent["ours"].append((settled_cpu_seconds(),))

        def timed():
            spent["ours"][-1] += (seconds(ours),)

        def after():
            begin, wall = spent["ours"][-1]
            spent["ours"][-1] = (wall, settled_cpu_seconds() - begin)

        benchmark.pedantic(timed, setup=in_turn, teardown=after, rounds=rounds)
        mine = [[figure / units["ours"] for figure in turn] for turn in spent["ours"]]
        benchmark.extra_info |= facts
        benchmark.extra_info |= {name: figures(mine, turns, units.get(name, 1)) for name, turns in spent.items()}

    return run


def pytest_terminal_summary(terminalreporter, config):
    """The peers, which pytest-benchmark's own table does not know."""
    session = getattr(config, "_benchmarksession", None)
    rows = session.benchmarks if session else []
    for row in rows:
        contenders = {
            name: value for name, value in row.extra_info.items() if isinstance(value, dict) and "times_ours" in value
        }
        facts = ", ".join(f"{name} {value}" for name, value in row.extra_info.items() if name not in contenders)
        terminalreporter.write_line(f"{row.name}: {facts}")
        for name, value in contenders.items():
            rate, cpu_rate = (f"{1 / value[key]:>12,.2f}" for key in ("median_seconds", "median_cpu_seconds"))
            memory = f", peak {value['peak_megabytes']:,} MB" if "peak_megabytes" in value else ""
            terminalreporter.write_line(
                f"  {name:<22} {rate} a second {value['times_ours']:>9,.2f} x our time "
                f"{cpu_rate} a CPU second {value['cpu_times_ours']:>9,.2f} x our CPU time{memory}"
            )
