"""What an autograd graph tells of the network that made it: operations and reads that would make a step wrong."""

import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

_REENTRANT = (
    "torch.utils.checkpoint with use_reentrant=True hides its parameters from the meta step, and cannot be "
    "differentiated twice; want use_reentrant=False"
)
_NAME = "_fastmfr_name"  # attribute of the leaves of a pass
_WITHOUT_INPUTS = "None of the inputs have requires_grad=True"  # how torch warns of a checkpoint that drops gradients


def refuse_first_order(loss: Tensor) -> None:
    """Raise RuntimeError if a custom operation under `loss` cannot be differentiated twice.

    torch raises an error by itself only if the failing node lies on the way to the parameters. The node of
    `once_differentiable` does not lie there, so its curvature would be left out silently.
    """
    for node in _nodes([loss]):
        function = getattr(type(node), "_forward_cls", node)
        backward = getattr(function, "backward", None)
        if backward is not None and backward.__code__.co_filename == torch.autograd.function.__file__:
            raise RuntimeError(
                f"{function.__name__} has no double backward (it is once_differentiable), so order 2 "
                "would be silently wrong; use an operation that has one, or order 1"
            )


def leaves_of(theta: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return parameters as new leaves of autograd, which `check_reads` recognises as those of this pass or another."""
    leaves = {name: value.detach().requires_grad_() for name, value in theta.items()}
    for name, leaf in leaves.items():
        setattr(leaf, _NAME, name)
    return leaves


def check_reads(embeddings: Iterable[Tensor], leaves: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> bool:
    """Check that the pass which made `embeddings` read the parameters that it was given.

    Args:
        embeddings: The outputs of the pass.
        leaves: {name: tensor}, the parameters that the pass was given, made by `leaves_of`.
        own: {name: parameter}, the backbone's own parameters in whose place the leaves were.

    Returns:
        Whether the embeddings depend on each of the leaves.

    Raises:
        ValueError: If the embeddings depend on no parameter.
        RuntimeError: If the pass has read one of the backbone's own parameters, or one of another pass, or if it has
            used a reentrant checkpoint.
    """
    here, names = set(map(id, leaves.values())), {id(value): name for name, value in own.items()}
    read, wrong = set(), set()
    for node in _nodes(embeddings):
        if type(node).__name__ == "CheckpointFunctionBackward":
            raise RuntimeError(_REENTRANT)
        variable = getattr(node, "variable", None)
        if id(variable) in here:
            read.add(id(variable))
        elif variable is not None:
            wrong.add(names.get(id(variable)) or getattr(variable, _NAME, None))
    if wrong := sorted(filter(None, wrong)):
        raise RuntimeError(
            f"the backbone reads {', '.join(wrong)} in another way than as the attribute of the module that holds the "
            "parameter (from a list, a closure or a cache), so the meta step cannot move the parameter; want it read "
            "as module.name in each forward pass"
        )
    if not any(embedding.requires_grad for embedding in embeddings):
        raise ValueError(
            "the backbone's embeddings depend on no trained parameter; want a forward without detach() or no_grad() "
            "between the trained layers and the embeddings"
        )
    return read == here


@contextmanager
def reentrant_checkpoints() -> Iterator[list[str]]:
    """Collect torch's warnings of reentrant checkpoints that drop all gradients; other warnings are issued as usual."""
    found = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield found
    for one in caught:
        if _WITHOUT_INPUTS in str(one.message):
            found.append(_REENTRANT)
        else:
            warnings.warn_explicit(one.message, one.category, one.filename, one.lineno, source=one.source)


@contextmanager
def double_backward() -> Iterator[None]:
    """Turn torch's error for an operation without a double backward into one that says what to do."""
    try:
        yield
    except RuntimeError as error:
        if "selective activation checkpoint" in str(error):
            raise RuntimeError(
                "a selective checkpoint (with context_fn) can be passed backward once, and order 2 passes twice; want "
                "a checkpoint without context_fn, or order 1"
            ) from error
        found = re.search(r"derivative for '?(?:aten::)?(\w+?)(?:_backward)?'? is not implemented", str(error))
        if found is None:
            raise
        raise RuntimeError(
            f"{found[1]} has no double backward, which order 2 needs; use an operation that has one, or order 1"
        ) from error


def _nodes(outputs: Iterable[Tensor]) -> Iterator:
    """The nodes of the graph that made `outputs`."""
    seen, waiting = set(), [output.grad_fn for output in outputs]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        waiting.extend(parent for parent, _ in node.next_functions)
        yield node
