"""One figure for how well a model tells people of the source domains apart whom it was not trained on.

Shape suffixes: N images, D embedding, K pairs.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from .all_pairs import unit_rows
from .roc import exact_roc, score_curve

FAR = (1e-2, 1e-3)


@dataclass(frozen=True)
class Validated:
    """The figures of one model; all are shares in [0, 1].

    Attributes:
        score: the mean of `together` and of the mean over `within`.
        together: the mean over FAR 1e-2 and 1e-3 of TAR over all pairs, those of two domains among the impostor pairs;
            of one person in two domains among the genuine pairs.
        within: the same over the pairs of one domain, by domain.
    """

    score: float
    together: float
    within: dict[str, float]


def validate(
    embedded: Mapping[str, tuple[torch.Tensor, np.ndarray]], people: Mapping[str, np.ndarray] | None = None
) -> Validated:
    """Score every pair of images.

    A threshold that works within every domain can fail across them, and the other way round: both count as much.

    Args:
        embedded: By domain the rows (N, D) of its images, of any length, and the person in each, int (N,), numbered
            within the domain. A few thousand images in all: every pair's score is held.
        people: By domain the number, over all domains, of each of its people; None if nobody is in two domains.

    Raises:
        ValueError: a row is not finite, or a domain has no genuine or no impostor pair.
    """
    rows = torch.cat([rows_ND for rows_ND, _ in embedded.values()])
    domain_N = np.repeat(np.arange(len(embedded)), [len(person_N) for _, person_N in embedded.values()])
    person_N = np.concatenate([person_N for _, person_N in embedded.values()])
    unit_ND = unit_rows(rows)
    first_K, second_K = np.triu_indices(len(unit_ND), 1)
    cos_K = (unit_ND @ unit_ND.T).cpu().numpy()[first_K, second_K]
    is_within_K = domain_N[first_K] == domain_N[second_K]
    if people is None:
        is_mate_K = is_within_K & (person_N[first_K] == person_N[second_K])
    else:
        who_N = np.concatenate([people[name][own_N] for name, (_, own_N) in embedded.items()])
        is_mate_K = who_N[first_K] == who_N[second_K]
    within = {}
    for number, name in enumerate(embedded):
        mine_K = is_within_K & (domain_N[first_K] == number)
        within[name] = _mean_tar(cos_K[mine_K], is_mate_K[mine_K])
    together = _mean_tar(cos_K, is_mate_K)
    return Validated((together + float(np.mean(list(within.values())))) / 2, together, within)


def _mean_tar(cos_K, is_mate_K) -> float:
    """The mean of TAR over those of FAR that the pairs are enough for; the AUC if they are enough for none."""
    curve = score_curve(exact_roc(cos_K, is_mate_K), FAR)
    measured = [rate.tar for rate in curve.tar_at_far.values() if rate.tar is not None]
    return float(np.mean(measured)) if measured else float(curve.auc or 0.0)
