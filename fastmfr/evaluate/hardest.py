"""The pairs that a model finds hardest: the least alike of one person, the most alike of two people.

Wrong labels come to light here: an image under the wrong name is unlike that person's others, and two folders of one
person hold pairs that are as alike as genuine ones.
Shape suffixes: N images, D embedding, G gallery, P probes, K pairs.
"""

import numpy as np
import torch

from fastmfr.protocols import GalleryProbe

from .all_pairs import AllPairs

PAIRS = 8
KEPT = 2**20  # candidates kept between blocks


def hardest_pairs(embedding_ND, pairs: GalleryProbe, count: int = PAIRS) -> dict[str, list[dict]]:
    """The `count` hardest gallery x probe pairs of each kind: genuine, the cosine rising, and impostor, it falling.

    Each is a dict of cosine, gallery and probe (image numbers), gallery_id and probe_id. A person stands at most once
    in a list, so that one mislabelled person does not fill it; a list is shorter where there are not enough people.
    `embedding_ND` holds all images of the domain in their order; rows need not be of unit length.
    ValueError for rows in the lists that are not finite.
    """
    crossing = AllPairs(embedding_ND[pairs.gallery], pairs.gallery_id, embedding_ND[pairs.probe], pairs.probe_id)
    genuine = impostor = torch.empty(3, 0, dtype=torch.float64)
    for first, score_PG in crossing.blocks():
        row, column = crossing.mates(first, len(score_PG))
        genuine = _harder(genuine, -score_PG[row, column], first + row, column)
        score_PG[row, column] = -torch.inf
        # Pairs chosen before one of its own bar at most 2 (count - 1) people to a probe: it needs no more candidates.
        score, column = score_PG.topk(min(2 * count, score_PG.shape[1]), dim=1)
        row = torch.arange(len(score_PG), device=column.device)[:, None].expand_as(column)
        impostor = _harder(impostor, score.ravel(), first + row.ravel(), column.ravel())
    return {
        "genuine": _listed(crossing, pairs, genuine, count, sign=-1),
        "impostor": _listed(crossing, pairs, impostor, count, sign=1),
    }


def _harder(before, hardness_K, row_K, column_K):
    """The hardest of the candidates before and of these, (3, K): hardness, probe, column in the gallery; no -inf."""
    found = torch.stack([hardness_K.double(), row_K.double(), column_K.double()]).cpu()
    together = torch.cat([before, found[:, found[0] > -torch.inf]], dim=1)
    return together if together.shape[1] <= KEPT else together[:, together[0].topk(KEPT).indices]


def _listed(crossing, pairs, candidates, count, sign):
    """The first `count` candidates, the hardest first, in which no person comes again."""
    hardness_K, probe_K, column_K = candidates.numpy()
    probe_K, gallery_K = probe_K.astype(np.int64), crossing.gallery_order[column_K.astype(np.int64)]
    person_2K = np.stack([pairs.gallery_id[gallery_K], pairs.probe_id[probe_K]])
    left, chosen = np.argsort(-hardness_K, kind="stable"), []
    while len(left) and len(chosen) < count:
        k = left[0]
        left = left[~np.isin(person_2K[:, left], person_2K[:, k]).any(0)]
        chosen.append(
            {
                "cosine": float(sign * hardness_K[k]),
                "gallery": int(pairs.gallery[gallery_K[k]]),
                "probe": int(pairs.probe[probe_K[k]]),
                "gallery_id": int(person_2K[0, k]),
                "probe_id": int(person_2K[1, k]),
            }
        )
    return chosen
