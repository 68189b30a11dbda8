"""Receiver operating curves: pairs accepted at falling thresholds, and the figures read off them.

    TAR(t)  share of genuine pairs scoring >= t          TAR at FAR f  the largest TAR with FAR <= f
    FAR(t)  share of impostor pairs scoring >= t         EER           where FAR = 1 - TAR
Shape suffix: K thresholds.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike

from fastmfr.results import FAR, RocPoints, Scores, TarAtFar, to_json

ROC_POINTS = 400  # kept for plotting


@dataclass(frozen=True)
class Roc:
    """Pairs accepted (score >= threshold) at K falling thresholds; the first accepts none, the last accepts all."""

    threshold_K: np.ndarray  # float64
    impostors_K: np.ndarray  # int64, accepted
    genuine_K: np.ndarray  # int64, accepted

    @property
    def impostors(self) -> int:
        """The number of impostor pairs."""
        return int(self.impostors_K[-1])

    @property
    def genuine(self) -> int:
        """The number of genuine pairs."""
        return int(self.genuine_K[-1])

    @property
    def far_K(self) -> np.ndarray:
        """The share of impostor pairs accepted at each threshold, float64 in [0, 1]."""
        return self.impostors_K / self.impostors

    @property
    def tar_K(self) -> np.ndarray:
        """The share of genuine pairs accepted at each threshold, float64 in [0, 1]."""
        return self.genuine_K / self.genuine


def verification(
    scores: ArrayLike | torch.Tensor, is_mate: ArrayLike | torch.Tensor, far: Sequence[float] = FAR
) -> dict:
    """Measure how well `scores` separate genuine from impostor pairs.

    Ties are handled exactly: equal scores are accepted together.

    Args:
        scores: One number a pair, any shape; higher means more alike.
        is_mate: For each score, whether its pair is genuine.
        far: False accept rates in (0, 1).

    Returns:
        tar_at_far {far: {tar, threshold, far (as realised)} or {refused: reason}}, auc, eer, genuine and impostors
        (counts), and roc {far, tar}, at most 400 points evenly spaced in log FAR.

    Raises:
        ValueError: a score is not finite, or there are no pairs of one kind.
    """
    found = score_curve(exact_roc(as_numpy(scores), as_numpy(is_mate)), far)
    return to_json(found) | {"tar_at_far": {f: to_json(found.tar_at_far[str(f)]) for f in far}}


def tar_at_far(scores: ArrayLike | torch.Tensor, is_mate: ArrayLike | torch.Tensor, far: float) -> float:
    """Return the largest share of genuine pairs accepted while at most `far` of the impostor pairs are, in [0, 1].

    Args:
        scores: As in `verification`.
        is_mate: As in `verification`.
        far: A false accept rate in (0, 1).

    Raises:
        ValueError: there are too few impostor pairs to measure `far`, or as in `verification`.
    """
    found = _tar_at_far(exact_roc(as_numpy(scores), as_numpy(is_mate)), far)
    if found.tar is None:
        raise ValueError(found.refused)
    return found.tar


def score_curve(roc: Roc, far: Sequence[float]) -> Scores:
    """Return TAR at each of `far`, AUC, EER, the counts of pairs and the points for plots of a curve."""
    return Scores(
        tar_at_far={str(f): _tar_at_far(roc, f) for f in far},
        auc=area_under(roc),
        eer=equal_error_rate(roc),
        genuine=roc.genuine,
        impostors=roc.impostors,
        roc=_thinned(roc),
    )


def exact_roc(scores: np.ndarray, is_mate: np.ndarray) -> Roc:
    """Return the curve with a threshold at every score, by sorting the scores.

    Args:
        scores: One number a pair, any shape.
        is_mate: For each score, whether its pair is genuine.

    Raises:
        ValueError: as in `verification`, or for another number of flags than of scores.
    """
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
    """Raise ValueError unless there are both genuine and impostor pairs among `pairs`."""
    if genuine in (0, pairs):
        raise ValueError(
            f"want genuine and impostor pairs, got {genuine} genuine of {pairs} pairs; "
            "scoring needs at least two people, and one with two images"
        )


def refuse_not_finite(scores: np.ndarray) -> None:
    """Raise ValueError unless all scores are finite: sorting puts NaN anywhere, and no comparison with NaN holds."""
    broken = np.count_nonzero(~np.isfinite(scores))
    if broken:
        raise ValueError(f"{broken} of {len(scores)} scores are not finite; the embeddings hold NaN or infinity")


def as_numpy(values: ArrayLike | torch.Tensor) -> np.ndarray:
    """Return `values` as an array; bfloat16, which NumPy lacks, becomes float32."""
    if not isinstance(values, torch.Tensor):
        return np.asarray(values)
    values = values.detach().cpu()
    return (values.float() if values.dtype == torch.bfloat16 else values).numpy()


def _tar_at_far(roc: Roc, far: float) -> TarAtFar:
    if not 0 < far < 1:
        raise ValueError(f"want a false accept rate above 0 and below 1, got {far}")
    if 1 / roc.impostors > far:
        return TarAtFar(
            refused=f"FAR {far:g} needs at least {int(np.ceil(1 / far))} impostor pairs, there are {roc.impostors}"
        )
    k = np.searchsorted(roc.far_K, far, side="right") - 1
    return TarAtFar(tar=float(roc.tar_K[k]), threshold=float(roc.threshold_K[k]), far=float(roc.far_K[k]))


def area_under(roc: Roc) -> float:
    """Return the AUC, in [0, 1]: the share of genuine pairs that an impostor pair lies below, a tie counting half."""
    return float(np.trapezoid(roc.tar_K, roc.far_K))


def equal_error_rate(roc: Roc) -> float:
    """Return the rate at which FAR equals 1 - TAR, on the straight line between the two thresholds around it."""
    gap_K = roc.far_K + roc.tar_K - 1  # rises from -1 to 1
    k = int(np.argmax(gap_K >= 0))
    step = gap_K[k - 1] / (gap_K[k - 1] - gap_K[k])
    return float(roc.far_K[k - 1] + step * (roc.far_K[k] - roc.far_K[k - 1]))


def _thinned(roc: Roc) -> RocPoints:
    """Points of the curve, one for each of 400 FARs from 1 / impostors to 1 in equal ratios, repeats left out."""
    far = np.geomspace(1 / roc.impostors, 1, ROC_POINTS)
    far[[0, -1]] = 1 / roc.impostors, 1  # geomspace may round the ends to just below
    kept = np.unique(np.searchsorted(roc.far_K, far, side="right") - 1)
    return RocPoints(far=roc.far_K[kept].tolist(), tar=roc.tar_K[kept].tolist())
