"""Which identities and images a batch holds: a pure function of (seed, step), the same on any number of ranks.

`GroupedDomainSampler` is the face of csrc/sampler.hpp, which says how the draw works. `ReferenceSampler` computes the
same numbers in NumPy; the compiled sampler must equal the reference bit for bit.

Shape suffixes: B = identities a rank draws at a step.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np
from numpy.typing import ArrayLike

from fastmfr.config.choices import Single

OffsetsByDomain = Mapping[str, np.ndarray] | Sequence[np.ndarray]
ROUNDS, MULTIPLIERS, WEYL = 10, (0xD2511F53, 0xCD9E8D57), (0x9E3779B9, 0xBB67AE85)  # Philox4x32-10, Salmon et al. 2011
BATCH, TRAIN, TEST = range(3)  # the purpose of a stream of batches
PAIR, PASS, STEP = 0, 2, 4  # the purpose of a random number


@dataclass(frozen=True, slots=True)
class Pairs:
    """One gallery and one probe image of each of B identities.

    Attributes:
        domain: int64 (B,), the place of each identity's domain in the order given to the sampler.
        identity: int64 (B,), numbers within the domain.
        gallery: int64 (B,), image numbers within the domain.
        probe: int64 (B,), image numbers within the domain; another image than the gallery's if the identity has two.
    """

    domain: np.ndarray
    identity: np.ndarray
    gallery: np.ndarray
    probe: np.ndarray


class GroupedDomainSampler:
    """Draws identities evenly over domains, and a gallery and a probe image of each; all differ within a step.

    A domain serves each identity once before any identity comes again, unless a step takes more than half of them.
    The only state is (seed, step), so any step of a run can be drawn again at any time.

    Attributes:
        names: the domains' names, in the order given.
        dropped: {name: how many identities of the domain are never drawn}.
    """

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
    ):
        """Prepare to draw for one rank.

        Args:
            offsets_by_domain: int64 offsets (identities + 1,) by name, or a sequence of them. Identity k of a domain
                has the images offsets[k] up to offsets[k + 1] - 1. The arrays are copied.
            batch_identities: how many identities each rank draws at a step.
            seed: an integer in [0, 2**64).
            rank: the number of this rank, in [0, world).
            world: the number of ranks.
            single: what happens to identities with one image. "drop" never draws them; "augment" takes the image as
                gallery and as probe.
            per_domain: whether `split` trains on `batch_identities` of every meta-train domain, not of all together.

        Raises:
            ValueError: an argument is out of range, or a domain has too few identities.
            ImportError: the compiled extension is not built.
        """
        from fastmfr.native import Sampler

        self.names, offsets = _domains(offsets_by_domain)
        _check(batch_identities, seed, rank, world, single)
        _check_pairs(self.names, offsets, single)
        names = [os.fsencode(name) for name in self.names]  # that of a folder may hold bytes that are not UTF-8
        self._native = Sampler(names, offsets, batch_identities, seed, rank, world, single == "augment", per_domain)
        self.dropped = {name: self._native.dropped(d) for d, name in enumerate(self.names)}

    def batch(self, step: int) -> Pairs:
        """Draw the pairs of this rank at `step`, over all domains."""
        return Pairs(*self._native.batch(_whole("step", step)))

    def split(self, step: int, meta_test: int | str) -> tuple[Pairs, Pairs]:
        """Draw the (meta-train, meta-test) pairs of this rank at `step`.

        Args:
            step: the number of the step.
            meta_test: the number or name of the meta-test domain; all other domains are meta-train domains.
        """
        train, test = self._native.split(_whole("step", step), _number(self.names, meta_test))
        return Pairs(*train), Pairs(*test)


def _domains(offsets_by_domain: OffsetsByDomain) -> tuple[list[str], list[np.ndarray]]:
    """Names and contiguous int64 offsets, from either form."""
    if not isinstance(offsets_by_domain, Mapping):
        offsets_by_domain = {str(d): offsets for d, offsets in enumerate(offsets_by_domain)}
    offsets_by_name = {}
    for name, offsets in offsets_by_domain.items():
        offsets = np.asarray(offsets)
        if offsets.ndim != 1 or len(offsets) < 2 or offsets.dtype.kind not in "iu":
            raise ValueError(
                f"domain '{name}': want whole-number offsets of shape (identities + 1,) and at least one identity, "
                f"got {offsets.dtype} of shape {offsets.shape}"
            )
        offsets_by_name[name] = np.ascontiguousarray(offsets, np.int64)
    return list(offsets_by_name), list(offsets_by_name.values())


def _whole(name, value, least=0, bound=2**63):
    if not isinstance(value, (int, np.integer)) or not least <= value < bound:
        raise ValueError(f"{name} must be a whole number from {least} up to {bound - 1}, got {value!r}")
    return int(value)


def _check(batch_identities, seed, rank, world, single):
    _whole("batch_identities", batch_identities, 1, 2**31)
    _whole("seed", seed, 0, 2**64)
    _whole("rank", rank, 0, _whole("world", world, 1, 2**31))
    if single not in get_args(Single):
        raise ValueError(f"single must be one of {', '.join(get_args(Single))}, got {single!r}")


def _check_pairs(names, offsets, single):
    least = 2 if single == "drop" else 1
    for name, ends in zip(names, offsets, strict=True):
        most = np.diff(ends).max()
        if 0 <= most < least:
            raise ValueError(
                f"none of the {len(ends) - 1:,} identities of domain '{name}' has "
                f"{'a second image, and a pair is of two' if most == 1 else 'an image'}; leave the domain out"
                f"{', or let images be paired with themselves by single=augment' if most == 1 else ''}"
            )


def _number(names, meta_test):
    if isinstance(meta_test, str):
        if meta_test not in names:
            raise ValueError(f"there is no domain '{meta_test}' to test on; the domains are {', '.join(names)}")
        return names.index(meta_test)
    return _whole("meta_test", meta_test, 0, len(names))


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
    ):
        self.names, self.offsets = _domains(offsets_by_domain)
        self.usable = [np.flatnonzero(np.diff(offsets) >= 1 + (single == "drop")) for offsets in self.offsets]
        self.batch_identities, self.per_domain = batch_identities, per_domain
        self.seed, self.rank, self.world = seed, rank, world

    def batch(self, step: int) -> Pairs:
        """Draw what GroupedDomainSampler.batch draws."""
        return self._draw(BATCH, 0, range(len(self.names)), self.batch_identities, step)

    def split(self, step: int, meta_test: int | str) -> tuple[Pairs, Pairs]:
        """Draw what GroupedDomainSampler.split draws."""
        key = _number(self.names, meta_test)
        others = [d for d in range(len(self.names)) if d != key]
        trained = self.batch_identities * (len(others) if self.per_domain else 1)
        return self._draw(TRAIN, key, others, trained, step), self._draw(TEST, key, [key], self.batch_identities, step)

    def _draw(self, purpose: int, key: int, domains: Sequence[int], per_rank: int, step: int) -> Pairs:
        """The `per_rank` identities of this rank, out of those that all ranks draw together at `step`."""
        n, slots, tag = len(domains), per_rank * self.world, purpose << 24 | key
        t = step * slots + np.arange(slots)
        pairs_4B = np.empty((4, slots), np.int64)
        pairs_4B[0] = np.asarray(domains)[t % n]
        for j, domain in enumerate(domains):
            mine = t % n == j
            numbers = self._identities(domain, t[mine] // n, slots, n, j, step, tag)
            pairs_4B[1, mine] = self.usable[domain][numbers]
            start, end = self.offsets[domain][pairs_4B[1, mine]], self.offsets[domain][pairs_4B[1, mine] + 1]
            bits = philox(self.seed, step, np.flatnonzero(mine), PAIR << 28 | tag)
            one, other = below(bits[0], end - start), below(bits[1], np.maximum(end - start - 1, 1))
            pairs_4B[2, mine] = start + one
            pairs_4B[3, mine] = start + np.where(end - start > 1, other + (other >= one), one)
        return Pairs(*pairs_4B[:, self.rank * per_rank : (self.rank + 1) * per_rank])

    def _identities(self, domain, positions, slots, n, j, step, tag):
        """Numbers, among the usable identities, at `positions`: all that the ranks take of the domain at `step`."""
        size, most = len(self.usable[domain]), -(-slots // n)
        if size < 2 * most - 1:
            return permutation(size, self.seed, step, domain, STEP << 28 | tag)[: len(positions)]
        chosen = []
        for number in np.unique(positions // size):
            order = permutation(size, self.seed, number, domain, PASS << 28 | tag)
            begin = int(number) * size
            held = begin - -(-((begin * n + j) // slots * slots - j) // n)  # of the pass before, in the crossing step
            if begin and held:
                tail = permutation(size, self.seed, number - 1, domain, PASS << 28 | tag)[size - held :]
                late = np.isin(order[:most], tail)
                order[:most] = np.concatenate([order[:most][~late], order[:most][late]])
            chosen.append(order[positions[positions // size == number] % size])
        return np.concatenate(chosen) if chosen else positions


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
