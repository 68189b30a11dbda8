"""Operations that move values and compute none: reshape, permute, concatenate, take a part, pad with zeros."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fastmfr.rop.operations import Values
from fastmfr.rop.parameterless import Fixed


class Size:
    """A whole number that the code computes from the shapes of values, such as x.shape[0] // 2.

    Args:
        function: Computes the number from `arguments`.
        arguments: Numbers, Sizes, and Shape.

    Attributes:
        sources: The numbers of the values whose shapes are read.
    """

    def __init__(self, function: Callable[..., int], *arguments: Any):
        self.function, self.arguments = function, arguments
        self.sources = {source for argument in arguments for source in getattr(argument, "sources", ())}

    def __call__(self, shapes: dict[int, torch.Size]) -> Any:
        """Return the number, given the shapes of the sources."""
        return self.function(*(value_of(argument, shapes) for argument in self.arguments))


class Shape(Size):
    """The shape of the value of this number."""

    def __init__(self, value: int):
        super().__init__(lambda shape: shape)
        self.sources, self.value = {value}, value

    def __call__(self, shapes: dict[int, torch.Size]) -> Any:
        """Return the shape, given the shapes of the sources."""
        return shapes[self.value]


def value_of(argument: Any, shapes: dict[int, torch.Size]) -> Any:
    """Return a Size's number, and another argument as it is."""
    return argument(shapes) if isinstance(argument, Size) else argument


class Reshape(Fixed):
    """The values of x, in their order, in another shape.

    Args:
        shape: Numbers and Sizes, at most one of them -1; or a Size that is a whole shape.
        value: The number of x.
        sources: The numbers of other values whose shapes count; these values are inputs behind x.
    """

    is_view = True

    def __init__(self, shape: Sequence[Any] | Size, value: int, sources: Sequence[int] = ()):
        self.shape, self.value, self.sources = shape, value, tuple(sources)

    def forward(self, ctx: Any, P: Values, x: Tensor, *others: Tensor) -> Tensor:
        shapes = dict(zip((self.value, *self.sources), (value.shape for value in (x, *others)), strict=True))
        whole = self.shape(shapes) if isinstance(self.shape, Size) else [value_of(size, shapes) for size in self.shape]
        y = x.reshape(whole)
        ctx.shapes, ctx.like = (x.shape, y.shape), x.new_zeros(())
        return y

    def _jvp(self, ctx, xd, *_):
        return ctx.like.expand(ctx.shapes[1]) if xd is None else xd.reshape(ctx.shapes[1])

    def _vjp(self, ctx, dy):
        dx = dy.reshape(ctx.shapes[0])
        return (dx, *(None for _ in self.sources)) if self.sources else dx


class Squeeze(Fixed):
    """x without the dimension `dim` of size 1, or with a new one."""

    is_view = True

    def __init__(self, dim: int, *, new: bool):
        self.dim, self.new = dim, new

    def forward(self, ctx: Any, P: Values, x: Tensor) -> Tensor:
        ctx.shape = x.shape
        return self._jvp(ctx, x)

    def _jvp(self, ctx, xd):
        return xd.unsqueeze(self.dim) if self.new else xd.squeeze(self.dim)

    def _vjp(self, ctx, dy):
        return dy.reshape(ctx.shape)


class Permute(Fixed):
    """The dimensions of x in another order.

    Args:
        order: Of the number of dimensions, the order of them, as permute() takes it.
    """

    is_view = True

    def __init__(self, order: Callable[[int], Sequence[int]]):
        self.order = order

    def forward(self, ctx: Any, P: Values, x: Tensor) -> Tensor:
        ctx.order = [dim % x.ndim for dim in self.order(x.ndim)]
        return x.permute(ctx.order)

    def _jvp(self, ctx, xd):
        return xd.permute(ctx.order)

    def _vjp(self, ctx, dy):
        return dy.permute([ctx.order.index(dim) for dim in range(dy.ndim)])


def swapped(first: int, second: int) -> Callable[[int], list[int]]:
    """Return the order of transpose(first, second)."""

    def order(ndim):
        dims = list(range(ndim))
        dims[first], dims[second] = dims[second], dims[first]
        return dims

    return order


class Concatenate(Fixed):
    """Several tensors, one behind the other in the dimension `dim`."""

    def __init__(self, dim: int):
        self.dim = dim

    def forward(self, ctx: Any, P: Values, *xs: Tensor) -> Tensor:
        ctx.shapes = [x.shape for x in xs]
        return torch.cat(xs, self.dim)

    def _jvp(self, ctx, *xds):
        like = next(xd for xd in xds if xd is not None)
        whole = (like.new_zeros(shape) if xd is None else xd for xd, shape in zip(xds, ctx.shapes, strict=True))
        return torch.cat(tuple(whole), self.dim)

    def _vjp(self, ctx, dy):
        return dy.split([shape[self.dim] for shape in ctx.shapes], self.dim)


class Part(Fixed):
    """One of the parts that chunk() or split() makes.

    Args:
        number: Of the part, from 0, or from -1 backwards.
        make: Makes the parts: torch.chunk or torch.split.
        pieces: As `make` takes it.
        dim: The dimension that is cut.
    """

    is_view = True

    def __init__(self, number: int, make: Callable[..., Sequence[Tensor]], pieces: Any, dim: int):
        self.number, self.make, self.pieces, self.dim = number, make, pieces, dim

    def forward(self, ctx: Any, P: Values, x: Tensor) -> Tensor:
        parts = self.make(x, self.pieces, self.dim)
        sizes = [part.shape[self.dim] for part in parts]
        number = range(len(parts))[self.number]
        ctx.shape, ctx.start, ctx.size = x.shape, sum(sizes[:number]), sizes[number]
        return parts[number]

    def _jvp(self, ctx, xd):
        return xd.narrow(self.dim, ctx.start, ctx.size)

    def _vjp(self, ctx, dy):
        dim = self.dim % len(ctx.shape)
        behind = ctx.shape[dim] - ctx.start - ctx.size
        return F.pad(dy, [0, 0] * (len(ctx.shape) - 1 - dim) + [ctx.start, behind])


class Pad(Fixed):
    """x with zeros around it, in pairs from the last dimension on, as F.pad() takes them."""

    def __init__(self, around: Sequence[int]):
        self.around = list(around)

    def forward(self, ctx: Any, P: Values, x: Tensor) -> Tensor:
        return F.pad(x, self.around)

    def _jvp(self, ctx, xd):
        return F.pad(xd, self.around)

    def _vjp(self, ctx, dy):
        return F.pad(dy, [-size for size in self.around])
