"""In which arithmetic convolutions and matrix products compute; sums, losses and parameters are float32 in each.

    fp32   24 bits of mantissa in every factor, on a GPU too, where PyTorch's own default for convolutions is tf32
    tf32   factors rounded to 11 bits on a GPU's tensor cores, sums in float32
    bf16   activations and factors rounded to 8 bits, sums in float32, as torch.autocast does it

None leaves torch's settings as they are.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from fastmfr.config.checks import require_choice
from fastmfr.config.choices import Precision

__all__ = ["activations", "autocast", "check_precision", "matmul_precision"]


def check_precision(precision: Precision | None, device: torch.device) -> None:
    """Raise ValueError for a precision that the device does not have; no other precision replaces it silently."""
    if precision is not None:
        require_choice("a precision", precision, Precision)
    if precision == "tf32" and device.type != "cuda":
        raise ValueError(f"tf32 is arithmetic of NVIDIA GPUs and the device is {device}; want fp32 or bf16 here")


def activations(precision: Precision | None) -> torch.dtype | None:
    """Return the dtype of activations, or None if they have the dtype of the parameters."""
    return torch.bfloat16 if precision == "bf16" else None


@contextmanager
def matmul_precision(precision: Precision | None) -> Iterator[None]:
    """Set how a GPU computes float32 convolutions and matrix products within the block.

    Args:
        precision: "tf32" allows tf32; "fp32" and "bf16" compute float32 factors in full; None changes nothing.
    """
    convolutions = torch.backends.cudnn.conv  # pyright: ignore[reportAttributeAccessIssue]
    switches = (torch.backends.cuda.matmul, convolutions) if precision else ()
    before = [switch.fp32_precision for switch in switches]
    try:
        for switch in switches:
            switch.fp32_precision = "tf32" if precision == "tf32" else "ieee"
        yield
    finally:
        for switch, value in zip(switches, before, strict=True):
            switch.fp32_precision = value


@contextmanager
def autocast(precision: Precision | None, device: torch.device, cache: bool = True) -> Iterator[None]:
    """Set how a forward pass within the block computes: `matmul_precision`, and the dtype of its activations.

    Args:
        precision: With "bf16" activations are rounded as by torch.autocast; otherwise they are not rounded.
        device: Where the forward pass runs.
        cache: Whether a weight that is used several times within the block is rounded once.
    """
    with matmul_precision(precision):
        if precision is None:
            yield
            return
        dtype = activations(precision)
        with torch.autocast(device.type, dtype or torch.bfloat16, enabled=dtype is not None, cache_enabled=cache):
            yield
