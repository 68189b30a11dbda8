"""How much memory a device has left, asked without waiting for it."""

from pathlib import Path

import torch

from fastmfr.runtime import available_bytes

_CONTROL_GROUP = Path("/sys/fs/cgroup")


def free_bytes(device) -> int:
    """What torch has not taken of a GPU (other processes are not seen), or what Linux and the container leave free."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory - torch.cuda.memory_allocated(device)
    free = available_bytes()
    try:
        limit, taken = ((_CONTROL_GROUP / name).read_text().strip() for name in ("memory.max", "memory.current"))
    except OSError:  # no container, or an old kernel's layout
        return free
    return free if limit == "max" else min(free, int(limit) - int(taken))
