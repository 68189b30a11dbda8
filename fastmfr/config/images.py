"""The settings of what is done to images: their size and normalisation, and how they are changed at random.

`fastmfr.decode` works by these classes, and the section `data` of a recipe inherits them: the docstrings of the fields
are its `--help`.
"""

import math
from dataclasses import dataclass, fields, replace
from typing import ClassVar

from fastmfr.config.checks import require, require_choice, require_kinds
from fastmfr.config.choices import Fit


@dataclass(frozen=True, kw_only=True)
class Augment:
    """How images may be changed at random. Raises ValueError for a number out of range."""

    prefix: ClassVar[str] = ""  # what stands before a setting's name in an error: "data." in the section of a recipe

    flip: float = 0.5
    """probability of a mirrored training image; 0 never, 1 always"""
    translate: int = 0
    """largest shift of a training image, in whole pixels, up, down, left and right"""
    low_resolution: float = 0.0
    """probability that cells of 2 to 4 pixels a side of a training image are averaged"""
    brightness: float = 0.0
    """largest change of a training image's brightness, in grey levels"""
    contrast: float = 0.0
    """largest relative change of a training image's contrast, below 1"""

    def __post_init__(self):
        require_kinds(self)
        at = self.prefix
        for name in ("flip", "low_resolution"):
            value = getattr(self, name)
            require(0 <= value <= 1, f"want the probability {at}{name} in [0, 1], got {value}")
        whole = isinstance(self.translate, int) and 0 <= self.translate <= 4096
        require(whole, f"want the shift {at}translate as a whole number of pixels 0..4096, got {self.translate!r}")
        require(0 <= self.brightness <= 255, f"want {at}brightness in grey levels 0..255, got {self.brightness}")
        require(0 <= self.contrast < 1, f"want {at}contrast at least 0 and below 1, got {self.contrast}")


@dataclass(frozen=True)
class Preprocess(Augment):
    """How images are prepared and, as an Augment, changed at random. Raises ValueError for a number out of range."""

    size: int = 120
    """input width and height in pixels"""
    mean: float = 127.5
    """this is subtracted from every grey level, 0 to 255, of red, green and blue"""
    std: float = 128.0
    """the result is divided by this, in grey levels; InsightFace's models use 127.5"""
    fit: Fit = "crop"
    """how an image that is not square becomes so: 'crop' cuts the longer side's ends off, 'pad' adds black to the
    shorter side, 'stretch' distorts"""

    def __post_init__(self):
        super().__post_init__()
        at = self.prefix
        whole = isinstance(self.size, int) and 1 <= self.size <= 4096
        require(whole, f"want {at}size as a whole number of pixels 1..4096, got {self.size!r}")
        require(math.isfinite(self.mean), f"want {at}mean as a finite number of grey levels, got {self.mean}")
        require(0 < self.std < math.inf, f"want {at}std > 0 and finite, for it divides, got {self.std}")
        require_choice(f"{at}fit", self.fit, Fit)

    def plain(self) -> "Preprocess":
        """The same without any change at random, as scoring takes it."""
        off = {part.name: part.default for part in fields(Augment)} | {"flip": 0.0}
        return replace(self, **off)
