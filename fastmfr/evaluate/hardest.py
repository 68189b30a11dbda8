"""The pairs that a model finds hardest: the least alike of one person, the most alike of two people.

Wrong labels show here: an image under the wrong name is unlike that person's other images, and two folders of one
person hold impostor pairs that are as alike as genuine ones.
Shape suffixes: N images, D embedding, G gallery, P probes, K pairs.
"""

import numpy as np
import torch

from fastmfr.domains import Domain
from fastmfr.protocols import GalleryProbe
from fastmfr.results import HardestPair, HardestPairs

from .all_pairs import AllPairs

PAIRS = 8
KEPT = 2**20  # candidates kept between blocks


def hardest_pairs(
    embedding_ND: torch.Tensor | np.ndarray, pairs: GalleryProbe, domain: Domain, model: str, count: int = PAIRS
) -> HardestPairs:
    """Find the hardest gallery x probe pairs of each kind.

    A person is at most once in a list, so that one mislabelled person does not fill it.

    Args:
        embedding_ND: The embeddings of all images of the domain in their order; rows need not be of unit length.
        pairs: The gallery and probe lists.
        domain: Names the images and people.
        model: The name of the model, for the result.
        count: How many pairs of each kind; a list is shorter if there are not enough people.

    Returns:
        The genuine pairs by rising cosine, and the impostor pairs by falling cosine.

    Raises:
        ValueError: an embedding in the lists is not finite.
    """
    all_pairs = AllPairs(embedding_ND[pairs.gallery], pairs.gallery_id, embedding_ND[pairs.probe], pairs.probe_id)
    genuine = impostor = torch.empty(3, 0, dtype=torch.float64)
    for first, score_PG in all_pairs.blocks():
        row, column = all_pairs.mates(first, len(score_PG))
        genuine = _harder(genuine, -score_PG[row, column], first + row, column)
        score_PG[row, column] = -torch.inf
        # Pairs chosen before one of its own bar at most 2 (count - 1) people to a probe: it needs no more candidates.
        score, column = score_PG.topk(min(2 * count, score_PG.shape[1]), dim=1)
        row = torch.arange(len(score_PG), device=column.device)[:, None].expand_as(column)
        impostor = _harder(impostor, score.ravel(), first + row.ravel(), column.ravel())
    return HardestPairs(
        model=model,
        genuine=_listed(all_pairs, pairs, domain, genuine, count, sign=-1),
        impostor=_listed(all_pairs, pairs, domain, impostor, count, sign=1),
    )


def _harder(before, hardness_K, row_K, column_K):
    """The hardest of the candidates before and of these, (3, K): hardness, probe, column in the gallery; no -inf."""
    found = torch.stack([hardness_K.double(), row_K.double(), column_K.double()]).cpu()
    together = torch.cat([before, found[:, found[0] > -torch.inf]], dim=1)
    return together if together.shape[1] <= KEPT else together[:, together[0].topk(KEPT).indices]


def _listed(all_pairs, pairs, domain, candidates, count, sign) -> list[HardestPair]:
    """The first `count` candidates, the hardest first, without those that repeat a person."""
    hardness_K, probe_K, column_K = candidates.numpy()
    probe_K, gallery_K = probe_K.astype(np.int64), all_pairs.gallery_order[column_K.astype(np.int64)]
    person_2K = np.stack([pairs.gallery_id[gallery_K], pairs.probe_id[probe_K]])
    left, chosen = np.argsort(-hardness_K, kind="stable"), []
    while len(left) and len(chosen) < count:
        k = left[0]
        left = left[~np.isin(person_2K[:, left], person_2K[:, k]).any(0)]
        gallery, probe = int(pairs.gallery[gallery_K[k]]), int(pairs.probe[probe_K[k]])
        chosen.append(
            HardestPair(
                cosine=float(sign * hardness_K[k]),
                gallery=gallery,
                probe=probe,
                gallery_key=domain.key(gallery),
                gallery_identity=domain.identity_name(int(person_2K[0, k])),
                probe_key=domain.key(probe),
                probe_identity=domain.identity_name(int(person_2K[1, k])),
            )
        )
    return chosen
