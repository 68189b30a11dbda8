"""Dividing the people of domains: what is decided about a person in one domain holds in all others."""

from collections.abc import Iterator, Mapping

import numpy as np

from fastmfr.domains import Domain
from fastmfr.protocols import hold_out

LEAST = 5  # people of a domain that are kept for validation; fewer say nothing


class Division:
    """One division of the people of several domains into those taken out and those left.

    Identities of a domain without `Domain.person` are divided domain by domain.
    """

    def __init__(self):
        """Begin with nobody decided on."""
        self._taken, self._left = np.empty(0, np.int64), np.empty(0, np.int64)

    def share_out(
        self, domain: Domain, setting: str, share: float, seed: int | tuple[int, ...]
    ) -> tuple[Domain, Domain]:
        """Return (the other people of a domain, those of the share taken out).

        Raises:
            ValueError: one of the two has too few people.
        """
        try:
            others, mine = hold_out(domain.identities, share, seed, *self._decided(domain))
        except ValueError as error:
            raise ValueError(f"{setting} of the domain {domain.name!r}: {error}") from None
        self._decide(domain, others, mine)
        return domain.people(others), domain.people(mine)

    def keep_some(self, domain: Domain, share: float, seed: int) -> tuple[Domain, Domain | None]:
        """Return (the other people, those kept for validation or None), the latter with two images or more each."""
        number = round(share * domain.identities)
        several = np.flatnonzero(np.diff(domain.offsets) > 1)
        taken, left = self._decided(domain)
        if number < LEAST or len(several) < number or domain.identities - number < 2:
            return domain, None
        order = np.random.default_rng((seed, 2)).permutation(several)
        free = order[~np.isin(order, np.concatenate([taken, left]))]
        kept = np.sort(np.concatenate([taken, free[: max(0, number - len(taken))]]))
        others = np.setdiff1d(np.arange(domain.identities), kept)
        if len(others) < 2:
            return domain, None
        self._decide(domain, others, kept)
        kept = np.intersect1d(kept, several)
        return domain.people(others), domain.people(kept) if len(kept) >= LEAST else None

    def divide_shared(self, domain: Domain, others: Mapping[str, Domain], share: float, seed: int) -> Domain:
        """Return a domain that is scored without those of its people who go on being trained on in `others`.

        Of the people that the domain shares with `others`, the share is taken out, to be scored.

        Raises:
            ValueError: fewer than two people are left to score.
        """
        shared = _in(domain, [other.person for other in others.values() if other.person is not None])
        if not shared.any():
            return domain
        both = np.flatnonzero(shared)
        taken, left = self._decided(domain)
        order = np.random.default_rng(seed).permutation(both)
        free = order[~np.isin(order, np.concatenate([taken, left]))]
        mine = np.intersect1d(both, taken)
        mine = np.concatenate([mine, free[: max(0, round(share * len(both)) - len(mine))]])
        self._decide(domain, np.setdiff1d(both, mine), mine)
        scored = np.sort(np.concatenate([np.flatnonzero(~shared), mine]))
        if len(scored) < 2:
            raise ValueError(
                f"of the {domain.identities} people of the target {domain.name!r}, {len(both)} are trained on in other "
                f"domains too, and {len(scored)} would be scored; want at least 2: raise data.holdout"
            )
        return domain.people(scored)

    def without_taken(self, domains: Mapping[str, Domain]) -> Iterator[tuple[str, Domain]]:
        """Yield (name, domain without the people taken out) of every domain.

        Raises:
            ValueError: fewer than two people are left of a domain.
        """
        for name, domain in domains.items():
            gone = _in(domain, [self._taken])
            if not gone.any():
                yield name, domain
                continue
            rest = np.flatnonzero(~gone)
            if len(rest) < 2:
                raise ValueError(
                    f"{gone.sum()} of the {domain.identities} people of {name!r} are also people of other domains who "
                    f"are kept out of training there, so {len(rest)} are left to train on; want at least 2: lower "
                    "data.holdout, data.validation or data.new_people"
                )
            yield name, domain.people(rest)

    def _decided(self, domain: Domain) -> tuple[np.ndarray, np.ndarray]:
        """The numbers of the identities already taken out, and of those already left."""
        return np.flatnonzero(_in(domain, [self._taken])), np.flatnonzero(_in(domain, [self._left]))

    def _decide(self, domain: Domain, left: np.ndarray, taken: np.ndarray) -> None:
        if domain.person is not None:
            self._left = np.union1d(self._left, domain.person[left])
            self._taken = np.union1d(self._taken, domain.person[taken])


def _in(domain: Domain, people: list[np.ndarray]) -> np.ndarray:
    """Whether the person of each identity is among `people`, bool (identities,)."""
    if domain.person is None or not people:
        return np.zeros(domain.identities, bool)
    return np.isin(domain.person, np.concatenate(people))
