"""The processes of a run: the ranks that torchrun started, and tensors that ranks share, with their gradients.

Each operation on a tensor is differentiable any number of times, for its backward is the other one of its pair.
A tensor over ranks is in one of three states: `own`, each rank has its rows; `whole`, all ranks have all rows, the
same; `partial`, all ranks have a summand of all rows.

    gather_whole     own -> whole      the gradient of a whole tensor is whole; each rank takes its own rows of it
    take_own         whole -> own      the gradient of own rows is own; it is gathered
    gather_partial   own -> whole      for each rank to do a part of the work with; the partial gradients are summed

Every rank must hold the same number of rows.
"""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist
from torch.distributed import ProcessGroup

# torch 2.13 has renamed them and warns of the old names
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


def _gather(own, group):
    whole = own.new_empty(dist.get_world_size(group) * own.shape[0], *own.shape[1:])
    _all_gather(whole, own.contiguous(), group=group)
    return whole


def _slice(whole, group):
    return whole.chunk(dist.get_world_size(group))[dist.get_rank(group)].clone()


def _sum_own(partial, group):
    own = partial.new_empty(partial.shape[0] // dist.get_world_size(group), *partial.shape[1:])
    _reduce_scatter(own, partial.contiguous(), group=group)
    return own


def _pair(name, forward, backward_of):
    """An operation whose backward is `backward_of()`, itself such an operation."""

    def apply_forward(ctx, tensor, group):
        ctx.group = group
        return forward(tensor, group)

    def apply_backward(ctx, gradient):
        return backward_of().apply(gradient, ctx.group), None

    return type(
        name,
        (torch.autograd.Function,),
        {"forward": staticmethod(apply_forward), "backward": staticmethod(apply_backward)},
    )


_GatherWhole = _pair("GatherWhole", _gather, lambda: _TakeOwn)
_TakeOwn = _pair("TakeOwn", _slice, lambda: _GatherWhole)
_GatherPartial = _pair("GatherPartial", _gather, lambda: _SumOwn)
_SumOwn = _pair("SumOwn", _sum_own, lambda: _GatherPartial)


def gather_whole(own_B: Tensor, group: ProcessGroup) -> Tensor:
    """The rows of all ranks, in their order; what is made of them must be the same on all ranks."""
    return _GatherWhole.apply(own_B, group)


def take_own(whole_B: Tensor, group: ProcessGroup) -> Tensor:
    """This rank's rows of a tensor that is the same on all ranks."""
    return _TakeOwn.apply(whole_B, group)


def gather_partial(own_B: Tensor, group: ProcessGroup) -> Tensor:
    """The rows of all ranks, in their order, for each rank to do its part of the work with."""
    return _GatherPartial.apply(own_B, group)


@contextmanager
def joined_ranks() -> Iterator[ProcessGroup | None]:
    """The group of the processes that torchrun started, this one among them, as long as the block lasts; else None.

    GPU tensors go by NCCL, CPU tensors and objects by gloo. Ranks other than the first print nothing within the block;
    what they have to say is `all_gather_object`.
    """
    if not dist.is_torchelastic_launched():
        yield None
        return
    with ExitStack() as silence:
        if os.environ["RANK"] != "0":
            nowhere = silence.enter_context(open(os.devnull, "w"))
            silence.enter_context(redirect_stdout(nowhere))
            silence.enter_context(redirect_stderr(nowhere))
        # torchrun notices a rank that died; a time limit would only end ranks that wait while the first one scores
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=timedelta(days=7)
        )
        yield dist.group.WORLD
    dist.destroy_process_group()  # not after an error: NCCL would wait for ranks that did not meet it


def rank_and_world(group: ProcessGroup | None) -> tuple[int, int]:
    """(this process's rank, number of ranks) in a group; (0, 1) where `group` is None."""
    return (0, 1) if group is None else (dist.get_rank(group), dist.get_world_size(group))


def all_gather_object(value: Any, group: ProcessGroup | None) -> list:
    """What each rank of the group gives, in the order of ranks; for small values of plain types, for they are pickled.

    All ranks must call it. Where `group` is None, a list of one.
    """
    if group is None:
        return [value]
    values = [None] * dist.get_world_size(group)
    dist.all_gather_object(values, value, group)
    return values


@contextmanager
def raise_on_all_ranks(group: ProcessGroup | None) -> Iterator[None]:
    """All ranks of the group leave the block in the same way: if one raised a sentence, all raise it as a ValueError.

    A sentence is a ValueError, OSError or ImportError. In a block, what one rank alone may raise before something is
    shared needs a block of its own, or the others wait for that rank. Where `group` is None, nothing is changed.
    """
    if group is None:
        yield
        return
    raised = None
    try:
        yield
    except (ValueError, OSError, ImportError) as error:
        raised = error
    sentences = [text for text in all_gather_object(raised and str(raised), group) if text is not None]
    if sentences:
        raise ValueError(sentences[0]) from raised
