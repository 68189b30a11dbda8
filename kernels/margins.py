"""Margins: how the cosine of the true identity is lowered before the softmax. All act on (B,) vectors.

    CosFace    cos - m                                       arXiv 1801.09414
    ArcFace    cos(theta + m)                                arXiv 1801.07698
    Combined   cos(m1 theta + m2) - m3                       arXiv 1801.07698
    MagFace    cos(theta + m(norm)), m rises with norm       arXiv 2103.06627
    AdaFace    cos(theta - m q) - m (1 + q), q the quality   arXiv 2204.00964

Any callable (cos_B, norm_B) -> cos_B will do beside them, `norm_B` being the lengths of the embeddings; if it has a
method `penalty(norm_B)`, that is added to the loss. Angles are in radians.
Shape suffix: B = batch.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

Margin = Callable[[Tensor, Tensor], Tensor]


def _want(margin, name, value, low, high, angle=False):
    """Raises ValueError unless the number `name` of a margin lies in [low, high); of angles, degrees are recognised."""
    if low <= value < high:
        return
    within = "radians in [0, pi)" if angle else f"a number in [{low:g}, {high:g})"
    degrees = f", which looks like degrees: in radians it is {math.radians(value):.3g}"
    raise ValueError(f"{margin} wants {name} as {within}, got {value:g}{degrees if angle and 4 < value < 360 else ''}")


def _turned(cos_B, angle_B):
    """cos(theta + angle) for angles in (-pi, pi), and beyond theta + angle = 0 and pi what keeps it from turning back.

    Past pi the cosine would rise again and reward being wrong: there it goes on with slope one. Below 0 it stays at 1.
    """
    cosine_B, sine_B = torch.cos(angle_B), torch.sin(angle_B)
    # The root's slope is infinite at cos = 1; below 1e-6 it is held constant, which drops a vanishing pull.
    turned_B = cos_B * cosine_B - (1 - cos_B * cos_B).clamp_min(1e-6).sqrt() * sine_B
    turned_B = torch.where((angle_B > 0) & (cos_B <= -cosine_B), cos_B + cosine_B - 1, turned_B)
    return torch.where((angle_B < 0) & (cos_B >= cosine_B), 1.0, turned_B)


def _straight_through(cos_B, lowered_B, wanted):
    """The value of `lowered_B`; where it is wanted, with the gradient of `cos_B`."""
    return cos_B + (lowered_B - cos_B).detach() if wanted else lowered_B


@dataclass(frozen=True)
class CosFace:
    """f(cos) = cos - m."""

    m: float = 0.35

    def __post_init__(self):
        _want("CosFace", "m", self.m, 0, 2)

    def __call__(self, cos_B, norm_B):
        return cos_B - self.m


@dataclass(frozen=True)
class ArcFace:
    """f(cos) = cos(theta + m), m in [0, pi), with its true gradient.

    `straight_through` takes the gradient of cos instead, as InsightFace's trainer does, whose acos and cos are hidden
    from autograd.
    """

    m: float = 0.5
    straight_through: bool = False

    def __post_init__(self):
        _want("ArcFace", "m", self.m, 0, math.pi, angle=True)

    def __call__(self, cos_B, norm_B):
        return _straight_through(cos_B, _turned(cos_B, torch.full_like(cos_B, self.m)), self.straight_through)


@dataclass(frozen=True)
class Combined:
    """f(cos) = cos(m1 theta + m2) - m3, as InsightFace names the three; `straight_through` as in ArcFace.

    Where m1 theta + m2 is beyond pi it goes on with slope one in cos, as ArcFace does, and never turns back. m1 below 1
    is a margin only where m1 pi + m2 >= pi, as in (0.9, 0.4, 0.15): else it would raise some cosines.
    """

    m1: float = 1.0
    m2: float = 0.3
    m3: float = 0.2
    straight_through: bool = False

    def __post_init__(self):
        _want("Combined", "m1", self.m1, 0, math.inf)
        _want("Combined", "m2", self.m2, 0, math.pi, angle=True)
        _want("Combined", "m3", self.m3, 0, 2)
        if self.m1 < 1 and self.m1 * math.pi + self.m2 < math.pi:
            raise ValueError(
                f"Combined wants m1 of at least 1, or m2 of at least (1 - m1) pi, got m1 {self.m1:g} and "
                f"m2 {self.m2:g}, which would raise the cosines of wide angles; CosFace is (1, 0, m)"
            )

    def __call__(self, cos_B, norm_B):
        if self.m1 == 1.0:
            lowered_B = _turned(cos_B, torch.full_like(cos_B, self.m2)) - self.m3
        else:
            theta_B = torch.acos(cos_B.clamp(-1 + 1e-6, 1 - 1e-6))  # the slope of acos is infinite at both ends
            lowered_B = torch.cos(self.m1 * theta_B + self.m2)
            at_pi = math.cos((math.pi - self.m2) / self.m1) if self.m1 * math.pi + self.m2 > math.pi else -1.0
            lowered_B = torch.where(cos_B <= at_pi, cos_B - at_pi - 1, lowered_B) - self.m3
        return _straight_through(cos_B, lowered_B, self.straight_through)


@dataclass(frozen=True)
class MagFace:
    """f(cos) = cos(theta + m), m rising linearly from `least` to `most` while the length does from `low` to `high`.

    The penalty, `weight` times (norm / high^2 + 1 / norm), pulls easy faces to long embeddings.
    """

    low: float = 10.0
    high: float = 110.0
    least: float = 0.45
    most: float = 0.8
    weight: float = 35.0

    def __post_init__(self):
        for name in ("least", "most"):
            _want("MagFace", name, getattr(self, name), 0, math.pi, angle=True)
        _want("MagFace", "weight", self.weight, 0, math.inf)
        if not (0 < self.low < self.high < math.inf and self.least <= self.most):
            raise ValueError(
                "MagFace wants lengths 0 < low < high and angles least <= most, got low "
                f"{self.low:g}, high {self.high:g}, least {self.least:g}, most {self.most:g}"
            )

    def __call__(self, cos_B, norm_B):
        share_B = (norm_B.clamp(self.low, self.high) - self.low) / (self.high - self.low)
        return _turned(cos_B, self.least + (self.most - self.least) * share_B)

    def penalty(self, norm_B):
        norm_B = norm_B.clamp(self.low, self.high)
        return self.weight * (norm_B / self.high**2 + 1 / norm_B)


class AdaFace(nn.Module):
    """f(cos) = cos(theta - m q) - m (1 + q), the quality q in [-1, 1]: h times the standard score of the length.

    No gradient passes through q. Mean and deviation of the lengths are running ones: buffers that each batch moves by
    `momentum` in training mode.
    """

    def __init__(self, m=0.4, h=0.333, momentum=0.01):
        super().__init__()
        _want("AdaFace", "m", m, 0, 2)
        _want("AdaFace", "h", h, 0, math.inf)
        _want("AdaFace", "momentum", momentum, 0, math.nextafter(1, 2))
        self.m, self.h, self.momentum = m, h, momentum
        self.register_buffer("mean", torch.tensor(20.0))
        self.register_buffer("deviation", torch.tensor(100.0))

    def extra_repr(self):
        return f"m={self.m}, h={self.h}, momentum={self.momentum}"

    def forward(self, cos_B, norm_B):
        norm_B = norm_B.detach().clamp(1e-3, 100)
        if self.training and len(norm_B) > 1:  # one length has no deviation
            self.mean.lerp_(norm_B.mean().to(self.mean.dtype), self.momentum)
            self.deviation.lerp_(norm_B.std().to(self.deviation.dtype), self.momentum)
        quality_B = (self.h * (norm_B - self.mean) / (self.deviation + 1e-3)).clamp(-1, 1)
        return _turned(cos_B, -self.m * quality_B) - self.m * (1 + quality_B)
