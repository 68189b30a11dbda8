"""Rank-1 and rank-k: whose image in the gallery is nearest to a probe?

Shape suffixes: G gallery, P probes, D embedding.
"""

import numpy as np
import torch
from numpy.typing import ArrayLike

from .all_pairs import AllPairs, Rows
from .roc import as_numpy


def identification(
    gallery_GD: Rows,
    gallery_id: ArrayLike | torch.Tensor,
    probe_PD: Rows,
    probe_id: ArrayLike | torch.Tensor,
    k: int = 1,
) -> float:
    """Return rank-k: the share of probes with fewer than k strangers as near as their nearest mate, in [0, 1].

    Nearness is the cosine. k = 1 is rank-1: the nearest gallery image is a mate. A mate that ties with a stranger comes
    after the stranger, so that a collapsed model scores 0.

    Args:
        gallery_GD: Embeddings; rows need not be of unit length.
        gallery_id: The identity of each gallery row.
        probe_PD: Embeddings; rows need not be of unit length.
        probe_id: The identity of each probe row.
        k: At least 1.

    Raises:
        ValueError: a probe has no mate in the gallery, an embedding is not finite, or there is no probe.
    """
    gallery_id, probe_id = as_numpy(gallery_id), as_numpy(probe_id)
    if (len(gallery_GD), len(probe_PD)) != (len(gallery_id), len(probe_id)):
        raise ValueError(
            f"want one identity for each row, got {len(gallery_GD)} gallery rows with {len(gallery_id)} "
            f"identities and {len(probe_PD)} probe rows with {len(probe_id)}"
        )
    if not k >= 1:
        raise ValueError(f"want a rank k of at least 1, got {k}")
    if not len(probe_id):
        raise ValueError("there is no probe to look up; want at least one")
    lone = np.flatnonzero(~np.isin(probe_id, gallery_id))
    if len(lone):
        raise ValueError(
            f"{len(lone)} of {len(probe_id)} probes have no mate in the gallery, the first is probe "
            f"{lone[0]} of identity {probe_id[lone[0]]}; leave them out or enrol an image of theirs"
        )
    return float((AllPairs(gallery_GD, gallery_id, probe_PD, probe_id).ranks() < k).mean())
