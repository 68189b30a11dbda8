"""From the graph of a network to the list of its operations, or a sentence that names what has no R-operator here."""

import operator
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.fx.node import map_arg

from fastmfr.rop.catalogue import HANDED_ON, NORMS, Call, Named, arguments_of, is_norm_act, of_function, of_module
from fastmfr.rop.operations import Operation
from fastmfr.rop.parameterless import Add
from fastmfr.rop.products import Buffer, Multiply, Parameter, Scale, Shift
from fastmfr.rop.shapes import Concatenate, Part, Permute, Reshape, Shape, Size
from fastmfr.rop.tracing import NoROperator, traced

_ADD = (operator.add, operator.iadd, torch.add, "add", "add_")
_MULTIPLY = (operator.mul, operator.imul, torch.mul, torch.multiply, "mul", "mul_", "multiply")
_SUBTRACT = (operator.sub, operator.isub, torch.sub, "sub", "sub_")
_DIVIDE = (operator.truediv, operator.itruediv, torch.div, "div", "div_")
_NEGATE = (operator.neg, torch.neg, "neg")
_ARITHMETIC = (*_ADD, *_MULTIPLY, *_SUBTRACT, *_DIVIDE, *_NEGATE)
_OPERATORS_IN_PLACE = (operator.iadd, operator.imul, operator.isub, operator.itruediv)
_RESHAPE = ("view", "reshape", torch.reshape)
_PERMUTE = ("permute", torch.permute)
_CONCATENATE = (torch.cat, torch.concat)
_PARTS = {"chunk": torch.chunk, torch.chunk: torch.chunk, "split": torch.split, torch.split: torch.split}
_PIECES = ("split_size", "chunks", "split_size_or_sections")  # what torch calls the second argument
_OF_SIZES = (operator.add, operator.sub, operator.mul, operator.floordiv, operator.mod, operator.neg, operator.getitem)
_COMPARED = (operator.eq, operator.ne, operator.lt, operator.le, operator.gt, operator.ge)


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


def steps_of(network: nn.Module) -> list[Step]:
    """Return the steps from the image, value 0, to the embedding, the output of the last step.

    Raises:
        NoROperator: If the code cannot be traced, or does something that no operation here covers. The message names
            the first such node of the traced graph.
    """
    return _Reader(network).read(traced(network))


class _Reader:
    """Reads a graph node by node; `values` numbers the values of the nodes, the image 0."""

    def __init__(self, network):
        self.network, self.names = network, _Names(network)
        self.values, self.made, self.taken_in, self.overwritten = {}, [], {}, set()
        self.sizes = {}  # node -> Size: what the code computes from shapes

    def read(self, graph):
        """The steps of a graph."""
        for node in graph.nodes:
            if node.op == "output":
                return self._steps(node)
            if node.op == "placeholder" and not self.values:
                self.values[node] = 0
            elif node in self.taken_in:
                self.values[node] = self.values[self.taken_in[node]]
            elif node.op != "get_attr" and node.target not in _PARTS and not self._is_size(node):
                self._add(node)  # the others are read where their values are used
        raise NoROperator("this backbone returns nothing; autograd takes it")

    def _add(self, node):
        """Number the node's value, with a new step unless the node returns its input."""
        operation, sources = self._operation(node)
        if operation is None or "out" in node.kwargs:
            raise self._refusal(node)
        inputs = tuple(self._value(source, node) for source in sources)
        if not self.overwritten.isdisjoint(map(self._memory, inputs)):
            raise NoROperator(f"node {node.name} reads what was changed in place before; autograd takes this backbone")
        self.values[node] = inputs[0] if operation is HANDED_ON else self._make(operation, inputs)
        if self._changes_its_input(node):  # operations here make new values: no later node may read the changed one
            self.overwritten.add(self._memory(inputs[0]))

    def _make(self, operation, inputs):
        self.made.append((operation, inputs))
        return len(self.made)

    def _value(self, source, node):
        """The number of a node's value; that of a parameter or a buffer is made before its first reader."""
        if source not in self.values and isinstance(source, fx.Node) and source.op == "get_attr":
            self.values[source] = self._make(self._attribute(source), ())
        if source not in self.values:
            raise self._refusal(node)
        return self.values[source]

    def _attribute(self, node):
        name = self._parameter(node)
        return Buffer(self.network, node.target) if name is None else Parameter(name)

    def _parameter(self, node):
        """The name of the parameter that a node reads, None for a buffer."""
        module, _, last = node.target.rpartition(".")
        return self.names.get(getattr(self.network.get_submodule(module), last))

    def _operation(self, node):
        """(operation or HANDED_ON or None, the nodes it reads)."""
        if node.op == "call_module":
            module = self.network.get_submodule(node.target)
            takes_in = type(module) in NORMS or is_norm_act(module)
            plain = len(node.args) == 1 and not node.kwargs
            prelu = self._prelu_after(node) if takes_in else None
            return (of_module(module, self.names, prelu) if plain else None), node.args[:1]
        target = node.target
        if target in _ARITHMETIC:
            return self._arithmetic(node)
        if target in _RESHAPE:
            return self._reshape(node)
        if target in _PERMUTE:
            order = _listed(node.args[1:])
            is_plain = not node.kwargs and all(isinstance(dim, int) for dim in order)
            return (Permute(lambda ndim: order) if is_plain else None), node.args[:1]
        if target in _CONCATENATE:
            dim = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else 0)
            return (Concatenate(dim) if isinstance(dim, int) else None), tuple(node.args[0])
        if target is operator.getitem and getattr(node.args[0], "target", None) in _PARTS:
            return self._part(node)
        return self._call(node), node.args[:1]

    def _call(self, node):
        """The operation of a function or method that is known by its arguments."""
        names = arguments_of(node.target)
        if names is None or len(node.args) > len(names) + 1:
            return None
        given = dict(zip(names, node.args[1:], strict=False)) | node.kwargs
        given = {name: self._named(value) for name, value in given.items()}
        if not set(given) <= set(names) or any(map(_has_node, given.values())):
            return None
        return of_function(node.target, Call(given))

    def _named(self, value):
        """An argument, with Named in place of a node that reads a parameter."""
        if isinstance(value, fx.Node) and value.op == "get_attr" and (name := self._parameter(value)):
            return Named(name)
        return value

    def _arithmetic(self, node):
        """Sums and products of two tensors, or of a tensor and a number."""
        target, values = node.target, node.args
        if target in _NEGATE and len(values) == 1:
            return Scale(-1.0), values
        if len(values) != 2 or node.kwargs:
            return None, ()
        tensors = tuple(value for value in values if isinstance(value, fx.Node))
        numbers = [value for value in values if type(value) in (int, float)]
        if len(tensors) == 2 and target in _ADD:
            return Add(), tensors
        if len(tensors) == 2 and target in _MULTIPLY:
            return Multiply(), tensors
        if len(tensors) != 1 or len(numbers) != 1:
            return None, ()
        if target in _ADD:
            return Shift(numbers[0]), tensors
        if target in _MULTIPLY:
            return Scale(numbers[0]), tensors
        if values[0] is not tensors[0]:  # 1 - x and 1 / x
            return None, ()
        return (Shift(-numbers[0]) if target in _SUBTRACT else Scale(1 / numbers[0])), tensors

    def _reshape(self, node):
        source, shape = node.args[0], node.kwargs.get("shape", _listed(node.args[1:]))
        sizes = [self.sizes.get(size, size) if isinstance(size, fx.Node) else size for size in _listed((shape,))]
        whole = sizes[0] if len(sizes) == 1 and isinstance(sizes[0], Shape) else sizes
        if node.kwargs.keys() - {"shape"} or not all(isinstance(size, int | Size) for size in sizes):
            return None, ()
        value = self._value(source, node)
        read = {number for size in sizes if isinstance(size, Size) for number in size.sources} - {value}
        back = {number: other for other, number in self.values.items()}
        return Reshape(whole, value, sorted(read)), (source, *(back[number] for number in sorted(read)))

    def _part(self, node):
        parts, number = node.args
        given = dict(zip(("split_size", "dim"), parts.args[1:], strict=False)) | parts.kwargs
        name = next((name for name in _PIECES if name in given), "")
        pieces = given.pop(name, None)
        dim = given.pop("dim", 0)
        if given or pieces is None or _has_node(pieces) or not isinstance(number, int) or not isinstance(dim, int):
            return None, ()
        pieces = list(pieces) if isinstance(pieces, tuple) else pieces
        return Part(number, _PARTS[parts.target], pieces, dim), parts.args[:1]

    def _is_size(self, node):
        """Note a node that computes whole numbers from shapes; True also for a check of such numbers."""
        target, args = node.target, node.args
        if (target is getattr and args[1] == "shape") or target == "size":
            shape = Shape(self._value(args[0], node))
            self.sizes[node] = Size(operator.getitem, shape, args[1]) if target == "size" and len(args) > 1 else shape
        elif any(isinstance(value, fx.Node) and value in self.sizes for value in args):
            if target not in (*_OF_SIZES, *_COMPARED, torch._assert):
                return False
            read = [self.sizes.get(value, value) if isinstance(value, fx.Node) else value for value in args]
            if any(isinstance(value, fx.Node) for value in read):
                return False
            self.sizes[node] = Size(target, *read)
        else:
            return False
        return True

    def _memory(self, value):
        """The value that `value` may be a view of."""
        while value and self.made[value - 1][0].is_view:
            value = self.made[value - 1][1][0]
        return value

    def _changes_its_input(self, node):
        if node.op == "call_module":
            return getattr(self.network.get_submodule(node.target), "inplace", False)
        target = node.target
        if target in _OPERATORS_IN_PLACE or getattr(target, "__name__", str(target)).endswith("_"):
            return True
        names = arguments_of(target) or ()
        return bool((dict(zip(names, node.args[1:], strict=False)) | node.kwargs).get("inplace", False))

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


def _listed(arguments: Iterable[Any]) -> list[Any]:
    """Numbers that were given one by one, or as one list."""
    arguments = list(arguments)
    whole = len(arguments) == 1 and isinstance(arguments[0], (tuple, list))
    return list(arguments[0]) if whole else arguments


def _has_node(value):
    """Whether an argument holds a value of the graph."""
    found = []
    map_arg(value, found.append)
    return bool(found)
