"""From any nn.Module to the graph of what its code calls, by torch.fx, or a sentence that says why it has none."""

import inspect
import random
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.module import _has_any_global_hook

from fastmfr.freezing import HeldBatchNorm
from fastmfr.rop.catalogue import DROPOUT, NORMS, drops, is_norm_act

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class NoROperator(ValueError):
    """The R-operator does not apply to a network; the message says why."""


def dropping(network: nn.Module) -> set[str]:
    """Return the names of the dropout layers that are on."""
    return {name for name, module in network.named_modules() if isinstance(module, DROPOUT) and drops(module)}


def traced(network: nn.Module) -> fx.Graph:
    """Return the graph of the network's forward.

    Raises:
        NoROperator: If the code cannot be traced, or does what a graph does not hold.
    """
    for name, module in network.named_modules():
        if any(getattr(module, hooks) for hooks in _HOOKS) or "forward" in vars(module) or _has_any_global_hook():
            raise NoROperator(
                f"module {name or 'itself'} has hooks, or a forward set on the object, which the R-operator would "
                "leave out; autograd takes this backbone"
            )
    try:
        with _unchanged(network), torch.enable_grad():
            return _without_checks(_Tracer().trace(network, defaults_of(network)))
    except NoROperator:
        raise
    except Exception as error:  # the network's code may raise anything when it gets a proxy
        raise NoROperator(f"torch.fx cannot trace this backbone ({error}); autograd takes it") from error


def defaults_of(network: nn.Module) -> dict[str, Any]:
    """Return the arguments of forward behind the first that have a default, as {name: default}.

    Traced without these, code such as `if mask is not None` would take the branch of a mask that is given.
    """
    behind = list(inspect.signature(network.forward).parameters.values())[1:]
    return {one.name: one.default for one in behind if one.default is not inspect.Parameter.empty}


def _without_checks(graph):
    """The graph without the arguments that have a default, which torch.fx only compares with that default."""
    _, *rest = (node for node in graph.nodes if node.op == "placeholder")
    for node in [node for node in rest if node.args]:
        checks = [node]
        for one in checks:
            checks += one.users
        for one in reversed(checks):
            graph.erase_node(one)
    return graph


class _Tracer(fx.Tracer):
    """Traces a network whose operations all run in the modes that the network is called in."""

    def __init__(self):
        super().__init__()
        self._autocast = _autocast()

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return type(m) is HeldBatchNorm or super().is_leaf_module(m, module_qualified_name)

    def create_node(self, *arguments: Any, **named: Any) -> fx.Node:
        if not torch.is_grad_enabled() or _autocast() != self._autocast:
            raise NoROperator(
                "this backbone switches autograd or autocast within its forward, which the R-operator would leave "
                "out; autograd takes this backbone"
            )
        return super().create_node(*arguments, **named)

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        """Trace a call of a module; a BatchNorm with an activation is two calls, and its own code is not run."""
        if not is_norm_act(m):
            return super().call_module(m, forward, args, kwargs)
        drop, activation = m.get_submodule("drop"), m.get_submodule("act")
        return activation(drop(self.create_proxy("call_module", self.path_of_module(m), args, kwargs)))


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
    copies = {module: _copies(module) for module, _ in before if type(module) not in NORMS}
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
