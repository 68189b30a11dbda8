"""What the meta step takes and returns. Shape suffixes: B = pairs, P = parameters laid end to end, H W = image."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from fastmfr.losses import MfrTerms


@dataclass(frozen=True)
class PairBatch:
    """B pairs of images; row i of both image tensors shows one person.

    Attributes:
        gallery_B3HW: One image of each person, floating point.
        probe_B3HW: Another image of each person, of the same shape and dtype.
        domain_B: The number of each person's domain, int64.
    """

    gallery_B3HW: Tensor
    probe_B3HW: Tensor
    domain_B: Tensor


Split = tuple[PairBatch, PairBatch]  # (train, test)


@dataclass(frozen=True)
class TrainPass:
    """What an engine computes of a meta-train batch at theta. H is the Hessian of the total loss at theta.

    Attributes:
        terms: The losses.
        loss_gradient_norms: Shape (3,), in the order of `fastmfr.losses.LOSSES`: the norm of each weighted loss's
            gradient on the embeddings.
        gradient: The gradient of the total loss, in the order of theta.
        hvp: Maps a vector v, in the order of theta, to the Hessian-vector product H v. It may be called once, and only
            if the pass was made with `second_order`.
    """

    terms: MfrTerms
    loss_gradient_norms: Tensor
    gradient: Sequence[Tensor]
    hvp: Callable[[Sequence[Tensor]], Sequence[Tensor]]


@dataclass(frozen=True)
class TestPass:
    """What an engine computes of a meta-test batch at theta'.

    Attributes:
        terms: The losses, without domain alignment.
        gradient: The gradient of the total loss, in the order of theta'.
    """

    __test__ = False  # pytest would collect the class

    terms: MfrTerms
    gradient: Sequence[Tensor]


@dataclass(frozen=True)
class Summand:
    """One summand of the meta-gradient: gamma * g + (1 - gamma) * (v - alpha * hv).

    With sharing 'none' there is one summand for each split. With 'per_domain' a single summand covers all splits.

    Attributes:
        g_P: Gradient of meta-train. The three buffers are overwritten when the next summand is computed.
        v_P: Gradient of meta-test at theta'.
        hv_P: The Hessian-vector product H v, or None below order 2.
        alpha: The factor of `hv_P`.
        losses: As of MetaGradient.
        norms: As of MetaGradient.
    """

    g_P: Tensor
    v_P: Tensor
    hv_P: Tensor | None
    alpha: float
    losses: dict[str, Tensor]
    norms: dict[str, Tensor]


@dataclass(frozen=True)
class MetaGradient:
    """The gradient of one meta-batch and what was measured on the way. All tensors are detached.

    Attributes:
        grad: {parameter name: gradient}, the mean over the splits.
        losses: {name: (splits,)}. Of meta-train at theta: hard_pair, soft_classification, domain_alignment, their
            weighted sum total, and the sizes of the mined sets, positives and negatives. Of meta-test at theta': the
            same but domain_alignment, with the ending _test.
        norms: {name: (splits,)}. meta_train is |grad L_S|. meta_test is |v|. alpha_hv_over_v is alpha |H v| / |v|: 0
            below order 2, and a single figure for all splits with sharing 'per_domain'. share_NAME, in [0, 1], is the
            norm of loss NAME's gradient on the meta-train embeddings, divided by the sum of the three norms.
        engine: "rop" or "autograd", the engine that was used.
        reason: Why the engine was not the R-operator, or "".
    """

    grad: dict[str, Tensor]
    losses: dict[str, Tensor]
    norms: dict[str, Tensor]
    engine: str
    reason: str


@dataclass(frozen=True)
class MetaStep:
    """What a step of MetaTrainer measured, on the device of the backbone.

    Attributes:
        losses: As of MetaGradient.
        norms: As of MetaGradient.
        gradient_norm: Norm of the mean gradient, without weight decay; a tensor of shape ().
    """

    losses: dict[str, Tensor]
    norms: dict[str, Tensor]
    gradient_norm: Tensor
