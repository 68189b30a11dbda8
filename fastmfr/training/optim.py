"""Optimizers and schedules of the two stages. Every rate is a pure function of the step, so resuming needs no state."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch


def sgd(parameters: Iterable[torch.nn.Parameter], momentum: float, weight_decay: float) -> torch.optim.SGD:
    """Make the optimizer of both stages, over those of the parameters that are trained.

    The learning rate is 0 until `set_rate` is called, which each step does.
    """
    wanted = [parameter for parameter in parameters if parameter.requires_grad]
    return torch.optim.SGD(wanted, lr=0.0, momentum=momentum, weight_decay=weight_decay, fused=True)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of every group."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def pretrain_rate(step: int, steps: int, peak: float, warmup: int) -> float:
    """Return the learning rate of a pretraining step: a linear warm-up to a peak, then a cosine to 0.

    Args:
        step: Number of the step, from 0.
        steps: Number of the step at which the cosine reaches 0.
        peak: Largest learning rate.
        warmup: Steps of the warm-up; step `warmup` - 1 has the peak.
    """
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


@dataclass(frozen=True)
class MetaRates:
    """What changes over the meta stage.

    Attributes:
        alpha: Inner step size.
        beta: Learning rate.
        tau_p: A genuine pair below this cosine is hard.
        tau_n: An impostor pair above this cosine is hard.
    """

    alpha: float
    beta: float
    tau_p: float
    tau_n: float


def meta_rates(step: int, *, alpha: float, beta: float, tau_p: float, tau_n: float, decay_every: int) -> MetaRates:
    """Return the rates and thresholds of a meta step by the paper's schedule (arXiv 2003.07733, section 4.2).

    Every `decay_every` steps alpha and beta halve, tau_p rises by 0.1 and tau_n doubles. With the paper's tau_n of
    0.04, tau_n is above 1 from the fifth time on, so no impostor pair is hard any more.

    Args:
        step: Number of the step, from 0.
        alpha: Inner step size at step 0.
        beta: Learning rate at step 0.
        tau_p: Threshold of genuine pairs at step 0.
        tau_n: Threshold of impostor pairs at step 0.
        decay_every: Steps between two changes.
    """
    times = step // decay_every
    return MetaRates(alpha * 0.5**times, beta * 0.5**times, tau_p + 0.1 * times, tau_n * 2.0**times)
