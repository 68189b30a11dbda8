"""Tensors that ranks share, with their gradients: each operation's backward is the other one of its pair.

A tensor over ranks is in one of three states: `own`, each rank has its rows; `whole`, all ranks have all rows, the
same; `partial`, all ranks have a summand of all rows.

    gather_whole     own -> whole      the gradient of a whole tensor is whole; each rank takes its own rows of it
    take_own         whole -> own      the gradient of own rows is own; it is gathered
    gather_partial   own -> whole      for each rank to do a part of the work with; the partial gradients are summed

So everything is differentiable any number of times. Every rank must hold as many rows as the others.
"""

import torch
from torch import distributed as dist

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


def gather_whole(own_B, group):
    """The rows of all ranks, in their order; what is made of them must be the same on all ranks."""
    return _GatherWhole.apply(own_B, group)


def take_own(whole_B, group):
    """This rank's rows of a tensor that is the same on all ranks."""
    return _TakeOwn.apply(whole_B, group)


def gather_partial(own_B, group):
    """The rows of all ranks, in their order, for each rank to do its part of the work with."""
    return _GatherPartial.apply(own_B, group)
