"""Which path serves a call, and how a Triton kernel is launched: once for every operation of this package.

An operation has a reference in plain PyTorch, and a launcher of its kernels with the same arguments. `dispatch` picks
one of the two for a call, and `launch` is how a launcher starts a kernel.
"""

import contextlib
import functools
from collections.abc import Collection
from typing import Any, TypeVar

import torch
from torch import Tensor

__all__ = ["FLOATS", "ceil_div", "dispatch", "launch", "multiprocessors", "next_power_of_2", "on_device"]

Path = TypeVar("Path")  # a function, or a module of functions with the same names and arguments
FLOATS = (torch.bfloat16, torch.float16, torch.float32)  # what kernels compute with; float64 is for references


def dispatch(
    tensor: Tensor,
    *,
    kernels: Path,
    reference: Path,
    dtypes: Collection[torch.dtype] = FLOATS,
    fits: bool = True,
) -> Path:
    """Pick the path that serves a call.

    Args:
        tensor: The operand whose device and dtype decide.
        kernels: The path that launches Triton kernels.
        reference: The path in plain PyTorch, which takes every call.
        dtypes: Dtypes of `tensor` that the kernels take.
        fits: Whether the kernels can serve the call in every other respect.

    Returns:
        `kernels` if the tensor is on a GPU, has one of the dtypes and fits, else `reference`.
    """
    return kernels if tensor.is_cuda and tensor.dtype in dtypes and fits else reference


def on_device(tensor: Tensor) -> contextlib.AbstractContextManager[Any]:
    """Make the tensor's GPU the current device, on which Triton launches; does nothing for a tensor elsewhere."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext()


def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, **options: Any) -> None:
    """Launch a Triton kernel on the device of its first argument.

    Args:
        kernel: A function under `triton.jit`.
        grid: How many programs run along each axis.
        arguments: The kernel's arguments in order; the first one is a tensor.
        options: Triton's options, such as `num_warps`. Unless `enable_fp_fusion` is False, the compiler may round a
            product and a sum once; Triton 3.9 warns if this is left unsaid.
    """
    with on_device(arguments[0]):
        kernel[grid](*arguments, **{"enable_fp_fusion": True, **options})


def ceil_div(count: int, size: int) -> int:
    """Divide and round up: how many tiles of a size hold a count. Triton's own takes as long as half a launch."""
    return -(-count // size)


def next_power_of_2(count: int) -> int:
    """Return the smallest power of 2 that is at least `count`, which is at least 1."""
    return 1 << (count - 1).bit_length()


@functools.cache
def multiprocessors(device: torch.device) -> int:
    """Count the multiprocessors of a GPU; 2 on the CPU, so that tests in Triton's interpreter share their work."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 2
