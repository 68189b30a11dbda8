"""LayerNorm and GroupNorm: every row is normalised by the mean and the variance of its own values.

For one row, with r = 1 / sqrt(var + eps), g = weight and <h> the mean of h over the row:

    forward   xh = r (x - <x>)           y = g xh + bias
    backward  u = g dy                   dx = r (u - <u> - xh <xh u>)
    tangent   xh' = r (x' - <x'> - xh <xh x'>)          y' = g xh' + g' xh + bias'
    second    u' = g dy' + g' dy
              dx' = r (u' - <u'> - xh <xh u'>) - r (xh <xh' u> + xh' <xh u> + dx <xh x'>)
              dg' = sum(xh dy' + xh' dy)                dbias' = sum(dy')

A prime is the derivative along the direction (x', g', bias'). Everything is computed in the dtype of the weight, at
least float32; y, dx and their derivatives have the dtype of x.
"""

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

from fastmfr.rop.operations import Operation, Sums, Values


class _RowNorm(Operation, ABC):
    """A normalisation of rows; a subclass says which values are a row, and which share a weight.

    Args:
        weight: The name of the weight, or None for 1.
        bias: The name of the bias, or None for 0.
        eps: Added to the variance.
    """

    casts = False
    dims: tuple[int, ...]  # of a row, in what `_rows` returns

    def __init__(self, weight: str | None, bias: str | None, eps: float):
        self.weight, self.bias, self.eps = weight, bias, eps
        self.parameters = tuple(name for name in (weight, bias) if name)

    @abstractmethod
    def _rows(self, value) -> Tensor:
        """A tensor of the shape of x, laid out with rows in the dimensions `dims`."""

    @abstractmethod
    def _beside(self, value, ndim) -> Tensor:
        """A weight or a bias, shaped to broadcast against an x of `ndim` dimensions."""

    @abstractmethod
    def _sum(self, value) -> Tensor:
        """What stands beside each value of x, summed over all values that share a weight."""

    def forward(self, ctx: Any, P: Values, x: Tensor) -> Tensor:
        wide = P[self.parameters[0]].dtype if self.parameters else torch.promote_types(x.dtype, torch.float32)
        ctx.narrow, ctx.wide = x.dtype, wide
        rows = self._rows(x.to(wide))
        variance, mean = torch.var_mean(rows, self.dims, correction=0, keepdim=True)
        ctx.r = torch.rsqrt(variance + self.eps)
        ctx.xh = ((rows - mean) * ctx.r).reshape(x.shape)
        ctx.gain = self._beside(P[self.weight], x.ndim) if self.weight else None
        return self._affine(ctx, P, _times(ctx.xh, ctx.gain)).to(x.dtype)

    def backward(self, ctx: Any, P: Values, dy: Tensor, sums: Sums) -> Any:
        ctx.dy = dy.to(ctx.wide)
        self._collect(sums, lambda: ctx.dy * ctx.xh, ctx.dy)
        if not self.input_varies:
            return None
        ctx.u = _times(ctx.dy, ctx.gain)
        ctx.dx, ctx.xh_u = self._centred(ctx, ctx.u)
        return ctx.dx.to(ctx.narrow)

    def tangent(self, ctx: Any, P: Values, V: Values, xd: Tensor | None) -> Tensor:
        ctx.xhd, ctx.gain_d = None, self._beside(V[self.weight], ctx.xh.ndim) if self.weight else None
        yd = torch.zeros_like(ctx.xh) if ctx.gain_d is None else ctx.gain_d * ctx.xh
        if xd is not None:
            ctx.xhd, ctx.xh_xd = self._centred(ctx, xd.to(ctx.wide))
            yd = yd + _times(ctx.xhd, ctx.gain)
        return self._affine(ctx, V, yd).to(ctx.narrow)

    def second_backward(self, ctx: Any, P: Values, V: Values, dyd: Tensor, sums: Sums) -> Any:
        dyd = dyd.to(ctx.wide)
        moved = lambda: dyd * ctx.xh if ctx.xhd is None else torch.addcmul(dyd * ctx.xh, ctx.dy, ctx.xhd)  # noqa: E731
        self._collect(sums, moved, dyd)
        if not self.input_varies:
            return None
        ud = _times(dyd, ctx.gain)
        dxd, _ = self._centred(ctx, ud if ctx.gain_d is None else torch.addcmul(ud, ctx.gain_d, ctx.dy))
        xh, xhd, u, dx = (self._rows(value) for value in (ctx.xh, ctx.xhd, ctx.u, ctx.dx))
        xhd_u = (xhd * u).mean(self.dims, keepdim=True)
        rest = torch.addcmul(xh * xhd_u, xhd, ctx.xh_u).addcmul_(dx, ctx.xh_xd)
        return (dxd - (ctx.r * rest).reshape(dxd.shape)).to(ctx.narrow)

    def _centred(self, ctx, value):
        """(r (value - <value> - xh <xh value>) in the shape of x, <xh value>)."""
        rows, xh = self._rows(value), self._rows(ctx.xh)
        dot = (xh * rows).mean(self.dims, keepdim=True)
        centred = torch.addcmul(rows - rows.mean(self.dims, keepdim=True), xh, dot, value=-1)
        return centred.mul_(ctx.r).reshape(value.shape), dot

    def _affine(self, ctx, values, y):
        """y with the bias out of P or V added."""
        return y + self._beside(values[self.bias], ctx.xh.ndim) if self.bias else y

    def _collect(self, sums, on_weight, on_bias):
        if self.weight in sums.wanted:
            sums.add(self.weight, self._sum(on_weight()))
        if self.bias in sums.wanted:
            sums.add(self.bias, self._sum(on_bias))


class LayerNorm(_RowNorm):
    """nn.LayerNorm: a row is the last `dimensions` dimensions, and each of its values has a weight."""

    def __init__(self, weight: str | None, bias: str | None, eps: float, dimensions: int):
        super().__init__(weight, bias, eps)
        self.dims = tuple(range(-dimensions, 0))

    def _rows(self, value):
        return value

    def _beside(self, value, ndim):
        return value

    def _sum(self, value):
        return value.sum(tuple(range(value.ndim - len(self.dims))))


class GroupNorm(_RowNorm):
    """nn.GroupNorm: a row is a group of channels of one image, and each channel has a weight."""

    dims = (2,)

    def __init__(self, weight: str | None, bias: str | None, eps: float, groups: int):
        super().__init__(weight, bias, eps)
        self.groups = groups

    def _rows(self, value):
        return value.reshape(len(value), self.groups, -1)

    def _beside(self, value, ndim):
        return value.view(-1, *(1,) * (ndim - 2))

    def _sum(self, value):
        return value.sum([dim for dim in range(value.ndim) if dim != 1])


def _times(value, gain):
    return value if gain is None else value * gain
