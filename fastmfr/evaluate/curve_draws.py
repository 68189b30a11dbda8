"""AUC, EER and the curve itself, for one draw of the people after the other.

These figures take in pairs of all scores, so an even sample of the pairs is drawn from, and the curve is read at a
few hundred thresholds. What sample and thresholds miss is made up for: the draws are moved by the difference between
the figures of all pairs and those of the sample.
Shape suffixes: N genuine pairs, K impostor pairs, T thresholds, F figures, R draws.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fastmfr.results import RocBand

from .bootstrap import DRAWS, draw_people, interval_of, weight_of_pairs
from .roc import Roc, area_under, equal_error_rate

THRESHOLDS = 256  # of each kind of pairs, and half as many more close to the highest scores
FAR_OF_BAND = np.geomspace(1e-4, 1, 33)
ENOUGH = 100  # impostor pairs of the sample that a false accept rate of the band lets through
AUC, EER, CURVE = 0, 1, 2  # places among the figures; the curve's are from CURVE on


@dataclass(frozen=True)
class CurveSample:
    """Pairs of all scores to draw people from.

    Attributes:
        people: How many people there are.
        genuine_person_N: The person of each genuine pair, by falling score.
        impostor_people_2K: Both persons of each impostor pair, by falling score.
        threshold_T: Falling scores from which pairs are accepted; the first accepts none, the last accepts all.
        genuine_T: How many of the genuine pairs each accepts.
        impostors_T: How many of the impostor pairs each accepts.
        measured_F: The figures of all pairs, in the sample or not.
    """

    people: int
    genuine_person_N: np.ndarray
    impostor_people_2K: np.ndarray
    threshold_T: np.ndarray
    genuine_T: np.ndarray
    impostors_T: np.ndarray
    measured_F: np.ndarray


def curve_sample(
    people: int,
    genuine: tuple[np.ndarray, np.ndarray],
    impostors: tuple[np.ndarray, np.ndarray],
    roc: Roc,
) -> CurveSample:
    """Return a CurveSample of an even sample of pairs.

    Args:
        people: How many people there are.
        genuine: The scores (N,) of genuine pairs and their persons (N,).
        impostors: The scores (K,) of impostor pairs and both persons of each (2, K).
        roc: The curve of all pairs.
    """
    orders = [np.argsort(scores)[::-1] for scores, _ in (genuine, impostors)]
    falling_N, falling_K = (scores[order] for order, (scores, _) in zip(orders, (genuine, impostors), strict=True))
    tried = np.concatenate([_spread(falling_N), _spread(falling_K)])
    threshold_T = np.append(np.inf, np.unique(tried)[::-1])
    return CurveSample(
        people,
        genuine[1][orders[0]],
        impostors[1][:, orders[1]],
        threshold_T,
        np.searchsorted(-falling_N, -threshold_T, side="right"),
        np.searchsorted(-falling_K, -threshold_T, side="right"),
        _figures(roc),
    )


def _spread(falling):
    """Some of the scores, all if they are few: half of them evenly, half ever closer towards the highest."""
    last = len(falling) - 1
    evenly, closer = np.linspace(0, last, THRESHOLDS), np.geomspace(1, last + 1, THRESHOLDS // 2) - 1
    return falling[np.concatenate([evenly, closer]).astype(np.int64).clip(0, last)]


def _figures(roc):
    return np.array([area_under(roc), equal_error_rate(roc), *np.interp(FAR_OF_BAND, roc.far_K, roc.tar_K)])


def _figures_drawn(sample, weight):
    """The figures if each person weighs `weight`; NaN if no pairs of one kind are left."""
    genuine = np.append(0, np.cumsum(weight.take(sample.genuine_person_N)))
    impostors = np.append(0, np.cumsum(weight_of_pairs(weight, sample.impostor_people_2K)))
    if not genuine[-1] or not impostors[-1]:
        return np.full_like(sample.measured_F, np.nan)
    return _figures(Roc(sample.threshold_T, impostors[sample.impostors_T], genuine[sample.genuine_T]))


def curve_draws(folds: Sequence[CurveSample], draws: int = DRAWS) -> np.ndarray:
    """Return the mean of every figure over folds (R, F), in [0, 1]; draws that leave no pairs of one kind are left out.

    Args:
        folds: One sample a fold; all number the same people in the same way.
        draws: How many times the people are drawn.
    """
    people = folds[0].people
    weights = [np.ones(people, np.int64), *draw_people(people, draws)]
    drawn = np.array([np.mean([_figures_drawn(sample, weight) for sample in folds], 0) for weight in weights])
    measured = np.mean([sample.measured_F for sample in folds], 0)
    moved = drawn[1:] + measured - drawn[0]
    return moved[np.isfinite(moved).all(1)].clip(0, 1)


def band_of(drawn_RF: np.ndarray, sample: CurveSample) -> RocBand:
    """Return the 95 % interval of TAR at each false accept rate that the sample of one curve is large enough for."""
    shown = np.flatnonzero(FAR_OF_BAND * sample.impostors_T[-1] >= ENOUGH)
    low_high = np.array([interval_of(drawn_RF[:, CURVE + place]) for place in shown]).reshape(-1, 2)
    return RocBand(far=FAR_OF_BAND[shown].tolist(), low=low_high[:, 0].tolist(), high=low_high[:, 1].tolist())
