"""Grouped domain sampling for a DataLoader of torch: batches of indices into a dataset, made from the images' labels.

`DataLoader(dataset, batch_sampler=PairBatchSampler(labels, domains, batch_identities=64, seed=0))` yields pairs, and a
SplitBatchSampler the splits of meta steps. Both draw what GroupedDomainSampler draws.
Shape suffixes: N = images of the dataset, B = pairs of a batch, K = images of a step.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from torch import distributed as dist
from torch.utils.data import Sampler

from fastmfr.config.choices import Single
from fastmfr.sampler import GroupedDomainSampler, Pairs

__all__ = ["PairBatchSampler", "SplitBatchSampler"]


class PairBatchSampler(Sampler[list[int]]):
    """Yields, for each step, the dataset indices of B galleries and then of their B probes.

    Of the images that a DataLoader then loads, `image.chunk(2)` are galleries and probes. The two images of a pair have
    one label. No label comes twice in a step, on any rank, and domains come evenly. A batch is a function of the step
    and the arguments alone. Steps count on through all epochs: epoch e has the steps e * len(self) up to
    (e + 1) * len(self) - 1.

    Each `iter()` goes through what is left of an epoch, and the next `iter()` through the epoch after that one, even if
    the first was not exhausted. `set_epoch` and `set_step` say where the next first batch is. A DataLoader asks for
    batches ahead of time, so a trainer that resumes passes the number of steps that it has taken to `set_step`.

    Attributes:
        names: The names of the domains, in the order of their numbers.
        domain_N: The number of each image's domain, int64.
        dropped: {name: how many labels of the domain are never drawn, for want of a second image}.
    """

    def __init__(
        self,
        labels: ArrayLike,
        domains: ArrayLike | None = None,
        *,
        batch_identities: int,
        seed: int = 0,
        steps: int | None = None,
        rank: int | None = None,
        world: int | None = None,
        single: Single = "drop",
        weights: dict[Any, float] | None = None,
    ):
        """Prepare to draw for one rank.

        Args:
            labels: The label of each image of the dataset, shape (N,): whole numbers of at least 0, or strings. One
                label is one person, in whatever domain; labels that begin anew in each domain need an offset.
            domains: The domain of each image, shape (N,): whole numbers or strings. None: all are of one.
            batch_identities: Number B of pairs that each rank draws at a step.
            seed: An integer in [0, 2**64), the same on all ranks.
            steps: Steps of an epoch. None: as many as it takes to draw as many images as the dataset has, at least 1.
            rank: The number of this rank, in [0, world). None, for both: what torch.distributed says when the sampler
                is made; without its ranks, 0 of 1.
            world: The number of ranks.
            single: What happens to labels with one image in a domain. "drop" never draws them; "augment" takes the
                image as gallery and as probe.
            weights: {domain: a number above 0}: pairs come from domains in proportion; 1 for a domain not named. None:
                evenly.

        Raises:
            ValueError: If labels or domains are not one for each image, if a number is out of its range, or if a
                domain has too few people for a batch.
            ImportError: If the compiled extension is not built.
        """
        label_N, domain_N = _one_each(labels, domains)
        values, self.domain_N = np.unique(domain_N, return_inverse=True)
        self.names = [str(value) for value in values]
        _, person_N = np.unique(label_N, return_inverse=True)
        order_N = np.lexsort([person_N, self.domain_N])  # images by domain, then by label, else in their order
        self._index_N, self._first = order_N, np.searchsorted(self.domain_N[order_N], np.arange(len(values)))
        ranks = dict(zip(("rank", "world"), _ranks(rank, world), strict=True))
        self._options: dict[str, Any] = {"batch_identities": batch_identities, "seed": seed, "single": single, **ranks}
        self._options["weights"] = _listed(weights, values)
        self._offsets, self._people = _by_domain(person_N[order_N], self._first)
        self._sampler = self._native()
        self.dropped = self._sampler.dropped
        self._draw(0)
        self._steps = self._steps_of_epoch(steps)
        self._next = 0

    def __len__(self) -> int:
        """Return the steps of an epoch."""
        return self._steps

    def __iter__(self) -> Iterator[list[int]]:
        first = self._next  # when the first batch is asked for: Lightning calls set_epoch between iter() and next()
        self._next = end = (first // self._steps + 1) * self._steps
        for step in range(first, end):
            yield self._draw(step).tolist()

    def set_epoch(self, epoch: int) -> None:
        """Let what is iterated next begin with the first step of an epoch, counted from 0."""
        self._next = _whole("epoch", epoch) * self._steps

    def set_step(self, step: int) -> None:
        """Let what is iterated next begin with a step, counted from 0 through all epochs, and end with its epoch."""
        self._next = _whole("step", step)

    @property
    def sampler(self) -> "PairBatchSampler":
        """Return the sampler itself: trainers such as Lightning's call `set_epoch` of a batch sampler's sampler."""
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_sampler"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._sampler = self._native()

    def _native(self):
        offsets = dict(zip(self.names, self._offsets, strict=True))
        return GroupedDomainSampler(offsets, people=self._people, **self._options)

    def _steps_of_epoch(self, steps):
        if steps is not None:
            return _whole("steps", steps, 1)
        return max(1, len(self._index_N) // (len(self._draw(0)) * self._options["world"]))

    def _draw(self, step) -> np.ndarray:
        """The indices of a step, int64 (K,)."""
        return self._indices(self._sampler.batch(step))

    def _indices(self, *pairs: Pairs) -> np.ndarray:
        """The dataset indices of the galleries of the first pairs, of their probes, then of the next pairs."""
        parts = [self._first[pair.domain] + image for pair in pairs for image in (pair.gallery, pair.probe)]
        return self._index_N[np.concatenate(parts)]


class SplitBatchSampler(PairBatchSampler):
    """Yields, for each meta step, the dataset indices of all its splits: every domain is left out once.

    A split has 4 B images: galleries and probes of B pairs of the other domains, then of B pairs of the domain that is
    left out. `fastmfr.meta.splits_of_batch` makes the splits out of the loaded images. Arguments and methods are those
    of PairBatchSampler, but for `weights`. There are at least two domains; domain alignment needs three.
    """

    def __init__(
        self,
        labels: ArrayLike,
        domains: ArrayLike,
        *,
        batch_identities: int,
        seed: int = 0,
        steps: int | None = None,
        rank: int | None = None,
        world: int | None = None,
        single: Single = "drop",
    ):
        options = {"batch_identities": batch_identities, "seed": seed, "steps": steps, "rank": rank, "world": world}
        super().__init__(labels, domains, single=single, **options)

    @property
    def splits(self) -> int:
        """Return the number of splits of a step: that of the domains."""
        return len(self.names)

    def _draw(self, step) -> np.ndarray:
        return self._indices(*(pairs for d in range(len(self.names)) for pairs in self._sampler.split(step, d)))


def _ranks(rank, world):
    """(rank, world) as given, or else of torch.distributed."""
    if (rank is None) != (world is None):
        raise ValueError(f"want rank and world together, got rank {rank} and world {world}")
    if rank is not None:
        return rank, world
    return (dist.get_rank(), dist.get_world_size()) if dist.is_available() and dist.is_initialized() else (0, 1)


def _one_each(labels, domains):
    """(label_N, domain_N), checked."""
    label_N = _column("labels", labels)
    if label_N.dtype.kind == "i" and label_N.min() < 0:
        at = int(np.argmin(label_N))
        raise ValueError(
            f"want labels of at least 0, got {label_N[at]} for image {at}; leave images of nobody out of the dataset, "
            "by torch.utils.data.Subset for instance"
        )
    domain_N = np.zeros(len(label_N), np.int64) if domains is None else _column("domains", domains)
    if len(domain_N) != len(label_N):
        raise ValueError(f"want one domain for each of the {len(label_N):,} labels, got {len(domain_N):,} domains")
    return label_N, domain_N


def _column(name, values):
    column_N = np.asarray(values)
    if column_N.dtype.kind == "O" and all(isinstance(value, str) for value in column_N.flat):  # as pandas has strings
        column_N = column_N.astype(str)
    if column_N.ndim != 1 or not len(column_N) or column_N.dtype.kind not in "iuU":
        raise ValueError(
            f"want {name} as one whole number or string for each image, of shape (images,), got {column_N.dtype} of "
            f"shape {column_N.shape}"
        )
    return column_N


def _by_domain(person_N, first):
    """(offsets, people) of each domain, as GroupedDomainSampler takes them, of images by domain and person."""
    offsets, people = [], []
    for one in np.split(person_N, first[1:]):
        person, start = np.unique(one, return_index=True)
        offsets.append(np.append(start, len(one)))
        people.append(person)
    return offsets, people


def _listed(weights: dict[Any, float] | None, values: np.ndarray) -> Sequence[float] | None:
    """The weight of each domain."""
    if weights is None:
        return None
    if strange := set(weights) - set(values.tolist()):
        raise ValueError(
            f"want weights of the domains {', '.join(map(str, values))}, got one of {', '.join(map(str, strange))}"
        )
    return [float(weights.get(value, 1.0)) for value in values.tolist()]


def _whole(name, value, least=0):
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
        raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}")
    return int(value)
