"""Which identities and images a batch holds: a pure function of (seed, step), the same on any number of ranks.

`GroupedDomainSampler` is the face of csrc/sampler.hpp, which says how the draw works. reference_sampler.py computes the
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

__all__ = [
    "LEAST_TURNS",
    "ROUND",
    "GroupedDomainSampler",
    "OffsetsByDomain",
    "Pairs",
    "domains_of",
    "number_of",
    "shared_people",
    "turns_of",
]

OffsetsByDomain = Mapping[str, np.ndarray] | Sequence[np.ndarray]
ROUND, LEAST_TURNS = 1024, 16  # slots of a round by weights, and at least so many for each domain


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
    With `people`, no step of any rank holds a person twice: in place of the second identity another one of the same
    domain is drawn, so that people of several domains come a little less often in each.
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
        people: Sequence[ArrayLike] | None = None,
        weights: Sequence[float] | None = None,
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
            people: by domain, the number of the person of each identity, whole numbers (identities,). Identities with
                one number are one person, whatever their domains. None: no two identities are.
            weights: by domain, a number above 0: `batch` draws domains in proportion, to a part in a thousand. None
                draws them equally often. `split` always does.

        Raises:
            ValueError: an argument is out of range, or a domain has too few identities.
            ImportError: the compiled extension is not built.
        """
        from fastmfr.native import Sampler

        self.names, offsets = domains_of(offsets_by_domain)
        _check(batch_identities, seed, rank, world, single)
        _check_pairs(self.names, offsets, single)
        names = [os.fsencode(name) for name in self.names]  # that of a folder may hold bytes that are not UTF-8
        self._native = Sampler(
            names,
            offsets,
            batch_identities,
            seed,
            rank,
            world,
            single == "augment",
            per_domain,
            shared_people(offsets, people),
            turns_of(self.names, weights),
        )
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
        train, test = self._native.split(_whole("step", step), number_of(self.names, meta_test))
        return Pairs(*train), Pairs(*test)


def shared_people(offsets: Sequence[np.ndarray], people: Sequence[ArrayLike] | None) -> list[np.ndarray]:
    """Number people 0, 1, ...; empty if no two identities are one person.

    Args:
        offsets: as of the domains, int64 (identities + 1,) each.
        people: as GroupedDomainSampler takes them.

    Returns:
        uint32 (identities,) of each domain.

    Raises:
        ValueError: there is not one whole number for each identity.
    """
    if people is None:
        return []
    people = [np.asarray(numbers) for numbers in people]
    if [numbers.shape for numbers in people] != [(len(ends) - 1,) for ends in offsets] or any(
        numbers.dtype.kind not in "iu" for numbers in people
    ):
        raise ValueError(
            f"want people as one whole number for each of the {', '.join(str(len(ends) - 1) for ends in offsets)} "
            f"identities of the domains, got {', '.join(f'{numbers.dtype} {numbers.shape}' for numbers in people)}"
        )
    distinct, number = np.unique(np.concatenate(people), return_inverse=True)
    if len(distinct) == len(number):
        return []
    return np.split(number.astype(np.uint32), np.cumsum([len(numbers) for numbers in people])[:-1])


def turns_of(names: Sequence[str], weights: Sequence[float] | None) -> np.ndarray:
    """Spread domains over the slots of one round, each in proportion to its weight, as evenly as that goes.

    Returns:
        uint32, the number of the domain at each slot; empty if all weights are equal, or none are given.

    Raises:
        ValueError: there is not one finite number above 0 for each domain.
    """
    if weights is None:
        return np.empty(0, np.uint32)
    weight = np.asarray(weights, np.float64)
    if weight.shape != (len(names),) or not (np.isfinite(weight) & (weight > 0)).all():
        raise ValueError(f"want a weight above 0 for each of the domains {', '.join(names)}, got {list(weights)}")
    if (weight == weight[0]).all():
        return np.empty(0, np.uint32)
    exact = weight / weight.sum() * max(ROUND, LEAST_TURNS * len(names))
    times = np.maximum(1, np.round(exact).astype(np.int64))
    at = np.concatenate([(np.arange(many) + 0.5) / many for many in times])
    return np.repeat(np.arange(len(names)), times)[np.argsort(at, kind="stable")].astype(np.uint32)


def domains_of(offsets_by_domain: OffsetsByDomain) -> tuple[list[str], list[np.ndarray]]:
    """Return names and contiguous int64 offsets, from either form; ValueError for what are no offsets."""
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


def number_of(names: Sequence[str], meta_test: int | str) -> int:
    """Return the number of the domain `meta_test`, a name or a number; ValueError if there is none."""
    if isinstance(meta_test, str):
        if meta_test not in names:
            raise ValueError(f"there is no domain '{meta_test}' to test on; the domains are {', '.join(names)}")
        return names.index(meta_test)
    return _whole("meta_test", meta_test, 0, len(names))
