"""How far would a figure move had other people been scored? Intervals by drawing people with replacement (bootstrap).

People are drawn rather than pairs, because the pairs of one person stand or fall together. A person drawn w times
weighs w in genuine pairs, and w v in impostor pairs with a person drawn v times. Each draw has its own threshold. The
threshold lies among the highest impostor pairs, so only those are kept, or an even sample of too many.
Shape suffixes: N genuine pairs, K impostor pairs kept.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from .roc import refuse_not_finite

DRAWS = 200


@dataclass(frozen=True)
class Sample:
    """Scored pairs to draw people from.

    Attributes:
        people: How many people there are.
        genuine_N: The score of each genuine pair.
        genuine_person_N: The person of each genuine pair.
        impostor_K: The scores of the highest impostor pairs, falling.
        impostor_people_2K: Both persons of each of these impostor pairs.
        total: Maps the weight of each person to the weight of all impostor pairs together, kept or not.
        kept: The share of the impostor pairs, down to the lowest one kept, that are in `impostor_K`.

    Raises:
        ValueError: a score is not finite.
    """

    people: int
    genuine_N: np.ndarray
    genuine_person_N: np.ndarray
    impostor_K: np.ndarray
    impostor_people_2K: np.ndarray
    total: Callable[[np.ndarray], float]
    kept: float = 1.0

    def __post_init__(self):
        refuse_not_finite(self.genuine_N)
        refuse_not_finite(self.impostor_K)


def tar_draws(folds: Sequence[Sample], far: float, draws: int = DRAWS) -> list[float]:
    """Return the mean TAR at `far` over folds, for one draw of the people after the other.

    Args:
        folds: One sample a fold; all number the same people in the same way.
        far: A false accept rate that every fold can measure.
        draws: How many times the people are drawn.
    """
    weights = draw_people(folds[0].people, draws)
    return [float(np.mean([_tar(sample, weight, far) for sample in folds])) for weight in weights]


def interval_of(drawn: Sequence[float] | np.ndarray) -> list[float]:
    """Return [low, high], the middle 95 % of a figure over draws of the people."""
    return np.quantile(np.asarray(drawn), [0.025, 0.975]).tolist()


def _tar(sample, weight, far):
    """TAR at `far` if each person weighs `weight`."""
    accepted = np.cumsum(weight_of_pairs(weight, sample.impostor_people_2K))
    allowed = far * sample.total(weight) * sample.kept
    first_refused = np.searchsorted(accepted, allowed, side="right")
    above = sample.genuine_N > sample.impostor_K[min(first_refused, len(sample.impostor_K) - 1)]
    of_genuine = weight[sample.genuine_person_N]
    return (of_genuine * above).sum() / max(of_genuine.sum(), 1)


def pair_sample(score_N: np.ndarray, is_mate_N: np.ndarray, people_2N: np.ndarray | None) -> Sample:
    """Return a Sample of a list of pairs.

    Args:
        score_N: The score of each pair.
        is_mate_N: Whether each pair is genuine.
        people_2N: Both persons of each pair, numbered from 0; None to draw pairs instead of people.

    Raises:
        ValueError: a score is not finite.
    """
    if people_2N is None:
        people_2N = np.arange(len(score_N))[None]
    people = int(people_2N.max()) + 1
    impostor = np.flatnonzero(~is_mate_N)
    impostor = impostor[np.argsort(score_N[impostor])[::-1]]
    people_2K = people_2N[:, impostor]
    return Sample(
        people,
        score_N[is_mate_N],
        people_2N[0, is_mate_N],
        score_N[impostor],
        people_2K,
        lambda weight: weight_of_pairs(weight, people_2K).sum(),
    )


def share_draws(hit_N: np.ndarray, person_N: np.ndarray, draws: int = DRAWS) -> list[float]:
    """Return the share of hits, for one draw of the people after the other.

    Args:
        hit_N: Hit or miss.
        person_N: The person that each hit or miss belongs to.
        draws: How many times the people are drawn.
    """
    people, person_N = np.unique(person_N, return_inverse=True)
    hits, tries = np.bincount(person_N, hit_N), np.bincount(person_N)
    return [float((weight * hits).sum() / (weight * tries).sum()) for weight in draw_people(len(people), draws)]


def draw_people(people: int, draws: int = DRAWS) -> Iterator[np.ndarray]:
    """Yield how often each of `people` persons is drawn, draw after draw; the same for every figure and model."""
    rng = np.random.default_rng(0)
    for _ in range(draws):
        yield np.bincount(rng.integers(people, size=people), minlength=people)


def weight_of_pairs(weight: np.ndarray, people_2K: np.ndarray) -> np.ndarray:
    """Return the weight of each pair, the product of the weights of its persons; a pair may have one row only."""
    first, *second = people_2K
    return weight.take(first) * weight.take(second[0]) if second else weight.take(first)
