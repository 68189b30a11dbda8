"""BatchNorm followed by PReLU, or by nothing, as one operation with all that an exact Hessian-vector product needs.

    reference.py  the formulas, in plain PyTorch
    native.py     the same in C++ on the CPU, at most two readings a pass
    fused.py      the same in Triton, two launches a pass
    tiles.py      what the kernels share

Forward, backward, tangent and second backward are called in this order with one `ctx`; see reference.py.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from ..launching import dispatch
from . import fused, native, reference

__all__ = ["backward", "forward", "prepare_capture", "second_backward", "tangent"]


def forward(
    ctx: Any,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    slope: Tensor | None,
    *,
    running: Sequence[Any],
    batch_statistics: bool,
    momentum: float,
    eps: float,
    group: ProcessGroup | None = None,
) -> Tensor:
    """Compute PReLU(BatchNorm(x)), and choose the path of all four passes.

    Args:
        ctx: An object for attributes, which carries what one pass leaves for the next.
        x: Input (B, C, ...) in any memory format, in the weight's dtype, or in 16 bits beside a float32 weight.
        weight: BatchNorm's weight (C,).
        bias: BatchNorm's bias (C,).
        slope: PReLU's slope, (C,) or (1,), or None for no PReLU.
        running: Running mean and variance (C,), or (None, None).
        batch_statistics: Whether to normalise by the statistics of the batch, and update the running ones; else by the
            running ones.
        momentum: Weight of the batch in the running statistics.
        eps: Added to the variance.
        group: Ranks that each have their rows of the batch, as many as the others: the statistics of the batch are
            those of all rows, and the gradients of weight, bias and slope those of the rank's own. The path is then
            plain PyTorch. None is this process alone.

    Returns:
        The output, with the shape and dtype of `x`.
    """
    options = {"running": running, "batch_statistics": batch_statistics, "momentum": momentum, "eps": eps}
    if group is not None and batch_statistics:
        ctx.path = reference
        return reference.forward(ctx, x, weight, bias, slope, **options, group=group)
    on_cpu = native if native.takes(x, slope, weight, bias, *running) else reference
    ctx.path = dispatch(x, kernels=fused, reference=on_cpu)
    return ctx.path.forward(ctx, x, weight, bias, slope, **options)


def prepare_capture(device: torch.device) -> None:
    """Allocate what the kernels need on the current stream of a CUDA device.

    Call this before a CUDA graph is recorded on that stream, and wait for the stream.
    """
    fused.make_counts(device)


def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Compute dx, and the gradients of weight, bias and slope (None without a slope), from the gradient of y."""
    return ctx.path.backward(ctx, dy)


def tangent(ctx: Any, xd: Tensor, weight_d: Tensor, bias_d: Tensor, slope_d: Tensor | None) -> Tensor:
    """Compute the tangent of y along (xd, weight_d, bias_d, slope_d)."""
    return ctx.path.tangent(ctx, xd, weight_d, bias_d, slope_d)


def second_backward(ctx: Any, dyd: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Compute the derivatives of all results of `backward` along the tangent; `dyd` is the derivative of `dy`."""
    return ctx.path.second_backward(ctx, dyd)
