"""Accuracy on a set of pairs by folds: the threshold that is best on the other folds decides the pairs of a fold.

InsightFace tries the squared distances 0, 0.01, .. 3.99 between unit embeddings (for its TAR 0, 0.001, ..), accepts
distances below the threshold, and of equally good thresholds takes the first. A grid is a choice that moves the figure
by a pair or two; the exact variant tries every threshold there is.
Shape suffixes: N pairs, F folds, K thresholds.
"""

import numpy as np

from fastmfr.results import Accuracy

from .bootstrap import interval_of, share_draws
from .roc import refuse_not_finite

FOLDS = 10
GRIDS = {"grid_0.01": 0.01, "grid_0.001": 0.001, "exact": None}


def accuracies(
    scores_N: np.ndarray, is_mate_N: np.ndarray, fold_N: np.ndarray | None = None, person_N: np.ndarray | None = None
) -> dict[str, Accuracy]:
    """Return the accuracy by folds for each grid of thresholds: "grid_0.01", "grid_0.001" and "exact".

    Args:
        scores_N: Cosines.
        is_mate_N: Whether each pair is genuine.
        fold_N: The fold of each pair; None for the folds of `folds_of`.
        person_N: The person of each pair, for the interval; None to draw pairs instead of people.

    Returns:
        Mean and standard deviation over the folds, as InsightFace prints them, and the 95 % interval of the mean over
        draws of the people with the thresholds kept. All are shares in [0, 1].

    Raises:
        ValueError: there are fewer than two folds, or a score is not finite.
    """
    scores_N, is_mate_N = np.asarray(scores_N, np.float64), np.asarray(is_mate_N, bool)
    refuse_not_finite(scores_N)
    fold_N = folds_of(is_mate_N) if fold_N is None else np.unique(fold_N, return_inverse=True)[1]
    person_N = np.arange(len(scores_N)) if person_N is None else person_N
    found = {}
    for name, step in GRIDS.items():
        correct_N = folded_decisions(scores_N, is_mate_N, fold_N, step) == is_mate_N
        accuracy_F = np.bincount(fold_N, correct_N) / np.bincount(fold_N)
        found[name] = Accuracy(
            mean=float(accuracy_F.mean()),
            std=float(accuracy_F.std()),
            interval=interval_of(share_draws(correct_N, person_N)),
        )
    return found


def folds_of(is_mate_N: np.ndarray, folds: int = FOLDS) -> np.ndarray:
    """Return the fold of each pair, int64 (N,): runs of successive pairs, equal in size give or take one pair.

    InsightFace deals pairs in this way. If such a fold would hold pairs of one kind only, because the list is sorted by
    kind, then genuine and impostor pairs are dealt separately.

    Raises:
        ValueError: there are fewer pairs of one kind than folds.
    """
    is_mate_N = np.asarray(is_mate_N, bool)
    if min(is_mate_N.sum(), (~is_mate_N).sum()) < folds:
        raise ValueError(
            f"{folds} folds want at least {folds} genuine and {folds} impostor pairs, got "
            f"{is_mate_N.sum()} and {(~is_mate_N).sum()}"
        )
    fold_N = _successive(len(is_mate_N), folds)
    if len(np.unique(2 * fold_N + is_mate_N)) < 2 * folds:
        for kind in (is_mate_N, ~is_mate_N):
            fold_N[kind] = _successive(kind.sum(), folds)
    return fold_N


def _successive(pairs, folds):
    sizes = [len(part) for part in np.array_split(np.arange(pairs), folds)]
    return np.repeat(np.arange(folds), sizes)


def folded_decisions(
    scores_N: np.ndarray, is_mate_N: np.ndarray, fold_N: np.ndarray, step: float | None = None
) -> np.ndarray:
    """Return whether each pair is accepted, bool (N,), by the threshold that is best on all other folds.

    Args:
        scores_N: Cosines.
        is_mate_N: Whether each pair is genuine.
        fold_N: The fold of each pair, from 0.
        step: The step of InsightFace's grid of squared distances; None tries every threshold, half-way between scores.

    Raises:
        ValueError: there are fewer than two folds.
    """
    folds = fold_N.max() + 1
    if folds < 2:
        raise ValueError("want at least two folds: the threshold of a fold is found on the others")
    distance_N = 2 - 2 * scores_N
    if step is None:
        tried = np.unique(distance_N)
        threshold_K = np.append((tried[:-1] + tried[1:]) / 2, tried[-1] + 1)
        threshold_K = np.append(tried[0] - 1, threshold_K)
    else:
        threshold_K = np.arange(0, 4, step)
    right_FK = np.stack(
        [_right(distance_N[fold_N == fold], is_mate_N[fold_N == fold], threshold_K) for fold in range(folds)]
    )
    best_F = (right_FK.sum(0) - right_FK).argmax(1)
    return distance_N < threshold_K[best_F][fold_N]


def _right(distance_N, is_mate_N, threshold_K):
    """How many pairs each threshold decides correctly, int64 (K,)."""
    accepted_genuine_K = np.searchsorted(np.sort(distance_N[is_mate_N]), threshold_K)
    accepted_impostor_K = np.searchsorted(np.sort(distance_N[~is_mate_N]), threshold_K)
    return accepted_genuine_K + np.count_nonzero(~is_mate_N) - accepted_impostor_K
