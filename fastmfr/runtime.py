"""The machine a run is on: device, threads, seeds, memory, and a record of hardware and versions."""

import ctypes
import importlib.metadata
import os
import platform
import resource
import subprocess
from pathlib import Path

import torch

_MMAP_THRESHOLD, _TRIM_THRESHOLD, _TOP_PAD = -3, -1, -2  # of mallopt(3), in bytes
_CONTROL_GROUP = Path("/sys/fs/cgroup")
PACKAGES = ("fastmfr", "triton", "nvidia-dali-cuda130", "numpy")


def device_for(wanted: str) -> torch.device:
    """The device that "auto", "cpu" or "cuda" names here; auto takes a GPU if there is one, cuda insists.

    Under torchrun each process has the GPU of its LOCAL_RANK, which becomes torch's current one.
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
            f"process {local} of this machine, counted from 0, wants a GPU of its own, but torch sees "
            f"{gpus}; start as many with --nproc-per-node {gpus}, or use --device cpu"
        )
    torch.cuda.set_device(local)
    return torch.device("cuda", local)


def seed_and_set_threads(seed: int, threads: int):
    """Seeds torch and sets its CPU threads (0: all cores, which the processes of a machine share under torchrun).

    Batches need neither: they are drawn by (seed, step).
    """
    torch.manual_seed(seed)
    torch.set_num_threads(threads or max(1, (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", 1))))
    keep_freed_memory()
    # MKL picks the code of exp and log at their first call. Made by two threads at once, that call is a race whose
    # result differs in the last bit from run to run, and a training run then goes its own way: so it is made here.
    torch.zeros(1024).exp().log()


def keep_freed_memory():
    """Has malloc keep what is freed for the next step, whose tensors would else be pages that Linux clears anew.

    On a CPU that is an eighth of the time of a meta step. A process then holds what it held at its peak.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # not glibc
        return
    for parameter, value in ((_MMAP_THRESHOLD, 2**30), (_TRIM_THRESHOLD, 2**31 - 1), (_TOP_PAD, 2**26)):
        mallopt(parameter, value)


def available_bytes() -> int:
    """Memory that this process can have without swapping: what Linux estimates, within the limit of its container.

    0 where Linux does not say.
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


def to_device(array, device) -> torch.Tensor:
    """The NumPy array as a tensor on the torch device. The host does not wait until it is there."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def peak_bytes(device) -> int:
    """The most memory so far: of torch on a GPU, of the whole process on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def to_channels_last(network: torch.nn.Module, device) -> torch.nn.Module:
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
