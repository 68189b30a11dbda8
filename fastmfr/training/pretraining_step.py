"""A pretraining step up to its gradients, recorded as one CUDA graph, and its loss, read while the GPU goes on.

Shape suffixes: B = batch, H W = image.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fastmfr import cuda_graph
from fastmfr.config.choices import Precision
from fastmfr.cuda_graph import PLAINLY, Recordings, record
from fastmfr.head import MarginHead
from fastmfr.precision import autocast, matmul_precision
from fastmfr.profiling import BACKWARD, FORWARD, LOSSES, REPLAY, part_of_step


class PretrainingStep:
    """Forward and backward pass of pretraining, replayed on a GPU from a CUDA graph.

    `fastmfr.cuda_graph.Recordings` decides when a step is replayed. The caller takes the step of the optimizer and
    calls `head.update` afterwards, because the learning rate changes with every step.

    Args:
        backbone: Maps image_B3HW to embedding_BD.
        head: The classifier.
        precision: Of convolutions and matrix products; None leaves torch's settings as they are.
        cuda_graph: Whether steps on a GPU may be recorded.
    """

    def __init__(
        self, backbone: nn.Module, head: MarginHead, precision: Precision | None = None, *, cuda_graph: bool = True
    ):
        self._backbone, self._head = backbone, head
        self._precision: Precision | None = precision
        self._trained = [value for part in (backbone, head) for value in part.parameters() if value.requires_grad]
        reason = obstacle(backbone, head) if cuda_graph else f"{PLAINLY}, as was asked for"
        self._recordings = Recordings(reason, "shapes")

    @property
    def state(self) -> str:
        """Return a sentence: whether steps are replayed, and if not, why."""
        return self._recordings.state

    def __call__(self, image_B3HW: Tensor, label_B: Tensor, draw: int = 0) -> Tensor:
        """Compute the loss of a batch, and the gradients of its mean in `.grad` of all trained parameters.

        Args:
            image_B3HW: Images, floating point.
            label_B: Identities in [-1, identities), int64; -1 is ignored.
            draw: Number of the step, as `MarginHead.forward` takes it.

        Returns:
            loss_B, detached. Loss and gradients of a replay lie in the graph's memory and are valid until the next
            call.
        """
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
            with part_of_step(FORWARD):
                embedding_BD = self._backbone(image_B3HW)
            with part_of_step(LOSSES):
                loss_B = self._head(embedding_BD, label_B, draw=draw)
        with part_of_step(BACKWARD), matmul_precision(self._precision):
            loss_B.mean().backward()
        return loss_B.detach()  # autograd's graph must not live on: its nodes would keep the stream they began on

    def _record(self, image_B3HW, label_B, draw):
        """Record the step on copies of this batch, which a replay reads; gradients lie in the graph's memory."""
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
        with part_of_step(REPLAY):
            self.image_B3HW.copy_(image_B3HW, non_blocking=True)
            self.label_B.copy_(label_B, non_blocking=True)
            self.replay()
        return self.written.loss_B, self.written.gradients


def to_host(value: Tensor) -> Callable[[], Tensor]:
    """Queue a copy of a tensor to the host.

    Returns:
        A function that returns the copy. It waits until the copy is complete, but for nothing that is queued later.
    """
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


def obstacle(backbone: nn.Module, head: MarginHead) -> str:
    """Return why steps of the backbone and its classifier cannot be recorded, as a sentence, or ""."""
    found = cuda_graph.obstacle(backbone)
    if not found and head.sample_rate < 1:
        return f"{PLAINLY}, for sample_rate {head.sample_rate:g} draws identities on the host at each step; 1 does not"
    if not found and head.group is not None:
        return f"{PLAINLY}, for the classifier's weights are spread over several ranks"
    return found
