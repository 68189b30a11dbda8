"""A pretraining step up to its gradients, recorded as one CUDA graph, and its loss, read without holding up the GPU.

Shape suffixes: B = batch, H W = image.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fastmfr import cuda_graph
from fastmfr.cuda_graph import PLAINLY, Recordings, record
from fastmfr.head import MarginHead
from fastmfr.precision import autocast, matmul_precision


class PretrainingStep:
    """(image_B3HW, label_B, draw) -> loss_B, without its graph; the gradients of its mean are then in `.grad`.

    On a GPU forward and backward are replayed from a CUDA graph; when that is, and what `state` says, is as of
    cuda_graph.Recordings. The optimizer's step and head.update come after it and are the caller's: their rate changes
    with every step. Loss and gradients of a replay lie in the graph's own memory and are good until the next call.
    """

    def __init__(self, backbone: nn.Module, head: MarginHead, precision: str | None = None, *, cuda_graph: bool = True):
        self._backbone, self._head, self._precision = backbone, head, precision
        self._trained = [value for part in (backbone, head) for value in part.parameters() if value.requires_grad]
        reason = _obstacle(backbone, head) if cuda_graph else f"{PLAINLY}, as was asked for"
        self._recordings = Recordings(reason, "shapes")

    @property
    def state(self) -> str:
        return self._recordings.state

    def __call__(self, image_B3HW: Tensor, label_B: Tensor, draw: int = 0) -> Tensor:
        key = image_B3HW.shape, label_B.shape
        recording = self._recordings.take(key, lambda: self._record(image_B3HW, label_B, draw))
        if recording is None:
            return self._run(_channels_last(image_B3HW), label_B, draw)
        self._head.inverse_norms()  # a replay reads them and cannot ask whether the weights have been changed
        loss_B, gradients = recording.run(image_B3HW, label_B)
        for parameter, gradient in zip(self._trained, gradients, strict=True):
            parameter.grad = gradient  # head.update drops that of the classifier
        return loss_B

    def _run(self, image_B3HW, label_B, draw):
        self._drop_gradients()
        with autocast(self._precision, label_B.device, cache=False):  # nothing cast outlives a step
            loss_B = self._head(self._backbone(image_B3HW), label_B, draw=draw)
        with matmul_precision(self._precision):
            loss_B.mean().backward()
        return loss_B.detach()  # autograd's graph must not outlive it: its nodes would keep the stream they began on

    def _record(self, image_B3HW, label_B, draw):
        """The step on copies of this batch, which it goes on reading; its gradients are made in the graph's memory."""
        self._drop_gradients()
        self._head.inverse_norms()
        image_B3HW, label_B = _channels_last(image_B3HW.clone()), label_B.clone()
        replay, written = record(lambda: _Written(self._run(image_B3HW, label_B, draw), self._gradients()))
        return _Recording(image_B3HW, label_B, replay, written)

    def _drop_gradients(self):
        for parameter in self._trained:
            parameter.grad = None

    def _gradients(self):
        return [parameter.grad for parameter in self._trained]


@dataclass
class _Written:
    loss_B: Tensor
    gradients: list[Tensor | None]


@dataclass(frozen=True)
class _Recording:
    """What `replay` launches reads `image_B3HW` and `label_B` and writes `written`."""

    image_B3HW: Tensor
    label_B: Tensor
    replay: Callable[[], None]
    written: _Written

    def run(self, image_B3HW, label_B):
        self.image_B3HW.copy_(image_B3HW, non_blocking=True)
        self.label_B.copy_(label_B, non_blocking=True)
        self.replay()
        return self.written.loss_B, self.written.gradients


def to_host(value: Tensor) -> Callable[[], Tensor]:
    """Queues a copy of a tensor; the function returned waits until it is there, and for nothing queued later."""
    if value.device.type != "cuda":
        return lambda: value
    copy = torch.empty(value.shape, dtype=value.dtype, pin_memory=True)
    copy.copy_(value, non_blocking=True)
    done = torch.cuda.current_stream(value.device).record_event()

    def read():
        done.synchronize()
        return copy

    return read


def _channels_last(image_B3HW):
    return image_B3HW.contiguous(memory_format=torch.channels_last)


def _obstacle(backbone, head):
    """Why steps cannot be recorded, or ""."""
    found = cuda_graph.obstacle(backbone)
    if not found and head.sample_rate < 1:
        return f"{PLAINLY}, for sample_rate {head.sample_rate:g} is drawn anew on the host for each; 1 is not drawn"
    if not found and head.group is not None:
        return f"{PLAINLY}, for the classifier is shared by several ranks"
    return found
