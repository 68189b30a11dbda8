"""The settings of the backbone: which one, what it starts from, and what of it is held."""

import math
import re
from dataclasses import dataclass
from typing import ClassVar, get_args

from fastmfr.config.checks import require, require_at_least, require_kinds
from fastmfr.config.choices import AUTO, EXTERNAL, Backbone

STAGES = 4  # of every backbone


def is_code(name: str) -> bool:
    """Whether a backbone is made by a factory, package.module:factory, which no file may name."""
    return ":" in name


@dataclass(frozen=True)
class Model:
    """The backbone."""

    prefix: ClassVar[str] = "model."

    name: str = "mfr28"
    """mfr28, the 28-layer network of the MFR paper; iresnet18, 34, 50, 100 or 200, InsightFace's; 'auto', which reads
    name, embedding and width off the weights; timm/NAME; torchvision/NAME; or package.module:factory, a callable of
    yours that takes `embedding` and `size`, or fewer, and returns a module"""
    embedding: int | None = None
    """outputs; null takes the network's own number"""
    width: float = 0.5
    """channels of mfr28, as a multiple of 64 to 512"""
    dropout: float = 0.0
    """dropout before the last layer of an iResNet or of a network of timm; in every dropout of one of torchvision"""
    weights: str | None = None
    """start from this file, .safetensors or a .pt/.pth state dict such as InsightFace's, or from a run folder"""
    freeze: int = 0
    """hold the first stages of the backbone as they are, with their BatchNorm statistics: 0 none, 1 the stem and the
    first of the four stages, 4 all but the last layers"""

    def __post_init__(self):
        require_kinds(self)
        names = ", ".join((*get_args(Backbone), AUTO))
        is_external = bool(re.fullmatch(EXTERNAL, str(self.name)))
        known = is_external or self.name in (AUTO, *get_args(Backbone))
        require(
            known,
            f"want model.name out of {names}, timm/NAME, torchvision/NAME, package.module:factory, got {self.name!r}",
        )
        require_at_least(self, 1, "embedding")
        require(1 / 64 <= self.width < math.inf, f"want model.width of at least 1/64, got {self.width}")
        whole = isinstance(self.freeze, int) and 0 <= self.freeze <= STAGES
        require(whole, f"want model.freeze as a whole number of stages 0..{STAGES}, got {self.freeze!r}")
        held = f"model.freeze {self.freeze} names stages of mfr28 and of iResNets; want 0 with {self.name}"
        require(not (is_external and self.freeze), held)
        require(0 <= self.dropout < 1, f"want model.dropout at least 0 and below 1, got {self.dropout}")
