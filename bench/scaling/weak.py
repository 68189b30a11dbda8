"""Weak scaling on CPU cores: steps of one process and of two, with as many images each and one thread each."""

import os
import tempfile
import time
from statistics import median

import torch
from torch import distributed as dist

from fastmfr.distributed import Ranks

from .counted import plan_of, start_ranks, step_of_meta, step_of_pretraining

NETWORK = "mfr28"
SPARE = 0.5  # load that may remain beside two cores for the two processes


def _timed(rank, world, folder, seconds):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world)
    ranks = Ranks(dist.group.WORLD)
    plan, found = plan_of(world, NETWORK, identities=1000 * world, people=16, pairs=8), {}
    steps = {"pretraining": step_of_pretraining(NETWORK, plan, ranks)[0], "meta": step_of_meta(NETWORK, plan, ranks)}
    for name, step in steps.items():
        for _ in range(3):
            step()
        times, end = [], time.monotonic() + seconds
        while not ranks.any(time.monotonic() > end):  # all ranks take as many steps
            begin = time.monotonic()
            step()
            times.append(time.monotonic() - begin)
        found[name] = median(times)
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def measure(world: int, seconds: float) -> dict[str, float]:
    """Return {stage: median seconds of a step} of the first of `world` processes."""
    with tempfile.TemporaryDirectory() as folder:
        start_ranks(_timed, world, folder, seconds)
        return torch.load(f"{folder}/0.pt")


def main(seconds: float) -> int:
    """Print how much faster two processes are than one, each with as many images as the one."""
    loads = [os.getloadavg()[0]]
    one, two = (measure(world, seconds) for world in (1, 2))
    again = measure(1, seconds)
    loads.append(os.getloadavg()[0])
    print("| stage | one process | two | one again | two do the work of |\n|---|---|---|---|---|")
    for stage in one:
        alone = (one[stage] + again[stage]) / 2
        times = (one[stage], two[stage], again[stage])
        print(f"| {stage} | {' | '.join(f'{1e3 * each:.1f} ms' for each in times)} | {2 * alone / two[stage]:.2f} |")
    print(f"load of {os.cpu_count()} cores before {loads[0]:.1f}, after {loads[1]:.1f}")
    if loads[0] > (os.cpu_count() or 1) - 2 + SPARE:
        print("other work was running, and two processes had no two cores: the figures are not to be trusted")
    return 0
