"""The settings of the three losses and of the meta-gradient.

`fastmfr.losses.MfrLosses` computes with LossSettings, and `fastmfr.meta` with MetaSettings. The section `meta` of a
recipe inherits both classes, and the docstrings of the fields are its `--help`. Nothing here needs torch, so that
`--help` stays fast. The defaults are the paper's (arXiv 2003.07733).
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from fastmfr.config.checks import require, require_choice, require_kinds
from fastmfr.config.choices import AUTO, BatchNormStatistics, Engine, Memory, Mining, Precision, Sharing

__all__ = ["GradientSettings", "LossSettings", "MetaSettings"]


@dataclass(frozen=True)
class LossSettings:
    """Weights, thresholds and scale of the three losses of a split. Raises ValueError for a number out of range."""

    prefix: ClassVar[str] = ""  # what stands before a setting's name in an error: "meta." in the section of a recipe
    may_be_auto: ClassVar[tuple[str, ...]] = ()  # weights that may be "auto" in the section of a recipe

    tau_p: float = 0.3
    """a genuine pair below this cosine is hard"""
    tau_n: float = 0.04
    """an impostor pair above this cosine is hard"""
    scale: float = 64.0
    """multiplies the cosines of soft classification and the means of domain alignment"""
    hard_pair: float = 1.0
    """weight of the hard-pair loss"""
    soft_classification: float = 1.0
    """weight of the soft classification loss"""
    domain_alignment: float = 1.0
    """weight of the domain alignment loss; domains that lie far apart want about 1/4096"""
    mining: Mining = "threshold"
    """how hard pairs are found: 'threshold' uses tau_p and tau_n, 'share' takes the hardest share_p and share_n"""
    share_p: float = 0.4
    """fraction of the genuine pairs that mining 'share' takes as hard"""
    share_n: float = 0.01
    """fraction of the impostor pairs that mining 'share' takes as hard"""
    detach_prototypes: bool = False
    """stop the gradient through the prototypes of soft classification"""

    def __post_init__(self):
        require_kinds(self)
        for name in ("tau_p", "tau_n"):  # above 1 or below -1 takes all pairs or none, as the schedule comes to do
            require(math.isfinite(getattr(self, name)), f"want {self.prefix}{name} finite, got {getattr(self, name)}")
        require(0 < self.scale < math.inf, f"want {self.prefix}scale > 0 and finite, got {self.scale}")
        for name in ("hard_pair", "soft_classification", "domain_alignment"):
            if name in self.may_be_auto and getattr(self, name) == AUTO:
                continue
            weight: Any = getattr(self, name)
            is_number = isinstance(weight, int | float) and not isinstance(weight, bool)
            require(is_number, f"want the weight {self.prefix}{name} as a number, got {weight!r}")
            require(0 <= weight < math.inf, f"want the weight {self.prefix}{name} >= 0 and finite, got {weight}")
        require_choice(f"{self.prefix}mining", self.mining, Mining)
        for name in ("share_p", "share_n"):
            share = getattr(self, name)
            require(0 < share <= 1, f"want {self.prefix}{name} above 0 and at most 1, got {share}")


@dataclass(frozen=True)
class GradientSettings:
    """How a meta-gradient is computed, but for its order. Raises ValueError for settings that do not go together."""

    prefix: ClassVar[str] = ""

    gamma: float = 0.5
    """weight of the meta-train gradient, from 0 to 1; the meta-test gradient gets the rest"""
    engine: Engine = "auto"
    """what computes the Hessian-vector product H v: the R-operator ('rop'), 'autograd' used twice, or 'auto', which is
    the R-operator if it covers the network"""
    memory: Memory = "auto"
    """of the R-operator: 'kept' holds the state of the gradient's passes for H v, 'streaming' computes the state again
    and needs about two thirds of the memory, 'auto' keeps the state if there is room"""
    batch_norm: BatchNormStatistics = "batch"
    """BatchNorm uses the statistics of the 'batch', the 'frozen' running ones, or those of each domain's images
    ('per_domain'); 'frozen' also freezes InstanceNorm and every other buffer"""
    sync_batch_norm: bool = True
    """with several processes, take the statistics of a batch over the images of all of them, as one process would;
    false takes those of each process's own images, with fewer messages and another result"""
    sharing: Sharing = "none"
    """'per_domain' computes each domain's gradient once for all splits: faster, but no loss then crosses domains; wants
    batch_norm 'per_domain' or 'frozen', and domain_alignment 0"""
    precision: Precision | None = None
    """of the passes for gradients: 'fp32', 'tf32' or 'bf16', as in pretraining; losses and updates are in full"""
    curvature: Precision | None = None
    """precision of the passes for H v; null takes that of the gradients"""

    def __post_init__(self):
        require_kinds(self)
        at = self.prefix
        require(0 <= self.gamma <= 1, f"want {at}gamma in [0, 1], got {self.gamma}")
        require_choice(f"{at}engine", self.engine, Engine)
        require_choice(f"{at}memory", self.memory, Memory)
        require_choice(f"{at}batch_norm", self.batch_norm, BatchNormStatistics)
        require_choice(f"{at}sharing", self.sharing, Sharing)
        for name in ("precision", "curvature"):
            if getattr(self, name) is not None:
                require_choice(f"{at}{name}", getattr(self, name), Precision)
        require(
            self.memory != "kept" or self.hvp_precision == self.precision,
            f"{at}memory 'kept' goes on from passes in {self.precision}, so it cannot compute H v in "
            f"{self.hvp_precision}; want {at}memory 'auto' or 'streaming', or one precision",
        )
        require(
            self.sharing == "none" or self.batch_norm != "batch",
            f"{at}sharing 'per_domain' needs statistics that do not mix domains, got {at}batch_norm 'batch'; want "
            f"{at}batch_norm 'per_domain' or 'frozen', or {at}sharing 'none'",
        )

    @property
    def hvp_precision(self) -> Precision | None:
        """The precision of the passes for H v: `curvature`, or `precision` if that is None."""
        return self.precision if self.curvature is None else self.curvature

    def check(self, alpha: float, losses: LossSettings) -> None:
        """Raise ValueError for an inner step size or for losses that do not go with these settings."""
        at = self.prefix
        require(0 <= alpha < math.inf, f"want {at}alpha >= 0 and finite, got {alpha}")
        require(
            self.sharing == "none" or not losses.domain_alignment,
            f"{at}sharing 'per_domain' computes each domain's loss apart, so it cannot align domains; want the weight "
            f"{at}domain_alignment 0, got {losses.domain_alignment}, or {at}sharing 'none'",
        )


@dataclass(frozen=True)
class MetaSettings(GradientSettings):
    """All settings of a meta-gradient; `fastmfr.meta.meta_gradient` explains each one."""

    order: int = 2
    """2 is exact, 1 leaves out the Hessian, 0 takes no look-ahead"""

    def __post_init__(self):
        super().__post_init__()
        require(
            self.order in (0, 1, 2),
            f"want {self.prefix}order 0 (no look-ahead), 1 (first order) or 2 (exact), got {self.order!r}",
        )
