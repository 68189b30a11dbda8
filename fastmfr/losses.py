"""The three losses of Meta Face Recognition, on the embeddings of B (gallery, probe) pairs of B different people.

Source: arXiv 2003.07733, section 3.3. Rows are scaled to length one before everything else.
Shape suffixes: B = pairs, D = embedding.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from fastmfr.config.meta_settings import LossSettings

LOSSES = ("hard_pair", "soft_classification", "domain_alignment")  # fields of MfrTerms, and their weights in MfrLosses
_SHORTEST = 1e-12  # shorter rows are divided by this instead


def through_length(dunit_BD, unit_BD, inverse_B1, dinverse_B1=None):
    """The gradient on rows, from that on their unit rows and, where there is one, on 1 / their lengths.

    `dunit_BD` may be several, (K, B, D).
    """
    along_B1 = (dunit_BD * unit_BD).sum(-1, keepdim=True)
    if dinverse_B1 is not None:
        along_B1 = torch.addcmul(along_B1, inverse_B1, dinverse_B1)
    return torch.addcmul(dunit_BD, unit_BD, along_B1, value=-1) * inverse_B1


class _UnitRows(torch.autograd.Function):
    """u = x / |x| and r = 1 / |x|; gradients du and dr on them make r (du - u (u du + r dr)) on x.

    Made of u and r alone, the second derivative passes here again: the two take 4 and 18 operations, where autograd
    takes 14 and 45 of F.normalize.
    """

    @staticmethod
    def forward(x_BD):
        inverse_B1 = torch.linalg.vector_norm(x_BD, dim=1, keepdim=True).clamp_min_(_SHORTEST).reciprocal_()
        return x_BD * inverse_B1, inverse_B1

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*output)
        ctx.save_for_forward(*output)

    @staticmethod
    def backward(ctx, *douts):
        (dunit_BD, dinverse_B1), (unit_BD, inverse_B1) = douts, ctx.saved_tensors
        if dunit_BD is None:
            dunit_BD = torch.zeros_like(unit_BD)
        return through_length(dunit_BD, unit_BD, inverse_B1, dinverse_B1)

    @staticmethod
    def jvp(ctx, *tangents):
        unit_BD, inverse_B1 = ctx.saved_tensors
        along_B1 = (unit_BD * tangents[0]).sum(1, keepdim=True)
        return through_length(tangents[0], unit_BD, inverse_B1), -(inverse_B1**2) * along_B1


def unit_pairs(gallery_BD, probe_BD):
    """(unit rows (2B, D), 1 / their lengths before (2B, 1)): galleries, then probes. ValueError where shapes differ."""
    if gallery_BD.ndim != 2 or gallery_BD.shape != probe_BD.shape:
        raise ValueError(
            f"want gallery and probe embeddings of one shape (B, D), got {tuple(gallery_BD.shape)} and "
            f"{tuple(probe_BD.shape)}"
        )
    return _UnitRows.apply(torch.cat([gallery_BD, probe_BD]))


def mine_by_threshold(cos_BB, tau_p, tau_n):
    """Hard pairs as the paper takes them: genuine below `tau_p`, impostor above `tau_n`. Masks (B,) and (B, B)."""
    return cos_BB.diagonal() < tau_p, (cos_BB > tau_n).fill_diagonal_(False)


def mine_by_share(cos_BB, share_p, share_n):
    """The hardest `share_p` of the genuine and `share_n` of the impostor pairs; at least one of each, if any."""
    B = len(cos_BB)
    genuine_B = cos_BB.diagonal()
    hardest = genuine_B.topk(max(1, round(share_p * B)), largest=False).indices
    positive_B = torch.zeros_like(genuine_B, dtype=torch.bool).scatter_(0, hardest, True)
    negative_BB = torch.zeros_like(cos_BB, dtype=torch.bool)
    if B > 1:
        impostor_BB = cos_BB.clone().fill_diagonal_(-torch.inf)
        hardest = impostor_BB.flatten().topk(max(1, round(share_n * B * (B - 1)))).indices
        negative_BB.view(-1).scatter_(0, hardest, True)
    return positive_B, negative_BB


def _cosines(unit_2BD):
    gallery_BD, probe_BD = unit_2BD.chunk(2)
    return gallery_BD @ probe_BD.T


def _sums(unit_2BD):
    """gallery + probe, of each pair."""
    return unit_2BD.unflatten(0, (2, -1)).sum(0)


def _pull_and_push(cos_BB, positive_B, negative_BB):
    """(loss, |P|, |N|). The mean over an empty set is a 0 that still hangs on the graph: no step is a special case."""
    positives, negatives = positive_B.sum(), negative_BB.sum()
    weight_BB = negative_BB / negatives.clamp_min(1).to(cos_BB.dtype).neg()
    weight_BB.diagonal().add_(positive_B / positives.clamp_min(1).to(cos_BB.dtype))
    return (weight_BB * (1 - cos_BB)).sum(), positives, negatives


def _soft_classification(unit_2BD, sum_BD, scale, detach_prototypes):
    prototype_BD, _ = _UnitRows.apply(sum_BD.detach() if detach_prototypes else sum_BD)
    label_2B = torch.arange(len(sum_BD), device=sum_BD.device).repeat(2)
    return F.cross_entropy(scale * (unit_2BD @ prototype_BD.T), label_2B)


def _domain_alignment(sum_BD, domain_B, scale):
    if domain_B.shape != sum_BD.shape[:1]:
        raise ValueError(f"want one domain for each of {len(sum_BD)} pairs, got {tuple(domain_B.shape)}")
    # Every row carries how far its domain's mean is off, weighed so that a domain weighs one: static shapes, no host
    # synchronisation. A constant matrix makes that of the sums.
    same_BB = (domain_B.unsqueeze(1) == domain_B).to(sum_BD.dtype)
    share_B = same_BB.sum(1).reciprocal()
    domains = share_B.sum().round()  # to the integer it is: one domain is then off by nothing, not by rounding
    weight_B1 = (share_B / domains).sqrt().mul(scale / 2).unsqueeze(1)
    off = (weight_B1 * share_B * (same_BB - 1 / domains) @ sum_BD).flatten()
    return off.dot(off)


def hard_pair(gallery_BD, probe_BD, tau_p, tau_n):
    """Hard-pair attention: mean of 1 - cos over hard genuine pairs minus that over hard impostor pairs; in [-2, 2].

    `gallery_BD`, `probe_BD` (B, D): row i of both is the same person. A genuine pair is hard below cosine `tau_p`, an
    impostor pair above `tau_n`. Often negative, which is no error. Raises ValueError where the shapes differ.
    """
    cos_BB = _cosines(unit_pairs(gallery_BD, probe_BD)[0])
    return _pull_and_push(cos_BB, *mine_by_threshold(cos_BB.detach(), tau_p, tau_n))[0]


def soft_classification(gallery_BD, probe_BD, scale=64.0, detach_prototypes=False):
    """Cross entropy of each image against the batch's own prototypes, the unit means of its B pairs; >= 0.

    No classifier and no margin: the batch is the classifier. Whether gradient passes through the prototypes is not
    printed in the paper; it does, unless `detach_prototypes`.
    """
    unit_2BD, _ = unit_pairs(gallery_BD, probe_BD)
    return _soft_classification(unit_2BD, _sums(unit_2BD), scale, detach_prototypes)


def domain_alignment(gallery_BD, probe_BD, domain_B, scale=64.0):
    """Mean squared distance, times scale^2, of the domains' mean embeddings from the mean of those means; >= 0.

    `domain_B` (B,) integers, any values. 0 with one domain. The factor scale^2 = 4096 makes sampling noise
    visible: about 16 with two domains of 64 people each that differ in nothing.
    """
    return _domain_alignment(_sums(unit_pairs(gallery_BD, probe_BD)[0]), domain_B, scale)


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
class MfrLosses(LossSettings):
    """The losses of a split with their settings; the defaults are the paper's.

    `tau_p`, `tau_n`: cosines. `mining`: "threshold" uses them, "share" takes the hardest `share_p` of genuine and
    `share_n` of impostor pairs instead. `scale` multiplies cosines. The weights multiply the three losses.
    """

    def __call__(self, gallery_BD, probe_BD, domain_B=None) -> MfrTerms:
        """All three of a meta-train batch; without `domain_B`, as for a meta-test batch, no domain alignment."""
        return self.of_unit_pairs(unit_pairs(gallery_BD, probe_BD)[0], domain_B)

    def of_unit_pairs(self, unit_2BD, domain_B=None) -> MfrTerms:
        """The same of the unit rows that `unit_pairs` makes."""
        cos_BB, sum_BD = _cosines(unit_2BD), _sums(unit_2BD)
        if self.mining == "share":
            mined = mine_by_share(cos_BB.detach(), self.share_p, self.share_n)
        else:
            mined = mine_by_threshold(cos_BB.detach(), self.tau_p, self.tau_n)
        pair, positives, negatives = _pull_and_push(cos_BB, *mined)
        soft = _soft_classification(unit_2BD, sum_BD, self.scale, self.detach_prototypes)
        align = pair.new_zeros(())
        if domain_B is not None:
            align = _domain_alignment(sum_BD, domain_B, self.scale)
        total = self.hard_pair * pair + self.soft_classification * soft + self.domain_alignment * align
        return MfrTerms(pair, soft, align, total, positives, negatives)
