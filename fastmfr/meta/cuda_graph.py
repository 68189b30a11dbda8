"""A meta step recorded as one CUDA graph: the host launches it whole, instead of some thousand kernels one by one."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from fastmfr import cuda_graph
from fastmfr.cuda_graph import Recordings, record
from fastmfr.meta.types import MetaStep, PairBatch


class Captured:
    """Calls `step`(splits, alpha, rate, losses), and replays it from a graph where nothing but the images changes.

    When that is, and what `state` says, is as of cuda_graph.Recordings. All splits of a recorded step are held at once,
    in the graph's own memory, and what a replay gives is good until the next.
    """

    def __init__(self, step, backbone: nn.Module, settings):
        self._step = step
        self._recordings = Recordings(_obstacle(backbone, settings), "shapes and rates")

    @property
    def state(self) -> str:
        return self._recordings.state

    def __call__(self, splits, alpha, rate, losses) -> MetaStep:
        if not self._recordings.is_possible:
            return self._step(splits, alpha, rate, losses)
        splits = [(train, test) for train, test in splits]
        key = alpha, rate, losses, [[tensor.shape for tensor in tensors] for tensors in map(_tensors, splits)]
        recording = self._recordings.take(key, lambda: self._record(splits, alpha, rate, losses))
        return recording.run(splits) if recording else self._step(splits, alpha, rate, losses)

    def _record(self, splits, *settings):
        """The step on copies of these splits, which it goes on reading."""
        held = [tuple(PairBatch(*map(torch.clone, _tensors([part]))) for part in split) for split in splits]
        return _Recording(held, *record(lambda: self._step(held, *settings)))


@dataclass(frozen=True)
class _Recording:
    """What `replay` launches reads `splits` and writes `result`."""

    splits: list
    replay: Callable[[], None]
    result: MetaStep

    def run(self, splits):
        for held, given in zip(self.splits, splits, strict=True):
            torch._foreach_copy_(_tensors(held), _tensors(given), non_blocking=True)
        self.replay()
        return self.result


def _tensors(batches):
    return [tensor for batch in batches for tensor in (batch.gallery_B3HW, batch.probe_B3HW, batch.domain_B)]


def _obstacle(backbone, settings):
    """Why steps cannot be recorded, or ""."""
    found = cuda_graph.obstacle(backbone)
    if not found and settings.batch_norm == "per_domain" and settings.sharing == "none":
        return (
            f"{cuda_graph.PLAINLY}, for batch_norm 'per_domain' looks at every batch which domains there are; "
            "'batch' does not"
        )
    return found
