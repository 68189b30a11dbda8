"""Recording what a step launches as one CUDA graph: the host then launches it whole, not kernel after kernel."""

import contextlib
from collections.abc import Callable

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from fastmfr.kernels import batchnorm_prelu  # pyright: ignore[reportMissingImports]  # the folder kernels/

PLAINLY = "steps run operation by operation"


class Recordings:
    """Says for each step whether it runs as it is or from a recording, of which there is one at a time.

    A graph holds shapes and numbers as they were recorded: they are a step's `key`. So the first step with a new key
    runs as it is, which also compiles kernels; the second is recorded; it and those after it are replayed. `state` says
    in a sentence whether steps are replayed, and if not, why; `obstacle` is such a reason, or "".
    """

    def __init__(self, obstacle: str, what_must_stay: str):
        self.is_possible, self._key, self._recording = not obstacle, None, None
        self.state = obstacle or f"a step is recorded as a CUDA graph as soon as two have had the same {what_must_stay}"

    def take(self, key, make: Callable):
        """The recording to replay for a step with this key, by `make()` where it is due; None: run the step as it is.

        `make` may raise RuntimeError for a step that cannot be recorded: then none is tried again.
        """
        if not self.is_possible:
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
    """Why no step of the network can be recorded, or ""."""
    device = next((value.device for value in network.parameters()), torch.device("cpu"))
    if device.type != "cuda":
        return f"{PLAINLY}, for the device is {device}, which has no CUDA graphs"
    for name, module in network.named_modules():
        if isinstance(module, _BatchNorm) and module.momentum is None:
            return f"{PLAINLY}, for {name} counts its batches on the host; a momentum such as 0.1 does not"
    return ""


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
    """Ends a recording that went wrong. Else its memory would stay its own, and blocks freed later would not return."""
    _tried(graph.capture_end)  # it may have ended before
    try:
        graph.pool()  # known only of a recording that has ended, and of such a one the graph itself lets go
    except RuntimeError:
        _tried(torch._C._cuda_endAllocateToPool, device.index, pool)
        _tried(torch._C._cuda_releasePool, device.index, pool)  # twice would be an error at every emptying of caches
    _tried(graph.reset)
    _tried(torch.cuda.synchronize)  # an error that is still on its way is raised here, not by the next step


def _tried(function, *arguments):
    with contextlib.suppress(RuntimeError):
        function(*arguments)
