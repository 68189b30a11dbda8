"""Which operation a module is, and a function or a tensor's method that a network's code calls.

A builder returns the operation, HANDED_ON for a module that returns its input, or None for what has no R-operator here.
"""

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from fastmfr.freezing import HeldBatchNorm
from fastmfr.rop import activations as act
from fastmfr.rop.activations import Activation
from fastmfr.rop.operations import BatchNorm, Convolution, Linear, Operation, PReLU
from fastmfr.rop.parameterless import Flatten, Index, Mean, ReLU
from fastmfr.rop.pooling import AdaptiveAveragePool, AveragePool, MaxPool
from fastmfr.rop.row_norms import GroupNorm, LayerNorm
from fastmfr.rop.shapes import Pad, Permute, Squeeze, swapped

HANDED_ON = "handed on"  # a module that returns its input, such as nn.Identity, makes no step
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, HeldBatchNorm)
DROPOUT = (nn.Dropout, nn.Dropout1d, nn.Dropout2d)


def is_norm_act(module: nn.Module) -> bool:
    """Whether this is timm's BatchNorm with an activation behind it, which computes them one after the other."""
    return (type(module).__module__, type(module).__name__) == ("timm.layers.norm_act", "BatchNormAct2d")


def drops(module: Any) -> bool:
    """Whether a dropout layer is on."""
    return module.training and module.p > 0


def of_module(module: Any, names: Any, prelu: nn.PReLU | None) -> Operation | str | None:
    """Return the operation of a module.

    Args:
        module: The module.
        names: Maps a parameter to its name.
        prelu: The nn.PReLU that alone reads the module's output, if there is one; a BatchNorm takes it in.
    """
    kind = type(module)
    if kind in NORMS or is_norm_act(module):
        return BatchNorm(module, prelu, names)
    if kind in DROPOUT:
        return None if drops(module) else HANDED_ON
    return _MODULES[kind](module, names) if kind in _MODULES else None


def _conv(m, names):
    if m.padding_mode != "zeros" or isinstance(m.padding, str):
        return None
    return Convolution(names[m.weight], names.get(m.bias), (m.stride, m.padding, m.dilation), m.groups)


def _max_pool(m, _):
    window = (m.kernel_size, m.stride, m.padding, m.dilation, m.ceil_mode)
    return None if m.return_indices else MaxPool(*window)


def _average_pool(m, _):
    return AveragePool(m.kernel_size, m.stride, m.padding, m.ceil_mode, m.count_include_pad, m.divisor_override)


def _adaptive(size):
    return Mean((-2, -1), True) if size in (1, (1, 1), [1, 1]) else AdaptiveAveragePool(size)


_MODULES: dict[type, Callable[[Any, Any], Operation | str | None]] = {
    nn.Conv2d: _conv,
    nn.Linear: lambda m, names: Linear(names[m.weight], names.get(m.bias)),
    nn.PReLU: lambda m, names: PReLU(names[m.weight]),
    nn.LayerNorm: lambda m, names: LayerNorm(names.get(m.weight), names.get(m.bias), m.eps, len(m.normalized_shape)),
    nn.GroupNorm: lambda m, names: GroupNorm(names.get(m.weight), names.get(m.bias), m.eps, m.num_groups),
    nn.ReLU: lambda m, _: ReLU(),
    nn.ReLU6: lambda m, _: Activation(act.clamped(0.0, 6.0)),
    nn.Hardtanh: lambda m, _: Activation(act.clamped(m.min_val, m.max_val)),
    nn.LeakyReLU: lambda m, _: Activation(act.leaky(m.negative_slope)),
    nn.Sigmoid: lambda m, _: Activation(act.SIGMOID),
    nn.Tanh: lambda m, _: Activation(act.TANH),
    nn.SiLU: lambda m, _: Activation(act.SILU),
    nn.GELU: lambda m, _: Activation(act.gelu(m.approximate)),
    nn.Hardswish: lambda m, _: Activation(act.HARDSWISH),
    nn.Hardsigmoid: lambda m, _: Activation(act.HARDSIGMOID),
    nn.MaxPool2d: _max_pool,
    nn.AvgPool2d: _average_pool,
    nn.AdaptiveAvgPool2d: lambda m, _: _adaptive(m.output_size),
    nn.Flatten: lambda m, _: Flatten(m.start_dim, m.end_dim),
    nn.ZeroPad2d: lambda m, _: Pad(m.padding),
    nn.Identity: lambda m, _: HANDED_ON,
}


class Call:
    """The arguments of a function's call behind its first, by name.

    Args:
        given: {name: value}; a parameter is its `Named`.
    """

    def __init__(self, given: dict[str, Any]):
        self.given = given

    def __getitem__(self, name: str) -> Any:
        return self.given[name]

    def get(self, name: str, default: Any = None) -> Any:
        """Return the argument, or `default` if it was not given."""
        return self.given.get(name, default)

    def names(self) -> list[Any] | None:
        """Return the names of the parameters weight and bias, None where there is none; None if either is computed."""
        found = [self.get("weight"), self.get("bias")]
        return found if all(value is None or isinstance(value, Named) for value in found) else None


class Named(str):
    """The name of a parameter, as an argument of a call."""


def _linear(call):
    weight, bias = call.names() or (None, None)
    return Linear(weight, bias) if weight else None


def _conv2d(call):
    (weight, bias), padding = call.names() or (None, None), call.get("padding", 0)
    if not weight or isinstance(padding, str):
        return None
    geometry = _pair(call.get("stride", 1)), _pair(padding), _pair(call.get("dilation", 1))
    return Convolution(weight, bias, geometry, call.get("groups", 1))


def _pair(size):
    return (size, size) if isinstance(size, int) else size


def _layer_norm(call):
    names, shape = call.names(), call["normalized_shape"]
    return LayerNorm(names[0], names[1], call.get("eps", 1e-5), len(shape)) if names else None


def _group_norm(call):
    names = call.names()
    return GroupNorm(names[0], names[1], call.get("eps", 1e-5), call["num_groups"]) if names else None


def _mean(call):
    dim = call.get("dim")
    if dim is None:
        return None
    return Mean((dim,) if isinstance(dim, int) else tuple(dim), call.get("keepdim", False))


def _dropout(call):
    return HANDED_ON if call.get("p", 0.5) == 0 or not call.get("training", True) else None


def _max_pool2d(call):
    if call.get("return_indices"):
        return None
    size = call["kernel_size"]
    stride = call.get("stride") or size
    return MaxPool(size, stride, call.get("padding", 0), call.get("dilation", 1), call.get("ceil_mode", False))


def _pad(call):
    plain = call.get("mode", "constant") == "constant" and not call.get("value")
    return Pad(call["pad"]) if plain and all(isinstance(size, int) for size in call["pad"]) else None


def _avg_pool2d(call):
    size, stride = call["kernel_size"], call.get("stride") or call["kernel_size"]
    rest = call.get("ceil_mode", False), call.get("count_include_pad", True), call.get("divisor_override")
    return AveragePool(size, stride, call.get("padding", 0), *rest)


def _curve(curve):
    return lambda call: Activation(curve)


_INPLACE = ("inplace",)
# (what is called, the names of its arguments behind the first, builder); no other argument is taken
_TABLE: tuple[tuple[tuple[Any, ...], tuple[str, ...], Callable[[Call], Operation | str | None]], ...] = (
    ((torch.relu, torch.relu_, F.relu, "relu", "relu_"), _INPLACE, lambda call: ReLU()),
    ((F.relu6,), _INPLACE, _curve(act.clamped(0.0, 6.0))),
    (
        (F.hardtanh,),
        ("min_val", "max_val", "inplace"),
        lambda call: Activation(act.clamped(call.get("min_val", -1.0), call.get("max_val", 1.0))),
    ),
    (
        (F.leaky_relu,),
        ("negative_slope", "inplace"),
        lambda call: Activation(act.leaky(call.get("negative_slope", 0.01))),
    ),
    ((torch.sigmoid, torch.sigmoid_, F.sigmoid, "sigmoid", "sigmoid_"), (), _curve(act.SIGMOID)),
    ((torch.tanh, torch.tanh_, F.tanh, "tanh", "tanh_"), (), _curve(act.TANH)),
    ((F.silu,), _INPLACE, _curve(act.SILU)),
    ((F.gelu,), ("approximate",), lambda call: Activation(act.gelu(call.get("approximate", "none")))),
    ((F.hardswish,), _INPLACE, _curve(act.HARDSWISH)),
    ((F.hardsigmoid,), _INPLACE, _curve(act.HARDSIGMOID)),
    (
        (torch.prelu, F.prelu),
        ("weight",),
        lambda call: PReLU(call["weight"]) if isinstance(call["weight"], Named) else None,
    ),
    ((F.linear,), ("weight", "bias"), _linear),
    ((torch.conv2d, F.conv2d), ("weight", "bias", "stride", "padding", "dilation", "groups"), _conv2d),
    ((F.layer_norm,), ("normalized_shape", "weight", "bias", "eps"), _layer_norm),
    ((F.group_norm,), ("num_groups", "weight", "bias", "eps"), _group_norm),
    ((F.dropout,), ("p", "training", "inplace"), _dropout),
    (
        (F.max_pool2d,),
        ("kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices"),
        _max_pool2d,
    ),
    (
        (F.avg_pool2d,),
        ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override"),
        _avg_pool2d,
    ),
    ((F.adaptive_avg_pool2d,), ("output_size",), lambda call: _adaptive(call["output_size"])),
    ((F.pad,), ("pad", "mode", "value"), _pad),
    ((torch.mean, "mean"), ("dim", "keepdim"), _mean),
    (
        (torch.flatten, "flatten"),
        ("start_dim", "end_dim"),
        lambda call: Flatten(call.get("start_dim", 0), call.get("end_dim", -1)),
    ),
    (
        (torch.transpose, "transpose", torch.swapaxes, "swapaxes"),
        ("dim0", "dim1"),
        lambda call: Permute(swapped(call["dim0"], call["dim1"])),
    ),
    ((torch.unsqueeze, "unsqueeze"), ("dim",), lambda call: Squeeze(call["dim"], new=True)),
    (
        (torch.squeeze, "squeeze"),
        ("dim",),
        lambda call: Squeeze(call["dim"], new=False) if isinstance(call.get("dim"), int) else None,
    ),
    (("contiguous",), ("memory_format",), lambda call: HANDED_ON),
    ((operator.getitem,), ("index",), lambda call: Index(call["index"]) if _is_plain(call["index"]) else None),
)
_FUNCTIONS = {target: (names, build) for targets, names, build in _TABLE for target in targets}


def arguments_of(target: Any) -> tuple[str, ...] | None:
    """Return the names of the arguments behind the first of a function or method, or None if there is none here."""
    return _FUNCTIONS[target][0] if target in _FUNCTIONS else None


def of_function(target: Any, call: Call) -> Operation | str | None:
    """Return the operation of a function or of a tensor's method that `arguments_of` knows."""
    return _FUNCTIONS[target][1](call)


def _is_plain(index):
    """Whether an index names a part that is a view: whole numbers, slices of whole numbers, None and ..."""
    parts = index if isinstance(index, tuple) else (index,)
    bounds = [b for part in parts for b in ((part.start, part.stop, part.step) if isinstance(part, slice) else (part,))]
    return all(bound is None or bound is Ellipsis or type(bound) is int for bound in bounds)
