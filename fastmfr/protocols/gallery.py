"""Gallery and probe: which image of each person is enrolled, and which are looked up.

The people of a domain are numbered 0 .. identities - 1 and their images lie in one row, person after person:
person i has the images offsets[i] .. offsets[i + 1] - 1, with `offsets` int64 (identities + 1,).
Shape suffixes: G gallery, P probes.
"""

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class GalleryProbe:
    """Images enrolled and images looked up.

    Attributes:
        gallery: int64 (G,), numbers of the images enrolled.
        gallery_id: int64 (G,), the identity of each.
        probe: int64 (P,), numbers of the images looked up.
        probe_id: int64 (P,), the identity of each.
    """

    gallery: np.ndarray
    gallery_id: np.ndarray
    probe: np.ndarray
    probe_id: np.ndarray

    def without(self, images: Collection[int]) -> "GalleryProbe":
        """Return the lists without these image numbers, such as images that could not be decoded."""
        gone = np.fromiter(images, np.int64, len(images))
        enrolled, looked_up = ~np.isin(self.gallery, gone), ~np.isin(self.probe, gone)
        return GalleryProbe(
            self.gallery[enrolled], self.gallery_id[enrolled], self.probe[looked_up], self.probe_id[looked_up]
        )


def gallery_probe(offsets: np.ndarray, *, seed: int = 0, probes_per_identity: int | None = None) -> GalleryProbe:
    """Draw one gallery image of each person; the person's other images are probes.

    The draw for a person depends on the seed, the person's number and the number of the person's images, so people
    added to a domain leave the draws of the others as they were. People with one image are in the gallery only.

    Args:
        offsets: int64 (identities + 1,), see the top of this file.
        seed: of the draw.
        probes_per_identity: the most probes of each person, also drawn; None keeps all.

    Raises:
        ValueError: no person has a second image, or an argument is out of range.
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
        raise ValueError(
            f"none of the {len(count)} people has a second image, so there is no probe to look up; "
            "scoring needs people with at least two images"
        )
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
    """SplitMix64's finaliser (Steele, Lea, Flood, 2014): a hash from 64 bits to 64 bits."""
    with np.errstate(over="ignore"):  # the arithmetic wraps on purpose
        x = np.asarray(x, np.uint64) + np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))
