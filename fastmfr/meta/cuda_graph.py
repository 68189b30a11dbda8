"""A meta step recorded as one CUDA graph: the host launches it whole, instead of some thousand kernels one by one."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from fastmfr import cuda_graph
from fastmfr.config.meta_settings import MetaSettings
from fastmfr.cuda_graph import Recordings, record
from fastmfr.losses import MfrLosses
from fastmfr.meta.pair_batches import train_and_test
from fastmfr.meta.types import MetaStep, PairBatch, Split
from fastmfr.profiling import REPLAY, part_of_step
from fastmfr.rop.tracing import dropping


class RecordedStep:
    """Calls a step, and replays it from a CUDA graph if nothing but the images and domains has changed.

    `fastmfr.cuda_graph.Recordings` decides when that is. A recorded step holds all its splits at once, in the graph's
    memory, and the result of a replay is valid until the next replay.

    Args:
        step: The step, as step(splits, alpha, rate, losses).
        backbone: The network that the step trains.
        settings: How its gradients are computed; some settings cannot be recorded.
    """

    def __init__(self, step: Callable[..., MetaStep], backbone: nn.Module, settings: MetaSettings):
        self._step = step
        self._recordings = Recordings(_obstacle(backbone, settings), "shapes and rates")

    @property
    def state(self) -> str:
        """Return a sentence: whether steps are replayed, and if not, why."""
        return self._recordings.state

    def __call__(
        self, splits: Iterable[Split], alpha: float, rate: float, losses: MfrLosses, of_optimizer: Any = None
    ) -> MetaStep:
        """Take one step; `of_optimizer` are more numbers that a recording holds."""
        if not self._recordings.is_possible:
            return self._step(splits, alpha, rate, losses)
        splits = list(map(train_and_test, splits))
        key = (
            alpha,
            rate,
            losses,
            of_optimizer,
            [[tensor.shape for tensor in tensors] for tensors in map(_tensors, splits)],
        )
        recording = self._recordings.take(key, lambda: self._record(splits, alpha, rate, losses))
        return recording.run(splits) if recording else self._step(splits, alpha, rate, losses)

    def _record(self, splits, *settings):
        """Record the step on copies of these splits; a replay reads the copies."""
        held = [tuple(PairBatch(*map(torch.clone, _tensors([part]))) for part in split) for split in splits]
        return _Recording(held, *record(lambda: self._step(held, *settings)))


@dataclass(frozen=True)
class _Recording:
    """What `replay` launches reads `splits` and writes `result`."""

    splits: list
    replay: Callable[[], None]
    result: MetaStep

    def run(self, splits):
        with part_of_step(REPLAY):
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
            f"{cuda_graph.PLAINLY}, for batch_norm 'per_domain' reads the domains of every batch on the host; "
            "'batch' does not"
        )
    if not found and settings.hvp_precision != settings.precision and (names := dropping(backbone)):
        return (
            f"{cuda_graph.PLAINLY}, for dropout ({', '.join(sorted(names))}) would draw other numbers for H v than for "
            "the gradient; one precision for both does not"
        )
    return found
