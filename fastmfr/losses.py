"""The three losses of Meta Face Recognition, on the embeddings of B (gallery, probe) pairs of B different people.

Source: arXiv 2003.07733, section 3.3. Every function scales the rows of embeddings to length one first.
Shape suffixes: B = pairs, D = embedding.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from fastmfr.config.meta_settings import LossSettings

__all__ = [
    "LOSSES",
    "MfrLosses",
    "MfrTerms",
    "domain_alignment",
    "hard_pair",
    "mine_by_share",
    "mine_by_threshold",
    "soft_classification",
    "through_length",
    "unit_pairs",
]

LOSSES = ("hard_pair", "soft_classification", "domain_alignment")  # fields of MfrTerms; their weights in MfrLosses
_SHORTEST = 1e-12  # rows that are shorter are divided by this


def through_length(dunit_BD: Tensor, unit_BD: Tensor, inverse_B1: Tensor, dinverse_B1: Tensor | None = None) -> Tensor:
    """Carry gradients on unit rows u = r x back to the rows x, where r = 1 / |x|.

    Args:
        dunit_BD: Gradient on the unit rows, shape (B, D), or K gradients, shape (K, B, D).
        unit_BD: The unit rows.
        inverse_B1: r, shape (B, 1).
        dinverse_B1: Gradient on r, shape (B, 1); None is a gradient of 0.

    Returns:
        The gradient on x, of the shape of `dunit_BD`.
    """
    along_B1 = (dunit_BD * unit_BD).sum(-1, keepdim=True)
    if dinverse_B1 is not None:
        along_B1 = torch.addcmul(along_B1, inverse_B1, dinverse_B1)
    return torch.addcmul(dunit_BD, unit_BD, along_B1, value=-1) * inverse_B1


class _UnitRows(torch.autograd.Function):
    """u = x / |x| and r = 1 / |x|. Gradients du and dr become r (du - u (u du + r dr)) on x.

    The backward reads u and r alone, so the second derivative passes through this function again. First and second
    derivative take 4 and 18 operations; autograd through F.normalize takes 14 and 45.
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


def unit_pairs(gallery_BD: Tensor, probe_BD: Tensor) -> tuple[Tensor, Tensor]:
    """Scale all rows to length one.

    Args:
        gallery_BD: Gallery embeddings, shape (B, D).
        probe_BD: Probe embeddings, shape (B, D).

    Returns:
        The unit rows, shape (2B, D), galleries before probes; and 1 / the lengths of the rows given, shape (2B, 1).

    Raises:
        ValueError: If the shapes differ.
    """
    if gallery_BD.ndim != 2 or gallery_BD.shape != probe_BD.shape:
        raise ValueError(
            f"want gallery and probe embeddings of one shape (B, D), got {tuple(gallery_BD.shape)} and "
            f"{tuple(probe_BD.shape)}"
        )
    return _UnitRows.apply(torch.cat([gallery_BD, probe_BD]))


def mine_by_threshold(cos_BB: Tensor, tau_p: float, tau_n: float) -> tuple[Tensor, Tensor]:
    """Find hard pairs as the paper does: genuine ones below a cosine, impostors above another.

    Args:
        cos_BB: Cosines of all galleries (rows) with all probes (columns); genuine pairs lie on the diagonal.
        tau_p: A genuine pair below this cosine is hard.
        tau_n: An impostor pair above this cosine is hard.

    Returns:
        Masks of the hard genuine pairs, shape (B,), and of the hard impostor pairs, shape (B, B).
    """
    return cos_BB.diagonal() < tau_p, (cos_BB > tau_n).fill_diagonal_(False)


def mine_by_share(cos_BB: Tensor, share_p: float, share_n: float) -> tuple[Tensor, Tensor]:
    """Find the hardest pairs; at least one genuine pair and, if B > 1, at least one impostor pair.

    Args:
        cos_BB: Cosines, as of `mine_by_threshold`.
        share_p: Fraction of the B genuine pairs to take, above 0 and at most 1.
        share_n: Fraction of the B (B - 1) impostor pairs to take, above 0 and at most 1.

    Returns:
        Masks, as of `mine_by_threshold`.
    """
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
    """gallery + probe of each pair, (B, D)."""
    return unit_2BD.unflatten(0, (2, -1)).sum(0)


def _pull_and_push(cos_BB, positive_B, negative_BB):
    """(loss, |P|, |N|). The mean over an empty set is a 0 that is still part of the graph: no step is special."""
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
    # Each row holds the deviation of its domain's mean. The weights of a domain's rows add up to one, so shapes are
    # static and the host never waits. A constant matrix maps the sums of the pairs to the deviations.
    same_BB = (domain_B.unsqueeze(1) == domain_B).to(sum_BD.dtype)
    inverse_size_B = same_BB.sum(1).reciprocal()  # 1 / the number of pairs of the row's domain
    domains = inverse_size_B.sum().round()  # an exact integer: with one domain the deviation is then exactly 0
    weight_B1 = (inverse_size_B / domains).sqrt().mul(scale / 2).unsqueeze(1)
    deviation = (weight_B1 * inverse_size_B * (same_BB - 1 / domains) @ sum_BD).flatten()
    return deviation.dot(deviation)


def hard_pair(gallery_BD: Tensor, probe_BD: Tensor, tau_p: float, tau_n: float) -> Tensor:
    """Compute the hard-pair attention loss (arXiv 2003.07733, section 3.3).

    The loss is the mean of 1 - cos over the hard genuine pairs, minus the mean of 1 - cos over the hard impostor pairs.
    The mean over no pair is 0. The loss is often negative, which is no error.

    Args:
        gallery_BD: Embeddings of one image of each of B people, shape (B, D). Rows are normalised inside.
        probe_BD: Embeddings of another image of the same people, in the same order.
        tau_p: A genuine pair below this cosine is hard.
        tau_n: An impostor pair above this cosine is hard.

    Returns:
        The loss, a tensor of shape (), in [-2, 2].

    Raises:
        ValueError: If the shapes differ.
    """
    cos_BB = _cosines(unit_pairs(gallery_BD, probe_BD)[0])
    return _pull_and_push(cos_BB, *mine_by_threshold(cos_BB.detach(), tau_p, tau_n))[0]


def soft_classification(
    gallery_BD: Tensor, probe_BD: Tensor, scale: float = 64.0, detach_prototypes: bool = False
) -> Tensor:
    """Compute the soft classification loss (arXiv 2003.07733, section 3.3).

    The prototype of a person is the mean of the person's two unit embeddings, scaled to length one. The loss is the
    mean cross entropy of all 2B images against the B prototypes. There is no classifier and no margin.

    Args:
        gallery_BD: Embeddings of one image of each of B people, shape (B, D). Rows are normalised inside.
        probe_BD: Embeddings of another image of the same people, in the same order.
        scale: Factor of the cosines, > 0.
        detach_prototypes: Whether to stop the gradient through the prototypes. The paper does not say; by default the
            gradient passes.

    Returns:
        The loss, a tensor of shape (), >= 0.

    Raises:
        ValueError: If the shapes differ.
    """
    unit_2BD, _ = unit_pairs(gallery_BD, probe_BD)
    return _soft_classification(unit_2BD, _sums(unit_2BD), scale, detach_prototypes)


def domain_alignment(gallery_BD: Tensor, probe_BD: Tensor, domain_B: Tensor, scale: float = 64.0) -> Tensor:
    """Compute the domain alignment loss (arXiv 2003.07733, section 3.3).

    The loss is the mean squared distance of the domains' mean unit embeddings from the mean of these means, multiplied
    by scale^2. The factor makes sampling noise visible: with scale 64, two equal domains of 64 people each have a loss
    of about 16.

    Args:
        gallery_BD: Embeddings of one image of each of B people, shape (B, D). Rows are normalised inside.
        probe_BD: Embeddings of another image of the same people, in the same order.
        domain_B: The domain of each person, shape (B,), any integers.
        scale: Factor of the mean embeddings, > 0.

    Returns:
        The loss, a tensor of shape (), >= 0; 0 with one domain.

    Raises:
        ValueError: If the shapes differ, or if `domain_B` is not of shape (B,).
    """
    return _domain_alignment(_sums(unit_pairs(gallery_BD, probe_BD)[0]), domain_B, scale)


@dataclass(frozen=True)
class MfrTerms:
    """What MfrLosses computes of one batch; all tensors have the shape ().

    Attributes:
        hard_pair: Unweighted, as of `hard_pair`.
        soft_classification: Unweighted, as of `soft_classification`.
        domain_alignment: Unweighted, as of `domain_alignment`.
        total: The sum of the three losses, each multiplied by its weight.
        positives: Number of hard genuine pairs.
        negatives: Number of hard impostor pairs.
    """

    hard_pair: Tensor
    soft_classification: Tensor
    domain_alignment: Tensor
    total: Tensor
    positives: Tensor
    negatives: Tensor


@dataclass(frozen=True)
class MfrLosses(LossSettings):
    """The losses of a split, computed with the settings that LossSettings explains; the defaults are the paper's."""

    def __call__(self, gallery_BD: Tensor, probe_BD: Tensor, domain_B: Tensor | None = None) -> MfrTerms:
        """Compute the losses of one batch.

        Args:
            gallery_BD: Embeddings of one image of each of B people, shape (B, D). Rows are normalised inside.
            probe_BD: Embeddings of another image of the same people, in the same order.
            domain_B: The domain of each person. None, as for a meta-test batch, leaves domain alignment 0.

        Raises:
            ValueError: If the shapes differ, or if `domain_B` is not of shape (B,).
        """
        return self.of_unit_pairs(unit_pairs(gallery_BD, probe_BD)[0], domain_B)

    def of_unit_pairs(self, unit_2BD: Tensor, domain_B: Tensor | None = None) -> MfrTerms:
        """Compute the same losses from the unit rows that `unit_pairs` returns."""
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
