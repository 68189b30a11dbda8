"""Receiver operating curves: pairs accepted at falling thresholds, and the figures read off them.

    TAR(t)  share of genuine pairs scoring >= t          TAR at FAR f  the largest TAR with FAR <= f
    FAR(t)  share of impostor pairs scoring >= t         EER           where FAR = 1 - TAR
Shape suffix: K thresholds.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

FAR = (1e-2, 1e-3, 1e-4)
ROC_POINTS = 400  # kept for plotting


@dataclass(frozen=True)
class Roc:
    """Pairs accepted (score >= threshold) at K falling thresholds; the first accepts none, the last accepts all."""

    threshold_K: np.ndarray  # float64
    impostors_K: np.ndarray  # int64, accepted
    genuine_K: np.ndarray  # int64, accepted

    @property
    def impostors(self) -> int:
        return int(self.impostors_K[-1])

    @property
    def genuine(self) -> int:
        return int(self.genuine_K[-1])

    @property
    def far_K(self) -> np.ndarray:
        return self.impostors_K / self.impostors

    @property
    def tar_K(self) -> np.ndarray:
        return self.genuine_K / self.genuine


def verification(scores, is_mate, far: Sequence[float] = FAR) -> dict:
    """How well `scores` (higher: more alike) tell genuine from impostor pairs; arrays or tensors of one size.

    Returns tar_at_far {far: {tar, threshold, far (realised)} or {refused: reason}}, auc, eer, genuine and impostors
    (counts), and roc {far, tar}, at most 400 points evenly spaced in log FAR. Ties are handled exactly: equal scores
    are accepted together. Raises ValueError for scores that are not finite, or with no pair of one kind.
    """
    return figures(exact_roc(as_numpy(scores), as_numpy(is_mate)), far)


def tar_at_far(scores, is_mate, far: float) -> float:
    """The largest share of genuine pairs accepted while at most `far` of the impostor pairs are, in [0, 1].

    Raises ValueError where the impostors are too few to measure that FAR, and as `verification` does.
    """
    found = _tar_at_far(exact_roc(as_numpy(scores), as_numpy(is_mate)), far)
    if "refused" in found:
        raise ValueError(found["refused"])
    return found["tar"]


def figures(roc: Roc, far: Sequence[float]) -> dict:
    """What `verification` returns, of a curve that is there."""
    return {
        "tar_at_far": {f: _tar_at_far(roc, f) for f in far},
        "auc": float(np.trapezoid(roc.tar_K, roc.far_K)),
        "eer": _eer(roc),
        "genuine": roc.genuine,
        "impostors": roc.impostors,
        "roc": _thinned(roc),
    }


def exact_roc(scores: np.ndarray, is_mate: np.ndarray) -> Roc:
    """The curve with a threshold at every score, by sorting them; ValueError as `verification` says."""
    scores, is_mate = scores.ravel(), is_mate.ravel().astype(bool)
    if len(scores) != len(is_mate):
        raise ValueError(f"want one mate flag for each score, got {len(scores)} scores and {len(is_mate)} flags")
    refuse_one_kind(int(np.count_nonzero(is_mate)), len(scores))
    refuse_not_finite(scores)
    order = np.argsort(scores)[::-1]
    falling = scores[order].astype(np.float64)
    last_of_tie = np.append(np.flatnonzero(np.diff(falling)), len(falling) - 1)
    genuine_K = np.cumsum(is_mate[order])[last_of_tie]
    return Roc(
        threshold_K=np.append(np.nextafter(falling[0], np.inf), falling[last_of_tie]),
        impostors_K=np.append(0, last_of_tie + 1 - genuine_K),
        genuine_K=np.append(0, genuine_K),
    )


def refuse_one_kind(genuine: int, pairs: int) -> None:
    """Raises ValueError unless there are both genuine and impostor pairs."""
    if genuine in (0, pairs):
        raise ValueError(
            f"want genuine and impostor pairs, got {genuine} genuine of {pairs} pairs; "
            "scoring needs at least two people, and one with two images"
        )


def refuse_not_finite(scores: np.ndarray) -> None:
    """Raises ValueError unless all scores are finite: no comparison with NaN holds, and sorting puts it anywhere."""
    broken = np.count_nonzero(~np.isfinite(scores))
    if broken:
        raise ValueError(f"{broken} of {len(scores)} scores are not finite; the embeddings hold NaN or infinity")


def as_numpy(values) -> np.ndarray:
    """An array of `values`, an array, tensor or sequence; bfloat16, which NumPy lacks, becomes float32."""
    if not isinstance(values, torch.Tensor):
        return np.asarray(values)
    values = values.detach().cpu()
    return (values.float() if values.dtype == torch.bfloat16 else values).numpy()


def _tar_at_far(roc: Roc, far: float) -> dict:
    if not 0 < far < 1:
        raise ValueError(f"want a false accept rate above 0 and below 1, got {far}")
    if 1 / roc.impostors > far:
        return {
            "refused": f"FAR {far:g} needs at least {int(np.ceil(1 / far))} impostor pairs, there are {roc.impostors}"
        }
    k = np.searchsorted(roc.far_K, far, side="right") - 1
    return {"tar": float(roc.tar_K[k]), "threshold": float(roc.threshold_K[k]), "far": float(roc.far_K[k])}


def _eer(roc: Roc) -> float:
    """The rate at which FAR equals 1 - TAR, on the straight line between the two thresholds around it."""
    gap_K = roc.far_K + roc.tar_K - 1  # rises from -1 to 1
    k = int(np.argmax(gap_K >= 0))
    step = gap_K[k - 1] / (gap_K[k - 1] - gap_K[k])
    return float(roc.far_K[k - 1] + step * (roc.far_K[k] - roc.far_K[k - 1]))


def _thinned(roc: Roc) -> dict:
    """Points of the curve, one for each of 400 FARs from 1 / impostors to 1 in equal ratios, repeats left out."""
    far = np.geomspace(1 / roc.impostors, 1, ROC_POINTS)
    far[[0, -1]] = 1 / roc.impostors, 1  # geomspace may round the ends to just below
    kept = np.unique(np.searchsorted(roc.far_K, far, side="right") - 1)
    return {"far": roc.far_K[kept].tolist(), "tar": roc.tar_K[kept].tolist()}
