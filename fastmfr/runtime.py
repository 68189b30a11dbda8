"""The machine a run is on: device, threads, seeds, memory, and a record of hardware and versions."""

import ctypes
import importlib.metadata
import os
import platform
import resource
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastmfr import __version__
from fastmfr.config.choices import Device

__all__ = [
    "available_bytes",
    "device_for",
    "environment",
    "free_bytes",
    "keep_freed_memory",
    "peak_bytes",
    "seed_and_set_threads",
    "to_channels_last",
    "to_device",
]

_MMAP_THRESHOLD, _TRIM_THRESHOLD, _TOP_PAD = -3, -1, -2  # of mallopt(3), in bytes
_CONTROL_GROUP = Path("/sys/fs/cgroup")
_PACKAGES = ("triton", "nvidia-dali-cuda130", "numpy")


def device_for(wanted: Device) -> torch.device:
    """Return the device that a setting names on this machine.

    Under torchrun each process gets the GPU of its LOCAL_RANK, which becomes torch's current device.

    Args:
        wanted: "auto" is a GPU if there is one, else the CPU.

    Raises:
        ValueError: If "cuda" is wanted and torch sees no GPU, or if the machine has fewer GPUs than processes.
    """
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ValueError("device cuda was asked for, but torch sees no CUDA device; use --device cpu or auto")
    if wanted == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    if "LOCAL_RANK" not in os.environ:
        return torch.device("cuda")
    local, gpus = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if local >= gpus:
        raise ValueError(
            f"process {local} of this machine, counted from 0, wants GPU {local}, but torch sees {gpus} GPUs; "
            f"start {gpus} processes with --nproc-per-node {gpus}, or use --device cpu"
        )
    torch.cuda.set_device(local)
    return torch.device("cuda", local)


def seed_and_set_threads(seed: int, threads: int) -> None:
    """Seed torch and set its CPU threads; batches do not depend on either.

    Args:
        seed: Of torch's random numbers.
        threads: CPU threads of the arithmetic. 0 is all cores, divided among the processes of a machine under torchrun.
    """
    torch.manual_seed(seed)
    torch.set_num_threads(threads or max(1, (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", 1))))
    keep_freed_memory()
    # MKL chooses the code of exp and log at their first call. If two threads make that call at once, the results of a
    # run may differ in the last bit from those of another run. So one thread makes the first call here.
    torch.zeros(1024).exp().log()


def keep_freed_memory() -> None:
    """Make malloc keep freed memory for the next step; otherwise Linux clears new pages for every large tensor.

    On a CPU, clearing pages takes an eighth of the time of a meta step. The process then keeps the memory of its peak.
    Without glibc, nothing happens.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # not glibc
        return
    for parameter, value in ((_MMAP_THRESHOLD, 2**30), (_TRIM_THRESHOLD, 2**31 - 1), (_TOP_PAD, 2**26)):
        mallopt(parameter, value)


def available_bytes() -> int:
    """Return how many bytes this process can have without swapping.

    That is the estimate of Linux, within the limit of the container; 0 if Linux has no estimate.
    """
    lines = Path("/proc/meminfo").read_text().splitlines()
    free = next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), 0)
    try:
        limit, taken = ((_CONTROL_GROUP / name).read_text().strip() for name in ("memory.max", "memory.current"))
    except OSError:  # no container, or an old kernel's layout
        return free
    return free if limit == "max" else min(free, int(limit) - int(taken))


def free_bytes(device: torch.device) -> int:
    """Return how many bytes are free on a device, without waiting for it.

    Args:
        device: On a GPU, free is what torch has not allocated: other processes are not seen. On the CPU, free is
            `available_bytes`.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory - torch.cuda.memory_allocated(device)
    return available_bytes()


def to_device(array: np.ndarray, device: torch.device) -> torch.Tensor:
    """Copy a NumPy array to a device, without waiting for the copy; on the CPU the tensor uses the array's memory."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def peak_bytes(device: torch.device) -> int:
    """Return the peak memory so far in bytes: of torch on a GPU, of the whole process on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def to_channels_last(network: torch.nn.Module, device: torch.device) -> torch.nn.Module:
    """Move a network to a device, with channels last: convolutions are then 1.1 to 1.4 times as fast on two cores."""
    return network.to(device).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


def environment() -> dict[str, Any]:
    """Return commit, versions and hardware, which belong beside every measured number; plain types, for JSON."""
    # metadata lacks torch's +cpu or +cu130, and knows no fastmfr that runs from a checkout
    versions: dict[str, str | None] = {"torch": str(torch.__version__), "fastmfr": __version__}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    gpu = torch.cuda.get_device_properties(0) if torch.cuda.is_available() else None
    return {
        "commit": _commit(),
        "python": platform.python_version(),
        "versions": versions,
        "system": platform.platform(),
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": gpu and gpu.name,
        "gpu_memory_bytes": gpu and gpu.total_memory,
        "cuda": torch.version.cuda,
    }


def _commit():
    """The commit of the source tree that this file is in, with "+" if the tree was changed; None outside of git."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        changed = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit + ("+" if changed else "")


def _cpu_name():
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
