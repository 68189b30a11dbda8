"""The machine a run is on: device, threads, seeds, and a record of hardware and versions."""

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path

import torch

PACKAGES = ("fastmfr", "triton", "nvidia-dali-cuda130", "numpy")


def device_for(wanted: str) -> torch.device:
    """The device that "auto", "cpu" or "cuda" names here; auto takes a GPU if there is one, cuda insists."""
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ValueError("device cuda was asked for, but torch sees no CUDA device; use --device cpu or auto")
    return torch.device("cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu")


def settle(seed: int, threads: int):
    """Seeds torch and sets its CPU threads (0: all cores). Batches need neither: they are drawn by (seed, step)."""
    torch.manual_seed(seed)
    torch.set_num_threads(threads or os.cpu_count() or 1)
    # MKL picks the code of exp and log at their first call. Made by two threads at once, that call is a race whose
    # result differs in the last bit from run to run, and a training run then goes its own way: so it is made here.
    torch.zeros(1024).exp().log()


def available_bytes() -> int:
    """Memory of the host that programs can have without swapping, as Linux estimates it; 0 where it does not say."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 0


def fast_layout(network: torch.nn.Module, device) -> torch.nn.Module:
    """The network on its device with channels last: the layout convolutions are fastest in (1.1-1.4 x on two cores)."""
    return network.to(device).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


def environment() -> dict:
    """What a number must be read beside: commit, versions, hardware. Plain types, for JSON."""
    versions: dict[str, str | None] = {"torch": str(torch.__version__)}  # with its +cpu or +cu130, which metadata lacks
    for name in PACKAGES:
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
    """The commit of the source tree this runs from, with "+" if it was changed; None outside of one."""
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
