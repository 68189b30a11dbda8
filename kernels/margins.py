"""Margins: how the cosine of the true identity is lowered before the softmax. Each acts on (B,) vectors.

    CosFace    cos - m                                       arXiv 1801.09414
    ArcFace    cos(theta + m)                                arXiv 1801.07698
    Combined   cos(m1 theta + m2) - m3                       arXiv 1801.07698
    MagFace    cos(theta + m(norm)), m rises with norm       arXiv 2103.06627
    AdaFace    cos(theta - m q) - m (1 + q), q the quality   arXiv 2204.00964

Any callable (cos_B, norm_B) -> cos_B is a margin too; norm_B holds the lengths of the embeddings. If it has a method
`penalty(norm_B)`, the result is added to the loss. Angles are in radians. `make_margin` makes a margin by its name.
Shape suffix: B = batch.
"""

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

__all__ = ["MARGINS", "AdaFace", "ArcFace", "Combined", "CosFace", "MagFace", "Margin", "as_margin", "make_margin"]

Margin = Callable[[Tensor, Tensor], Tensor]


def _check_range(margin, name, value, low, high, angle=False):
    """Raises ValueError unless low <= value < high; the message recognises an angle in degrees."""
    if low <= value < high:
        return
    within = "radians in [0, pi)" if angle else f"a number in [{low:g}, {high:g})"
    degrees = f", which looks like degrees: in radians it is {math.radians(value):.3g}"
    raise ValueError(f"{margin} wants {name} as {within}, got {value:g}{degrees if angle and 4 < value < 360 else ''}")


def _add_angle(cos_B, angle_B):
    """cos(theta + angle) for angles in (-pi, pi), continued so that it never rises with theta.

    Past theta + angle = pi the cosine would rise again and reward being wrong: the function goes on with slope one in
    cos(theta). Below theta + angle = 0 the function stays at 1.
    """
    cosine_B, sine_B = torch.cos(angle_B), torch.sin(angle_B)
    # The root's slope is infinite at cos = 1; below 1e-6 it is held constant, which drops a vanishing pull.
    moved_B = cos_B * cosine_B - (1 - cos_B * cos_B).clamp_min(1e-6).sqrt() * sine_B
    moved_B = torch.where((angle_B > 0) & (cos_B <= -cosine_B), cos_B + cosine_B - 1, moved_B)
    return torch.where((angle_B < 0) & (cos_B >= cosine_B), 1.0, moved_B)


def _straight_through(cos_B, lowered_B, is_wanted):
    """The value of `lowered_B`, with the gradient of `cos_B` if that is wanted, else with its own."""
    return cos_B + (lowered_B - cos_B).detach() if is_wanted else lowered_B


@dataclass(frozen=True)
class CosFace:
    """f(cos) = cos - m (arXiv 1801.09414).

    Args:
        m: Margin, in [0, 2).
    """

    m: float = 0.35

    def __post_init__(self) -> None:
        _check_range("CosFace", "m", self.m, 0, 2)

    def __call__(self, cos_B: Tensor, norm_B: Tensor | None) -> Tensor:
        return cos_B - self.m


@dataclass(frozen=True)
class ArcFace:
    """f(cos) = cos(theta + m) (arXiv 1801.07698). Past theta + m = pi, f goes on with slope one in cos.

    InsightFace's trainer takes cos(theta + m) past pi too, which rises again. So its loss is lower there; with
    `straight_through` the gradients are equal.

    Args:
        m: Margin in radians, in [0, pi).
        straight_through: Take the gradient of cos instead of the gradient of f, as InsightFace's trainer does: it hides
            acos and cos from autograd.
    """

    m: float = 0.5
    straight_through: bool = False

    def __post_init__(self) -> None:
        _check_range("ArcFace", "m", self.m, 0, math.pi, angle=True)

    def __call__(self, cos_B: Tensor, norm_B: Tensor | None) -> Tensor:
        return _straight_through(cos_B, _add_angle(cos_B, torch.full_like(cos_B, self.m)), self.straight_through)


@dataclass(frozen=True)
class Combined:
    """f(cos) = cos(m1 theta + m2) - m3 (arXiv 1801.07698). Past m1 theta + m2 = pi, f goes on with slope one in cos.

    InsightFace's trainer leaves m1 and m2 out if m3 is above 0: its (1, 0.3, 0.2) is CosFace(0.2).

    Args:
        m1: Factor of the angle, above 0. Below 1, f is a margin only if m1 pi + m2 >= pi, as in (0.9, 0.4, 0.15); else
            f would raise the cosines of wide angles.
        m2: Angle added, in radians, in [0, pi).
        m3: Subtracted from the cosine, in [0, 2).
        straight_through: As in ArcFace.
    """

    m1: float = 1.0
    m2: float = 0.3
    m3: float = 0.2
    straight_through: bool = False

    def __post_init__(self) -> None:
        _check_range("Combined", "m1", self.m1, 0, math.inf)
        _check_range("Combined", "m2", self.m2, 0, math.pi, angle=True)
        _check_range("Combined", "m3", self.m3, 0, 2)
        if self.m1 < 1 and self.m1 * math.pi + self.m2 < math.pi:
            raise ValueError(
                f"Combined wants m1 of at least 1, or m2 of at least (1 - m1) pi, got m1 {self.m1:g} and "
                f"m2 {self.m2:g}, which would raise the cosines of wide angles; CosFace is (1, 0, m)"
            )

    def __call__(self, cos_B: Tensor, norm_B: Tensor | None) -> Tensor:
        if self.m1 == 1.0:
            lowered_B = _add_angle(cos_B, torch.full_like(cos_B, self.m2)) - self.m3
        else:
            theta_B = torch.acos(cos_B.clamp(-1 + 1e-6, 1 - 1e-6))  # the slope of acos is infinite at both ends
            lowered_B = torch.cos(self.m1 * theta_B + self.m2)
            at_pi = math.cos((math.pi - self.m2) / self.m1) if self.m1 * math.pi + self.m2 > math.pi else -1.0
            lowered_B = torch.where(cos_B <= at_pi, cos_B - at_pi - 1, lowered_B) - self.m3
        return _straight_through(cos_B, lowered_B, self.straight_through)


@dataclass(frozen=True)
class MagFace:
    """f(cos) = cos(theta + m), where m rises linearly with the embedding's length (arXiv 2103.06627).

    Args:
        low: Length up to which m is `least`, above 0.
        high: Length from which m is `most`.
        least: Smallest margin in radians, in [0, pi).
        most: Largest margin in radians, in [0, pi).
        weight: Factor of the penalty, at least 0.
    """

    low: float = 10.0
    high: float = 110.0
    least: float = 0.45
    most: float = 0.8
    weight: float = 35.0

    def __post_init__(self) -> None:
        for name in ("least", "most"):
            _check_range("MagFace", name, getattr(self, name), 0, math.pi, angle=True)
        _check_range("MagFace", "weight", self.weight, 0, math.inf)
        if not (0 < self.low < self.high < math.inf and self.least <= self.most):
            raise ValueError(
                "MagFace wants lengths 0 < low < high and angles least <= most, got low "
                f"{self.low:g}, high {self.high:g}, least {self.least:g}, most {self.most:g}"
            )

    def __call__(self, cos_B: Tensor, norm_B: Tensor) -> Tensor:
        fraction_B = (norm_B.clamp(self.low, self.high) - self.low) / (self.high - self.low)
        return _add_angle(cos_B, self.least + (self.most - self.least) * fraction_B)

    def penalty(self, norm_B: Tensor) -> Tensor:
        """Compute weight * (norm / high^2 + 1 / norm) of each row, which pulls easy faces to long embeddings."""
        norm_B = norm_B.clamp(self.low, self.high)
        return self.weight * (norm_B / self.high**2 + 1 / norm_B)


class AdaFace(nn.Module):
    """f(cos) = cos(theta - m q) - m (1 + q), with the quality q of each embedding (arXiv 2204.00964).

    q is h times the standard score of the embedding's length, clamped to [-1, 1]. No gradient passes through q. The
    mean and the deviation of the lengths are buffers; in training mode each batch moves them by `momentum`.

    Args:
        m: Margin, in [0, 2).
        h: Factor of the standard score, at least 0.
        momentum: Weight of a batch in the mean and the deviation, in [0, 1].
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, m: float = 0.4, h: float = 0.333, momentum: float = 0.01):
        super().__init__()
        _check_range("AdaFace", "m", m, 0, 2)
        _check_range("AdaFace", "h", h, 0, math.inf)
        _check_range("AdaFace", "momentum", momentum, 0, math.nextafter(1, 2))
        self.m, self.h, self.momentum = m, h, momentum
        self.register_buffer("mean", torch.tensor(20.0))
        self.register_buffer("deviation", torch.tensor(100.0))

    def extra_repr(self) -> str:
        """Show the settings when the module is printed."""
        return f"m={self.m}, h={self.h}, momentum={self.momentum}"

    def forward(self, cos_B: Tensor, norm_B: Tensor) -> Tensor:
        """Lower the true identities' cosines (B,), given the lengths (B,) of the embeddings."""
        norm_B = norm_B.detach().clamp(1e-3, 100)
        if self.training and len(norm_B) > 1:  # one length has no deviation
            self.mean.lerp_(norm_B.mean().to(self.mean.dtype), self.momentum)
            self.deviation.lerp_(norm_B.std().to(self.deviation.dtype), self.momentum)
        quality_B = (self.h * (norm_B - self.mean) / (self.deviation + 1e-3)).clamp(-1, 1)
        return _add_angle(cos_B, -self.m * quality_B) - self.m * (1 + quality_B)


MARGINS = {
    "cosface": CosFace,
    "arcface": ArcFace,
    "combined": Combined,
    "adaface": AdaFace,
    "magface": MagFace,
    "arcface_insightface": partial(ArcFace, straight_through=True),
    "combined_insightface": partial(Combined, straight_through=True),
}


def make_margin(name: str, values: Sequence[float] = ()) -> Margin:
    """Make a margin, a function of the target cosines and the embeddings' norms that returns the lowered cosines.

    Args:
        name: One of MARGINS: cosface, arcface, combined, adaface, magface, and arcface_insightface and
            combined_insightface, whose gradient is InsightFace's (straight_through).
        values: The margin's numbers, in the order of its parameters; those left out have the margin's defaults.

    Raises:
        ValueError: If there is no margin of this name, or if there are too many numbers or one is out of its range.
    """
    if name not in MARGINS:
        raise ValueError(f"want a margin out of {', '.join(MARGINS)}, got {name!r}")
    wanted = [one for one in inspect.signature(MARGINS[name]).parameters if one != "straight_through"]
    if len(values) > len(wanted):
        raise ValueError(f"the margin {name!r} takes at most ({', '.join(wanted)}), got {len(values)} numbers")
    return MARGINS[name](*values)


def as_margin(margin: Margin | str, *, once: bool = False) -> Margin:
    """Return the margin itself, or the margin of this name with its own numbers.

    Args:
        margin: A margin, or one of MARGINS.
        once: Whether the margin serves one call alone. A name whose margin keeps statistics between calls is refused.

    Raises:
        ValueError: If `margin` is a number or anything else that is no margin, or if there is no margin of this name.
    """
    if isinstance(margin, str):
        if once and margin == "adaface":
            raise ValueError(
                "the margin 'adaface' keeps statistics of the embeddings from call to call, and a name makes a new "
                "margin at each call; make one, adaface = AdaFace(), and pass margin=adaface"
            )
        return make_margin(margin)
    if callable(margin) and not isinstance(margin, type):
        return margin
    got = f"the class {margin.__name__}" if isinstance(margin, type) else f"a {type(margin).__name__}"
    if isinstance(margin, (int, float)):
        got = f"the number {margin:g}, which may be of any of them; write margin=CosFace({margin:g}), if that is meant"
    raise ValueError(
        f"want a margin, such as CosFace(0.35) or ArcFace(0.5), or a name out of {', '.join(MARGINS)}, got {got}"
    )
