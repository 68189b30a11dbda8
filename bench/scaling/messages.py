"""The messages of a step between ranks: how many, how large, and how long a ring of GPUs takes for them.

A message's bytes are those of the whole tensor: what is summed, the result of a gather, what a reduce-scatter takes.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

from .plan import FLOAT, MACHINE, Machines, Plan

BUCKETS = 1 << 20, 25 << 20  # bytes after which DistributedDataParallel closes its first bucket, and the others
ALIGNED = 32  # numbers of which each tensor in a flat buffer takes a multiple
LABEL, FLAG = 8, 8  # bytes


class Message(NamedTuple):
    """One collective operation: its kind, and the bytes of the whole tensor."""

    kind: str
    bytes: int


def pretraining(plan: Plan) -> list[Message]:
    """Count a step of pretraining: BatchNorm, classifier, gradients of the backbone, losses to record, stop flag."""
    return [*_statistics(plan), *classifier(plan), *_gradients(plan), *_after_step(plan)]


def classifier(plan: Plan) -> list[Message]:
    """Count the classifier over ranks; neither its weights nor their gradient are sent, however many there are.

    Unit embeddings, lengths and labels are gathered; logarithms of sums and true cosines are joined; backward, the
    losses' gradient is gathered, and the embeddings' gradient summed, each rank getting that of its rows.
    """
    rows = plan.gpus * plan.batch
    return [
        Message("all_gather", rows * plan.embedding * plan.unit),
        Message("all_gather", rows * FLOAT),
        Message("all_gather", rows * LABEL),
        Message("all_reduce", rows * FLOAT),
        Message("all_reduce", 2 * rows * FLOAT),
        Message("all_gather", rows * FLOAT),
        Message("reduce_scatter", rows * plan.embedding * plan.unit),
    ]


def _statistics(plan: Plan) -> Iterator[Message]:
    """BatchNorm's means and variances, gathered; backward, two sums for each channel. Or the first rank's buffers."""
    if not plan.sync:
        if plan.network.channels:
            yield from _buffers(plan)
        return
    for channels in plan.network.channels:
        yield Message("all_gather", plan.gpus * 2 * channels * FLOAT)
        yield Message("all_reduce", 2 * channels * FLOAT)


def _buffers(plan: Plan) -> Iterator[Message]:
    """DistributedDataParallel sends the first rank's buffers, those of one dtype together."""
    counters = len(plan.network.channels) * LABEL
    yield Message("broadcast", plan.network.buffers - counters)
    yield Message("broadcast", counters)


def _gradients(plan: Plan) -> Iterator[Message]:
    """DistributedDataParallel's buckets, filled from the last parameter to the first."""
    limits, filled = iter(BUCKETS), 0
    limit = next(limits)
    for size in reversed(plan.network.parameters):
        filled += size * FLOAT
        if filled >= limit:
            yield Message("all_reduce", filled)
            filled, limit = 0, next(limits, limit)
    if filled:
        yield Message("all_reduce", filled)


def _after_step(plan: Plan) -> list[Message]:
    """The losses of all images, for the first rank to record; whether a rank was asked to stop."""
    return [Message("all_gather", plan.gpus * plan.batch * FLOAT), Message("all_reduce", FLAG)]


def meta(plan: Plan) -> list[Message]:
    """Count a meta step of the second order, the state of its passes kept: all splits, and the stop flag.

    A split gathers embeddings and domains of meta-train, embeddings of meta-test, and the embeddings' tangents. Three
    buffers of all parameters are summed: the gradients of both halves, and H v.
    """
    pairs = plan.gpus * plan.pairs
    embeddings = Message("all_gather", pairs * 2 * plan.embedding * FLOAT)
    parameters = Message("all_reduce", flat(plan) * FLOAT)
    split = [*3 * [embeddings], Message("all_gather", pairs * LABEL), *3 * [parameters], *_statistics_of_split(plan)]
    return [*plan.domains * split, Message("all_reduce", FLAG)]


def _statistics_of_split(plan: Plan) -> Iterator[Message]:
    """Forward and backward of both halves; two sums a channel for the tangent, three for the second backward."""
    if plan.batch_norm == "frozen":
        return
    for channels in plan.network.channels:
        yield from 2 * [Message("all_gather", plan.gpus * 2 * channels * FLOAT)]
        yield from 4 * [Message("all_reduce", 2 * channels * FLOAT)]
        yield Message("all_reduce", channels * FLOAT)


def flat(plan: Plan) -> int:
    """Return the numbers of a flat buffer of all parameters, the gaps between aligned tensors among them."""
    return sum(-(-size // ALIGNED) * ALIGNED for size in plan.network.parameters)


def sent(message: Message, gpus: int) -> float:
    """Return the bytes that each GPU of a ring sends: a sum goes round twice, the others once."""
    return message.bytes * (gpus - 1) / gpus * (2 if message.kind == "all_reduce" else 1)


def seconds(messages: list[Message], plan: Plan, machines: Machines) -> float:
    """Return how long the messages take one after the other.

    The slowest link of a ring sets its rate. Small messages go by a tree, as many links deep as the logarithm of the
    number of GPUs.
    """
    if plan.gpus == 1:
        return 0.0
    rate = machines.inside if plan.gpus <= MACHINE else machines.between
    depth = math.ceil(math.log2(plan.gpus))
    return sum(sent(message, plan.gpus) / rate + depth * machines.latency for message in messages)
