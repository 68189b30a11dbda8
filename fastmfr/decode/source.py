"""What DALI is fed: encoded images, mirror flags and resize flags, as a pure function of the batch number.

A bad image never ends a run. It is replaced by the next good image of its identity, else by the next good image of its
domain, always counted from the image that was asked for; so the replacement depends on the data alone and a resumed
run makes the same one. (In an identity of two images the substitute is the other one: a pair then shows one photograph
twice. Such an identity has nothing better to give.)
Shape suffix: B = images of a batch.
"""

from itertools import islice
from typing import NamedTuple

import numpy as np

from .encoded import checked_size

MAX_TRIES = 1000  # so many bad images in a row are no accident: the domain is not what it claims to be


def mirror_flags(seed, number, images, flip):
    """Which of the `images` slots of batch `number` are mirrored, bool (images,): each with probability `flip`.

    Counter-based (Philox, https://doi.org/10.1145/2063384.2063405), so a batch's flags depend on no other batch.
    """
    # The batch number sits above the lowest 64 bits: those count the draws within a batch, so no two batches overlap.
    return np.random.Generator(np.random.Philox(key=seed, counter=number << 64)).random(images) < flip


class Found(NamedTuple):
    """A good image: its number in its domain, its encoded bytes (uint8 array), its (width, height)."""

    image: int
    encoded: np.ndarray
    size: tuple[int, int]


class Reader:
    """Encoded images of several domains, bad ones replaced; `bad` maps "domain/key" to the reason."""

    def __init__(self, domains):
        self.domains = domains
        self.bad = {}
        self._skip = set()

    def read(self, domain_B, image_B):
        """The images `image_B` of the domains `domain_B`, or their substitutes: a list of Found, one for each slot.

        Raises ValueError where a thousand images in a row are bad.
        """
        found = {}
        for domain in np.unique(domain_B).tolist():
            slots = np.flatnonzero(domain_B == domain)
            try:  # in one call, which lets a domain on a slow disk read ahead
                encoded = self.domains[domain].jpegs(image_B[slots])
            except (ValueError, OSError):  # one of them cannot be read at all, so each for itself
                encoded = [None] * len(slots)
            for slot, image, data in zip(slots.tolist(), image_B[slots].tolist(), encoded, strict=True):
                found[slot] = self._checked(domain, image, data) or self._substitute(domain, image)
        return [found[slot] for slot in range(len(found))]

    def reject(self, domain, image, reason):
        """Never give this image again, and report it."""
        self._skip.add((domain, image))
        self.bad[f"{self.domains[domain].name}/{self.domains[domain].key(image)}"] = reason

    def _checked(self, domain, image, encoded=None):
        """The image if it is good, else None; reads it first where `encoded` is None."""
        if (domain, image) in self._skip:
            return None
        try:
            encoded = self.domains[domain].jpeg(image) if encoded is None else encoded
            return Found(image, encoded, checked_size(encoded))
        except (ValueError, OSError) as error:
            return self.reject(domain, image, str(error))

    def _substitute(self, domain, image):
        for candidate in islice(self._after(domain, image), MAX_TRIES):
            if found := self._checked(domain, candidate):
                return found
        asked = self.domains[domain]
        name = f"{asked.name}/{asked.key(image)}"
        raise ValueError(f"{name} is bad ({self.bad[name]}), and so are all images tried in its place, up to "
                         f"{MAX_TRIES}; check the files of this domain, or pack them again from the images")

    def _after(self, domain, image):
        offsets, images = self.domains[domain].offsets, self.domains[domain].images
        identity = np.searchsorted(offsets, image, side="right") - 1
        start, end = int(offsets[identity]), int(offsets[identity + 1])
        yield from range(image + 1, end)
        yield from range(start, image)
        yield from range(end, images)
        yield from range(start)


class Batch(NamedTuple):
    """One batch as DALI takes it, and where each image was asked for and found."""

    encoded: list[np.ndarray]  # uint8, of B lengths
    mirror_B: np.ndarray  # int32
    resize_B: np.ndarray  # bool: the shorter side is not `size` yet
    domain_B: np.ndarray
    image_B: np.ndarray  # as asked for
    found_B: list[int]  # as read


class Source:
    """DALI's callback: the k-th call gives batch first + k; a StopIteration ends the stream before batch `last`.

    `ahead` keeps the batches DALI has not given back yet, for it reads their bytes in place. `error` is what ended the
    stream early: DALI calls a few batches ahead of the user, who must get those before the error.
    """

    def __init__(self, reader, requests, preprocess, *, batch_images, seed, first, last):
        self.reader, self.ahead, self.error = reader, {}, None
        self._requests, self._preprocess, self._images, self._seed = requests, preprocess, batch_images, seed
        self._first, self._last = first, last
        self._images_by_domain = np.array([domain.images for domain in reader.domains])

    def __call__(self, call):
        number = self._first + call
        if self._last is not None and number >= self._last:
            raise StopIteration
        try:
            mirror_B = mirror_flags(self._seed, number, self._images, self._preprocess.flip).astype(np.int32)
            batch = self.fetch(*self._requested(number), mirror_B)
        except Exception as error:
            self.error = error
            raise StopIteration from error
        self.ahead[number] = batch
        return batch[:3]

    def fetch(self, domain_B, image_B, mirror_B):
        """The batch of these images, bad ones replaced."""
        found = self.reader.read(domain_B, image_B)
        resize_B = np.array([min(size) != self._preprocess.size for _, _, size in found])
        return Batch([data for _, data, _ in found], mirror_B, resize_B, domain_B, image_B, [i for i, _, _ in found])

    def _requested(self, number):
        domain_B, image_B = map(np.asarray, self._requests(number))
        for name, value_B in (("domain", domain_B), ("image", image_B)):
            if value_B.shape != (self._images,) or value_B.dtype.kind not in "iu":
                raise ValueError(f"batch {number}: requests gave {name} numbers {value_B.dtype} {value_B.shape}, want "
                                 f"whole numbers ({self._images},), one for each image of the batch")
        if domain_B.min() < 0 or domain_B.max() >= len(self._images_by_domain):
            raise ValueError(f"batch {number}: requests gave domains {domain_B.min()}..{domain_B.max()}, want "
                             f"0..{len(self._images_by_domain) - 1}")
        outside_B = (image_B < 0) | (image_B >= self._images_by_domain[domain_B])
        if outside_B.any():
            domain, image = int(domain_B[outside_B][0]), int(image_B[outside_B][0])
            raise ValueError(f"batch {number}: requests gave image {image} of domain "
                             f"{self.reader.domains[domain].name}, want 0..{self._images_by_domain[domain] - 1}")
        return domain_B, image_B
