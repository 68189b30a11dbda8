"""Pooling: the largest value of a window, or its mean. Both are y = J x; the places of the largest values are fixed."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fastmfr.rop.operations import Values
from fastmfr.rop.parameterless import Fixed

_aten = torch.ops.aten


class MaxPool(Fixed):
    """nn.MaxPool2d.

    Args:
        window: kernel_size, stride, padding, dilation and ceil_mode, as torch takes them.
    """

    def __init__(self, *window: Any):
        self.window = window

    def forward(self, ctx: Any, P: Values, x: Tensor) -> Tensor:
        y, ctx.place = _aten.max_pool2d_with_indices(x, *self.window)
        ctx.x = x
        return y

    def _jvp(self, ctx, xd):
        return xd.flatten(2).gather(2, ctx.place.flatten(2)).view(ctx.place.shape)

    def _vjp(self, ctx, dy):
        return _aten.max_pool2d_with_indices_backward(dy, ctx.x, *self.window, ctx.place)


class AveragePool(Fixed):
    """nn.AvgPool2d.

    Args:
        window: kernel_size, stride, padding, ceil_mode, count_include_pad and divisor_override, as torch takes them.
    """

    def __init__(self, *window: Any):
        self.window = window

    def forward(self, ctx: Any, P: Values, x: Tensor) -> Tensor:
        ctx.x = x
        return F.avg_pool2d(x, *self.window)

    def _jvp(self, ctx, xd):
        return F.avg_pool2d(xd, *self.window)

    def _vjp(self, ctx, dy):
        return _aten.avg_pool2d_backward(dy, ctx.x, *self.window)


class AdaptiveAveragePool(Fixed):
    """nn.AdaptiveAvgPool2d: means of windows whose number is `size`."""

    def __init__(self, size: Any):
        self.size = size

    def forward(self, ctx: Any, P: Values, x: Tensor) -> Tensor:
        ctx.x = x
        return F.adaptive_avg_pool2d(x, self.size)

    def _jvp(self, ctx, xd):
        return F.adaptive_avg_pool2d(xd, self.size)

    def _vjp(self, ctx, dy):
        return _aten._adaptive_avg_pool2d_backward(dy, ctx.x)
