"""Optimizers and schedules of the two stages. Every rate is a pure function of the step, so resuming needs no state."""

import math
from dataclasses import dataclass

import torch


def sgd(parameters, momentum, weight_decay):
    """SGD as both stages use it, over all that is trained, weight decay included; the rate is set before each step."""
    wanted = [parameter for parameter in parameters if parameter.requires_grad]
    return torch.optim.SGD(wanted, lr=0.0, momentum=momentum, weight_decay=weight_decay)


def set_rate(optimizer, rate):
    """Sets the learning rate of every group."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def pretrain_rate(step, steps, peak, warmup):
    """Linear warm-up over `warmup` steps to `peak`, then a cosine to 0 at `steps`."""
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


@dataclass(frozen=True)
class MetaRates:
    """What changes over the meta stage: inner rate alpha, outer rate beta, hard-pair thresholds tau_p, tau_n."""

    alpha: float
    beta: float
    tau_p: float
    tau_n: float


def meta_rates(step, *, alpha, beta, tau_p, tau_n, decay_every):
    """The paper's schedule: every `decay_every` steps both rates halve, tau_p rises by 0.1 and tau_n doubles.

    From the fifth time on tau_n is above 1, so no impostor pair is hard any more (arXiv 2003.07733, section 4.2).
    """
    times = step // decay_every
    return MetaRates(alpha * 0.5**times, beta * 0.5**times, tau_p + 0.1 * times, tau_n * 2.0**times)
