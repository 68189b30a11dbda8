"""The three losses of Meta Face Recognition, on the embeddings of B (gallery, probe) pairs of B different people.

Source: arXiv 2003.07733, section 3.3. Rows are scaled to length one before everything else.
Shape suffixes: B = pairs, D = embedding.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


def _unit_pairs(gallery_BD, probe_BD):
    if gallery_BD.ndim != 2 or gallery_BD.shape != probe_BD.shape:
        raise ValueError(
            f"want gallery and probe embeddings of one shape (B, D), got {tuple(gallery_BD.shape)} and "
            f"{tuple(probe_BD.shape)}"
        )
    return F.normalize(gallery_BD, dim=1), F.normalize(probe_BD, dim=1)


def mine_by_threshold(cos_BB, tau_p, tau_n):
    """Hard pairs as the paper takes them: genuine below `tau_p`, impostor above `tau_n`. Masks (B,) and (B, B)."""
    hard_BB = cos_BB > tau_n
    return cos_BB.diagonal() < tau_p, hard_BB & ~torch.eye(len(cos_BB), dtype=torch.bool, device=cos_BB.device)


def mine_by_share(cos_BB, share_p, share_n):
    """The hardest `share_p` of the genuine and `share_n` of the impostor pairs; at least one of each, if any."""
    B = len(cos_BB)
    genuine_B = cos_BB.diagonal()
    positive_B = torch.zeros_like(genuine_B, dtype=torch.bool)
    positive_B[genuine_B.topk(max(1, round(share_p * B)), largest=False).indices] = True
    negative_BB = torch.zeros_like(cos_BB, dtype=torch.bool)
    if B > 1:
        impostor_BB = cos_BB.masked_fill(torch.eye(B, dtype=torch.bool, device=cos_BB.device), -torch.inf)
        hardest = impostor_BB.flatten().topk(max(1, round(share_n * B * (B - 1)))).indices
        negative_BB.view(-1)[hardest] = True
    return positive_B, negative_BB


def _pull_and_push(cos_BB, positive_B, negative_BB):
    # The mean over an empty set is a 0 that still hangs on the graph, so no step needs a special case.
    pull = ((1 - cos_BB.diagonal()) * positive_B).sum() / positive_B.sum().clamp_min(1)
    push = ((1 - cos_BB) * negative_BB).sum() / negative_BB.sum().clamp_min(1)
    return pull - push


def hard_pair(gallery_BD, probe_BD, tau_p, tau_n):
    """Hard-pair attention: mean of 1 - cos over hard genuine pairs minus that over hard impostor pairs; in [-2, 2].

    `gallery_BD`, `probe_BD` (B, D): row i of both is the same person. A genuine pair is hard below cosine `tau_p`, an
    impostor pair above `tau_n`. Often negative, which is no error. Raises ValueError where the shapes differ.
    """
    gallery_BD, probe_BD = _unit_pairs(gallery_BD, probe_BD)
    cos_BB = gallery_BD @ probe_BD.T
    return _pull_and_push(cos_BB, *mine_by_threshold(cos_BB.detach(), tau_p, tau_n))


def soft_classification(gallery_BD, probe_BD, scale=64.0, detach_prototypes=False):
    """Cross entropy of each image against the batch's own prototypes, the unit means of its B pairs; >= 0.

    No classifier and no margin: the batch is the classifier. Whether gradient passes through the prototypes is not
    printed in the paper; it does, unless `detach_prototypes`.
    """
    gallery_BD, probe_BD = _unit_pairs(gallery_BD, probe_BD)
    prototype_BD = F.normalize(gallery_BD + probe_BD, dim=1)
    if detach_prototypes:
        prototype_BD = prototype_BD.detach()
    label_B = torch.arange(len(gallery_BD), device=gallery_BD.device)
    gallery_BB, probe_BB = (scale * rows_BD @ prototype_BD.T for rows_BD in (gallery_BD, probe_BD))
    return (F.cross_entropy(gallery_BB, label_B) + F.cross_entropy(probe_BB, label_B)) / 2


def domain_alignment(gallery_BD, probe_BD, domain_B, scale=64.0):
    """Mean squared distance, times scale^2, of the domains' mean embeddings from the mean of those means; >= 0.

    `domain_B` (B,) integers, any values. 0 with one domain. The factor scale^2 = 4096 makes sampling noise
    visible: about 16 with two domains of 64 people each that differ in nothing.
    """
    gallery_BD, probe_BD = _unit_pairs(gallery_BD, probe_BD)
    if domain_B.shape != gallery_BD.shape[:1]:
        raise ValueError(f"want one domain for each of {len(gallery_BD)} pairs, got {tuple(domain_B.shape)}")
    # Every row carries its domain's mean, weighed so that a domain weighs one: static shapes, no host synchronisation.
    same_BB = (domain_B.unsqueeze(1) == domain_B).to(gallery_BD.dtype)
    weight_B = 1 / same_BB.sum(1)
    domains = weight_B.sum()
    mean_BD = weight_B.unsqueeze(1) * (same_BB @ (gallery_BD + probe_BD)) / 2
    centre_D = weight_B @ mean_BD / domains
    return scale**2 * (weight_B @ (mean_BD - centre_D).square().sum(1)) / domains


@dataclass(frozen=True)
class MfrTerms:
    """What MfrLosses gives for one batch: the three unweighted losses, their weighted total, the sizes |P| and |N|."""

    hard_pair: Tensor
    soft_classification: Tensor
    domain_alignment: Tensor
    total: Tensor
    positives: Tensor
    negatives: Tensor


@dataclass(frozen=True)
class MfrLosses:
    """The losses of a split with their settings; the defaults are the paper's.

    `tau_p`, `tau_n`: cosines. `mining`: "threshold" uses them, "share" takes the hardest `share_p` of genuine and
    `share_n` of impostor pairs instead. `scale` multiplies cosines. The weights multiply the three losses.
    """

    tau_p: float = 0.3
    tau_n: float = 0.04
    scale: float = 64.0
    hard_pair: float = 1.0
    soft_classification: float = 1.0
    domain_alignment: float = 1.0
    mining: str = "threshold"
    share_p: float = 0.4
    share_n: float = 0.01
    detach_prototypes: bool = False

    def __call__(self, gallery_BD, probe_BD, domain_B=None) -> MfrTerms:
        """All three of a meta-train batch; without `domain_B`, as for a meta-test batch, no domain alignment."""
        unit_gallery_BD, unit_probe_BD = _unit_pairs(gallery_BD, probe_BD)
        cos_BB = unit_gallery_BD @ unit_probe_BD.T
        if self.mining == "share":
            positive_B, negative_BB = mine_by_share(cos_BB.detach(), self.share_p, self.share_n)
        else:
            positive_B, negative_BB = mine_by_threshold(cos_BB.detach(), self.tau_p, self.tau_n)
        pair = _pull_and_push(cos_BB, positive_B, negative_BB)
        soft = soft_classification(gallery_BD, probe_BD, self.scale, self.detach_prototypes)
        align = pair.new_zeros(())
        if domain_B is not None:
            align = domain_alignment(gallery_BD, probe_BD, domain_B, self.scale)
        total = self.hard_pair * pair + self.soft_classification * soft + self.domain_alignment * align
        return MfrTerms(pair, soft, align, total, positive_B.sum(), negative_BB.sum())
