"""What the meta step takes and gives. Shape suffixes: B = pairs, P = parameters laid end to end, H W = image."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class PairBatch:
    """B pairs: row i of `gallery_B3HW` and of `probe_B3HW` show one person, who is of domain `domain_B[i]`."""

    gallery_B3HW: Tensor
    probe_B3HW: Tensor
    domain_B: Tensor


@dataclass(frozen=True)
class Summand:
    """gamma g + (1 - gamma) (v - alpha hv): what one split adds to the meta-gradient, or all that share their passes.

    Flat buffers, good until the next summand is asked for; `hv_P` is None where the second order is left out. `losses`
    and `norms` are {name: (splits,)}, as MetaGradient has them.
    """

    g_P: Tensor
    v_P: Tensor
    hv_P: Tensor | None
    alpha: float
    losses: dict[str, Tensor]
    norms: dict[str, Tensor]


@dataclass(frozen=True)
class MetaGradient:
    """`grad`: {parameter name: tensor}, the mean over the splits. `losses`, `norms`: {name: (splits,)}, detached.

    losses: hard_pair, soft_classification, domain_alignment, total of meta-train; the same with _test at theta';
    positives and negatives, the sizes of the mined sets. norms: meta_train = |grad L_S|, meta_test = |v|,
    alpha_hv_over_v = alpha |H v| / |v| (0 for order below 2; where splits share their Hessians, that of all splits
    together), share_NAME = the part of the gradient on the meta-train embeddings that loss NAME supplies.
    `engine`: "rop" or "autograd", whichever was taken; `reason`: why it was not the R-operator, or "".
    """

    grad: dict[str, Tensor]
    losses: dict[str, Tensor]
    norms: dict[str, Tensor]
    engine: str
    reason: str


@dataclass(frozen=True)
class MetaStep:
    """What a step of MetaTrainer tells, on its device: `losses` and `norms` as of MetaGradient, and the length of the
    mean gradient, without weight decay."""

    losses: dict[str, Tensor]
    norms: dict[str, Tensor]
    gradient_norm: Tensor
