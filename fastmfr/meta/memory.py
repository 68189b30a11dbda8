"""How much memory a device has left, asked without waiting for it."""

import torch

from fastmfr.runtime import available_bytes


def free_bytes(device) -> int:
    """What torch has not taken of a GPU (other processes are not seen), or what the host leaves this process."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory - torch.cuda.memory_allocated(device)
    return available_bytes()
