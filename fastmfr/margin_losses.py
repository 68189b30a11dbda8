"""Margin softmax as losses that own their classifier, called like pytorch-metric-learning's: loss(embeddings, labels).

Shape suffixes: B = batch, C = identities, D = embedding.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from fastmfr.config.checks import require, require_choice
from fastmfr.kernels import (  # pyright: ignore[reportMissingImports]  # the folder kernels/, under its installed name
    ArcFace,
    CosFace,
    as_margin,
    margin_softmax,
)
from fastmfr.kernels.margins import Margin  # pyright: ignore[reportMissingImports]

__all__ = ["ArcFaceLoss", "CosFaceLoss", "MarginSoftmaxLoss", "Reduction"]

Reduction = Literal["mean", "sum", "none"]
_DEVIATION = 0.01  # of the first weights, as of MarginHead


class MarginSoftmaxLoss(nn.Module):
    """Margin softmax over all identities, with one weight row for each; differentiable twice.

    The weights are the parameter `weight_CD`, under the name that MarginHead has for them. An optimizer over the
    parameters of the backbone alone does not train them: give the optimizer `loss.parameters()` too.

    Args:
        num_classes: Number C of identities, at least 2.
        embedding_size: Length D of an embedding.
        margin: The margin on the true identity's cosine, or its name; see `fastmfr.kernels.make_margin`.
        scale: Factor of the cosines, above 0.
        reduction: "mean" and "sum" are over the rows whose label is not -1. "none" returns the loss of each row.

    Raises:
        ValueError: If a number is out of its range, if there is no such reduction, or if `margin` is no margin.
    """

    def __init__(
        self,
        num_classes: int,
        embedding_size: int,
        margin: Margin | str = "cosface",
        scale: float = 64.0,
        reduction: Reduction = "mean",
    ):
        super().__init__()
        require(num_classes >= 2, f"want num_classes of at least 2, got {num_classes}")
        require(embedding_size >= 1, f"want embedding_size of at least 1, got {embedding_size}")
        require(scale > 0, f"want scale above 0, got {scale}")
        require_choice("reduction", reduction, Reduction)
        self.margin, self.scale, self.reduction = as_margin(margin), scale, reduction
        self.weight_CD = nn.Parameter(torch.empty(num_classes, embedding_size))
        nn.init.normal_(self.weight_CD, std=_DEVIATION)

    def extra_repr(self) -> str:
        """Show the settings when the module is printed."""
        C, D = self.weight_CD.shape
        margin = "" if isinstance(self.margin, nn.Module) else f"margin={self.margin}, "
        return f"num_classes={C}, embedding_size={D}, {margin}scale={self.scale:g}, reduction={self.reduction!r}"

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Compute the loss of a batch.

        Args:
            embeddings: Shape (B, D), rows of any length.
            labels: Identities in [-1, C), shape (B,), int32 or int64. A row labelled -1 is ignored.

        Returns:
            The loss, shape (), or (B,) without reduction; float32, or float64 for float64 embeddings. The mean over no
            row is 0.

        Raises:
            ValueError: As of `fastmfr.kernels.margin_softmax`.
        """
        loss_B = margin_softmax(embeddings, self.weight_CD, labels, margin=self.margin, scale=self.scale)
        if self.reduction == "none":
            return loss_B
        return loss_B.sum() if self.reduction == "sum" else loss_B.sum() / (labels >= 0).sum().clamp_min(1)


class CosFaceLoss(MarginSoftmaxLoss):
    """MarginSoftmaxLoss with CosFace (arXiv 1801.09414): arguments and values of pytorch-metric-learning's CosFaceLoss.

    Args:
        num_classes: Number C of identities, at least 2.
        embedding_size: Length D of an embedding.
        margin: Subtracted from the true identity's cosine, in [0, 2).
        scale: Factor of the cosines, above 0.
        reduction: As of MarginSoftmaxLoss.

    Raises:
        ValueError: If a number is out of its range, or if there is no such reduction.
    """

    def __init__(
        self,
        num_classes: int,
        embedding_size: int,
        margin: float = 0.35,
        scale: float = 64.0,
        reduction: Reduction = "mean",
    ):
        super().__init__(num_classes, embedding_size, CosFace(margin), scale, reduction)


class ArcFaceLoss(MarginSoftmaxLoss):
    """MarginSoftmaxLoss with ArcFace (arXiv 1801.07698): values of pytorch-metric-learning's ArcFaceLoss, in radians.

    pytorch-metric-learning has the margin in degrees: its 28.6 is 0.499 here. A margin that looks like degrees is
    refused. Past theta + margin = pi the two losses go on differently.

    Args:
        num_classes: Number C of identities, at least 2.
        embedding_size: Length D of an embedding.
        margin: Added to the true identity's angle, in radians, in [0, pi).
        scale: Factor of the cosines, above 0.
        reduction: As of MarginSoftmaxLoss.

    Raises:
        ValueError: If a number is out of its range, or if there is no such reduction.
    """

    def __init__(
        self,
        num_classes: int,
        embedding_size: int,
        margin: float = 0.5,
        scale: float = 64.0,
        reduction: Reduction = "mean",
    ):
        super().__init__(num_classes, embedding_size, ArcFace(margin), scale, reduction)
