"""How far apart a model keeps domains: the distance between their means, and the false accepts across domains.

A model that serves all domains equally well embeds faces in a way that does not depend on the domain. If a model keeps
domains apart, then strangers of one domain look alike to the model, and one threshold cannot serve all domains.
Shape suffixes: B images, C people, D embedding, N domains.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch

from fastmfr.results import DomainGap

from .all_pairs import unit_rows
from .histogram import Histogram

MOST, MOST_IN_ALL = 1000, 20_000  # images of a domain, of all together: 2e8 pairs at most
BLOCK = 2**22  # cosines held at once


def draw_evenly(offsets: np.ndarray, most: int = MOST, seed: int = 0) -> np.ndarray:
    """Draw image numbers of a domain, the first image of every person before anyone's second image.

    Args:
        offsets: int64 (people + 1,): person i has the images offsets[i] .. offsets[i + 1] - 1.
        most: How many images are drawn at most.
        seed: The draw depends on the arguments alone.

    Returns:
        int64, rising, at most `most`.
    """
    rng = np.random.default_rng(seed)
    people = rng.permutation(len(offsets) - 1)[:most].tolist()  # no one else would have a turn
    images = [offsets[person] + rng.permutation(offsets[person + 1] - offsets[person])[:most] for person in people]
    turn = np.concatenate([np.arange(len(drawn)) for drawn in images])
    return np.sort(np.concatenate(images)[np.argsort(turn, kind="stable")[:most]])


def domain_gap(
    embeddings: Mapping[str, tuple[torch.Tensor, np.ndarray]],
    far: float = 1e-3,
    unseen: Collection[str] = (),
    people: Mapping[str, np.ndarray] | None = None,
) -> DomainGap:
    """Measure the gap between N domains as one model embeds them; `DomainGap` says what each figure is.

    Everyone weighs the same in a domain's mean.

    Args:
        embeddings: By domain the rows (B, D) of its images, of any length, and the person in each, int (B,), numbered
            within the domain: people of two domains are different people, unless `people` says otherwise.
        far: A false accept rate in (0, 1), over the impostor pairs of all domains together.
        unseen: The names of the domains that the model was not trained on.
        people: By domain the number, over all domains, of each of its people; two images of one number are no impostor
            pair. None if nobody is in two domains.

    Raises:
        ValueError: there are fewer than two domains, fewer than two people in one domain, or embeddings that are not
            finite.
    """
    _check(embeddings)
    if not 0 < far < 1:
        raise ValueError(f"want a false accept rate above 0 and below 1, got {far}")
    unit_BD = torch.cat([unit_rows(rows, False, f"embeddings of {name!r}") for name, (rows, _) in embeddings.items()])
    people_of = [np.unique(person_B, return_inverse=True)[1] for _, person_B in embeddings.values()]
    counts = [int(own_B.max()) + 1 for own_B in people_of]
    starts = np.cumsum([0, *counts[:-1]])
    person_B = torch.from_numpy(np.concatenate([start + own_B for start, own_B in zip(starts, people_of, strict=True)]))
    domain_C = torch.from_numpy(np.repeat(np.arange(len(counts)), counts)).to(unit_BD.device)
    person_B = who_B = person_B.to(unit_BD.device)
    if people is not None:
        numbers = np.concatenate([people[name][own_B] for name, (_, own_B) in embeddings.items()])
        who_B = torch.from_numpy(numbers).to(unit_BD.device)
    person_CD = _means(unit_BD.double(), person_B, len(domain_C))
    distance_NN, by_chance_NN = _distances(person_CD, domain_C)
    accepts = _false_accepts(unit_BD, who_B, domain_C[person_B], far)
    impostors, accepted = int(accepts.impostors_NN.sum()), int(accepts.accepted_NN.sum())
    return DomainGap(
        domains=list(embeddings),
        people=counts,
        images=[len(own_B) for own_B in people_of],
        distance=distance_NN.tolist(),
        distance_by_chance=by_chance_NN.tolist(),
        told=_told(unit_BD, person_CD, person_B, domain_C),
        told_by_chance=1 / len(counts),
        far=accepted / impostors,
        threshold=accepts.threshold,
        impostors=impostors,
        false_accepts=accepted,
        across_of_all=1 - int(accepts.impostors_NN.trace()) / impostors,
        across=1 - int(accepts.accepted_NN.trace()) / accepted,
        false_accepts_of=accepts.accepted_NN.tolist(),
        unseen=[name in unseen for name in embeddings],
    )


def _check(embeddings):
    if len(embeddings) < 2:
        raise ValueError(f"want two domains or more to find a gap between, got {', '.join(embeddings) or 'none'}")
    for name, (rows, person_B) in embeddings.items():
        if len(rows) != len(person_B):
            raise ValueError(f"want the person of every image of {name!r}, got {len(rows)} rows and {len(person_B)}")
        if len(np.unique(person_B)) < 2:
            raise ValueError(
                f"want images of two people or more of {name!r}, got {len(np.unique(person_B))}; leave the domain out"
            )


def _means(rows, group, groups):
    """The mean of the rows of each group."""
    total = rows.new_zeros(groups, rows.shape[1]).index_add_(0, group, rows)
    return total / torch.bincount(group, minlength=groups)[:, None]


def _distances(person_CD, domain_C):
    """(distance between the means of every two domains, the distance that chance alone would make), float64 (N, N)."""
    people_N = torch.bincount(domain_C)
    mean_ND = _means(person_CD, domain_C, len(people_N))
    square_C = (person_CD - mean_ND[domain_C]).square().sum(1, keepdim=True)
    of_mean_N = _means(square_C, domain_C, len(people_N))[:, 0] / (people_N - 1)  # the mean's expected square error
    by_chance_NN = (of_mean_N[:, None] + of_mean_N).sqrt().fill_diagonal_(0)
    distance_NN = torch.cdist(mean_ND, mean_ND, compute_mode="donot_use_mm_for_euclid_dist")
    return distance_NN, by_chance_NN


def _told(unit_BD, person_CD, person_B, domain_C) -> float:
    """The mean over domains of the share of images nearest to their own domain's mean, of the other half's people.

    With the image's own half in the mean, every mean would lean towards the image, and equal domains would look apart.
    """
    half_C = torch.arange(len(domain_C), device=domain_C.device) % 2  # alternating, so two people are one in each
    right_B = torch.zeros(len(unit_BD), 1, dtype=torch.float64, device=unit_BD.device)
    for half in range(2):
        others = half_C != half
        mean_ND = _means(person_CD[others], domain_C[others], int(domain_C[-1]) + 1)
        judged = half_C[person_B] == half
        nearest_B = torch.cdist(unit_BD[judged].double(), mean_ND).argmin(1)
        right_B[judged] = (nearest_B == domain_C[person_B[judged]]).double()[:, None]
    return float(_means(right_B, domain_C[person_B], int(domain_C[-1]) + 1).mean())


@dataclass(frozen=True)
class _FalseAccepts:
    """Impostor pairs, and those accepted from `threshold` on, by the domains of the two people, int64 (N, N)."""

    threshold: float
    impostors_NN: np.ndarray
    accepted_NN: np.ndarray


def _false_accepts(unit_BD, person_B, domain_B, far) -> _FalseAccepts:
    counts, domains = Histogram(), int(domain_B[-1]) + 1
    impostors_NN = np.zeros((domains, domains), np.int64)
    for cosine, of_domains in _impostors(unit_BD, person_B, domain_B):
        counts.add(cosine, cosine[:0])
        impostors_NN += _by_domains(of_domains, domains)
    curve = counts.roc()
    k = max(1, int(np.searchsorted(curve.far_K, far, side="right")) - 1)
    threshold = float(curve.threshold_K[k])
    accepted_NN = np.zeros_like(impostors_NN)
    for cosine, of_domains in _impostors(unit_BD, person_B, domain_B):  # again: there are too many to keep
        accepted_NN += _by_domains(of_domains[cosine >= threshold], domains)
    return _FalseAccepts(threshold, impostors_NN, accepted_NN)


def _by_domains(of_domains, domains):
    return torch.bincount(of_domains, minlength=domains**2).reshape(domains, domains).cpu().numpy()


def _impostors(unit_BD, person_B, domain_B) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """The cosines of all pairs of different people, each pair once, and the place of their two domains in (N, N)."""
    first, domains = 0, int(domain_B[-1]) + 1
    while first < len(unit_BD):
        rows, columns = slice(first, first + max(1, BLOCK // (len(unit_BD) - first))), slice(first, None)
        impostor = (person_B[rows, None] != person_B[columns]).triu(1)
        of_domains = (domain_B[rows, None] * domains + domain_B[columns])[impostor]
        yield (unit_BD[rows] @ unit_BD[columns].T)[impostor], of_domains
        first = rows.stop
