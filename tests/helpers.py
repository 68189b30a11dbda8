"""What several test files share."""

import multiprocessing
import socket

import torch
from torch import distributed as dist

from fastmfr.__main__ import main as fastmfr_main
from fastmfr.decode.pipeline import dali_installed

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"  # of kernels: without a GPU they run in Triton's interpreter


def assert_as_accurate(got, ref, truth, floor, slack=2.0):
    """`got` may miss the float64 `truth` by `slack` times what PyTorch at the same dtype (`ref`) does, plus `floor`."""
    assert got.shape == truth.shape
    assert torch.isfinite(got).all()
    miss, allowed = (got - truth).abs().max(), slack * (ref - truth).abs().max() + floor
    assert miss <= allowed, f"misses float64 by {miss:.2e}, allowed {allowed:.2e}"


def command(name):
    """main(argv) -> exit status of `python -m fastmfr NAME`."""

    def main(argv):
        return fastmfr_main([name, *argv])

    return main


def free_port():
    """A port of this machine that nobody listens at, as text."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def on_ranks(call, *arguments, world=2):
    """Run call(rank, *arguments) in `world` processes at once, forked from one that has imported what is heavy."""
    # torch imports _dynamo, which takes seconds, when an optimizer is made, and fastmfr imports DALI when it decodes.
    heavy = ["torch._dynamo", *(["fastmfr.decode.dali"] if dali_installed() else [])]
    multiprocessing.set_forkserver_preload(["pytest", "torch", "fastmfr.kernels", "fastmfr.commands.scoring", *heavy])
    torch.multiprocessing.start_processes(call, arguments, nprocs=world, start_method="forkserver")


def joined(rank, world, folder):
    """The group of `world` processes over gloo that meet in a folder; this one is number `rank`."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world)
    return dist.group.WORLD
