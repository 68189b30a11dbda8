"""Which engine takes a meta step, and which settings go together."""

from dataclasses import dataclass

import torch
from torch import nn

from fastmfr.losses import MfrLosses
from fastmfr.meta.autograd_engine import AutogradEngine
from fastmfr.meta.rop_engine import OperatorEngine
from fastmfr.precision import check_precision
from fastmfr.rop import NoROperator

CHOICES = {
    "engine": ("auto", "autograd", "rop"),
    "memory": ("auto", "kept", "streaming"),
    "batch_norm": ("batch", "frozen", "per_domain"),
    "sharing": ("none", "per_domain"),
}


@dataclass(frozen=True)
class MetaSettings:
    """How meta-gradients are taken; `meta_gradient` says what each means. Raises ValueError for one out of range."""

    gamma: float
    order: int = 2
    engine: str = "auto"
    memory: str = "auto"
    batch_norm: str = "batch"
    sharing: str = "none"
    precision: str | None = None
    curvature: str | None = None

    def __post_init__(self):
        if self.order not in (0, 1, 2):
            raise ValueError(f"want order 0 (no look-ahead), 1 (first order) or 2 (exact), got {self.order!r}")
        if not 0 <= self.gamma <= 1:
            raise ValueError(f"want gamma in [0, 1], got {self.gamma}")
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"want {name} out of {', '.join(choices)}, got {getattr(self, name)!r}")
        if self.curvature is None:
            object.__setattr__(self, "curvature", self.precision)
        if self.memory == "kept" and self.curvature != self.precision:
            raise ValueError(
                f"memory 'kept' goes on from passes in {self.precision}, so it cannot give H v in {self.curvature}; "
                "want memory 'auto' or 'streaming', or one precision"
            )
        if self.sharing != "none" and self.batch_norm == "batch":
            raise ValueError(
                "sharing 'per_domain' needs statistics that do not mix domains, got batch_norm 'batch'; want "
                "batch_norm 'per_domain' or 'frozen', or sharing 'none'"
            )

    def check(self, alpha: float, losses: MfrLosses):
        """Raises ValueError for an inner step or losses that do not go with these."""
        if alpha < 0:
            raise ValueError(f"want alpha >= 0, got {alpha}")
        if self.sharing != "none" and losses.domain_alignment:
            raise ValueError(
                "sharing 'per_domain' takes each domain's loss by itself, so it cannot align domains; want the weight "
                f"domain_alignment 0, got {losses.domain_alignment:g}, or sharing 'none'"
            )

    def make_engine(self, backbone: nn.Module, names: list[str]):
        """(engine, why it is not the R-operator or ""). Raises ValueError for "rop" where it does not apply, and for a
        precision that the backbone's device does not have."""
        device = next((value.device for value in backbone.parameters()), torch.device("cpu"))
        check_precision(self.precision, device)
        check_precision(self.curvature, device)
        # where splits share, every batch is of one domain: its statistics are the batch's
        batch_norm = "batch" if self.sharing != "none" and self.batch_norm == "per_domain" else self.batch_norm
        precisions = {"precision": self.precision, "curvature": self.curvature}
        if self.engine == "autograd":
            return AutogradEngine(backbone, names, batch_norm, **precisions), "autograd was asked for"
        try:
            return OperatorEngine(backbone, names, batch_norm, self.memory, **precisions), ""
        except NoROperator as error:
            if self.engine == "rop":
                raise
            return AutogradEngine(backbone, names, batch_norm, **precisions), str(error)
