"""Which identities and images a batch holds: a pure function of (seed, step), the same on any number of ranks.

`GroupedDomainSampler` is the face of csrc/sampler.hpp, which says how the draw works; `ReferenceSampler` computes the
same numbers in NumPy, and is what the compiled one must equal bit for bit.

Shape suffixes: B = identities a rank draws at a step.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

SINGLE = ("drop", "augment")
ROUNDS, MULTIPLIERS, WEYL = 10, (0xD2511F53, 0xCD9E8D57), (0x9E3779B9, 0xBB67AE85)  # Philox4x32-10, Salmon et al. 2011
BATCH, TRAIN, TEST = range(3)  # what a stream of batches is for
PAIR, PASS, STEP = 0, 2, 4  # what a random number is for


@dataclass(frozen=True, slots=True)
class Pairs:
    """One gallery and one probe image of each of B identities; int64 arrays (B,).

    `identity`, `gallery` and `probe` are numbers within the domain; `domain` is the domain's place in the order given.
    """

    domain: np.ndarray
    identity: np.ndarray
    gallery: np.ndarray
    probe: np.ndarray


class GroupedDomainSampler:
    """Draws `batch_identities` identities of each rank at a step, evenly over domains, all different within a step.

    `offsets_by_domain` maps a name to int64 CSR offsets (identities + 1): identity k has the images offsets[k] up to
    offsets[k + 1]; a sequence of arrays will do too. The arrays are read in place and never copied or changed.
    A domain serves each identity once before any comes again, unless a step takes more than half of them.

    `single` says what becomes of identities with one image: "drop" never draws them (`dropped` counts them by name),
    "augment" uses the image as gallery and as probe. With `per_domain`, a split trains on `batch_identities` of every
    meta-train domain instead of that many in all.

    The only state is (seed, step), so any step of a run can be drawn again at any time. Raises ValueError where a
    domain has too few identities, and ImportError where the extension is not built.
    """

    def __init__(self, offsets_by_domain, batch_identities, seed, rank=0, world=1, *, single="drop", per_domain=False):
        try:
            from fastmfr import _native
        except ImportError as error:
            raise ImportError(
                "the compiled extension is not built; run `pip install -e .` in the repository"
            ) from error
        self.names, offsets = _domains(offsets_by_domain)
        _check(batch_identities, seed, rank, world, single)
        self._native = _native.Sampler(
            self.names, offsets, batch_identities, seed, rank, world, single == "augment", per_domain
        )
        self.dropped = {name: self._native.dropped(d) for d, name in enumerate(self.names)}

    def batch(self, step):
        """The Pairs of this rank at `step`, over all domains."""
        return Pairs(*self._native.batch(_whole("step", step)))

    def split(self, step, meta_test):
        """(train, test) Pairs of this rank at `step`; `meta_test` is the number or name of the domain tested on."""
        train, test = self._native.split(_whole("step", step), _number(self.names, meta_test))
        return Pairs(*train), Pairs(*test)


def _domains(offsets_by_domain):
    """Names and contiguous int64 offsets, whichever of the two forms was given."""
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
    if single not in SINGLE:
        raise ValueError(f"single must be one of {', '.join(SINGLE)}, got {single!r}")


def _number(names, meta_test):
    if isinstance(meta_test, str):
        if meta_test not in names:
            raise ValueError(f"there is no domain '{meta_test}' to test on; the domains are {', '.join(names)}")
        return names.index(meta_test)
    return _whole("meta_test", meta_test, 0, len(names))


class ReferenceSampler:
    """What GroupedDomainSampler must equal, slot by slot in NumPy; it checks nothing."""

    def __init__(self, offsets_by_domain, batch_identities, seed, rank=0, world=1, *, single="drop", per_domain=False):
        self.names, self.offsets = _domains(offsets_by_domain)
        self.usable = [np.flatnonzero(np.diff(offsets) >= 1 + (single == "drop")) for offsets in self.offsets]
        self.share, self.seed, self.rank, self.world, self.per_domain = batch_identities, seed, rank, world, per_domain

    def batch(self, step):
        return self._draw(BATCH, 0, range(len(self.names)), self.share, step)

    def split(self, step, meta_test):
        key = _number(self.names, meta_test)
        others = [d for d in range(len(self.names)) if d != key]
        share = self.share * len(others) if self.per_domain else self.share
        return self._draw(TRAIN, key, others, share, step), self._draw(TEST, key, [key], self.share, step)

    def _draw(self, purpose, key, domains, share, step):
        """This rank's part of everything the ranks draw together at `step`."""
        n, slots, tag = len(domains), share * self.world, purpose << 24 | key
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
        return Pairs(*pairs_4B[:, self.rank * share : (self.rank + 1) * share])

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


def philox(seed, count, index, tag):
    """Philox4x32-10: four uint64 arrays of 32 random bits, shaped like the counters (count: 64 bits, the rest: 32)."""
    low = np.uint64(0xFFFFFFFF)
    count, index, tag = np.broadcast_arrays(*(np.asarray(value, np.uint64) for value in (count, index, tag)))
    c0, c1, c2, c3 = count & low, count >> np.uint64(32), index, tag
    for round in range(ROUNDS):
        k0, k1 = (np.uint64(((seed >> 32 * half) + round * WEYL[half]) % 2**32) for half in range(2))
        even, odd = np.uint64(MULTIPLIERS[0]) * c0, np.uint64(MULTIPLIERS[1]) * c2
        c0, c1, c2, c3 = odd >> np.uint64(32) ^ c1 ^ k0, odd & low, even >> np.uint64(32) ^ c3 ^ k1, even & low
    return c0, c1, c2, c3


def below(bits, bound):
    """Whole numbers in [0, bound) from 32 random bits each."""
    return (bits * np.asarray(bound).astype(np.uint64) >> np.uint64(32)).astype(np.int64)


def _mix(x):
    x = (x ^ x >> np.uint64(16)) * np.uint64(0x7FEB352D) & np.uint64(0xFFFFFFFF)
    x = (x ^ x >> np.uint64(15)) * np.uint64(0x846CA68B) & np.uint64(0xFFFFFFFF)
    return x ^ x >> np.uint64(16)


def permutation(size, seed, count, index, tag):
    """The whole permutation of [0, size) that csrc/random.hpp computes point by point; int64 (size,)."""
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
