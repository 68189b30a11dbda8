"""Whether stage one runs through torch.compile: as was asked for, or as steps with and without it, timed in turn, say.

Shape suffixes: B = images of a batch, H W = image.
"""

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from fastmfr.head import MarginHead
from fastmfr.training.pretraining_step import PretrainingStep
from fastmfr.training.resuming import COMPILE, MadeWith
from fastmfr.training.run import Run

WORTH_FROM = 1800.0  # seconds of a stage: compiling takes minutes, which a shorter stage hardly wins back
ROUNDS = 5  # timed steps of each network
_UNTIMED = 3  # first steps: kernels are compiled in one, a GPU's are recorded in the next


def compiled_or_not(
    run: Run, backbone: nn.Module, network: nn.Module, head: MarginHead, images: int, steps: int
) -> nn.Module:
    """Choose what runs in stage one, by `pretrain.compile`, and say what and why. Weights and statistics stay.

    Args:
        run: the run.
        backbone: the network that is trained.
        network: what runs in its place without torch.compile.
        head: the classifier.
        images: images of a batch of this process.
        steps: steps that are left to take.

    Returns:
        `network`, or the backbone as torch.compile makes it.

    Raises:
        ValueError: `pretrain.compile` is "on", and the backbone cannot be compiled.
    """
    choice = run.config.pretrain.compile
    if choice == "off":
        return network
    say = lambda sentence: run.logbook.say(f"pretrain: {sentence}")  # noqa: E731
    if choice == "auto" and run.ranks.group is not None:
        say(f"not compiled: {COMPILE} auto compares in one process; on and off take several")
        return network
    with _left_as_they_are(backbone, head, run.device):
        steps_of = lambda one: _steps_of(run, one, head, images)  # noqa: E731
        if choice == "on":
            chosen, sentence = _as_asked(backbone, steps_of, say)
        else:
            chosen, sentence = _by_time(backbone, network, steps_of, steps, say)
            MadeWith(run.folder).keep_choice(COMPILE, "off" if chosen is network else "on")
    say(sentence)
    return chosen


def _as_asked(backbone, steps_of, say):
    """(the compiled backbone, a sentence). Raises ValueError."""
    try:
        compiled, _, seconds = _compiled(backbone, steps_of, say)
    except _CannotCompile as error:
        raise ValueError(
            f"{COMPILE} on: {error}; want {COMPILE} off, or what torch.compile needs: a C++ compiler; Triton on a GPU"
        ) from error
    return compiled, f"compiled by torch.compile, in {seconds:.0f} s"


def _by_time(backbone, network, steps_of, steps, say):
    """(the faster one of the network and the compiled backbone, a sentence)."""
    plain = steps_of(network)
    left = steps * statistics.median(plain() for _ in range(ROUNDS))
    if left < WORTH_FROM:
        return network, f"not compiled: {steps:,} steps take about {left:.0f} s, too few to win back the compiling"
    try:
        compiled, with_it, seconds = _compiled(backbone, steps_of, say)
    except _CannotCompile as error:
        return network, f"not compiled: {error}"
    ratio = statistics.median(with_it() / plain() for _ in range(ROUNDS))
    chosen, found = (compiled, "compiled by torch.compile") if ratio < 1 else (network, "not compiled")
    took = f"with torch.compile a step takes {ratio:.2f} x its time without, median of {ROUNDS} in turn"
    return chosen, f"{found}: {took}; compiling took {seconds:.0f} s"


class _CannotCompile(Exception):
    """Why torch.compile cannot make a backbone."""


def _compiled(backbone, steps_of, say) -> tuple[Any, Callable[[], float], float]:
    """(the compiled backbone, its steps, seconds that compiling took). Raises _CannotCompile."""
    say("torch.compile compiles the backbone, which takes one minute to five")
    begin = time.perf_counter()
    compiled = torch.compile(backbone, dynamic=False, fullgraph=True)  # else what it cannot compile stays as it is
    try:
        taken = steps_of(compiled)
    except Exception as error:  # a compiler, and the network's code under its eyes, may raise anything
        reason, *_ = " ".join(str(error).split()).split(" Set TORCH")  # what follows is for PyTorch's developers
        raise _CannotCompile(f"torch.compile cannot make one graph of this backbone here ({reason[:300]})") from error
    return compiled, taken, time.perf_counter() - begin


def _steps_of(run, network, head, images) -> Callable[[], float]:
    """A function that takes a step of stage one up to its gradients, on images of noise, and returns its seconds."""
    settings, size, device = run.config.pretrain, run.config.data.size, run.device
    image_B3HW = torch.rand(images, 3, size, size, device=device).mul_(2).sub_(1)
    label_B = torch.randint(head.identities, (images,), device=device)
    step_of = PretrainingStep(network, head, settings.precision, cuda_graph=settings.cuda_graph)

    def take():
        begin = time.perf_counter()
        step_of(image_B3HW, label_B)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - begin

    for _ in range(_UNTIMED):
        take()
    return take


@contextmanager
def _left_as_they_are(backbone, head, device) -> Iterator[None]:
    """After the block buffers are what they were, there are no gradients, and random numbers go on as before."""
    own = [*backbone.buffers(), *(head.margin.buffers() if isinstance(head.margin, nn.Module) else ())]
    before = [buffer.clone() for buffer in own]
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        try:
            yield
        finally:
            with torch.no_grad():
                for buffer, value in zip(own, before, strict=True):
                    buffer.copy_(value)
            for parameter in (*backbone.parameters(), *head.parameters()):
                parameter.grad = None
