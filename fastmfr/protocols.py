"""Who is trained on and who is scored: source and target domains, people held out, gallery and probe.

A domain's people are numbered 0 .. identities - 1 and their images lie in one row, person after person: `offsets`
(identities + 1, int64) says where each person starts, so person i owns the images offsets[i] .. offsets[i + 1] - 1.
"""

import os
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Protocol:
    """Source domains to learn from and target domains to score on, each as {name: path}.

    A name on both sides, with the same path, is held out by people: part of its identities is trained on and the
    other part scored (see `hold_out`). Every other target is unseen. Raises ValueError where the two sides would mix.
    """

    sources: dict[str, str]
    targets: dict[str, str]

    def __post_init__(self):
        if not self.sources:
            raise ValueError("a protocol needs at least one source domain to learn from; add one as NAME: PATH")
        name_of: dict[str, str] = {}
        for name, path in [*self.sources.items(), *self.targets.items()]:
            if not name.strip() or not os.fspath(path):
                raise ValueError(f"want every domain as NAME: PATH, got {name!r}: {str(path)!r}")
            first = name_of.setdefault(os.path.abspath(path), name)
            if first != name:
                raise ValueError(f"{path} is given as both {first!r} and {name!r}: its people would be counted twice, "
                                 "or scored after being trained on; give it one name")
        for name in self.held_out:
            if os.path.abspath(self.sources[name]) != os.path.abspath(self.targets[name]):
                raise ValueError(f"{name!r} is {self.sources[name]} as a source and {self.targets[name]} as a target; "
                                 "give the two different names, or the same path to hold out part of its people")

    @property
    def held_out(self) -> list[str]:
        """Names that are both source and target: their people are split, part trained on, part scored."""
        return [name for name in self.targets if name in self.sources]


def leave_one_out(domains: dict[str, str], target: str) -> Protocol:
    """The protocol that scores on `target`, a name in `domains` {name: path}, and learns from all the others."""
    if target not in domains:
        raise ValueError(f"the target {target!r} is none of the domains {', '.join(domains) or '(none given)'}")
    if len(domains) < 2:
        raise ValueError(f"leaving {target!r} out leaves no domain to learn from; give at least two domains")
    return Protocol({name: path for name, path in domains.items() if name != target}, {target: domains[target]})


def hold_out(identities: int, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Split people 0 .. identities - 1 by chance into (train_numbers, scored_numbers), int64, each sorted.

    `share` in (0, 1) is the part scored. Raises ValueError where a side would have fewer than the two people that
    an impostor pair takes.
    """
    if not 0 < share < 1:
        raise ValueError(f"want the share of people held out above 0 and below 1, got {share}")
    scored = round(identities * share)
    if min(scored, identities - scored) < 2:
        raise ValueError(f"holding out {share:g} of {identities} people trains on {identities - scored} and scores "
                         f"{scored}; each side needs at least 2: change the share or give a larger domain")
    order = np.random.default_rng(seed).permutation(identities)
    return np.sort(order[scored:]), np.sort(order[:scored])


@dataclass(frozen=True)
class GalleryProbe:
    """Images enrolled and images looked up: image numbers and the identity of each, int64 (G,) and (P,)."""

    gallery: np.ndarray
    gallery_id: np.ndarray
    probe: np.ndarray
    probe_id: np.ndarray


def gallery_probe(offsets: np.ndarray, *, seed: int = 0, probes_per_identity: int | None = None) -> GalleryProbe:
    """One gallery image for each person, drawn by `seed`; the person's other images are probes.

    `offsets` (identities + 1,) as at the top of this file; `probes_per_identity` keeps at most that many probes of
    each, also drawn. What is drawn for a person depends on the seed, the person's number and how many images the
    person has, so a larger domain leaves the choice as it was. People with one image are in the gallery only.
    Raises ValueError if no person has a second image.
    """
    offsets = _checked_offsets(offsets)
    if probes_per_identity is not None and probes_per_identity < 1:
        raise ValueError(f"want at least 1 probe for each identity, got {probes_per_identity}; leave it out for all")
    start, count = offsets[:-1], np.diff(offsets)
    person = np.repeat(np.arange(len(count)), count)
    within = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
    key = _mix(_mix(_mix(np.uint64(seed % 2**64)) ^ person.astype(np.uint64)) ^ within.astype(np.uint64))
    image = (np.repeat(start, count) + within)[np.lexsort((key, person))]  # each person's images in drawn order
    is_gallery = within == 0
    is_probe = ~is_gallery if probes_per_identity is None else ~is_gallery & (within <= probes_per_identity)
    if not is_probe.any():
        raise ValueError(f"none of the {len(count)} people has a second image, so there is no probe to look up; "
                         "scoring needs people with at least two images")
    return GalleryProbe(image[is_gallery], person[is_gallery], image[is_probe], person[is_probe])


def _checked_offsets(offsets: np.ndarray) -> np.ndarray:
    offsets = np.asarray(offsets)
    if offsets.ndim != 1 or len(offsets) < 2 or offsets.dtype.kind not in "iu":
        raise ValueError(f"want offsets as whole numbers (identities + 1,), got {offsets.dtype} {offsets.shape}")
    offsets = offsets.astype(np.int64)
    if (np.diff(offsets) < 0).any():
        raise ValueError("want offsets that never fall; each is where a person's images start")
    return offsets


def _mix(x: np.ndarray | np.uint64) -> np.ndarray:
    """SplitMix64's finaliser (Steele, Lea, Flood, 2014): a number that depends on its input alone, 64 bits to 64."""
    with np.errstate(over="ignore"):  # wrapping is the arithmetic meant
        x = np.asarray(x, np.uint64) + np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))
