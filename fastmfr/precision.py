"""In which arithmetic convolutions and matrix products compute; sums, losses and parameters are float32 in each.

    fp32   24 bits of mantissa in every factor, on a GPU too, where PyTorch's own default for convolutions is tf32
    tf32   factors rounded to 11 bits on a GPU's tensor cores, sums in float32
    bf16   activations and factors rounded to 8 bits, sums in float32, as torch.autocast does it

None leaves all as PyTorch is set.
"""

from contextlib import contextmanager

import torch

PRECISIONS = ("fp32", "tf32", "bf16")


def check_precision(precision: str | None, device: torch.device) -> None:
    """Raises ValueError for a precision that the device does not have: nothing else is taken in its place."""
    if precision is not None and precision not in PRECISIONS:
        raise ValueError(f"want a precision out of {', '.join(PRECISIONS)}, got {precision!r}")
    if precision == "tf32" and device.type != "cuda":
        raise ValueError(f"tf32 is arithmetic of NVIDIA GPUs and the device is {device}; want fp32 or bf16 here")


def activations(precision: str | None) -> torch.dtype | None:
    """The dtype of activations where it is not the parameters' own."""
    return torch.bfloat16 if precision == "bf16" else None


@contextmanager
def matmul_precision(precision: str | None):
    """float32 convolutions and matrix products of a GPU within compute as `precision` says."""
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
def autocast(precision: str | None, device: torch.device, cache: bool = True):
    """`matmul_precision`, and what autograd records within keeps its activations as `precision` says.

    `cache`: a weight that is used several times within is cast once.
    """
    with matmul_precision(precision):
        if precision is None:
            yield
            return
        dtype = activations(precision)
        with torch.autocast(device.type, dtype or torch.bfloat16, enabled=dtype is not None, cache_enabled=cache):
            yield
