"""cos_lse in plain PyTorch: what all other paths must equal. It materialises the logits.

Shape suffixes: B = batch, C = identities, D = embedding.
"""

import torch


def cos_lse_ref(unit_BD, unit_CD, label_B, scale):
    """(log_sum_B, cos_B) of rows of length one; differentiable any number of times.

    A label outside [0, C), such as -1, names no identity here: the sum then runs over all of them, and cos is 0.
    """
    cos_BC = unit_BD @ unit_CD.T
    true_BC = label_B.unsqueeze(1) == torch.arange(len(unit_CD), device=label_B.device)
    # A finite floor, not -inf: with a single identity the sum is empty, and -inf would make its gradient NaN.
    others_BC = (scale * cos_BC).masked_fill(true_BC, torch.finfo(cos_BC.dtype).min / 4)
    return torch.logsumexp(others_BC, dim=1), cos_BC.masked_fill(~true_BC, 0).sum(1)
