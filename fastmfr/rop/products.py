"""Products of two tensors, numbers beside a tensor, and the parameters and buffers that a network's own code reads."""

from typing import Any

from torch import Tensor, nn

from fastmfr.rop.operations import Operation, Sums, Values
from fastmfr.rop.parameterless import Fixed


class Multiply(Operation):
    """y = a b, of one shape or of shapes that broadcast: y' = a' b + a b', da' = b dy' + b' dy, db' alike."""

    def forward(self, ctx: Any, P: Values, a: Tensor, b: Tensor) -> Tensor:
        ctx.a, ctx.b = a, b
        return a * b

    def backward(self, ctx: Any, P: Values, dy: Tensor, sums: Sums) -> tuple[Tensor, Tensor]:
        ctx.dy = dy
        return (dy * ctx.b).sum_to_size(ctx.a.shape), (dy * ctx.a).sum_to_size(ctx.b.shape)

    def tangent(self, ctx: Any, P: Values, V: Values, ad: Tensor | None, bd: Tensor | None) -> Tensor:
        ctx.ad, ctx.bd = ad, bd
        parts = [x * y for x, y in ((ad, ctx.b), (ctx.a, bd)) if x is not None and y is not None]
        return parts[0] if len(parts) == 1 else parts[0] + parts[1]

    def second_backward(self, ctx: Any, P: Values, V: Values, dyd: Tensor, sums: Sums) -> tuple[Tensor, Tensor]:
        return (
            _sum_of_products(dyd, ctx.b, ctx.dy, ctx.bd).sum_to_size(ctx.a.shape),
            _sum_of_products(dyd, ctx.a, ctx.dy, ctx.ad).sum_to_size(ctx.b.shape),
        )


def _sum_of_products(dyd, value, dy, value_d):
    product = dyd * value
    return product if value_d is None else product.addcmul_(dy, value_d)


class Scale(Fixed):
    """y = x times a number."""

    def __init__(self, factor: float):
        self.factor = factor

    def forward(self, ctx: Any, P: Values, x: Tensor) -> Tensor:
        return x * self.factor

    def _jvp(self, ctx, xd):
        return xd * self.factor

    def _vjp(self, ctx, dy):
        return dy * self.factor


class Shift(Fixed):
    """y = x plus a number."""

    def __init__(self, number: float):
        self.number = number

    def forward(self, ctx: Any, P: Values, x: Tensor) -> Tensor:
        return x + self.number

    def _jvp(self, ctx, xd):
        return xd

    def _vjp(self, ctx, dy):
        return dy


class Parameter(Operation):
    """A parameter that the network's own code reads, such as a factor for each channel; it has no input."""

    def __init__(self, name: str):
        self.name, self.parameters = name, (name,)

    def forward(self, ctx: Any, P: Values) -> Tensor:
        return P[self.name]

    def backward(self, ctx: Any, P: Values, dy: Tensor, sums: Sums) -> tuple[()]:
        sums.add(self.name, dy)
        return ()

    def tangent(self, ctx: Any, P: Values, V: Values) -> Tensor:
        return V[self.name]

    def second_backward(self, ctx: Any, P: Values, V: Values, dyd: Tensor, sums: Sums) -> tuple[()]:
        sums.add(self.name, dyd)
        return ()


class Buffer(Operation):
    """A buffer that the network's own code reads. It is a constant, so only its forward is ever called."""

    def __init__(self, network: nn.Module, name: str):
        self.network, self.name = network, name

    def forward(self, ctx: Any, P: Values) -> Tensor:
        value = self.network.get_buffer(self.name)
        return value.to(ctx.dtype) if ctx.dtype is not None and value.is_floating_point() else value
