"""How much memory a device has left, asked without waiting for it."""

from pathlib import Path

import torch

_CONTROL_GROUP = Path("/sys/fs/cgroup")


def free_bytes(device) -> int:
    """What torch has not taken of a GPU (other processes are not seen), or what Linux and the container leave free."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory - torch.cuda.memory_allocated(device)
    lines = Path("/proc/meminfo").read_text().splitlines()
    free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    try:
        limit, taken = ((_CONTROL_GROUP / name).read_text().strip() for name in ("memory.max", "memory.current"))
    except OSError:  # no container, or an old kernel's layout
        return free
    return free if limit == "max" else min(free, int(limit) - int(taken))
