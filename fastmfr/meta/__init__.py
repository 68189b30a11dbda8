"""The meta step: every source domain left out once, looked ahead by one inner step, differentiated through.

For a split with meta-train loss L_S, meta-test loss L_T and inner step theta' = theta - alpha * grad L_S(theta):

    v = grad L_T at theta'        H = Hessian of L_S at theta
    gradient = gamma * grad L_S + (1 - gamma) * (v - alpha * H v)        exact; the mean over the splits is applied once

Source: arXiv 2003.07733, algorithm 1. H v comes from the R-operator where it covers the backbone, else from autograd
used twice; the two are equal up to rounding. Shape suffixes: B = pairs, H W = image.
"""

from collections.abc import Iterable

from torch import nn

from fastmfr.losses import MfrLosses
from fastmfr.meta.autograd import AutogradEngine
from fastmfr.meta.by_operator import OperatorEngine
from fastmfr.meta.records import MetaGradient, PairBatch
from fastmfr.meta.splits import one_by_one, shared
from fastmfr.rop import NoROperator

__all__ = ["MetaGradient", "PairBatch", "meta_gradient"]
CHOICES = {
    "engine": ("auto", "autograd", "rop"),
    "memory": ("auto", "kept", "streaming"),
    "batch_norm": ("batch", "frozen", "per_domain"),
    "sharing": ("none", "per_domain"),
}


def meta_gradient(
    backbone: nn.Module,
    splits: Iterable,
    *,
    alpha: float,
    gamma: float,
    order: int = 2,
    engine: str = "auto",
    memory: str = "auto",
    losses: MfrLosses | None = None,
    batch_norm: str = "batch",
    sharing: str = "none",
) -> MetaGradient:
    """The gradient of one meta-batch: the mean over splits of gamma * grad L_S + (1 - gamma) * d L_T(theta') / d theta.

    `splits`: (train, test) pairs with .gallery_B3HW, .probe_B3HW, .domain_B as PairBatch has them; read one at a time.
    `alpha` >= 0: inner step size. `gamma` in [0, 1]: weight of meta-train. `order`: 2 is exact, 1 leaves out the
    Hessian but keeps theta', 0 takes no look-ahead (alpha = 0: the plain sum of both losses). `batch_norm`: "batch"
    uses batch statistics in both passes and lets only the pass at theta update the running ones; "frozen" uses the
    running ones; "per_domain" takes batch statistics of each domain by itself.

    `engine`: "rop" is the R-operator, for backbones of convolutions, linear layers, BatchNorm, PReLU, ReLU, means and
    sums; "autograd" serves any module whose operations have a double backward; "auto" takes the R-operator where it
    applies, and the result says which and why. `memory`, of the R-operator: "kept" holds the state of the gradient's
    passes for H v; "streaming" makes it again, for a third more work in H v and about two thirds of the memory; "auto"
    keeps it where there is room.

    `sharing` "per_domain" takes each domain's gradient and Hessian once for all splits: `splits` are then the (train,
    test) batches of each domain, and split i trains on the trains of all domains but i and tests on the test of i. It
    is several times faster and another objective: each domain's pairs are drawn once and serve every split; L_S is
    the mean of the domains' own losses, so that no impostor pair or soft class crosses domains and nothing is
    aligned; BatchNorm must not mix domains.

    The backbone is not changed but for its running statistics. Raises ValueError for a setting outside these, for one
    that does not go with sharing, and for "rop" where it does not apply.
    """
    losses = losses or MfrLosses()
    _check(alpha, gamma, order, losses, engine=engine, memory=memory, batch_norm=batch_norm, sharing=sharing)
    if order == 0:
        alpha = 0.0
    order = order if alpha else 0  # at alpha = 0 the Hessian has no part in the gradient
    parameters = {name: value.detach() for name, value in backbone.named_parameters() if value.requires_grad}
    chosen, reason = _engine(engine, backbone, list(parameters), losses, batch_norm, memory)
    along = one_by_one if sharing == "none" else shared
    gradient, terms, norms = along(chosen, list(parameters.values()), splits, alpha, gamma, order)
    return MetaGradient(dict(zip(parameters, gradient, strict=True)), terms, norms, chosen.name, reason)


def _engine(wanted, backbone, names, losses, batch_norm, memory):
    """(engine, why it is not the R-operator)."""
    if wanted == "autograd":
        return AutogradEngine(backbone, names, losses, batch_norm), "autograd was asked for"
    try:
        return OperatorEngine(backbone, names, losses, batch_norm, memory), ""
    except NoROperator as error:
        if wanted == "rop":
            raise
        return AutogradEngine(backbone, names, losses, batch_norm), str(error)


def _check(alpha, gamma, order, losses, **choices):
    if order not in (0, 1, 2):
        raise ValueError(f"want order 0 (no look-ahead), 1 (first order) or 2 (exact), got {order!r}")
    if alpha < 0 or not 0 <= gamma <= 1:
        raise ValueError(f"want alpha >= 0 and gamma in [0, 1], got alpha {alpha} and gamma {gamma}")
    for name, value in choices.items():
        if value not in CHOICES[name]:
            raise ValueError(f"want {name} out of {', '.join(CHOICES[name])}, got {value!r}")
    if choices["sharing"] == "none":
        return
    if choices["batch_norm"] == "batch":
        raise ValueError(
            "sharing 'per_domain' needs statistics that do not mix domains, got batch_norm 'batch'; want batch_norm "
            "'per_domain' or 'frozen', or sharing 'none'"
        )
    if losses.domain_alignment:
        raise ValueError(
            "sharing 'per_domain' takes each domain's loss by itself, so it cannot align domains; want the weight "
            f"domain_alignment 0, got {losses.domain_alignment:g}, or sharing 'none'"
        )
