"""Which images share their batch statistics, and how much each loss pulls on their embeddings.

Shape suffixes: B = pairs, D = embedding, H W = image.
"""

import torch

from fastmfr.losses import LOSSES, MfrLosses, through_length, unit_pairs


class Groups:
    """The images of a PairBatch in groups that go through the backbone as one batch each: all, or those of a domain.

    `images`: of each group (2 rows, 3, H, W), its galleries before its probes.
    """

    def __init__(self, pairs, per_domain):
        if per_domain:  # unique() synchronises the host: the price of statistics by domain when eager
            rows = [(pairs.domain_B == domain).nonzero().squeeze(1) for domain in pairs.domain_B.unique()]
            halves = [(pairs.gallery_B3HW[group], pairs.probe_B3HW[group]) for group in rows]
            self.back = torch.cat(rows).argsort()
        else:
            halves, self.back = [(pairs.gallery_B3HW, pairs.probe_B3HW)], None
        self.images = [torch.cat(half) for half in halves]

    def join(self, embeddings):
        """(gallery_BD, probe_BD) in the order of the pairs, out of one embedding of each group."""
        if self.back is None:
            return embeddings[0].chunk(2)
        halves = zip(*(embedding.chunk(2) for embedding in embeddings), strict=True)
        gallery_BD, probe_BD = (torch.cat(half)[self.back] for half in halves)
        return gallery_BD, probe_BD


def pulls_and_gradient(losses: MfrLosses, embeddings, domain_B, *, create_graph):
    """(terms, pulls (3,), gradient of their total on gallery_BD and on probe_BD): each loss is differentiated once.

    The three gradients are taken on the unit rows, and go on to the `embeddings` together.
    """
    unit_2BD, inverse_2B1 = unit_pairs(*embeddings)
    terms = losses.of_unit_pairs(unit_2BD, domain_B)
    parts = []
    for name in LOSSES:
        loss = getattr(terms, name)
        if loss.requires_grad:
            weight = torch.full_like(loss, getattr(losses, name))
            parts += torch.autograd.grad(loss, unit_2BD, weight, retain_graph=True, create_graph=create_graph)
        else:  # one domain, nothing to align
            parts.append(torch.zeros_like(unit_2BD))
    with torch.set_grad_enabled(create_graph):
        dz_32BD = through_length(torch.stack(parts), unit_2BD, inverse_2B1)
        return terms, torch.linalg.vector_norm(dz_32BD.detach(), dim=(1, 2)), dz_32BD.sum(0).chunk(2)
