"""How others draw grouped batches: vectorised NumPy, plain Python, and pytorch-metric-learning's two samplers.

Every sampler is made from `People` and gives a batch of 2 * PAIRS images by `batch()`.
"""

import random
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec

import numpy as np

DOMAINS, PAIRS = 10, 160


@dataclass(frozen=True)
class People:
    """A data set's labels: `identities` in DOMAINS domains of one size, all with the same number of images."""

    identities: int
    images: int

    @cached_property
    def offsets(self):
        """Of each domain by name: int64 (identities + 1,), as fastmfr's domains have them."""
        each = self.identities // DOMAINS
        return {f"d{d}": np.arange(each + 1, dtype=np.int64) * (self.images // self.identities) for d in range(DOMAINS)}

    @cached_property
    def label_N(self):
        """Of each image: its identity, counted through all domains."""
        return np.repeat(np.arange(self.identities), self.images // self.identities)

    @cached_property
    def domain_N(self):
        """Of each image: its domain."""
        return self.label_N // (self.identities // DOMAINS)


class NumpySampler:
    """A permutation of the people kept for each domain and pass, everything else vectorised."""

    def __init__(self, people):
        self._rng = np.random.default_rng(0)
        self._offsets, self._each = list(people.offsets.values()), PAIRS // DOMAINS
        self._left = [np.empty(0, np.int64)] * DOMAINS

    def batch(self):
        domain, identity, first, count = np.empty((4, PAIRS), np.int64)
        domain[:] = np.repeat(np.arange(DOMAINS), self._each)
        for d, offsets in enumerate(self._offsets):
            if len(self._left[d]) < self._each:
                self._left[d] = self._rng.permutation(len(offsets) - 1)
            rows = slice(d * self._each, (d + 1) * self._each)
            identity[rows], self._left[d] = np.split(self._left[d], [self._each])
            first[rows], count[rows] = offsets[identity[rows]], offsets[identity[rows] + 1] - offsets[identity[rows]]
        gallery = self._rng.integers(count)
        probe = (gallery + 1 + self._rng.integers(count - 1)) % count
        return domain, identity, first + gallery, first + probe


class PythonSampler:
    """Dictionaries of lists, filled image by image, and the standard library's random."""

    def __init__(self, people):
        self._random = random.Random(0)
        self._images = [{} for _ in range(DOMAINS)]
        for image, (domain, label) in enumerate(zip(people.domain_N.tolist(), people.label_N.tolist(), strict=True)):
            self._images[domain].setdefault(label, []).append(image)
        self._left = [[] for _ in range(DOMAINS)]

    def batch(self):
        chosen = []
        for images, left in zip(self._images, self._left, strict=True):
            for _ in range(PAIRS // DOMAINS):
                if not left:
                    left.extend(images)
                    self._random.shuffle(left)
                chosen += self._random.sample(images[left.pop()], 2)
        return chosen


class MPerClass:
    """pytorch-metric-learning's MPerClassSampler: 2 images of each of 160 identities, whatever their domains.

    It draws a whole pass, 100,000 images by default, before it gives the first; here a pass is one batch, so that its
    first batch comes as soon as it can.
    """

    def __init__(self, people):
        from pytorch_metric_learning.samplers import MPerClassSampler

        self._sampler = MPerClassSampler(people.label_N, 2, 2 * PAIRS, length_before_new_iter=2 * PAIRS)

    def batch(self):
        return list(self._sampler)


class Hierarchical:
    """pytorch-metric-learning's HierarchicalSampler: 2 images of each of 16 identities of each of the ten domains.

    It too draws a whole pass ahead, and a first one when it is made; here a pass is one batch.
    """

    def __init__(self, people):
        from pytorch_metric_learning.samplers import HierarchicalSampler

        label_N2 = np.stack([people.label_N, people.domain_N], 1)
        self._sampler = HierarchicalSampler(
            label_N2, 2 * PAIRS, 2, batches_per_super_tuple=1, super_classes_per_batch=DOMAINS
        )

    def batch(self):
        return next(iter(self._sampler))


SAMPLERS = {"numpy": NumpySampler, "python": PythonSampler}
MISSING = []
if find_spec("pytorch_metric_learning"):
    SAMPLERS |= {"MPerClassSampler": MPerClass, "HierarchicalSampler": Hierarchical}
else:
    MISSING.append("pytorch-metric-learning")
