"""The operations without parameters: y = J x with a linear map J, which tangents and gradients pass as values do.

J is fixed, except for ReLU, whose J depends on the sign of x.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastmfr.rop.operations import Operation, Sums, Values


class Fixed(Operation):
    """y = J x, with `_jvp` for J x' and `_vjp` for J^T dy."""

    _jvp: Callable[..., Tensor]
    _vjp: Callable[..., Any]

    def tangent(self, ctx: Any, P: Values, V: Values, *xd: Tensor | None) -> Tensor:
        return self._jvp(ctx, *xd)

    def backward(self, ctx: Any, P: Values, dy: Tensor, sums: Sums) -> Any:
        return self._vjp(ctx, dy)

    def second_backward(self, ctx: Any, P: Values, V: Values, dyd: Tensor, sums: Sums) -> Any:
        return self._vjp(ctx, dyd)


class ReLU(Fixed):
    """max(x, 0)."""

    def forward(self, ctx: Any, P: Values, x: Tensor) -> Tensor:
        ctx.y = torch.relu(x)
        return ctx.y

    def _jvp(self, ctx, xd):
        return torch.ops.aten.threshold_backward(xd, ctx.y, 0)

    def _vjp(self, ctx, dy):
        return torch.ops.aten.threshold_backward(dy, ctx.y, 0)


class Mean(Fixed):
    """The mean over the dimensions `dim`."""

    def __init__(self, dim: tuple[int, ...], keepdim: bool):
        self.dim, self.keepdim = dim, keepdim

    def forward(self, ctx: Any, P: Values, x: Tensor) -> Tensor:
        ctx.shape = x.shape
        return x.mean(self.dim, self.keepdim)

    def _jvp(self, ctx, xd):
        return xd.mean(self.dim, self.keepdim)

    def _vjp(self, ctx, dy):
        if not self.keepdim:
            for dim in sorted(dim % len(ctx.shape) for dim in self.dim):  # in another order, dims would be misplaced
                dy = dy.unsqueeze(dim)
        return (dy / math.prod(ctx.shape[dim] for dim in self.dim)).expand(ctx.shape)


class Flatten(Fixed):
    """All dimensions from `start` to `end` made one."""

    is_view = True

    def __init__(self, start: int, end: int):
        self.start, self.end = start, end

    def forward(self, ctx: Any, P: Values, x: Tensor) -> Tensor:
        ctx.shape = x.shape
        return x.flatten(self.start, self.end)

    def _jvp(self, ctx, xd):
        return xd.flatten(self.start, self.end)

    def _vjp(self, ctx, dy):
        return dy.reshape(ctx.shape)


class Index(Fixed):
    """Part of a tensor: whole numbers, slices, None and ... in brackets, which name each value at most once."""

    is_view = True

    def __init__(self, index: Any):
        self.index = index

    def forward(self, ctx: Any, P: Values, x: Tensor) -> Tensor:
        ctx.shape, ctx.channels_last = x.shape, x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last)
        return x[self.index]

    def _jvp(self, ctx, xd):
        return xd[self.index]

    def _vjp(self, ctx, dy):
        layout = torch.channels_last if ctx.channels_last else torch.contiguous_format
        dx = torch.zeros(ctx.shape, dtype=dy.dtype, device=dy.device).contiguous(memory_format=layout)
        dx[self.index] = dy
        return dx


class Add(Fixed):
    """The sum of two tensors, of one shape or of shapes that broadcast."""

    def forward(self, ctx: Any, P: Values, x: Tensor, other: Tensor) -> Tensor:
        ctx.shapes = x.shape, other.shape
        return x + other

    def _jvp(self, ctx, *xd):
        if None in xd:  # one of the two is fixed
            (moving,) = (value for value in xd if value is not None)
            return moving.expand(torch.broadcast_shapes(*ctx.shapes))
        return xd[0] + xd[1]

    def _vjp(self, ctx, dy):
        return tuple(dy.sum_to_size(shape) for shape in ctx.shapes)
