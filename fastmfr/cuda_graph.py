"""Recording what a step launches as one CUDA graph, which the host then launches whole, not kernel after kernel."""

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from fastmfr.kernels import batchnorm_prelu  # pyright: ignore[reportMissingImports]  # the folder kernels/
from fastmfr.profiling import is_taken_apart

__all__ = ["PLAINLY", "Recordings", "obstacle", "record"]

PLAINLY = "steps run operation by operation"


class Recordings:
    """Decides for each step whether the step runs as it is or from a recording; there is one recording at a time.

    A graph holds shapes and numbers as they were recorded. They are the step's key. The first step with a new key runs
    as it is, which also compiles kernels. The second one is recorded. The second one and the following ones are
    replayed.

    Args:
        obstacle: Why nothing can be recorded, as a sentence, or "".
        what_must_stay: What a key consists of, in words for `state`, such as "shapes".

    Attributes:
        is_possible: Whether steps can be recorded.
        state: A sentence: whether steps are replayed, and if not, why.
    """

    def __init__(self, obstacle: str, what_must_stay: str):
        self.is_possible = not obstacle
        self._key, self._recording = None, None
        self.state = obstacle or f"a step is recorded as a CUDA graph as soon as two have had the same {what_must_stay}"

    def take(self, key: Any, make: Callable[[], Any]) -> Any:
        """Return the recording to replay for a step, or None if the step is to run as it is.

        Args:
            key: The shapes and numbers that a recording holds; compared by ==.
            make: Records the step. If it raises RuntimeError, no step is recorded from then on.
        """
        if not self.is_possible or is_taken_apart():
            return None
        if key != self._key:
            self._key, self._recording = key, None
        elif self._recording is None:
            self._recording = self._make(make)
        return self._recording

    def _make(self, make):
        try:
            recording = make()
        except RuntimeError as error:
            self.is_possible = False
            reason = " ".join(str(error).split())
            self.state = f"{PLAINLY}, for they could not be recorded as a CUDA graph: {reason}"
            return None
        self.state = "steps are replayed from a CUDA graph"
        return recording


def obstacle(network: nn.Module) -> str:
    """Return why no step of the network can be recorded, as a sentence, or ""."""
    device = next((value.device for value in network.parameters()), torch.device("cpu"))
    if device.type != "cuda":
        return f"{PLAINLY}, for the device is {device}, which has no CUDA graphs"
    for name, module in network.named_modules():
        if isinstance(module, _BatchNorm) and module.momentum is None:
            return f"{PLAINLY}, for {name} counts its batches on the host; a momentum such as 0.1 does not"
    return ""


def record(function: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
    """Record what a function launches on the current GPU; nothing of it runs yet.

    Args:
        function: What to record. It must not wait for the device.

    Returns:
        A function that replays the recording, and what `function` returned: tensors that each replay writes.

    Raises:
        RuntimeError: If an operation cannot be recorded.
    """
    graph, pool, side = torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle(), torch.cuda.Stream()
    with torch.cuda.stream(side):  # left again after an error too, unlike in torch.cuda.graph
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
    """End a recording that failed. Else its memory would stay reserved, and blocks freed later would not return."""
    _tried(graph.capture_end)  # it may have ended before
    try:
        graph.pool()  # raises unless the recording has ended; if it has, the graph frees the pool itself
    except RuntimeError:
        _tried(torch._C._cuda_endAllocateToPool, device.index, pool)
        _tried(torch._C._cuda_releasePool, device.index, pool)  # twice would be an error at every emptying of caches
    _tried(graph.reset)
    _tried(torch.cuda.synchronize)  # an error that is still on its way is raised here, not by the next step


def _tried(function, *arguments):
    with contextlib.suppress(RuntimeError):
        function(*arguments)
