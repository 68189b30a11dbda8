"""Margin softmax over identities: cross entropy of scaled cosines, with a margin on the true identity's cosine.

    loss[b] = softplus(log_sum[b] - scale * f(cos[b]))     f = the margin     (log_sum, cos) = cos_lse(...)

The softplus keeps relative accuracy for well-separated rows; there log-sum-exp minus logit would cancel.
Shape suffixes: B = batch, C = identities, D = embedding.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from .cos_lse import cos_lse
from .cos_lse.operator import Keep
from .inverse_norm import inverse_norm
from .margins import Margin, as_margin

__all__ = ["margin_loss", "margin_softmax", "unit_rows"]


def unit_rows(embedding_BD: Tensor) -> tuple[Tensor, Tensor]:
    """Normalise the rows of `embedding_BD` to length one.

    Returns:
        The unit rows (B, D), in the dtype of the products: autocast's if autocast is on, else the embeddings' own.
        And the rows' lengths before (B,), in float32, or in float64 if the embeddings are float64.
    """
    wide_BD = embedding_BD.to(torch.promote_types(embedding_BD.dtype, torch.float32))
    device, dtype = embedding_BD.device.type, embedding_BD.dtype
    if torch.is_autocast_enabled(device) and dtype != torch.float64:
        dtype = torch.get_autocast_dtype(device)
    return F.normalize(wide_BD, dim=1).to(dtype), wide_BD.norm(dim=1)


def margin_loss(
    log_sum_B: Tensor,
    cos_B: Tensor,
    norm_B: Tensor,
    label_B: Tensor,
    identities: int,
    *,
    margin: Margin,
    scale: float,
) -> Tensor:
    """Compute the loss of each row from the results of `cos_lse`.

    Args:
        log_sum_B: Log-sum-exp over all identities but the true one.
        cos_B: Cosine of the true identity.
        norm_B: Length of each embedding before it was normalised.
        label_B: Labels; a negative one is ignored.
        identities: Number C of identities.
        margin: See `margin_softmax`.
        scale: Factor of the cosines.

    Returns:
        The losses (B,), in the dtype of `log_sum_B`: 0 for an ignored row, NaN for a label of C or more.
    """
    loss_B = F.softplus(log_sum_B - scale * margin(cos_B, norm_B))
    penalty = getattr(margin, "penalty", None)
    if penalty is not None:
        loss_B = loss_B + penalty(norm_B)
    return loss_B.masked_fill(label_B < 0, 0.0).masked_fill(label_B >= identities, torch.nan)


def margin_softmax(
    embedding_BD: Tensor,
    weight_CD: Tensor,
    label_B: Tensor,
    *,
    margin: Margin | str,
    scale: float = 64.0,
    keep: Keep = "auto",
    inverse_norm_C: Tensor | None = None,
    sample_weight_B: Tensor | None = None,
    class_weight_C: Tensor | None = None,
) -> Tensor:
    """Compute the margin softmax loss of each row. Differentiable twice.

    Embeddings and weights are normalised inside. Products are taken in autocast's dtype if autocast is on, else in the
    embeddings' dtype. No tensor has the size of the logits, unless they are kept.

    Args:
        embedding_BD: Embeddings of any length.
        weight_CD: One weight row of any length for each identity.
        label_B: Labels in [-1, C), int32 or int64. A row labelled -1 is ignored: its loss and gradient are 0.
        margin: CosFace, ArcFace, Combined, MagFace, AdaFace, or any callable (cos_B, norm_B) -> cos_B; see
            fastmfr.kernels.margins. Or the name of a margin with its own numbers, as of `make_margin`; AdaFace keeps
            statistics from call to call, and has no name here.
        scale: Factor of the cosines, above 0.
        keep: Whether exponentials are kept for the backward pass, which trades memory for time; see `cos_lse`.
        inverse_norm_C: One over the lengths of the weight rows, if known, as `sgd_rows` leaves it.
        sample_weight_B: Factor of each row's loss.
        class_weight_C: Factor of the losses of each identity's rows.

    Returns:
        The losses (B,), in float32, or in float64 for float64 embeddings.

    Raises:
        ValueError: If `margin` is no margin, a number for instance, if shapes or dtypes do not fit or, on the CPU, if a
            label is C or more. The host does not wait for a GPU to check labels: there the loss of such a row is NaN.
    """
    margin = as_margin(margin, once=True)
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
