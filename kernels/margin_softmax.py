"""Margin softmax over identities: cross entropy of scaled cosines, the true identity's cosine made harder by a margin.

    loss[b] = softplus(log_sum[b] - scale * f(cos_true[b]))     f = the margin     (log_sum, cos_true) = cos_lse(...)

The softplus keeps relative accuracy for well-separated rows, where log-sum-exp minus logit would cancel.
Sources: CosFace arXiv 1801.09414, ArcFace and the combined margin arXiv 1801.07698.
Shape suffixes: B = batch, C = identities, D = embedding.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from .cos_lse import cos_lse

Margin = Callable[[Tensor, Tensor], Tensor]  # (cos_B of the true identity, embedding norm_B) -> cos_B


@dataclass(frozen=True)
class CosFace:
    """f(cos) = cos - m."""

    m: float = 0.35

    def __call__(self, cos_B, norm_B):
        return cos_B - self.m


@dataclass(frozen=True)
class ArcFace:
    """f(cos) = cos(theta + m), with its true gradient; m in radians, in [0, pi).

    Past theta = pi - m the cosine would turn and reward being wrong: there f goes on with slope one.
    """

    m: float = 0.5

    def __call__(self, cos_B, norm_B):
        # The root's slope is infinite at cos = 1; below 1e-6 it is held constant, which drops a vanishing pull.
        sin_B = (1 - cos_B * cos_B).clamp_min(1e-6).sqrt()
        shifted_B = cos_B * math.cos(self.m) - sin_B * math.sin(self.m)
        return torch.where(cos_B > -math.cos(self.m), shifted_B, cos_B + math.cos(self.m) - 1)


@dataclass(frozen=True)
class Combined:
    """f(cos) = cos(m1 * theta + m2) - m3, as InsightFace names the three."""

    m1: float = 1.0
    m2: float = 0.3
    m3: float = 0.2

    def __call__(self, cos_B, norm_B):
        if self.m1 == 1.0:
            return ArcFace(self.m2)(cos_B, norm_B) - self.m3
        theta_B = torch.acos(cos_B.clamp(-1 + 1e-6, 1 - 1e-6))  # the slope of acos is infinite at both ends
        return torch.cos(self.m1 * theta_B + self.m2) - self.m3


def margin_softmax(embedding_BD, weight_CD, label_B, *, margin: Margin, scale=64.0):
    """Loss of each row (B,), from embeddings (B, D), identity weights (C, D) and labels (B,) in [-1, C).

    Both sets of rows are normalised inside. A row labelled -1 is ignored: its loss and gradient are 0. `margin` is
    CosFace, ArcFace, Combined or any differentiable (cos_B, norm_B) -> cos_B. Differentiable any number of times.
    Raises ValueError where the shapes or dtypes do not fit.
    """
    log_sum_B, cos_B = cos_lse(F.normalize(embedding_BD, dim=1), F.normalize(weight_CD, dim=1), label_B, scale)
    loss_B = F.softplus(log_sum_B - scale * margin(cos_B, embedding_BD.norm(dim=1)))
    return torch.where(label_B >= 0, loss_B, 0.0)
