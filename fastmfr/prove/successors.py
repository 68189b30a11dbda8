"""Ideas of the method's successors, in place of the hard-pair loss: mining balanced over domains, triplets across them.

Shape suffixes: B = pairs, D = embedding, E = differences of one domain's embeddings, T = triplets.
"""

from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastmfr.config import narrowed
from fastmfr.losses import MfrLosses, MfrTerms
from fastmfr.meta import MetaStep, MetaTrainer
from fastmfr.training import Run
from fastmfr.training.meta import mfr_trainer

MARGIN = 0.5  # of triplets, in squared lengths of differences between unit rows, which are between 0 and 4


class BalancedLosses(MfrLosses):
    """Hard pairs found in each domain, and in each pair of domains, by the shares of mining 'share'.

    Mined over all pairs together, the hard impostors of domains that lie apart are all of one domain. Here each
    domain's genuine pairs count alike, and so do the impostors of each pair of domains.
    """

    def of_unit_pairs(self, unit_2BD: Tensor, domain_B: Tensor | None = None) -> MfrTerms:
        """Compute the losses; with `domain_B` None they are MfrLosses'."""
        terms = super().of_unit_pairs(unit_2BD, domain_B)
        if domain_B is None:
            return terms
        gallery_BD, probe_BD = unit_2BD.chunk(2)
        cos_BB = gallery_BD @ probe_BD.T
        blocks = _rows_of(domain_B)
        pulls = [_hardest(cos_BB[rows, rows], self.share_p, largest=False) for rows in blocks]
        pushes = [
            _hardest(_impostors(cos_BB, rows, columns), self.share_n, largest=True)
            for rows in blocks
            for columns in blocks
            if len(rows) > 1 or rows is not columns
        ]
        pair = (1 - torch.stack(pulls)).mean() - (1 - torch.stack(pushes)).mean()
        return _with_pair(terms, pair, self)


class TripletLosses(MfrLosses):
    """Triplets of each domain, measured by how the pairs of another domain differ.

    As Cross-Domain Triplets have it (arXiv 2103.07503): the distance of a genuine pair is taken along the differences
    of the other domain's genuine pairs, and that of an impostor pair along those of its impostor pairs. Both metrics
    are scaled to a mean eigenvalue of 1, and the margin is MARGIN: the paper's own numbers are not known here.
    """

    def of_unit_pairs(self, unit_2BD: Tensor, domain_B: Tensor | None = None) -> MfrTerms:
        """Compute the losses; with `domain_B` None the triplets are measured by their plain lengths."""
        terms = super().of_unit_pairs(unit_2BD, domain_B)
        gallery_BD, probe_BD = unit_2BD.chunk(2)
        if domain_B is None:
            return _with_pair(terms, _triplets(*_differences(gallery_BD, probe_BD)), self)
        found = [_differences(gallery_BD[rows], probe_BD[rows]) for rows in _rows_of(domain_B)]
        found = [one for one in found if len(one[1])]
        losses = [
            _triplets(*mine, along=others)
            for place, mine in enumerate(found)
            for others in [*found[:place], *found[place + 1 :]]
        ]
        return _with_pair(terms, torch.stack(losses).mean() if losses else terms.hard_pair * 0, self)


LOSSES = {"balanced": BalancedLosses, "triplets": TripletLosses}


class TrainerWithLosses:
    """A MetaTrainer whose splits have other losses."""

    def __init__(self, run: Run, backbone: nn.Module, optimizer: torch.optim.SGD, losses: str):
        """`losses`: a name in LOSSES."""
        self._trainer: MetaTrainer = mfr_trainer(run, backbone, optimizer)
        self._losses = LOSSES[losses]

    @property
    def graph(self) -> str:
        """What `MetaTrainer.graph` says."""
        return self._trainer.graph

    def step(self, splits: Iterable, *, alpha: float, rate: float, losses: MfrLosses) -> MetaStep:
        """Take a step as MetaTrainer does, with the weights and numbers of `losses`."""
        return self._trainer.step(splits, alpha=alpha, rate=rate, losses=narrowed(losses, self._losses))


def _rows_of(domain_B):
    return [(domain_B == domain).nonzero().squeeze(1) for domain in domain_B.unique().tolist()]


def _with_pair(terms, pair, settings):
    return replace(terms, hard_pair=pair, total=terms.total + settings.hard_pair * (pair - terms.hard_pair))


def _hardest(cos, share, largest):
    """The mean of the share of cosines that is hardest."""
    return cos.topk(max(1, round(share * len(cos))), largest=largest).values.mean()


def _impostors(cos_BB, rows, columns):
    """The cosines of two domains, or of one without its genuine pairs."""
    block = cos_BB[rows][:, columns]
    if rows is not columns:
        return block.flatten()
    return block[~torch.eye(len(rows), dtype=torch.bool, device=block.device)]


def _differences(gallery_BD, probe_BD):
    """(genuine_BD, impostor_ED) of one domain: gallery minus probe; the impostors of a gallery stand in a row."""
    B = len(gallery_BD)
    others = ~torch.eye(B, dtype=torch.bool, device=gallery_BD.device)
    return gallery_BD - probe_BD, (gallery_BD.unsqueeze(1) - probe_BD)[others]


def _triplets(genuine_BD, impostor_ED, along=None):
    """The mean over triplets of the hinge of genuine minus impostor distance plus margin."""
    if not len(impostor_ED):
        return genuine_BD.sum() * 0
    far_E = _squares(impostor_ED, along[1] if along else None)
    near_B = _squares(genuine_BD, along[0] if along else None)
    near_E = near_B.repeat_interleave(len(impostor_ED) // len(genuine_BD))
    return F.relu(near_E - far_E + MARGIN).mean()


def _squares(rows, along):
    """Squared lengths, or squares in the metric of the differences `along`, scaled to a mean eigenvalue of 1."""
    if along is None:
        return rows.square().sum(1)
    scale = along.shape[1] / along.square().sum(1).mean().clamp_min(1e-12)
    return (rows @ along.T).square().mean(1) * scale
