"""Where the time of a step goes, kernel by kernel: margin softmax on each path, a meta step, a pretraining step.

Each line names a kernel, its calls and its milliseconds in one step, the longest first; `idle` is what no kernel took.
"""

import warnings
from operator import attrgetter

import torch
from bench_meta import batch
from torch.profiler import ProfilerActivity, profile

from . import lines, margin, meta_step, pretraining
from .paths import PATHS
from .timing import GPU, arguments, seconds_of, wait

KERNELS = 14


def told(what, function):
    """Writes the longest kernels of one call."""
    for _ in range(3):
        function()
    wait()
    seconds = seconds_of(function)
    activities = [ProfilerActivity.CPU, ProfilerActivity.CUDA] if GPU else [ProfilerActivity.CPU]
    with profile(activities=activities) as found:
        function()
        wait()
    time_of = attrgetter("self_device_time_total" if GPU else "self_cpu_time_total")
    kind = torch.autograd.DeviceType.CUDA if GPU else torch.autograd.DeviceType.CPU  # the host's rows repeat the time
    rows = [row for row in found.key_averages() if row.device_type == kind and time_of(row)]
    rows.sort(key=time_of, reverse=True)
    total = sum(map(time_of, rows)) / 1e3
    lines.write(
        "profile",
        what=what,
        step_milliseconds=round(1e3 * seconds, 3),
        kernels_milliseconds=round(total, 3),
        idle=round(1 - total / (1e3 * seconds), 3),
        launches=sum(row.count for row in rows),
        longest=[[row.key[:110], row.count, round(time_of(row) / 1e3, 3)] for row in rows[:KERNELS]],
    )


def main():
    small = arguments(__doc__).small
    warnings.simplefilter("ignore")
    B, C = (32, 500) if small else (1024, 100_000)
    embedding, weight, label = margin.inputs(B, C)
    for path in PATHS:
        told(f"margin softmax, {path}", margin.ours(embedding, weight, label, path))
    if GPU:
        told("margin softmax, tiles, kept", margin.ours(embedding, weight, label, "tiles", "exp"))
    width, pixels, pairs = (0.0625, 16, 4) if small else (meta_step.WIDTH, meta_step.PIXELS, meta_step.PAIRS)
    gen = torch.Generator().manual_seed(0)
    splits = [(batch(gen, pairs, pixels, 2), batch(gen, pairs, pixels)) for _ in range(meta_step.DOMAINS)]
    for precision in ("fp32", "bf16") if GPU else ("fp32",):
        told(f"meta step, {precision}", meta_step.trainer(splits, width, precision, engine="rop"))
    name, B, C, size = ("mfr28", 4, 100, 32) if small else ("iresnet50", 512, 100_000, 112)
    images, label = pretraining.inputs(B, C, size)
    told("pretraining step", pretraining.ours(name, images, label, C))


if __name__ == "__main__":
    main()
