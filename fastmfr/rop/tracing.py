"""From any nn.Module to the list of its operations, by torch.fx, or a sentence that says why that is impossible."""

import operator
import random
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.nn.modules.module import _has_any_global_hook

from fastmfr.rop.operations import BatchNorm, Convolution, Linear, Operation, PReLU
from fastmfr.rop.parameterless import Add, Flatten, Index, Mean, ReLU

_HANDED_ON = "handed on"  # a module that returns its input, such as nn.Identity, makes no step

_ADD = (operator.add, operator.iadd, torch.add, "add", "add_")
_RELU = (torch.relu, torch.relu_, F.relu, "relu", "relu_")
_IN_PLACE = (operator.iadd, "add_", torch.relu_, "relu_")
_DROPOUT = (nn.Dropout, nn.Dropout1d, nn.Dropout2d)
_NORM = (nn.BatchNorm1d, nn.BatchNorm2d)
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class NoROperator(ValueError):
    """The R-operator does not apply to a network; the message says why."""


@dataclass(frozen=True)
class Step:
    """One operation of a network, on numbered values.

    Attributes:
        operation: What is computed.
        inputs: The numbers of the values read.
        output: The number of the value made.
        last: The numbers of the inputs that no later step reads.
    """

    operation: Operation
    inputs: tuple[int, ...]
    output: int
    last: tuple[int, ...]


class _Names(dict):
    """Parameter -> its name in named_parameters(); a parameter that is used twice has one name."""

    def __init__(self, network):
        super().__init__((id(parameter), name) for name, parameter in network.named_parameters())

    def __getitem__(self, parameter):
        return super().__getitem__(id(parameter))

    def get(self, parameter, default=None):
        return super().get(id(parameter), default)


def dropping(network: nn.Module) -> set[str]:
    """Return the names of the dropout layers that are on."""
    return {name for name, module in network.named_modules() if isinstance(module, _DROPOUT) and _drops(module)}


def _drops(module):
    return module.training and module.p > 0


def trace(network: nn.Module) -> list[Step]:
    """Return the steps from the image, value 0, to the embedding, the output of the last step.

    Raises:
        NoROperator: If the code cannot be traced, or does something that no operation here covers. The message names
            the first such node of the traced graph.
    """
    for name, module in network.named_modules():
        if any(getattr(module, hooks) for hooks in _HOOKS) or "forward" in vars(module) or _has_any_global_hook():
            raise NoROperator(
                f"module {name or 'itself'} has hooks, or a forward set on the object, which the R-operator would "
                "leave out; autograd takes this backbone"
            )
    try:
        with _unchanged(network), torch.enable_grad():
            graph = _Tracer().trace(network)
    except NoROperator:
        raise
    except Exception as error:  # the network's code may raise anything when it gets a proxy
        raise NoROperator(f"torch.fx cannot trace this backbone ({error}); autograd takes it") from error
    return _Reader(network).read(graph)


class _Tracer(fx.Tracer):
    """Traces a network whose operations all run in the modes that the network is called in."""

    def __init__(self):
        super().__init__()
        self._autocast = _autocast()

    def create_node(self, *arguments: Any, **named: Any) -> fx.Node:
        if not torch.is_grad_enabled() or _autocast() != self._autocast:
            raise NoROperator(
                "this backbone switches autograd or autocast within its forward, which the R-operator would leave "
                "out; autograd takes this backbone"
            )
        return super().create_node(*arguments, **named)


def _autocast():
    return [(kind, torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)) for kind in ("cpu", "cuda")]


@contextmanager
def _unchanged(network):
    """Undo what the network's code does to its modules while it is traced; values that it stores are let be.

    Within the block the modules have copies of their buffers, except for BatchNorm, which tracing does not run.

    Raises:
        NoROperator: If the code has changed a number or a buffer, or has drawn a random number: the next pass may then
            take another way.
    """
    before = [(module, dict(vars(module))) for module in network.modules()]
    copies = {module: _copies(module) for module, _ in before if type(module) not in _NORM}
    for module, buffers in copies.items():
        vars(module)["_buffers"] = dict(buffers)
    draws, state = _draws(), torch.get_rng_state()
    try:
        yield
        changes = [_change(module, attributes, copies.get(module)) for module, attributes in before]
        changes.append("draws random numbers" if _draws() != draws else "")
    finally:
        torch.set_rng_state(state)
        for module, attributes in before:
            vars(module).clear()
            vars(module).update(attributes)
    if found := next(filter(None, changes), ""):
        raise NoROperator(
            f"this backbone {found} in its forward, which the R-operator would leave out; autograd takes this backbone"
        )


def _copies(module):
    return {name: value if value is None else value.clone() for name, value in module._buffers.items()}


def _draws():
    """The states of the generators that a network's code may use on the host."""
    return torch.get_rng_state().tolist(), random.getstate()


def _change(module, attributes, buffers):
    """What tracing has changed of a module, in words, or ""."""
    for name, value in vars(module).items():
        before = attributes.get(name)
        same = value is before or (isinstance(value, (bool, int, float, str)) and value == before)
        if not same and isinstance(value, (bool, int, float, str, Tensor)):
            return f"changes the attribute {name} of {type(module).__name__}"
    for name, value in module._buffers.items():
        if buffers is not None and (value is not buffers.get(name) or (value is not None and value._version)):
            return f"changes the buffer {name} of {type(module).__name__}"
    return ""


def _is_plain(index):
    """Whether an index names a part that is a view: whole numbers, slices of whole numbers, None and ..."""
    parts = index if isinstance(index, tuple) else (index,)
    bounds = [b for part in parts for b in ((part.start, part.stop, part.step) if isinstance(part, slice) else (part,))]
    return all(bound is None or bound is Ellipsis or type(bound) is int for bound in bounds)


class _Reader:
    """Reads a graph node by node; `values` numbers the values of the nodes, the image 0."""

    def __init__(self, network):
        self.network, self.names = network, _Names(network)
        self.values, self.made, self.taken_in, self.overwritten = {}, [], {}, set()

    def read(self, graph):
        """The steps of a graph."""
        for node in graph.nodes:
            if node.op == "output":
                return self._steps(node)
            if node.op == "placeholder" and not self.values:
                self.values[node] = 0
            elif node in self.taken_in:
                self.values[node] = self.values[self.taken_in[node]]
            else:
                self._add(node)
        raise NoROperator("this backbone returns nothing; autograd takes it")

    def _add(self, node):
        """Number the node's value, with a new step unless the node returns its input."""
        reader = {"call_module": self._module, "call_function": self._function, "call_method": self._function}
        operation = reader[node.op](node) if node.op in reader else None
        sources = node.args[: 2 if isinstance(operation, Add) else 1]
        if operation is None or "out" in node.kwargs or not all(source in self.values for source in sources):
            raise self._refusal(node)
        inputs = tuple(self.values[source] for source in sources)
        if not self.overwritten.isdisjoint(map(self._memory, inputs)):
            raise NoROperator(f"node {node.name} reads what was changed in place before; autograd takes this backbone")
        if operation is not _HANDED_ON:
            self.made.append((operation, inputs))
        self.values[node] = inputs[0] if operation is _HANDED_ON else len(self.made)
        if self._changes_its_input(node):  # operations here make new values: no later node may read the changed one
            self.overwritten.add(self._memory(inputs[0]))

    def _module(self, node):
        module = self.network.get_submodule(node.target)
        kind = type(module)
        if kind is nn.Conv2d and module.padding_mode == "zeros" and not isinstance(module.padding, str):
            return Convolution(module, self.names)
        if kind in _NORM:
            return BatchNorm(module, self._prelu_after(node), self.names)
        if kind in (nn.Linear, nn.PReLU):
            return (Linear if kind is nn.Linear else PReLU)(module, self.names)
        if kind is nn.ReLU:
            return ReLU()
        if kind is nn.AdaptiveAvgPool2d and module.output_size in (1, (1, 1)):
            return Mean((-2, -1), True)
        if kind is nn.Flatten:
            return Flatten(module.start_dim, module.end_dim)
        if kind is nn.Identity or (kind in _DROPOUT and not _drops(module)):
            return _HANDED_ON
        return None

    def _function(self, node):
        """The operation of a function or of a tensor's method; None if there is none here."""
        target, given = node.target, dict(enumerate(node.args[1:])) | node.kwargs
        if target in _ADD and set(given) == {0}:
            return Add()
        if target in _RELU:
            return ReLU()
        if target is operator.getitem and _is_plain(given[0]):
            return Index(given[0])
        if target in (torch.flatten, "flatten"):
            return Flatten(given.get("start_dim", given.get(0, 0)), given.get("end_dim", given.get(1, -1)))
        if target is F.adaptive_avg_pool2d and given.get("output_size", given.get(0)) in (1, (1, 1)):
            return Mean((-2, -1), True)
        dim = given.get("dim", given.get(0))
        if target in (torch.mean, "mean") and dim is not None and "dtype" not in given:
            return Mean((dim,) if isinstance(dim, int) else tuple(dim), given.get("keepdim", given.get(1, False)))
        return None

    def _memory(self, value):
        """The value that `value` may be a view of."""
        while value and isinstance(self.made[value - 1][0], (Flatten, Index)):
            (value,) = self.made[value - 1][1]
        return value

    def _changes_its_input(self, node):
        if node.op == "call_module":
            return getattr(self.network.get_submodule(node.target), "inplace", False)
        return node.target in _IN_PLACE or node.kwargs.get("inplace", node.target is F.relu and True in node.args)

    def _prelu_after(self, node):
        """The nn.PReLU that is the only reader of this node, if any; it becomes part of the same operation."""
        users = [user for user in node.users if user.op == "call_module"]
        if len(node.users) == len(users) == 1:
            module = self.network.get_submodule(users[0].target)
            if type(module) is nn.PReLU:
                self.taken_in[users[0]] = node
                return module
        return None

    def _refusal(self, node):
        if node.op == "placeholder":
            return NoROperator(f"this backbone takes a second argument, {node.name}; autograd takes it")
        name = getattr(node.target, "__name__", node.target)
        if node.op == "call_module":
            name = type(self.network.get_submodule(node.target)).__name__
        return NoROperator(
            f"the operation `{name}` at node {node.name} has no R-operator here; autograd takes this backbone"
        )

    def _steps(self, output):
        """The operations as steps: the output of number k is k + 1, and a value is freed after its last reader."""
        if isinstance(output.args[0], (tuple, list, dict)):
            kind = type(output.args[0]).__name__
            raise NoROperator(f"this backbone returns a {kind}; wrap it in a module that returns the embeddings alone")
        if not self.made or self.values.get(output.args[0]) != len(self.made):
            raise NoROperator("this backbone returns something else than the last tensor it makes; autograd takes it")
        last = {value: k for k, (_, inputs) in enumerate(self.made) for value in inputs}
        return [
            Step(operation, inputs, k + 1, tuple(value for value in set(inputs) if last[value] == k))
            for k, (operation, inputs) in enumerate(self.made)
        ]
