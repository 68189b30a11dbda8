"""Grouped domain sampling: batches of 160 pairs (320 images) out of 10 domains, C++ beside vectorised NumPy."""

import numpy as np
import pytest

from fastmfr.sampler import GroupedDomainSampler

DOMAINS, PAIRS, IMAGES_EACH, STEPS = 10, 160, 50, 500


class NumpySampler:
    """The same draw as most would write it: a permutation of the people kept for each domain and pass."""

    def __init__(self, offsets, pairs, seed):
        self._rng = np.random.default_rng(seed)
        self._offsets, self._each = list(offsets.values()), pairs // len(offsets)
        self._left = [np.empty(0, np.int64)] * len(offsets)

    def batch(self):
        domain = np.repeat(np.arange(len(self._offsets)), self._each)
        identity = np.empty(len(domain), np.int64)
        first = np.empty(len(domain), np.int64)
        count = np.empty(len(domain), np.int64)
        for d, offsets in enumerate(self._offsets):
            if len(self._left[d]) < self._each:
                self._left[d] = self._rng.permutation(len(offsets) - 1)
            rows = slice(d * self._each, (d + 1) * self._each)
            identity[rows], self._left[d] = np.split(self._left[d], [self._each])
            first[rows], count[rows] = offsets[identity[rows]], offsets[identity[rows] + 1] - offsets[identity[rows]]
        gallery = self._rng.integers(count)
        probe = (gallery + 1 + self._rng.integers(count - 1)) % count
        return domain, identity, first + gallery, first + probe


@pytest.mark.parametrize("identities", [100_000, 1_000_000])
def test_batches(compare, identities):
    offsets = {f"d{d}": np.arange(identities // DOMAINS + 1, dtype=np.int64) * IMAGES_EACH for d in range(DOMAINS)}
    ours, numpy = GroupedDomainSampler(offsets, PAIRS, seed=0), NumpySampler(offsets, PAIRS, seed=0)

    def draw():
        for step in range(STEPS):
            ours.batch(step)

    def draw_numpy():
        for _ in range(STEPS):
            numpy.batch()

    facts = {"identities": identities, "images": identities * IMAGES_EACH, "batches": STEPS, "pairs": PAIRS}
    compare(draw, {"numpy": draw_numpy}, rounds=7, **facts)
