"""What launches have in common: the device they are made on, how many programs it takes, how sums are rounded."""

import contextlib
import functools

import torch

FUSED = {"enable_fp_fusion": True}  # a product and a sum may be rounded once: Triton 3.9 warns where it is not told


@functools.cache
def multiprocessors(device):
    """How many a GPU has; 2 on the CPU, where Triton interprets."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 2


def on_device(tensor):
    """The context to launch in: Triton launches on the current device."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext()
