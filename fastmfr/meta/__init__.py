"""The meta step: every source domain left out once, looked ahead by one inner step, differentiated through.

For a split with meta-train loss L_S, meta-test loss L_T and inner step theta' = theta - alpha * grad L_S(theta):

    v = grad L_T at theta'        H = Hessian of L_S at theta
    gradient = gamma * grad L_S + (1 - gamma) * (v - alpha * H v)        exact; one update by the mean over the splits

Source: arXiv 2003.07733, algorithm 1. H v comes from the R-operator if it covers the backbone, else from autograd
used twice; the two are equal up to rounding. Shape suffixes: B = pairs, H W = image.
"""

from collections.abc import Iterable
from typing import Any

from torch import nn

from fastmfr.config.choices import Engine as EngineChoice
from fastmfr.config.meta_settings import MetaSettings
from fastmfr.flat import Flat, trained_parameters
from fastmfr.kernels import add_split  # pyright: ignore[reportMissingImports]  # the folder kernels/
from fastmfr.losses import MfrLosses
from fastmfr.meta.engine import Engine, gradients_on, make_engine
from fastmfr.meta.pair_batches import splits_of_batch
from fastmfr.meta.splits import concatenated, summands
from fastmfr.meta.trainer import MetaTrainer
from fastmfr.meta.types import MetaGradient, MetaStep, PairBatch, Split, TestPass, TrainPass

__all__ = [
    "Engine",
    "MetaGradient",
    "MetaSettings",
    "MetaStep",
    "MetaTrainer",
    "PairBatch",
    "TestPass",
    "TrainPass",
    "meta_gradient",
    "splits_of_batch",
]


@gradients_on()
def meta_gradient(
    backbone: nn.Module,
    splits: Iterable[Split],
    *,
    alpha: float,
    gamma: float,
    order: int = 2,
    engine: EngineChoice = "auto",
    losses: MfrLosses | None = None,
    **settings: Any,
) -> MetaGradient:
    """Compute the gradient of one meta-batch: the mean over splits of gamma * grad L_S + (1 - gamma) * d L_T / d theta.

    The backbone stays as it is, but for running statistics and other buffers. The pass over each train batch changes
    them, once; with batch_norm "frozen" no buffer changes, and InstanceNorm uses its running statistics too.
    Activation checkpoints (use_reentrant=False) and attention are exact. At order 2 attention is computed by matrix
    products, and what torch.compile has compiled runs uncompiled. torch.no_grad() around the call has no effect.

    With sharing "per_domain" each domain costs one gradient and one Hessian-vector product for all splits. That is
    several times faster, and another objective: each domain's pairs serve every split; L_S is the mean of the domains'
    losses, so no impostor pair and no soft class crosses domains, and nothing is aligned.

    Args:
        backbone: Any module that maps image_B3HW to embedding_BD.
        splits: (train, test) batches, read one at a time. With sharing they are the batches of each domain: split i
            trains on the train batches of all domains but i and tests on the test batch of i.
        alpha: Inner step size, >= 0.
        gamma: Weight of meta-train, in [0, 1].
        order: 2 is exact. 1 leaves out the Hessian but keeps theta'. 0 takes no look-ahead (alpha = 0), which leaves
            the weighted sum of both losses.
        engine: "rop" is the R-operator, for backbones of convolutions, linear layers, normalisation, activations,
            pooling, sums, products and concatenation. "autograd" serves any module whose operations have a double
            backward. "auto" is the R-operator if it applies; the result says which engine was used and why.
        losses: The losses of a split; None takes the paper's settings.
        **settings: `memory`, `batch_norm`, `sharing`, `precision` and `curvature`, as
            `fastmfr.config.meta_settings.GradientSettings` explains them. Losses are computed in full
            precision.

    Returns:
        The gradient by parameter name, and the losses and norms of each split.

    Raises:
        ValueError: If a setting is out of range, if settings do not go together, if "rop" does not apply, if there are
            too few splits, or if the backbone returns something else than embeddings (B, D), is lazy, or is wrapped in
            TorchScript or DistributedDataParallel.
        RuntimeError: If the backbone reads a parameter in another way than from its module, or uses a reentrant
            checkpoint. At order 2 also if an operation of the backbone or of the losses has no double backward.
    """
    losses = losses or MfrLosses()
    chosen = MetaSettings(gamma, engine, order=order, **settings)
    chosen.check(alpha, losses)
    trained = {name: value.detach() for name, value in trained_parameters(backbone).items()}
    used, reason = make_engine(backbone, list(trained), chosen)
    flat = Flat(trained)
    theta_P = flat.fill(flat.empty(), list(trained.values()))
    total_P, logs = theta_P.new_empty(0), []
    for part, _ in summands(chosen, used, flat, theta_P, splits, alpha, losses):
        total_P = total_P if logs else flat.zeros()  # not before: the first split's passes want the memory
        add_split(total_P, part.g_P, part.v_P, part.hv_P, part.alpha, gamma)
        logs.append((part.losses, part.norms))
    terms, norms = concatenated(logs)
    return MetaGradient(flat.by_name(total_P.div_(len(terms["total"]))), terms, norms, used.name, reason)
