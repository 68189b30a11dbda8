"""A meta step recorded as one CUDA graph: the host launches it whole, instead of some thousand kernels one by one."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from fastmfr.kernels import batchnorm_prelu  # pyright: ignore[reportMissingImports]  # the folder kernels/
from fastmfr.meta.records import MetaStep, PairBatch


class Captured:
    """Calls `step`(splits, alpha, rate, losses), and replays it from a graph where nothing but the images changes.

    A graph holds shapes, rates and losses as they were recorded. So the first step with new ones runs as it is, which
    also compiles kernels; the second is recorded; it and those after it are replayed. All splits of a step are then
    held at once, in the graph's own memory, and what a replay gives is good until the next. `state` says in a sentence
    whether steps are replayed, and if not, why.
    """

    def __init__(self, step, backbone: nn.Module, settings):
        self._step, self._key, self._recording = step, None, None
        reason = _obstacle(backbone, settings)
        self._possible = not reason
        self.state = reason or "a step is recorded as a CUDA graph as soon as two have had the same shapes and rates"

    def __call__(self, splits, alpha, rate, losses) -> MetaStep:
        if not self._possible:
            return self._step(splits, alpha, rate, losses)
        splits = [(train, test) for train, test in splits]
        key = alpha, rate, losses, [[tensor.shape for tensor in tensors] for tensors in map(_tensors, splits)]
        if key == self._key and self._recording is None:
            self._recording = self._record(splits, alpha, rate, losses)
        elif key != self._key:
            self._key, self._recording = key, None
        if self._recording is None:
            return self._step(splits, alpha, rate, losses)
        return self._recording.run(splits)

    def _record(self, splits, *settings):
        """The step on copies of these splits, which it goes on reading; None if it cannot be recorded."""
        held = [tuple(PairBatch(*map(torch.clone, _tensors([part]))) for part in split) for split in splits]
        try:
            recording = _Recording(held, *record(lambda: self._step(held, *settings)))
        except RuntimeError as error:
            reason = " ".join(str(error).split())
            self._possible = False
            self.state = f"steps run operation by operation, for they could not be recorded as a CUDA graph: {reason}"
            return None
        self.state = "steps are replayed from a CUDA graph"
        return recording


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


def record(function):
    """(replay, result) of what `function` launches on the current GPU, of which nothing is run yet."""
    graph, pool, side = torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle(), torch.cuda.Stream()
    with torch.cuda.stream(side):  # left again whatever happens, which torch.cuda.graph does not do
        batchnorm_prelu.prepare_capture(side.device)
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        try:
            graph.capture_begin(pool, capture_error_mode="thread_local")  # other threads decode images meanwhile
            result = function()
            graph.capture_end()
        except BaseException:
            _abandon(graph, pool, side.device)
            raise
    return graph.replay, result


def _abandon(graph, pool, device):
    """Ends a recording that went wrong. Else all memory asked for later would come from its pool, and stay there."""
    for step in (
        graph.capture_end,
        lambda: torch._C._cuda_endAllocateToPool(device.index, pool),
        graph.reset,
        torch.cuda.synchronize,  # an error that is still on its way is raised here, not by the next step
    ):
        with contextlib.suppress(RuntimeError):  # it may have ended before
            step()


def _tensors(batches):
    return [tensor for batch in batches for tensor in (batch.gallery_B3HW, batch.probe_B3HW, batch.domain_B)]


def _obstacle(backbone, settings):
    """Why steps cannot be recorded, or ""."""
    plainly = "steps run operation by operation, for"
    device = next((value.device for value in backbone.parameters()), torch.device("cpu"))
    if device.type != "cuda":
        return f"{plainly} the device is {device}, which has no CUDA graphs"
    if settings.batch_norm == "per_domain" and settings.sharing == "none":
        return f"{plainly} batch_norm 'per_domain' looks at every batch which domains there are; 'batch' does not"
    for name, module in backbone.named_modules():
        if isinstance(module, _BatchNorm) and module.momentum is None:
            return f"{plainly} {name} counts its batches on the host; a momentum such as 0.1 does not"
    return ""
