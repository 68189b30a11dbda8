"""The meta step: every source domain left out once, looked ahead by one inner step, differentiated through.

For a split with meta-train loss L_S, meta-test loss L_T and inner step theta' = theta - alpha * grad L_S(theta):

    v = grad L_T at theta'        H = Hessian of L_S at theta
    gradient = gamma * grad L_S + (1 - gamma) * (v - alpha * H v)        exact; the mean over the splits is applied once

Source: arXiv 2003.07733, algorithm 1. H v comes from the R-operator where it covers the backbone, else from autograd
used twice; the two are equal up to rounding. Shape suffixes: B = pairs, H W = image.
"""

from collections.abc import Iterable

from torch import nn

from fastmfr.config.choices import Engine
from fastmfr.config.meta_settings import MetaSettings
from fastmfr.flat import Flat
from fastmfr.kernels import add_split  # pyright: ignore[reportMissingImports]  # the folder kernels/
from fastmfr.losses import MfrLosses
from fastmfr.meta.engine import make_engine
from fastmfr.meta.splits import joined, summands
from fastmfr.meta.trainer import MetaTrainer
from fastmfr.meta.types import MetaGradient, MetaStep, PairBatch

__all__ = ["MetaGradient", "MetaSettings", "MetaStep", "MetaTrainer", "PairBatch", "meta_gradient"]


def meta_gradient(
    backbone: nn.Module,
    splits: Iterable,
    *,
    alpha: float,
    gamma: float,
    order: int = 2,
    engine: Engine = "auto",
    losses: MfrLosses | None = None,
    **settings,
) -> MetaGradient:
    """The gradient of one meta-batch: the mean over splits of gamma * grad L_S + (1 - gamma) * d L_T(theta') / d theta.

    `splits`: (train, test) pairs with .gallery_B3HW, .probe_B3HW, .domain_B as PairBatch has them; read one at a time.
    `alpha` >= 0: inner step size. `gamma` in [0, 1]: weight of meta-train. `order`: 2 is exact, 1 leaves out the
    Hessian but keeps theta', 0 takes no look-ahead (alpha = 0: the plain sum of both losses).

    `engine`: "rop" is the R-operator, for backbones of convolutions, linear layers, BatchNorm, PReLU, ReLU, means and
    sums; "autograd" serves any module whose operations have a double backward; "auto" takes the R-operator where it
    applies, and the result says which and why. `settings`, of MetaSettings:

    `memory`, of the R-operator: "kept" holds the state of the gradient's passes for H v; "streaming" makes it again,
    for a third more work in H v and about two thirds of the memory; "auto" keeps it where there is room.

    `batch_norm`: "batch" uses batch statistics in both passes and lets only the pass at theta update the running ones;
    "frozen" uses the running ones; "per_domain" takes batch statistics of each domain by itself.

    `precision` of the passes for gradients and `curvature` of those for H v: "fp32", "tf32", "bf16" (see
    fastmfr.precision), or None: as PyTorch is set, and like the former. The losses are always in full.

    `sharing` "per_domain" takes each domain's gradient and Hessian once for all splits: `splits` are then the (train,
    test) batches of each domain, and split i trains on the trains of all domains but i and tests on the test of i. It
    is several times faster and another objective: each domain's pairs are drawn once and serve every split; L_S is
    the mean of the domains' own losses, so that no impostor pair or soft class crosses domains and nothing is
    aligned; BatchNorm must not mix domains.

    The backbone is not changed but for its running statistics. Raises ValueError for a setting outside these, for
    settings that do not go together, and for "rop" where it does not apply.
    """
    losses = losses or MfrLosses()
    chosen = MetaSettings(gamma, engine, order=order, **settings)
    chosen.check(alpha, losses)
    trained = {name: value.detach() for name, value in backbone.named_parameters() if value.requires_grad}
    takes, reason = make_engine(backbone, list(trained), chosen)
    flat = Flat(trained)
    theta_P = flat.fill(flat.empty(), list(trained.values()))
    total_P, logs = theta_P.new_empty(0), []
    for part, _ in summands(chosen, takes, flat, theta_P, splits, alpha, losses):
        total_P = total_P if logs else flat.zeros()  # not before: the first split's passes want the memory
        add_split(total_P, part.g_P, part.v_P, part.hv_P, part.alpha, gamma)
        logs.append((part.losses, part.norms))
    terms, norms = joined(logs)
    return MetaGradient(flat.by_name(total_P.div_(len(terms["total"]))), terms, norms, takes.name, reason)
