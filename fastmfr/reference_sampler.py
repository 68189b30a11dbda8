"""The grouped domain sampler slot by slot in NumPy: what the compiled one must equal bit for bit.

Shape suffixes: B = identities a rank draws at a step.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from fastmfr.config.choices import Single
from fastmfr.sampler import OffsetsByDomain, Pairs, domains_of, number_of, shared_people, turns_of

__all__ = [
    "APART",
    "BATCH",
    "MULTIPLIERS",
    "PAIR",
    "PASS",
    "ROUNDS",
    "STEP",
    "TEST",
    "TRAIN",
    "WEYL",
    "ReferenceSampler",
    "below",
    "keep_apart",
    "permutation",
    "philox",
]

ROUNDS, MULTIPLIERS, WEYL = 10, (0xD2511F53, 0xCD9E8D57), (0x9E3779B9, 0xBB67AE85)  # Philox4x32-10, Salmon et al. 2011
BATCH, TRAIN, TEST = range(3)  # the purpose of a stream of batches
PAIR, PASS, STEP, APART = 0, 2, 4, 6  # the purpose of a random number


class ReferenceSampler:
    """The reference of GroupedDomainSampler, slot by slot in NumPy: the same arguments and numbers, without checks."""

    def __init__(
        self,
        offsets_by_domain: OffsetsByDomain,
        batch_identities: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
        *,
        single: Single = "drop",
        per_domain: bool = False,
        people: Sequence[ArrayLike] | None = None,
        weights: Sequence[float] | None = None,
    ):
        self.names, self.offsets = domains_of(offsets_by_domain)
        self.people, self.turns = shared_people(self.offsets, people), turns_of(self.names, weights)
        self.usable = [np.flatnonzero(np.diff(offsets) >= 1 + (single == "drop")) for offsets in self.offsets]
        self.batch_identities, self.per_domain = batch_identities, per_domain
        self.seed, self.rank, self.world = seed, rank, world

    def batch(self, step: int) -> Pairs:
        """Draw what GroupedDomainSampler.batch draws."""
        return self._draw(BATCH, 0, range(len(self.names)), self.batch_identities, step)

    def split(self, step: int, meta_test: int | str) -> tuple[Pairs, Pairs]:
        """Draw what GroupedDomainSampler.split draws."""
        key = number_of(self.names, meta_test)
        others = [d for d in range(len(self.names)) if d != key]
        trained = self.batch_identities * (len(others) if self.per_domain else 1)
        return self._draw(TRAIN, key, others, trained, step), self._draw(TEST, key, [key], self.batch_identities, step)

    def _draw(self, purpose: int, key: int, domains: Sequence[int], per_rank: int, step: int) -> Pairs:
        """The `per_rank` identities of this rank, out of those that all ranks draw together at `step`."""
        slots, tag = per_rank * self.world, purpose << 24 | key
        turns = self.turns if purpose == BATCH and len(self.turns) else np.arange(len(domains))
        group = turns[(step * slots + np.arange(slots)) % len(turns)]
        pick = np.empty(slots, np.int64)
        for j, domain in enumerate(domains):
            places = np.flatnonzero(turns == j)
            pick[group == j] = self.usable[domain][self._identities(domain, places, len(turns), slots, step, tag)]
        if self.people:
            self._part(domains, group, pick, step, tag)
        pairs_4B = np.empty((4, slots), np.int64)
        pairs_4B[0], pairs_4B[1] = np.asarray(domains)[group], pick
        bits = philox(self.seed, step, np.arange(slots), PAIR << 28 | tag)
        for j, domain in enumerate(domains):
            mine = group == j
            start, end = self.offsets[domain][pick[mine]], self.offsets[domain][pick[mine] + 1]
            one, other = below(bits[0][mine], end - start), below(bits[1][mine], np.maximum(end - start - 1, 1))
            pairs_4B[2, mine] = start + one
            pairs_4B[3, mine] = start + np.where(end - start > 1, other + (other >= one), one)
        return Pairs(*pairs_4B[:, self.rank * per_rank : (self.rank + 1) * per_rank])

    def _identities(self, domain, places, period, slots, step, tag):
        """Numbers, among the usable identities, that all ranks take of the domain at `step`.

        `places` are the slots of a period that take the domain; slot t is place t mod period.
        """

        def position(slot):  # how many slots before this one take the domain
            return slot // period * len(places) + np.searchsorted(places, slot % period)

        windows = np.arange(period)
        size, most = len(self.usable[domain]), int((position(windows + slots) - position(windows)).max())
        positions = np.arange(position(step * slots), position((step + 1) * slots))
        if size < 2 * most - 1:
            return permutation(size, self.seed, step, domain, STEP << 28 | tag)[: len(positions)]
        chosen = []
        for number in np.unique(positions // size):
            order = permutation(size, self.seed, number, domain, PASS << 28 | tag)
            begin = int(number) * size
            crossing = (begin // len(places) * period + int(places[begin % len(places)])) // slots
            held = begin - int(position(crossing * slots))  # of the pass before, in the step that crosses into this one
            if begin and held:
                tail = permutation(size, self.seed, number - 1, domain, PASS << 28 | tag)[size - held :]
                late = np.isin(order[:most], tail)
                order[:most] = np.concatenate([order[:most][~late], order[:most][late]])
            chosen.append(order[positions[positions // size == number] % size])
        return np.concatenate(chosen) if chosen else positions

    def _part(self, domains, group, pick, step, tag):
        """Change `pick` so that no two slots hold one person."""
        orders = [
            self.usable[domain][permutation(len(self.usable[domain]), self.seed, step, domain, APART << 28 | tag)]
            for domain in domains
        ]
        people = [self.people[domain].tolist() for domain in domains]
        begin = below(philox(self.seed, step, len(self.names), APART << 28 | tag)[0], len(pick))
        keep_apart(orders, people, group.tolist(), int(begin), pick)


def keep_apart(
    orders: Sequence[np.ndarray], people: Sequence[Sequence[int]], group: Sequence[int], begin: int, pick: np.ndarray
) -> bool:
    """Change picks so that no two slots hold one person, as csrc/apart.hpp says.

    Args:
        orders: of each group, the identities that its slots may take, in the order in which they are tried.
        people: of each group, the person of each identity.
        group: of each slot.
        begin: the slot that comes first.
        pick: of each slot, the identity; changed in place.

    Returns:
        Whether all people are different now.
    """
    person = lambda slot: people[group[slot]][pick[slot]]  # noqa: E731
    held, without = {}, []
    for slot in [*range(begin, len(pick)), *range(begin)]:
        if held.setdefault(person(slot), slot) != slot:
            without.append(slot)
    for slot in without:
        reached, queue, seen, found = {}, [slot], set(), None
        while queue and found is None:
            taker = queue.pop(0)
            for identity in orders[group[taker]].tolist() if group[taker] not in seen else ():
                other = people[group[taker]][identity]
                if other in reached:
                    continue
                reached[other] = taker, identity
                if other not in held:
                    found = other
                    break
                queue.append(held[other])
            seen.add(group[taker])
        if found is None:
            return False
        taker = None
        while taker != slot:
            taker, identity = reached[found]
            before = person(taker)
            pick[taker], held[found], found = identity, taker, before
    return True


def philox(seed: int, count: ArrayLike, index: ArrayLike, tag: ArrayLike) -> tuple[np.ndarray, ...]:
    """Compute Philox4x32-10 (Salmon et al. 2011).

    Args:
        seed: 64 bits.
        count: 64 bits of the counter, broadcast with `index` and `tag`.
        index: 32 bits of the counter.
        tag: 32 bits of the counter.

    Returns:
        Four uint64 arrays of 32 random bits each, of the shape of the counters.
    """
    low = np.uint64(0xFFFFFFFF)
    count, index, tag = np.broadcast_arrays(*(np.asarray(value, np.uint64) for value in (count, index, tag)))
    c0, c1, c2, c3 = count & low, count >> np.uint64(32), index, tag
    for round in range(ROUNDS):
        k0, k1 = (np.uint64(((seed >> 32 * half) + round * WEYL[half]) % 2**32) for half in range(2))
        even, odd = np.uint64(MULTIPLIERS[0]) * c0, np.uint64(MULTIPLIERS[1]) * c2
        c0, c1, c2, c3 = odd >> np.uint64(32) ^ c1 ^ k0, odd & low, even >> np.uint64(32) ^ c3 ^ k1, even & low
    return c0, c1, c2, c3


def below(bits: np.ndarray, bound: ArrayLike) -> np.ndarray:
    """Turn 32 random bits each, uint64, into whole numbers in [0, bound), int64."""
    return (bits * np.asarray(bound).astype(np.uint64) >> np.uint64(32)).astype(np.int64)


def _mix(x):
    x = (x ^ x >> np.uint64(16)) * np.uint64(0x7FEB352D) & np.uint64(0xFFFFFFFF)
    x = (x ^ x >> np.uint64(15)) * np.uint64(0x846CA68B) & np.uint64(0xFFFFFFFF)
    return x ^ x >> np.uint64(16)


def permutation(size: int, seed: int, count: ArrayLike, index: int, tag: int) -> np.ndarray:
    """Compute the permutation of [0, size), int64, that csrc/random.hpp computes point by point.

    The other arguments are those of `philox`.
    """
    keys = [*philox(seed, count, index, tag), *philox(seed, count, index, tag + 1)]
    columns = int(np.ceil(np.sqrt(size)))
    rows = -(-size // columns)
    cell = np.arange(size)
    walking = np.full(size, True)
    while walking.any():
        row, column = cell[walking] // columns, cell[walking] % columns
        for round in range(0, len(keys), 2):
            row = (row + below(_mix(column.astype(np.uint64) ^ keys[round]), rows)) % rows
            column = (column + below(_mix(row.astype(np.uint64) ^ keys[round + 1]), columns)) % columns
        cell[walking] = row * columns + column
        walking = cell >= size
    return cell
