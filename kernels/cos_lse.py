"""The margin-free heart of margin softmax: over unit rows, the log-sum-exp of all but the true identity.

    log_sum[b] = log sum_{c != y} exp(scale * cos[b, c])     cos_true[b] = cos[b, y]     y = label[b]

A margin changes the true cosine only, so it acts on (B,) vectors outside of here, whatever it is.
Shape suffixes: B = batch, C = identities, D = embedding.
"""

import torch


def cos_lse_ref(unit_BD, unit_CD, label_B, scale):
    """(log_sum_B, cos_true_B) in plain PyTorch; differentiable any number of times. Label -1 counts as identity 0."""
    cos_BC = unit_BD @ unit_CD.T
    true_B1 = label_B.clamp_min(0).long().unsqueeze(1)
    # A finite floor, not -inf: with a single identity the sum is empty, and -inf would make its gradient NaN.
    others_BC = (scale * cos_BC).scatter(1, true_B1, torch.finfo(cos_BC.dtype).min / 4)
    return torch.logsumexp(others_BC, dim=1), cos_BC.gather(1, true_B1).squeeze(1)


def cos_lse(unit_BD, unit_CD, label_B, scale):
    """log-sum-exp over the other identities (B,) and cosine of the true one (B,), from rows of length one.

    `unit_BD` (B, D) and `unit_CD` (C, D) share a floating dtype; `label_B` (B,) holds integers in [-1, C), where -1
    marks a row whose result will be ignored; `scale` > 0. Raises ValueError where the shapes or dtypes do not fit.
    """
    if unit_BD.ndim != 2 or unit_CD.ndim != 2 or unit_BD.shape[1] != unit_CD.shape[1]:
        raise ValueError(
            f"want embeddings (B, D) and weights (C, D), got {tuple(unit_BD.shape)} and {tuple(unit_CD.shape)}"
        )
    if label_B.shape != unit_BD.shape[:1]:
        raise ValueError(f"want one label for each of {unit_BD.shape[0]} rows, got {tuple(label_B.shape)}")
    if label_B.is_floating_point():
        raise ValueError(f"want integer labels, got {label_B.dtype}; use label.long()")
    if not scale > 0:
        raise ValueError(f"want scale > 0, got {scale}")
    return cos_lse_ref(unit_BD, unit_CD, label_B, scale)
