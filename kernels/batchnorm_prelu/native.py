"""BatchNorm and PReLU on the CPU, in C++ (csrc/batchnorm_prelu.cpp), as reference.py defines them.

Each pass reads its tensors at most twice: once for sums per channel, once to write its result. All values in between
are computed again in registers. The same bits come with any number of threads.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastmfr import native

from .fused import channels_last

_DTYPES = (torch.float32, torch.float64)


def takes(x: Tensor, slope: Tensor | None, *per_channel: Tensor | None) -> bool:
    """Return whether these passes serve a call: plain tensors on the CPU, of one dtype, with channels last in memory.

    What does not fit is left to the reference, which raises PyTorch's own errors.

    Args:
        x: Input.
        slope: PReLU's slope, or None.
        per_channel: Weight, bias and running statistics, or None for what the layer does not have.
    """
    layer = [value for value in (slope, *per_channel) if value is not None]
    return (
        type(x) is Tensor  # no subclass, which may have no memory of its own
        and x.device.type == "cpu"
        and x.dtype in _DTYPES
        and x.numel() > 0
        and _is_channels_last(x)
        and all(value.dtype == x.dtype and value.device == x.device and value.is_contiguous() for value in layer)
        and all(value is None or value.numel() == x.shape[1] for value in per_channel)
        and (slope is None or slope.numel() in (1, x.shape[1]))
    )


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
) -> Tensor:
    """Compute y, as reference.forward does."""
    ctx.x, ctx.batch, ctx.layer = x, batch_statistics, (weight, bias, slope)
    if batch_statistics:
        ctx.mean_r_2C = x.new_empty((2, x.shape[1]))
        running_mean, running_variance = map(_address, running)
        mean, r = _mean_and_r(ctx)
        options = running_mean, running_variance, float(momentum), eps
        native.batchnorm_statistics(*_sizes(ctx), *options, x.data_ptr(), mean, r)
    else:
        ctx.mean_r_2C = torch.stack([running[0], torch.rsqrt(running[1] + eps)])
    y = torch.empty_like(x)
    native.batchnorm_forward(*_sizes(ctx), *_layer(ctx), x.data_ptr(), y.data_ptr())
    return y


def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Compute dx and the gradients of weight, bias and slope, as reference.backward does."""
    ctx.dy = _like(dy, ctx.x)
    dx, ctx.sums = torch.empty_like(ctx.x), ctx.x.new_empty((3, ctx.x.shape[1]))
    addresses = (one.data_ptr() for one in (ctx.x, ctx.dy, dx, ctx.sums))
    native.batchnorm_backward(*_sizes(ctx), *_layer(ctx), ctx.batch, *addresses)
    return dx, *_gradients(ctx, ctx.sums)


def tangent(ctx: Any, xd: Tensor, weight_d: Tensor, bias_d: Tensor, slope_d: Tensor | None) -> Tensor:
    """Compute y', as reference.tangent does."""
    ctx.xd = _like(xd, ctx.x)
    ctx.moving = [
        None if value is None else value.to(still.dtype).expand(still.shape).contiguous()
        for value, still in zip((weight_d, bias_d, slope_d), ctx.layer, strict=True)
    ]
    yd, ctx.moved = torch.empty_like(ctx.x), ctx.x.new_empty((2, ctx.x.shape[1]))
    addresses = (one.data_ptr() for one in (ctx.x, ctx.xd, yd, ctx.moved))
    native.batchnorm_tangent(*_sizes(ctx), *_layer(ctx), _moving(ctx), ctx.batch, *addresses)
    return yd


def second_backward(ctx: Any, dyd: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Compute dx' and the derivatives of the gradients, as reference.second_backward does."""
    dyd = _like(dyd, ctx.x)
    dxd, sums_d = torch.empty_like(ctx.x), torch.empty_like(ctx.sums)
    tensors = ctx.x, ctx.dy, ctx.xd, dyd, ctx.sums, ctx.moved, dxd, sums_d
    addresses = (one.data_ptr() for one in tensors)
    native.batchnorm_second_backward(*_sizes(ctx), *_layer(ctx), _moving(ctx), ctx.batch, *addresses)
    return dxd, *_gradients(ctx, sums_d)


def _is_channels_last(x):
    """Whether a tensor is a matrix, pixels x channels, row by row."""
    return (x.ndim == 2 and x.is_contiguous()) or (x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last))


def _like(value, x):
    """A tensor in the dtype and memory order of x."""
    if value.shape != x.shape:
        raise ValueError(f"want a tensor of shape {tuple(x.shape)}, as the input has, got {tuple(value.shape)}")
    return channels_last(value.to(x.dtype))


def _address(tensor):
    return 0 if tensor is None else tensor.data_ptr()


def _sizes(ctx):
    """Whether tensors hold float64; and pixels, channels, threads."""
    x = ctx.x
    C = x.shape[1]
    return x.dtype == torch.float64, (x.numel() // C, C, torch.get_num_threads())


def _mean_and_r(ctx):
    """The addresses of mean and r."""
    mean_r_2C = ctx.mean_r_2C
    mean = mean_r_2C.data_ptr()
    return mean, mean + mean_r_2C.shape[1] * mean_r_2C.itemsize


def _layer(ctx):
    """The addresses of mean, r, weight, bias and slope; and how many slopes there are."""
    mean, r = _mean_and_r(ctx)
    weight, bias, slope = ctx.layer
    return (mean, r, weight.data_ptr(), bias.data_ptr(), _address(slope)), 0 if slope is None else slope.numel()


def _moving(ctx):
    """The addresses of the tangents of weight, bias and slope."""
    weight_d, bias_d, slope_d = ctx.moving
    return weight_d.data_ptr(), bias_d.data_ptr(), _address(slope_d)


def _gradients(ctx, sums_3C) -> tuple[Tensor, Tensor, Tensor | None]:
    """The gradients of weight, bias and slope from sums per channel; the slope may be one for all channels."""
    slope, (of_bias, of_weight, of_slope) = ctx.layer[2], sums_3C.unbind()
    if slope is None:
        return of_weight, of_bias, None
    return of_weight, of_bias, of_slope if slope.shape == of_slope.shape else of_slope.sum_to_size(slope.shape)
