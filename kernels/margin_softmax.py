"""Margin softmax over identities: cross entropy of scaled cosines, the true identity's cosine made harder by a margin.

    loss[b] = softplus(log_sum[b] - scale * f(cos[b]))     f = the margin     (log_sum, cos) = cos_lse(...)

The softplus keeps relative accuracy for well-separated rows, where log-sum-exp minus logit would cancel.
Shape suffixes: B = batch, C = identities, D = embedding.
"""

import torch
from torch.nn import functional as F

from .cos_lse import cos_lse
from .inverse_norm import inverse_norm
from .margins import Margin


def unit_rows(embedding_BD):
    """(unit_BD, norm_B): rows of length one in the dtype products are taken in, and how long they were, in float32.

    That dtype is autocast's where it is on, else the embeddings' own.
    """
    wide_BD = embedding_BD.to(torch.promote_types(embedding_BD.dtype, torch.float32))
    device, dtype = embedding_BD.device.type, embedding_BD.dtype
    if torch.is_autocast_enabled(device) and dtype != torch.float64:
        dtype = torch.get_autocast_dtype(device)
    return F.normalize(wide_BD, dim=1).to(dtype), wide_BD.norm(dim=1)


def margin_loss(log_sum_B, cos_B, norm_B, label_B, identities, *, margin: Margin, scale):
    """Loss of each row (B,) from what cos_lse gives and the embeddings' lengths; labels as in `margin_softmax`."""
    loss_B = F.softplus(log_sum_B - scale * margin(cos_B, norm_B))
    penalty = getattr(margin, "penalty", None)
    if penalty is not None:
        loss_B = loss_B + penalty(norm_B)
    return loss_B.masked_fill(label_B < 0, 0.0).masked_fill(label_B >= identities, torch.nan)


def margin_softmax(
    embedding_BD,
    weight_CD,
    label_B,
    *,
    margin: Margin,
    scale=64.0,
    keep="auto",
    inverse_norm_C=None,
    sample_weight_B=None,
    class_weight_C=None,
):
    """Loss of each row (B,), from embeddings (B, D), identity weights (C, D) and labels (B,) in [-1, C).

    Both sets of rows are normalised inside. A row labelled -1 is ignored: its loss and gradient are 0. `margin`: see
    fastmfr.kernels.margins. Products are taken in autocast's dtype where it is on, else in the embeddings'; the loss is
    float32 (float64 for float64). `keep` trades memory for time, see cos_lse. `inverse_norm_C`: 1 / |weight_C| if it is
    at hand, as `sgd_rows` leaves it. The weights (B,) and (C,) multiply the loss of a row and of an identity's rows.
    Differentiable twice. Raises ValueError where shapes or dtypes do not fit or, on the CPU, where a label is past C;
    on a GPU, which is not waited for, the loss of such a row is NaN.
    """
    unit_BD, norm_B = unit_rows(embedding_BD)
    if inverse_norm_C is None:
        inverse_norm_C = inverse_norm(weight_CD.detach())
    C = len(weight_CD)
    if label_B.device.type == "cpu" and not torch.compiler.is_compiling() and (label_B >= C).any():
        raise ValueError(f"want labels in [-1, {C}), got {label_B.max().item()}")
    log_sum_B, cos_B = cos_lse(unit_BD, weight_CD, label_B, scale, inverse_norm_C=inverse_norm_C, keep=keep)
    loss_B = margin_loss(log_sum_B, cos_B, norm_B, label_B, C, margin=margin, scale=scale)
    if sample_weight_B is not None:
        loss_B = loss_B * sample_weight_B
    return loss_B if class_weight_C is None else loss_B * class_weight_C[label_B.clamp(0, C - 1).long()]
