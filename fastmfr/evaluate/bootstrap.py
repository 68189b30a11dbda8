"""How far would a figure move had other people been scored? Intervals by drawing people with replacement (bootstrap).

People are drawn rather than pairs, because the pairs of one person stand or fall together. A person drawn w times
weighs w in genuine pairs, and w v in impostor pairs with a person drawn v times. Each draw has its own threshold. The
threshold lies among the highest impostor pairs, so only those are kept, or an even sample of too many.
Shape suffixes: N genuine pairs, K impostor pairs kept.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from .all_pairs import AllPairs
from .roc import Roc, refuse_not_finite

DRAWS = 200
KEPT = 2**16  # impostor pairs, and genuine pairs, kept for a FAR: about 16,000 set the threshold, to 1 % of the FAR


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
    weights = _weights(folds[0].people, draws)
    return [float(np.mean([_tar(sample, weight, far) for sample in folds])) for weight in weights]


def interval_of(drawn: Sequence[float] | np.ndarray) -> list[float]:
    """Return [low, high], the middle 95 % of a figure over draws of the people."""
    return np.quantile(np.asarray(drawn), [0.025, 0.975]).tolist()


def _tar(sample, weight, far):
    """TAR at `far` if each person weighs `weight`."""
    accepted = np.cumsum(weight[sample.impostor_people_2K].prod(0))
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
        lambda weight: weight[people_2K].prod(0).sum(),
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
    return [float((weight * hits).sum() / (weight * tries).sum()) for weight in _weights(len(people), draws)]


def _weights(people, draws):
    """How often each of `people` persons is drawn, draw after draw."""
    rng = np.random.default_rng(0)
    for _ in range(draws):
        yield np.bincount(rng.integers(people, size=people), minlength=people)


def samples(
    all_pairs: AllPairs,
    roc: Roc,
    gallery_id: np.ndarray,
    probe_id: np.ndarray,
    far: Sequence[float],
    people: np.ndarray,
) -> dict[float, Sample]:
    """Return a Sample of all gallery x probe pairs for each of `far`, by one more pass over the pairs.

    Args:
        all_pairs: The scores.
        roc: The curve of the scores.
        gallery_id: The identity of each gallery row, (G,).
        probe_id: The identity of each probe row, (P,).
        far: False accept rates that `roc` can measure.
        people: The identities to draw from, each once and in order; those of gallery and probes are among them.
    """
    if not far:
        return {}
    of_gallery, of_probe = (np.searchsorted(people, ids).astype(np.int32) for ids in (gallery_id, probe_id))
    enrolled, looked_up = (np.bincount(of, minlength=len(people)) for of in (of_gallery, of_probe))
    tails = {f: _Tail(roc, f) for f in far}
    genuine = [], []
    rng, of_column = np.random.default_rng(0), of_gallery[all_pairs.gallery_order]
    for first, score_PG in all_pairs.blocks():
        row, column = all_pairs.mates(first, len(score_PG))
        mate = score_PG[row, column].cpu().numpy()
        drawn = rng.random(len(mate)) * all_pairs.genuine < KEPT
        genuine[0].append(mate[drawn])
        genuine[1].append(of_probe[first + row.cpu().numpy()[drawn]])
        score_PG[row, column] = -torch.inf
        _keep_highest(tails.values(), score_PG, of_column, of_probe[first : first + len(score_PG)], rng)

    def total(weight):
        return (weight @ enrolled) * (weight @ looked_up) - (weight**2) @ (enrolled * looked_up)

    score_N, person_N = map(np.concatenate, genuine)
    return {f: Sample(len(people), score_N, person_N, *tail.falling(), total, tail.kept) for f, tail in tails.items()}


class _Tail:
    """The highest impostor pairs: ten times as many as FAR `far` lets through, or an even sample of four times as many.

    So many are kept because a draw's weights move the threshold, and move it further the fewer people there are.
    """

    def __init__(self, roc, far):
        let_through = far * roc.impostors
        wanted = 100 + int(max(min(10 * let_through, KEPT), 4 * let_through))
        k = np.searchsorted(roc.impostors_K, min(roc.impostors, wanted))
        self.floor = roc.threshold_K[k]
        self.kept = min(1.0, KEPT / roc.impostors_K[k])
        self._scores, self._people_2 = [], []

    def add(self, scores, people_2, rng):
        keep = (scores >= self.floor) & (rng.random(len(scores)) < self.kept)
        self._scores.append(scores[keep])
        self._people_2.append(people_2[:, keep])

    def falling(self):
        scores = np.concatenate(self._scores)
        order = np.argsort(scores)[::-1]
        return scores[order], np.concatenate(self._people_2, axis=1)[:, order]


def _keep_highest(tails, score_PG, of_column, of_row, rng):
    """Add to each tail the impostor pairs of a block that may belong to the tail."""
    lowest = min(tail.floor for tail in tails)
    place = (score_PG.flatten() >= lowest).nonzero().squeeze(1)
    scores, place = score_PG.flatten()[place].cpu().numpy(), place.cpu().numpy()
    row, column = np.divmod(place, score_PG.shape[1])
    for tail in tails:
        tail.add(scores, np.stack([of_column[column], of_row[row]]), rng)
