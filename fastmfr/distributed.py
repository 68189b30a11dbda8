"""The processes of a run: the ranks that torchrun started, and operations on tensors over ranks, with gradients.

A tensor over ranks is in one of three states. `own`: each rank has its rows. `whole`: all ranks have the same rows, of
all ranks. `partial`: each rank has a summand of all rows. Four operations change the state:

    gather_whole     own -> whole      the gradient of the result is whole; each rank takes its rows of the gradient
    take_own         whole -> own      the gradient of the result is own; the gradient is gathered
    gather_partial   own -> whole      each rank computes a part of the loss; the gradient is partial and is summed
    sum_whole        partial -> whole  the gradient of the result is whole, and is that of each rank's summand

Each operation is differentiable any number of times, because its backward is another such operation.

Every rank must hold the same number of rows.
"""

import inspect
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, redirect_stderr, redirect_stdout
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed import ProcessGroup
from torch.nn.parallel import DistributedDataParallel

__all__ = [
    "ALONE",
    "OnAllRanks",
    "Ranks",
    "all_gather_object",
    "common_store",
    "gather_partial",
    "gather_whole",
    "joined_ranks",
    "log_sum_whole",
    "lost_rank",
    "over_ranks",
    "raise_on_all_ranks",
    "rank_and_world",
    "sum_whole",
    "take_own",
]

# torch 2.13 has renamed both functions and warns about the old names
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_SYNC_BUFFERS = "forward_sync_buffers" in inspect.signature(DistributedDataParallel.__init__).parameters  # since 2.13
_reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor

T = TypeVar("T")


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


def _sum(partial, group):
    whole = partial.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(whole, group=group)
    return whole


def _pair(name, forward, backward_of):
    """An autograd Function whose backward is `backward_of()`, another such Function."""

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
_SumWhole = _pair("SumWhole", _sum, lambda: _ToEach)
_ToEach = _pair("ToEach", lambda whole, group: whole.clone(), lambda: _SumWhole)


def gather_whole(own_B: Tensor, group: ProcessGroup) -> Tensor:
    """Gather the rows of all ranks; every rank must compute the same from the result.

    Args:
        own_B: This rank's rows; any shape, the same on all ranks.
        group: The ranks.

    Returns:
        The rows of all ranks, in the order of the ranks.
    """
    return _GatherWhole.apply(own_B, group)


def take_own(whole_B: Tensor, group: ProcessGroup) -> Tensor:
    """Take this rank's rows of a tensor that is the same on all ranks.

    Args:
        whole_B: The rows of all ranks, in the order of the ranks.
        group: The ranks.
    """
    return _TakeOwn.apply(whole_B, group)


def gather_partial(own_B: Tensor, group: ProcessGroup) -> Tensor:
    """Gather the rows of all ranks; each rank computes its part of a sum from the result.

    Args:
        own_B: This rank's rows; any shape, the same on all ranks.
        group: The ranks.

    Returns:
        The rows of all ranks, in the order of the ranks. Their gradients are summed over the ranks.
    """
    return _GatherPartial.apply(own_B, group)


def sum_whole(partial_B: Tensor, group: ProcessGroup) -> Tensor:
    """Sum a tensor over the ranks; every rank must compute the same from the result.

    Args:
        partial_B: This rank's summand; any shape, the same on all ranks.
        group: The ranks.

    Returns:
        The sum, the same on all ranks.
    """
    return _SumWhole.apply(partial_B, group)


def log_sum_whole(log_sum_B: Tensor, value_B: Tensor, group: ProcessGroup) -> tuple[Tensor, Tensor]:
    """Join logarithms of sums, and sum a second tensor, over the ranks; every rank must compute the same from both.

    What is sent does not grow with the number of ranks: two rows of sums, and one of the largest logarithms.

    Args:
        log_sum_B: Logarithms of this rank's sums; -inf is the logarithm of an empty sum. Not all ranks may have -inf.
        value_B: This rank's summands; of the shape and dtype of `log_sum_B`.
        group: The ranks.

    Returns:
        The logarithms of the sums over all ranks, and the sums of the values.
    """
    most_B = log_sum_B.detach().clone()
    dist.all_reduce(most_B, dist.ReduceOp.MAX, group=group)
    sum_B, value_B = sum_whole(torch.stack([(log_sum_B - most_B).exp(), value_B]), group).unbind()
    return sum_B.log() + most_B, value_B


def common_store() -> dist.Store:
    """Return the store of the processes that torchrun started, for this start alone.

    torchrun may keep one store for all starts of its processes. There they would find the addresses of those before.
    """
    is_kept_by_torchrun = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    store = dist.TCPStore(
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        is_master=os.environ["RANK"] == "0" and not is_kept_by_torchrun,
        wait_for_workers=False,
        multi_tenant=True,
    )
    return dist.PrefixStore(f"start {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)


@contextmanager
def joined_ranks() -> Iterator[ProcessGroup | None]:
    """Join the processes that torchrun started, this process among them, for as long as the block lasts.

    GPU tensors go by NCCL, CPU tensors and objects by gloo. Ranks other than the first print nothing within the block;
    they send their messages to the first rank by `all_gather_object`.

    Yields:
        The group of the processes, or None if torchrun did not start this process.
    """
    if not dist.is_torchelastic_launched():
        yield None
        return
    with ExitStack() as silence:
        if os.environ["RANK"] != "0":
            nowhere = silence.enter_context(open(os.devnull, "w"))
            silence.enter_context(redirect_stdout(nowhere))
            silence.enter_context(redirect_stderr(nowhere))
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo",
            store=common_store(),
            rank=int(os.environ["RANK"]),
            world_size=int(os.environ["WORLD_SIZE"]),
            timeout=timedelta(days=7),  # torchrun notices a rank that died; others may wait while the first one scores
        )
        yield dist.group.WORLD
    dist.destroy_process_group()  # not after an error: NCCL would wait for ranks that had none


def rank_and_world(group: ProcessGroup | None) -> tuple[int, int]:
    """Return this process's rank and the number of ranks in a group; (0, 1) if `group` is None."""
    return (0, 1) if group is None else (dist.get_rank(group), dist.get_world_size(group))


def all_gather_object(value: Any, group: ProcessGroup | None) -> list[Any]:
    """Gather one value from each rank; all ranks must call this function.

    Args:
        value: A small value of plain types, because values are pickled.
        group: The ranks; None is this process alone.

    Yields:
        The values, in the order of the ranks.
    """
    if group is None:
        return [value]
    values = [None] * dist.get_world_size(group)
    dist.all_gather_object(values, value, group)
    return values


def lost_rank(error: RuntimeError, ranks: "Ranks") -> ValueError | None:
    """Return what to say of an error of gloo or NCCL after another process has ended, or None for another error."""
    if not isinstance(error, dist.DistError) and "gloo" not in str(error):
        return None
    return ValueError(
        f"process {ranks.number} of {ranks.world}, counted from 0, waited for a process that has ended or cannot be "
        "reached; the message of that process says why"
    )


def over_ranks(network: nn.Module, group: ProcessGroup, *, same_buffers: bool) -> nn.Module:
    """Return the network with gradients that are means over the ranks, sent while the backward pass goes on.

    Args:
        network: The same on all ranks.
        group: The ranks.
        same_buffers: Whether every forward pass begins with the buffers of the first rank.
    """
    options: dict[str, Any] = {"forward_sync_buffers" if _SYNC_BUFFERS else "broadcast_buffers": same_buffers}
    return DistributedDataParallel(network, process_group=group, gradient_as_bucket_view=True, **options)


class OnAllRanks(ValueError):
    """An error of one rank that all ranks raise."""


@contextmanager
def raise_on_all_ranks(group: ProcessGroup | None) -> Iterator[None]:
    """Make all ranks leave the block in the same way: if one rank raises an error, all ranks raise its sentence.

    Only ValueError, OSError and ImportError are passed on. If one rank alone can raise before a collective operation,
    put that part into a separate block; otherwise the other ranks wait in the operation.

    Args:
        group: The ranks; None changes nothing.

    Raises:
        OnAllRanks: With the sentence of the first rank that raised an error.
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
        raise OnAllRanks(sentences[0]) from raised


class Ranks:
    """The processes of one run, of which this process is one.

    Args:
        group: The processes; None is this process alone.

    Attributes:
        group: The processes, or None.
        number: The number of this process, from 0.
        world: How many processes there are.
    """

    def __init__(self, group: ProcessGroup | None = None):
        self.group = group
        self.number, self.world = rank_and_world(group)

    @property
    def is_first(self) -> bool:
        """Return whether this process is the one that writes and prints."""
        return self.number == 0

    def share(self, count: int) -> slice:
        """Return this rank's part of `count` rows, of which all ranks have equally many.

        Raises:
            ValueError: If the number of ranks does not divide `count`.
        """
        if count % self.world:
            raise ValueError(f"want a number that {self.world} ranks can share equally, got {count}")
        each = count // self.world
        return slice(self.number * each, (self.number + 1) * each)

    def sum_(self, value: Tensor) -> Tensor:
        """Replace a tensor, which has one shape on all ranks, by its sum over the ranks, and return the tensor."""
        if self.group is not None:
            dist.all_reduce(value, group=self.group)
        return value

    def any(self, flag: bool) -> bool:
        """Return, on all ranks, whether one of the ranks has a true flag."""
        return flag if self.group is None else bool(self.sum_(torch.tensor([int(flag)])).item())

    def of_first(self, value: T) -> T:
        """Return, on all ranks, the value that the first rank has; a small value of plain types, which is pickled."""
        if self.group is None:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0, group=self.group)
        return values[0]

    def by_first(self, make: Callable[[], T]) -> T:
        """Return, on all ranks, what the first rank makes; a small value of plain types, which is pickled.

        Raises:
            OnAllRanks: With the sentence of the first rank's error.
        """
        made = None
        with self.alike():
            if self.is_first:
                made = make()
        return self.of_first(cast(T, made))

    def gather(self, value: T) -> list[T]:
        """Return, on all ranks, the values of all ranks, in their order; values as `all_gather_object` takes them."""
        return all_gather_object(value, self.group)

    def alike(self) -> AbstractContextManager[None]:
        """Return a block that all ranks leave in the same way, as `raise_on_all_ranks` does."""
        return raise_on_all_ranks(self.group)

    def in_turn(self, make: Callable[[], T]) -> T:
        """Return make() on every rank: the first rank calls it first, then the first of every machine, then the others.

        What the first ones write the others find, so files are made once, whether machines share their folders or not.

        Raises:
            OnAllRanks: With the sentence of the first rank whose call raised an error.
        """
        mine = 0 if self.is_first else 1 if os.environ.get("LOCAL_RANK") == "0" else 2
        made = []
        for turn in range(3):
            with self.alike():
                if turn == mine:
                    made.append(make())
        return made[0]


ALONE = Ranks()  # a run of one process
