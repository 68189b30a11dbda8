"""Figures of one model person by person: each is a mean over probes, so that people can be drawn anew afterwards.

Shape suffixes: N images, D embedding, P probes, G gallery.
"""

import numpy as np
import torch

from fastmfr.evaluate.roc import exact_roc, score_curve
from fastmfr.protocols import GalleryProbe

FIGURES = {"tar_0.01": "TAR@1e-2", "tar_0.001": "TAR@1e-3", "rank1": "rank-1", "auc": "AUC", "eer": "EER"}


def by_person(embedding_ND: torch.Tensor, pairs: GalleryProbe, people: int, far) -> dict[str, list]:
    """{"probes": how many each of `people` has, figure: its mean over each one's}, people in order of identity.

    `embedding_ND`: unit rows; the gallery holds one image a person at most. Probes without a mate there do not count;
    a person with none weighs nothing. Weighed by the probes, a figure's mean over people is the figure itself: TAR at
    each `far`, rank-1, AUC (the share of impostors a genuine pair lies above, a tie counting half), and EER (genuine
    pairs rejected at the first threshold whose FAR reaches that share; within one pair of what is interpolated). A FAR
    that the pairs are too few for is left out.
    """
    mated_P = np.isin(pairs.probe_id, pairs.gallery_id)
    probe_P, person_P = pairs.probe[mated_P], pairs.probe_id[mated_P]
    cos_PG = (embedding_ND[probe_P] @ embedding_ND[pairs.gallery].T).cpu().numpy()
    mate_PG = person_P[:, None] == pairs.gallery_id
    genuine_P, impostors = cos_PG[mate_PG], np.sort(cos_PG[~mate_PG])
    roc = exact_roc(cos_PG, mate_PG)
    rates = score_curve(roc, far).tar_at_far
    at_eer = roc.threshold_K[np.argmax(roc.far_K + roc.tar_K >= 1)]
    below_P = sum(np.searchsorted(impostors, genuine_P, side) for side in ("left", "right")) / 2
    of_probe = {f"tar_{f}": genuine_P >= rate.threshold for f, rate in rates.items() if rate.threshold is not None}
    of_probe |= {
        "rank1": genuine_P > np.where(mate_PG, -np.inf, cos_PG).max(1),
        "auc": below_P / len(impostors),
        "eer": genuine_P < at_eer,
    }
    probes = np.bincount(person_P, minlength=people)

    def mean(value_P):
        return np.bincount(person_P, value_P, people) / np.maximum(probes, 1)

    return {"probes": probes.tolist()} | {name: mean(value_P).round(6).tolist() for name, value_P in of_probe.items()}
