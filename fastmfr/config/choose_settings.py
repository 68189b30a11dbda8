"""The settings of which model a run hands out."""

from dataclasses import dataclass
from typing import ClassVar

from fastmfr.config.checks import require, require_at_least, require_kinds


@dataclass(frozen=True)
class Choose:
    """Which model is handed out: the best one on people of the sources that are kept out of training."""

    prefix: ClassVar[str] = "choose."

    every: int | None = None
    """steps between scores on the people kept for validation; null takes save_every"""
    patience: int = 10
    """end stage two after so many scores in a row that are no better than the best before; 0 never does"""
    ema: float = 0.999
    """part of itself that the moving average of the weights keeps in a step; less in a stage's first steps"""
    mean_from: float = 0.5
    """the mean of the weights begins after this part of a stage's steps"""

    def __post_init__(self):
        require_kinds(self)
        require_at_least(self, 1, "every")
        require_at_least(self, 0, "patience")
        require(0 <= self.ema < 1, f"want choose.ema at least 0 and below 1, got {self.ema}")
        require(0 <= self.mean_from < 1, f"want choose.mean_from at least 0 and below 1, got {self.mean_from}")
