"""Contenders timed in turn, round by round; what counts is the median of the ratios within a round."""

import argparse
import contextlib
import gc
import os
import statistics
import time

import torch
from conftest import peak_bytes

from . import lines

GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if GPU else "cpu")
COMPILED = GPU and os.environ.get("FASTMFR_COMPILED", "1") == "1"  # compiled peers: a minute each
_SHORT = 2e-3  # seconds a measurement should last at least, for a clock to tell calls apart
_ROUNDS = (5, 40) if GPU else (2, 2)  # at least, at most; the CPU only rehearses


def arguments(description, **switches):
    """--small: toy sizes. --seconds: what one comparison may take, or little more. Also {switch: its help}."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--small", action="store_true", help="toy sizes, whose numbers mean nothing")
    parser.add_argument("--seconds", type=float, default=1.5, help="of one comparison (default 1.5)")
    for name, told in switches.items():
        parser.add_argument(f"--{name.replace('_', '-')}", action="store_true", help=told)
    return parser.parse_args()


@contextlib.contextmanager
def algorithms_tried(is_tried):
    """Within, cuDNN times its algorithms for each new convolution and keeps the fastest, instead of guessing one."""
    before, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, is_tried
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def wait():
    if GPU:
        torch.cuda.synchronize()


def seconds_of(function, calls=1):
    """Seconds a call, of so many made one after the other: between two events of the stream on a GPU."""
    if not GPU:
        start = time.perf_counter()
        for _ in range(calls):
            function()
        return (time.perf_counter() - start) / calls
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(calls):
        function()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3 / calls


def replayed(function):
    """The function as one CUDA graph: what short kernels take without the host's launches. Itself on the CPU."""
    if not GPU:
        return function
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            function()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        held = function()

    def replay(_kept=(function, held)):  # what the graph reads and writes lives as long as it is replayed
        graph.replay()

    return replay


def compare(stage, what, contenders, *, seconds=1.5, ours=None, memory=False, graphs=False, **facts):
    """Times {name: function} in turn and writes a line for each: median, 20th and 80th percentile, ratio to `ours`.

    `ours`: the contender that ratios are of, by default the first. `graphs`: each is replayed from a CUDA graph, which
    takes the device's time and not the host's. One that fails costs a line with the reason, no more. `facts` go into
    every line; `flops` and `bytes` become rates.
    """
    working, warm = {}, {}
    for name, function in contenders.items():
        try:
            function()
            wait()
            function = replayed(function) if graphs else function
            function()
            wait()
            warm[name] = max(1e-7, seconds_of(function))
            working[name] = function
        except Exception as error:
            lines.write(stage, what=what, who=name, failed=lines.reason(error), **facts)
        if GPU:
            gc.collect()
            torch.cuda.empty_cache()
    calls = {name: max(1, round(_SHORT / warm[name])) for name in working} if GPU else dict.fromkeys(working, 1)
    turn = sum(warm[name] * calls[name] for name in working)
    rounds = min(_ROUNDS[1], max(_ROUNDS[0], int(seconds / turn))) if working else 0
    spent = {name: [] for name in working}
    try:
        for _ in range(rounds):
            for name, function in working.items():
                spent[name].append(seconds_of(function, calls[name]))
    except Exception as error:  # the rounds before it count
        lines.write(stage, what=what, who=name, failed=lines.reason(error), **facts)
        whole = min(map(len, spent.values()))
        spent = {name: times[:whole] for name, times in spent.items() if whole > 1}
        memory = False
    mine = spent.get(ours or next(iter(contenders)))
    result = {}
    for name, times in spent.items():
        median = statistics.median(times)
        deciles = statistics.quantiles(times, n=10)
        figure = {"median_seconds": median, "p20_p80_seconds": [deciles[1], deciles[7]], "rounds": rounds}
        if mine:
            figure["times_ours"] = round(statistics.median(one / my for one, my in zip(times, mine, strict=True)), 4)
        if "flops" in facts:
            figure["tflop_per_second"] = round(facts["flops"] / median / 1e12, 2)
        if "bytes" in facts:
            figure["tb_per_second"] = round(facts["bytes"] / median / 1e12, 4)
        if "images" in facts:
            figure["images_per_second"] = round(facts["images"] / median, 1)
        if graphs:
            figure["replayed"] = True
        if memory:
            figure["peak_bytes"] = peak_bytes(contenders[name]) if GPU else None
        lines.write(stage, what=what, who=name, **figure, **facts)
        result[name] = median
    return result
