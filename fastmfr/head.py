"""The classifier of pretraining: one weight row an identity, a margin on the true one.

Shape suffixes: B = batch, C = identities, D = embedding.
"""

import torch
from torch import nn

from fastmfr.kernels import (  # pyright: ignore[reportMissingImports]  # the folder kernels/, under its installed name
    ArcFace,
    Combined,
    CosFace,
    margin_softmax,
)

MARGINS = {"cosface": CosFace, "arcface": ArcFace, "combined": Combined}


def make_margin(name, values=()):
    """A margin by name with its numbers in order; none takes the margin's own defaults. ValueError for another name."""
    if name not in MARGINS:
        raise ValueError(f"want a margin out of {', '.join(MARGINS)}, got {name!r}")
    try:
        return MARGINS[name](*values)
    except TypeError:
        wanted = ", ".join(MARGINS[name].__dataclass_fields__)
        raise ValueError(f"the margin {name!r} takes at most ({wanted}), got {len(values)} numbers") from None


class MarginHead(nn.Module):
    """embedding_BD, label_B in [-1, identities) -> loss_B, margin softmax over all identities; -1 is ignored."""

    def __init__(self, embedding, identities, margin, scale=64.0):
        super().__init__()
        if identities < 2:
            raise ValueError(f"a classifier needs at least 2 identities, got {identities}")
        self.weight_CD = nn.Parameter(torch.randn(identities, embedding) * 0.01)
        self.margin = margin
        self.scale = scale

    def forward(self, embedding_BD, label_B):
        return margin_softmax(embedding_BD, self.weight_CD, label_B, margin=self.margin, scale=self.scale)
