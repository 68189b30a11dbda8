"""Rank-1 and rank-k: whose image in the gallery is nearest to a probe?

Shape suffixes: G gallery, P probes, D embedding.
"""

import numpy as np

from .all_pairs import AllPairs
from .roc import as_numpy


def identification(gallery_GD, gallery_id, probe_PD, probe_id, k: int = 1) -> float:
    """Rank-k: the share of probes that have fewer than k strangers as near as their nearest mate, in [0, 1].

    Nearness is the cosine; rows need not be of unit length. k = 1 is rank-1: the nearest gallery image is a mate. A
    mate that ties with a stranger comes after it, so that a collapsed model scores 0. Raises ValueError for a probe
    with no mate in the gallery, and for embeddings that are not finite.
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
