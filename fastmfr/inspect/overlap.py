"""Find the same images and the same names within and across domains: people who may have two labels."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations

import numpy as np

from .survey import Survey

MOST_PEOPLE = 20  # an image of more people is a placeholder, such as "image not available"


@dataclass
class Overlap:
    """What domains, numbered as given, have in common, byte for byte: a picture encoded again is another image.

    Attributes:
        repeated: by domain, how many images are copies of an earlier image of the same domain.
        groups: lists of (domain, image); the images of a list have the same bytes.
        images: {(domain, domain): how many different images both hold}.
        people: {((domain, identity), (domain, identity)): how many different images both hold}, also within a domain.
        placeholders: how many groups have more than MOST_PEOPLE people, so that they say nothing about any two.
        names: pairs ((domain, identity), (domain, identity)) with one name, in two domains. Bare numbers are no names.
        numbers: {(domain, domain): how many folders both have whose names are bare numbers}.
    """

    repeated: list[int]
    groups: list[list[tuple[int, int]]] = field(default_factory=list)
    images: Counter = field(default_factory=Counter)
    people: Counter = field(default_factory=Counter)
    placeholders: int = 0
    names: list[tuple] = field(default_factory=list)
    numbers: Counter = field(default_factory=Counter)


def overlap(surveys: Sequence[Survey]) -> Overlap:
    """Compare the images that were read, and the names of all people, of several surveys."""
    found = Overlap([0] * len(surveys))
    for group in _same_digest(surveys):
        found.groups.append(group)
        domains = Counter(domain for domain, _ in group)
        for domain, count in domains.items():
            found.repeated[domain] += count - 1
        found.images.update(combinations(sorted(domains), 2))
        people = sorted({(domain, int(surveys[domain].domain.identity_of(image))) for domain, image in group})
        if len(people) <= MOST_PEOPLE:
            found.people.update(combinations(people, 2))
        else:
            found.placeholders += 1
    found.groups.sort()
    found.names = sorted(_same_name(surveys))
    bare = [
        set() if survey.domain.has_records else {name for name in survey.names if name.isdecimal()}
        for survey in surveys
    ]
    for one, other in combinations(range(len(surveys)), 2):
        if both := bare[one] & bare[other]:
            found.numbers[one, other] = len(both)
    return found


def _same_digest(surveys: Sequence[Survey]) -> Iterator[list[tuple[int, int]]]:
    """Yield lists of (domain, image) of the same bytes, two or more each."""
    digest_N = np.concatenate([survey.digest_N for survey in surveys])
    image_N = np.concatenate([survey.image_N for survey in surveys])
    domain_N = np.repeat(np.arange(len(surveys)), [len(survey.image_N) for survey in surveys])
    order = np.argsort(digest_N, kind="stable")  # stable: domains and images stay ascending within a group
    order = order[np.searchsorted(digest_N[order], 1) :]  # 0: could not be read
    same = np.flatnonzero(np.diff(digest_N[order]) == 0)
    for run in np.split(same, np.flatnonzero(np.diff(same) > 1) + 1) if len(same) else []:
        members = order[run[0] : run[-1] + 2]
        yield list(zip(domain_N[members].tolist(), image_N[members].tolist(), strict=True))


def _same_name(surveys: Sequence[Survey]) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
    """Yield pairs of people, in two domains, of one name; a number means someone else in each data set."""
    holders: dict[str, list[tuple[int, int]]] = {}
    for domain, survey in enumerate(surveys):
        for identity, name in enumerate(survey.names):
            if not name.isdecimal():
                holders.setdefault(name, []).append((domain, identity))
    for people in holders.values():
        yield from ((one, other) for one, other in combinations(people, 2) if one[0] != other[0])
