"""Figures of one model person by person: each is a mean over probes, so that people can be drawn again afterwards.

Shape suffixes: N images, D embedding, P probes, G gallery.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from fastmfr.evaluate.roc import exact_roc, score_curve
from fastmfr.protocols import GalleryProbe

TAR = "tar_"
RANK1, AUC, EER = "rank1", "auc", "eer"
ENOUGH = 30  # impostor pairs above a threshold: fewer make a TAR that one person moves by points


def tar_at(far: float | str) -> str:
    """The key of TAR at a false accept rate."""
    return f"{TAR}{far}"


def titles(far: Iterable[float]) -> dict[str, str]:
    """What tables call each figure, in the order in which they show them."""
    tar = {tar_at(f): f"TAR@{_short(f)}" for f in sorted(far, reverse=True)}
    return tar | {RANK1: "rank-1", AUC: "AUC", EER: "EER"}


def _short(far):
    mantissa, _, exponent = f"{far:.0e}".partition("e")
    return f"{mantissa}e{int(exponent)}" if float(f"{far:.0e}") == far else f"{far:g}"


def main_figure(scores: Sequence[Mapping[str, Any]], far: Iterable[float]) -> str:
    """The figure that arms are judged by: TAR at the lowest FAR that every target has pairs enough for, else AUC.

    Args:
        scores: of every target of every arm, as `by_person` returns them.
        far: the rates at which TAR was measured.
    """
    for figure in map(tar_at, sorted(far)):
        if all(figure in one and is_measured(figure, one) for one in scores):
            return figure
    return AUC


def is_measured(figure: str, scores: Mapping[str, Any]) -> bool:
    """Whether a target has pairs enough for a figure: a TAR needs ENOUGH impostor pairs above its threshold."""
    far = float(figure.removeprefix(TAR)) if figure.startswith(TAR) else 1.0
    return far * scores["impostors"] >= ENOUGH


def by_person(embedding_ND: torch.Tensor, pairs: GalleryProbe, people: int, far: Iterable[float]) -> dict[str, Any]:
    """Compute the figures of each person.

    Weighted by the probes, the mean of a figure over people is the figure itself: TAR at each `far`, rank-1, AUC (the
    share of impostors that a genuine pair lies above; a tie counts half), and EER (genuine pairs rejected at the first
    threshold whose FAR reaches that share; within one pair of the interpolated one). Probes without a mate in the
    gallery do not count, and a person with none has the weight 0. A FAR that the pairs are too few for is left out.

    Args:
        embedding_ND: unit rows, one for each image of the domain.
        pairs: the images enrolled, at most one of each person, and the images looked up.
        people: how many people the domain has.
        far: false accept rates.

    Returns:
        "probes": how many of each person; "impostors": how many pairs; and by figure the mean of each person.
    """
    mated_P = np.isin(pairs.probe_id, pairs.gallery_id)
    probe_P, person_P = pairs.probe[mated_P], pairs.probe_id[mated_P]
    cos_PG = (embedding_ND[probe_P] @ embedding_ND[pairs.gallery].T).cpu().numpy()
    mate_PG = person_P[:, None] == pairs.gallery_id
    genuine_P, impostors = cos_PG[mate_PG], np.sort(cos_PG[~mate_PG])
    roc = exact_roc(cos_PG, mate_PG)
    rates = score_curve(roc, tuple(far)).tar_at_far
    at_eer = roc.threshold_K[np.argmax(roc.far_K + roc.tar_K >= 1)]
    below_P = (np.searchsorted(impostors, genuine_P, "left") + np.searchsorted(impostors, genuine_P, "right")) / 2
    of_probe = {tar_at(f): genuine_P >= rate.threshold for f, rate in rates.items() if rate.threshold is not None}
    of_probe |= {
        RANK1: genuine_P > np.where(mate_PG, -np.inf, cos_PG).max(1),
        AUC: below_P / len(impostors),
        EER: genuine_P < at_eer,
    }
    probes = np.bincount(person_P, minlength=people)

    def mean(value_P):
        return np.bincount(person_P, value_P, people) / np.maximum(probes, 1)

    figures = {name: mean(value_P).round(6).tolist() for name, value_P in of_probe.items()}
    return {"probes": probes.tolist(), "impostors": len(impostors), **figures}
