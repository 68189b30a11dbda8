"""Which of all gallery x probe pairs are kept to draw people from, by one pass over the pairs.

TAR at a FAR needs the highest impostor pairs, AUC and EER an even sample of all.
Shape suffixes: G gallery, P probes (in a block: fewer).
"""

from collections.abc import Sequence

import numpy as np
import torch

from .all_pairs import AllPairs
from .bootstrap import Sample
from .curve_draws import CurveSample, curve_sample
from .roc import Roc

KEPT = 2**16  # impostor pairs, and genuine pairs, kept for a FAR: about 16,000 set the threshold, to 1 % of the FAR


def samples(
    all_pairs: AllPairs,
    roc: Roc,
    gallery_id: np.ndarray,
    probe_id: np.ndarray,
    far: Sequence[float],
    people: np.ndarray,
) -> tuple[dict[float, Sample], CurveSample]:
    """Return a Sample of all gallery x probe pairs for each of `far`, and a CurveSample, by one pass over the pairs.

    Args:
        all_pairs: The scores.
        roc: The curve of the scores.
        gallery_id: The identity of each gallery row, (G,).
        probe_id: The identity of each probe row, (P,).
        far: False accept rates that `roc` can measure.
        people: The identities to draw from, each once and in order; those of gallery and probes are among them.
    """
    of_gallery, of_probe = (np.searchsorted(people, ids) for ids in (gallery_id, probe_id))
    enrolled, looked_up = (np.bincount(of, minlength=len(people)) for of in (of_gallery, of_probe))
    tails = {f: _Tail(roc, f) for f in far}
    genuine, evenly = ([], []), _Evenly(all_pairs)
    rng, of_column = np.random.default_rng(0), of_gallery[all_pairs.gallery_order]
    for first, score_PG in all_pairs.blocks():
        row, column = all_pairs.mates(first, len(score_PG))
        mate = score_PG[row, column].cpu().numpy()
        drawn = rng.random(len(mate)) * all_pairs.genuine < KEPT
        genuine[0].append(mate[drawn])
        genuine[1].append(of_probe[first + row.cpu().numpy()[drawn]])
        score_PG[row, column] = -torch.inf
        of_row = of_probe[first : first + len(score_PG)]
        evenly.add(first, score_PG, of_column, of_row)
        if tails:
            _keep_highest(tails.values(), score_PG, of_column, of_row, rng)

    def total(weight):
        return (weight @ enrolled) * (weight @ looked_up) - (weight**2) @ (enrolled * looked_up)

    score_N, person_N = map(np.concatenate, genuine)
    by_far = {f: Sample(len(people), score_N, person_N, *tail.falling(), total, tail.kept) for f, tail in tails.items()}
    return by_far, curve_sample(len(people), (score_N, person_N), evenly.kept(), roc)


class _Evenly:
    """Impostor pairs at places that are drawn before any score is known: of one set the same for every model."""

    def __init__(self, all_pairs):
        rng = np.random.default_rng(0)
        every = all_pairs.pairs <= KEPT
        self._places = np.arange(all_pairs.pairs) if every else np.unique(rng.integers(all_pairs.pairs, size=KEPT))
        self._scores, self._people_2 = [], []

    def add(self, first, score_PG, of_column, of_row):
        begin = first * score_PG.shape[1]
        low, high = np.searchsorted(self._places, [begin, begin + score_PG.numel()])
        place = self._places[low:high] - begin
        scores = score_PG.flatten()[torch.from_numpy(place).to(score_PG.device)].cpu().numpy()
        is_impostor = scores > -np.inf
        row, column = np.divmod(place[is_impostor], score_PG.shape[1])
        self._scores.append(scores[is_impostor])
        self._people_2.append(np.stack([of_column[column], of_row[row]]))

    def kept(self):
        return np.concatenate(self._scores), np.concatenate(self._people_2, axis=1)


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


def curve_sample_of_pairs(sample: Sample, roc: Roc) -> CurveSample:
    """Return a CurveSample of a list of pairs that `pair_sample` has made a Sample of."""
    rng = np.random.default_rng(0)
    of_genuine, of_impostors = (
        np.arange(count) if count <= KEPT else rng.choice(count, KEPT, replace=False)
        for count in (len(sample.genuine_N), len(sample.impostor_K))
    )
    genuine = sample.genuine_N[of_genuine], sample.genuine_person_N[of_genuine]
    impostors = sample.impostor_K[of_impostors], sample.impostor_people_2K[:, of_impostors]
    return curve_sample(sample.people, genuine, impostors, roc)
