"""Activations y = f(x), value by value, with the first two derivatives of f in closed form.

    y' = f'(x) x'        dx = f'(x) dy        dx' = f'(x) dy' + f''(x) x' dy

Where f has a kink, f' is what torch's backward takes there, and f'' is 0, as in torch's double backward.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from fastmfr.rop.operations import Operation, Sums, Values

_aten = torch.ops.aten
_NARROW = (torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Curve:
    """A function of one variable.

    Attributes:
        value: x -> f(x).
        times_slope: (v, x) -> v f'(x).
        curvature: x -> f''(x), or None where it is 0 everywhere.
    """

    value: Callable[[Tensor], Tensor]
    times_slope: Callable[[Tensor, Tensor], Tensor]
    curvature: Callable[[Tensor], Tensor] | None = None


class Activation(Operation):
    """y = f(x), value by value."""

    def __init__(self, curve: Curve):
        self.curve = curve

    def forward(self, ctx: Any, P: Values, x: Tensor) -> Tensor:
        ctx.x = x
        return self.curve.value(x)

    def backward(self, ctx: Any, P: Values, dy: Tensor, sums: Sums) -> Tensor:
        ctx.dy = dy
        return self.curve.times_slope(dy, ctx.x)

    def tangent(self, ctx: Any, P: Values, V: Values, xd: Tensor) -> Tensor:
        ctx.xd = xd
        return self.curve.times_slope(xd, ctx.x)

    def second_backward(self, ctx: Any, P: Values, V: Values, dyd: Tensor, sums: Sums) -> Tensor:
        dxd = self.curve.times_slope(dyd, ctx.x)
        if self.curve.curvature is None:
            return dxd
        wide = ctx.x.float() if ctx.x.dtype in _NARROW else ctx.x
        return dxd + (self.curve.curvature(wide) * ctx.xd * ctx.dy).to(dxd.dtype)


def _sigmoid_curvature(x):
    s = x.sigmoid()
    return s * (1 - s) * (1 - 2 * s)


def _tanh_curvature(x):
    t = x.tanh()
    return -2 * t * (1 - t * t)


def _silu_curvature(x):
    s = x.sigmoid()
    return s * (1 - s) * (2 + x * (1 - 2 * s))


def _gelu_curvature(x):
    return (2 - x * x) * torch.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)


def _gelu_tanh_curvature(x):
    """Of 0.5 x (1 + tanh u) with u = sqrt(2 / pi) (x + 0.044715 x^3)."""
    k, cube = math.sqrt(2 / math.pi), 0.044715
    t, u1, u2 = torch.tanh(k * (x + cube * x**3)), k * (1 + 3 * cube * x * x), k * 6 * cube * x
    return (1 - t * t) * (u1 + 0.5 * x * (u2 - 2 * t * u1 * u1))


SIGMOID = Curve(torch.sigmoid, lambda v, x: _aten.sigmoid_backward(v, torch.sigmoid(x)), _sigmoid_curvature)
TANH = Curve(torch.tanh, lambda v, x: _aten.tanh_backward(v, torch.tanh(x)), _tanh_curvature)
SILU = Curve(F.silu, lambda v, x: _aten.silu_backward(v, x), _silu_curvature)
HARDSWISH = Curve(
    F.hardswish, lambda v, x: _aten.hardswish_backward(v, x), lambda x: ((x > -3) & (x < 3)).to(x.dtype) / 3
)
# hardsigmoid_backward multiplies by 1/6 rounded to float32, in float64 too, so it is not used.
HARDSIGMOID = Curve(F.hardsigmoid, lambda v, x: _aten.hardtanh_backward(v, x, -3.0, 3.0) / 6)


def gelu(approximate: Literal["none", "tanh"]) -> Curve:
    """Return x times the normal distribution function, exact ("none") or approximated by a tanh ("tanh")."""
    return Curve(
        partial(F.gelu, approximate=approximate),
        lambda v, x: _aten.gelu_backward(v, x, approximate=approximate),
        _gelu_curvature if approximate == "none" else _gelu_tanh_curvature,
    )


def clamped(least: float, most: float) -> Curve:
    """Return x held between two numbers: ReLU6 and Hardtanh."""
    return Curve(
        lambda x: F.hardtanh(x, least, most),
        lambda v, x: _aten.hardtanh_backward(v, x, least, most),
    )


def leaky(slope: float) -> Curve:
    """Return x where x > 0, and slope * x elsewhere."""
    return Curve(
        lambda x: F.leaky_relu(x, slope),
        lambda v, x: _aten.leaky_relu_backward(v, x, slope, False),
    )
