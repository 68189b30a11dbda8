"""cos_lse in plain PyTorch, on materialised logits: what all other paths must equal.

Shape suffixes: B = batch, C = identities, D = embedding.
"""

import torch
from torch import Tensor


def cos_lse_ref(unit_BD: Tensor, unit_CD: Tensor, label_B: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Compute `cos_lse` for weights that are unit rows. Differentiable any number of times.

    Args:
        unit_BD: Embeddings of length one.
        unit_CD: Weight rows of length one.
        label_B: Labels, int32 or int64. A label outside [0, C), such as -1, names no identity.
        scale: Factor of the cosines.

    Returns:
        The log-sum-exp (B,) of scale * cosine over all identities but the true one, and the true one's cosine (B,). If
        a label names no identity, the sum runs over all identities and the cosine is 0.
    """
    cos_BC = unit_BD @ unit_CD.T
    true_BC = label_B.unsqueeze(1) == torch.arange(len(unit_CD), device=label_B.device)
    # A finite floor, not -inf: with a single identity the sum is empty, and -inf would make its gradient NaN.
    others_BC = (scale * cos_BC).masked_fill(true_BC, torch.finfo(cos_BC.dtype).min / 4)
    return torch.logsumexp(others_BC, dim=1), cos_BC.masked_fill(~true_BC, 0).sum(1)
