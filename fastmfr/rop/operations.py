"""The operations a network may be made of, each with forward, backward, tangent and second backward.

For y = f(x, w) and a loss with gradient dy on y: backward computes dx and dw. Tangent computes y', the derivative of y
along (x', w'). Second backward computes dx' and dw', the derivatives of dx and dw along the same direction. The dw' of
all operations of a network are H w' (Pearlmutter, "Fast exact multiplication by the Hessian", 1994).

Methods take a `ctx`, in which an operation keeps what its later methods need. `P` and `V` map names to parameters and
to their direction. `sums` collects gradients. If no trained operation comes before, `input_varies` is False: x' is
None, and dx is not computed. In code x' is `xd` and dy' is `dyd`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastmfr.freezing import HeldBatchNorm
from fastmfr.kernels import batchnorm_prelu  # pyright: ignore[reportMissingImports]  # the folder kernels/

Values = Mapping[str, Tensor]  # by parameter name
Names = Any  # maps a parameter to its name, and what is no parameter to None by get()

_aten = torch.ops.aten


class Sums:
    """Gradients by parameter name; those of a parameter that is read twice are summed.

    Args:
        wanted: {name: dtype}: the parameters whose gradients are wanted, and the dtype of their sums.

    Attributes:
        by_name: {name: gradient}, the sums so far.
    """

    def __init__(self, wanted: dict[str, torch.dtype]):
        self.wanted = wanted
        self.by_name: dict[str, Tensor] = {}

    def add(self, name: str | None, value: Any) -> None:
        """Add a gradient; does nothing if the name is not wanted."""
        if name in self.wanted:
            value = value.to(self.wanted[name])
            self.by_name[name] = self.by_name[name] + value if name in self.by_name else value


class Operation:
    """One step of a network; most have one input. Gradients of several inputs are a tuple, None where there is none.

    forward(ctx, P, x) -> y               backward(ctx, P, dy, sums) -> dx
    tangent(ctx, P, V, x') -> y'          second_backward(ctx, P, V, dy', sums) -> dx'

    Attributes:
        parameters: The names of the parameters that the step reads.
        input_varies: Whether the input depends on a trained parameter.
        casts: Whether parameters are read in the dtype of the passes; else they are read in the dtype they have.
        is_view: Whether the network's own output may share memory with its first input.
    """

    input_varies = True
    is_view = False
    casts = True
    parameters: tuple[str, ...] = ()
    forward: Callable[..., Tensor]
    backward: Callable[..., Any]
    tangent: Callable[..., Tensor]
    second_backward: Callable[..., Any]


class _Bilinear(Operation, ABC):
    """y = W x + bias, linear in W and in x: y' = W x' + W' x + bias', dx' = W^T dy' + W'^T dy, dW' alike."""

    def __init__(self, weight: str, bias: Any):
        self.weight, self.bias = weight, bias
        self.parameters = tuple(name for name in (weight, bias) if name)

    @abstractmethod
    def _apply(self, x, weight, bias) -> Tensor:
        """W x + bias."""

    @abstractmethod
    def _transpose(self, dy, x, weight, wanted) -> tuple[Any, Any, Any]:
        """(W^T dy, the gradient of W, the gradient of the bias), each only where `wanted`."""

    def forward(self, ctx: Any, P: Values, x: Tensor) -> Tensor:
        ctx.x = x
        return self._apply(x, P[self.weight], P.get(self.bias))

    def backward(self, ctx: Any, P: Values, dy: Tensor, sums: Sums) -> Any:
        ctx.dy = dy
        return self._collect(sums, *self._transpose(dy, ctx.x, P[self.weight], self._wanted(sums)))

    def tangent(self, ctx: Any, P: Values, V: Values, xd: Tensor | None) -> Tensor:
        ctx.xd = xd
        yd = self._apply(ctx.x, V[self.weight], V.get(self.bias))
        return yd if xd is None else yd.add_(self._apply(xd, P[self.weight], None))

    def second_backward(self, ctx: Any, P: Values, V: Values, dyd: Tensor, sums: Sums) -> Any:
        wanted = self._wanted(sums)
        dxd, dweight_d, dbias_d = self._transpose(dyd, ctx.x, P[self.weight], wanted)
        if self.input_varies:
            dxd_2, dweight_d_2, _ = self._transpose(ctx.dy, ctx.xd, V[self.weight], (True, wanted[1], False))
            dxd.add_(dxd_2)
            if wanted[1]:
                dweight_d = dweight_d.to(sums.wanted[self.weight]).add_(dweight_d_2)
        return self._collect(sums, dxd, dweight_d, dbias_d)

    def _wanted(self, sums):
        return self.input_varies, self.weight in sums.wanted, self.bias in sums.wanted

    def _collect(self, sums, dx, dweight, dbias):
        sums.add(self.weight, dweight)
        sums.add(self.bias, dbias)
        return dx


class Convolution(_Bilinear):
    """A 2-D convolution, padded with zeros.

    Args:
        weight: The name of the weight.
        bias: The name of the bias, or None.
        geometry: Stride, padding and dilation, each a pair.
        groups: Of channels.
    """

    def __init__(self, weight: str, bias: Any, geometry: tuple[Any, Any, Any], groups: int):
        super().__init__(weight, bias)
        self.geometry, self.groups = geometry, groups

    def _apply(self, x, weight, bias):
        return torch.conv2d(x, weight, bias, *self.geometry, self.groups)

    def _transpose(self, dy, x, weight, wanted):
        return _aten.convolution_backward(
            dy, x, weight, [weight.shape[0]], *self.geometry, False, [0, 0], self.groups, wanted
        )


class Linear(_Bilinear):
    """x W^T + bias over the last dimension."""

    def _apply(self, x, weight, bias):
        return F.linear(x, weight, bias)

    def _transpose(self, dy, x, weight, wanted):
        rows_dy, rows_x = dy.flatten(0, -2), x.flatten(0, -2)
        return (
            dy @ weight if wanted[0] else None,
            rows_dy.T @ rows_x if wanted[1] else None,
            rows_dy.sum(0) if wanted[2] else None,
        )


class BatchNorm(Operation):
    """nn.BatchNorm1d or 2d, or a HeldBatchNorm, together with the nn.PReLU that reads its output, if there is one.

    A module of another class that has BatchNorm's attributes and computes the same will do.
    """

    casts = False

    def __init__(self, module: Any, prelu: nn.PReLU | None, names: Names):
        self.module, self.is_held = module, isinstance(module, HeldBatchNorm)
        self.weight, self.bias = names.get(module.weight), names.get(module.bias)
        self.slope = names[prelu.weight] if prelu else None
        self.parameters = tuple(name for name in (self.weight, self.bias, self.slope) if name)

    def _values(self, values, x, weight):
        """(weight, bias, slope) from P or V. A module without weight or bias has constants: `weight`, and 0."""
        statistics = self.module.running_mean
        dtype = torch.promote_types(x.dtype, torch.float32) if statistics is None else statistics.dtype
        constant = partial(torch.full, x.shape[1:2], dtype=dtype, device=x.device)
        return (
            constant(weight) if self.weight is None else values[self.weight],
            constant(0.0) if self.bias is None else values[self.bias],
            None if self.slope is None else values[self.slope],
        )

    def forward(self, ctx: Any, P: Values, x: Tensor) -> Tensor:
        module, momentum = self.module, 0.0
        statistics = "running" if self.is_held else ctx.statistics
        running = module.running_mean, module.running_var
        batch_statistics = statistics != "running" or running[0] is None
        if statistics == "tracked" and running[0] is not None:
            module.num_batches_tracked.add_(1)
            momentum = 1 / module.num_batches_tracked.item() if module.momentum is None else module.momentum
        elif batch_statistics:
            running = None, None
        return batchnorm_prelu.forward(
            ctx,
            x,
            *self._values(P, x, 1.0),
            running=running,
            batch_statistics=batch_statistics,
            momentum=momentum,
            eps=module.eps,
            group=ctx.group,
        )

    def backward(self, ctx: Any, P: Values, dy: Tensor, sums: Sums) -> Any:
        return self._collect(sums, *batchnorm_prelu.backward(ctx, dy))

    def tangent(self, ctx: Any, P: Values, V: Values, xd: Tensor | None) -> Tensor:
        xd = torch.zeros_like(ctx.x) if xd is None else xd
        return batchnorm_prelu.tangent(ctx, xd, *self._values(V, xd, 0.0))

    def second_backward(self, ctx: Any, P: Values, V: Values, dyd: Tensor, sums: Sums) -> Any:
        return self._collect(sums, *batchnorm_prelu.second_backward(ctx, dyd))

    def _collect(self, sums, dx, *gradients):
        for name, gradient in zip((self.weight, self.bias, self.slope), gradients, strict=True):
            sums.add(name, gradient)
        return dx


class PReLU(Operation):
    """PReLU alone: for x <= 0, y' = a x' + a' x, with one slope a for each channel or for all; `slope` is its name."""

    def __init__(self, slope: str):
        self.slope, self.parameters = slope, (slope,)

    def _multiply(self, ctx, slope, values, above):
        """`values` times the slope where x <= 0, times `above` (0 or 1) elsewhere."""
        slope = slope.view(1, -1, *(1,) * (values.ndim - 2))
        return torch.where(ctx.x > 0, above * values, slope * values)

    def _slope_gradient(self, ctx, P, values):
        below = torch.where(ctx.x > 0, 0.0, values)
        return below.sum([dim for dim in range(below.ndim) if dim != 1]).sum_to_size(P[self.slope].shape)

    def forward(self, ctx: Any, P: Values, x: Tensor) -> Tensor:
        ctx.x = x
        return torch.prelu(x, P[self.slope])

    def backward(self, ctx: Any, P: Values, dy: Tensor, sums: Sums) -> Any:
        ctx.dy = dy
        sums.add(self.slope, self._slope_gradient(ctx, P, dy * ctx.x))
        return self._multiply(ctx, P[self.slope], dy, 1)

    def tangent(self, ctx: Any, P: Values, V: Values, xd: Tensor | None) -> Tensor:
        ctx.xd = torch.zeros_like(ctx.x) if xd is None else xd
        return self._multiply(ctx, P[self.slope], ctx.xd, 1) + self._multiply(ctx, V[self.slope], ctx.x, 0)

    def second_backward(self, ctx: Any, P: Values, V: Values, dyd: Tensor, sums: Sums) -> Any:
        sums.add(self.slope, self._slope_gradient(ctx, P, dyd * ctx.x + ctx.dy * ctx.xd))
        return self._multiply(ctx, P[self.slope], dyd, 1) + self._multiply(ctx, V[self.slope], ctx.dy, 0)
