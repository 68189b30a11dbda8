"""What DALI is fed: encoded images and what their sizes lack, as a pure function of the batch number.

A bad image never ends a run. It is replaced by the next good image of its identity, else by the next good image of its
domain, always counted from the image that was asked for; so the replacement depends on the data alone and a resumed
run makes the same one. (In an identity of two images the substitute is the other one: a pair then shows one photograph
twice. Such an identity has nothing better to give.)
Shape suffix: B = images of a batch.
"""

from itertools import islice
from typing import NamedTuple

import numpy as np

from .batches import checked_request
from .encoded import checked_size
from .pipeline import needed
from .verdicts import BAD, UNKNOWN, full_key

MAX_TRIES = 1000  # so many bad images in a row are no accident: the domain is not what it claims to be


class Found(NamedTuple):
    """A good image: its number in its domain, its encoded bytes (uint8 array), its (width, height)."""

    image: int
    encoded: np.ndarray
    size: tuple[int, int]


class Reader:
    """Encoded images of several domains, bad ones replaced; `bad` maps "domain/key" to the reason, of those met here.

    `verdicts`: what other readers found is taken as found, and they learn what is found here. `vet(encoded)`, if given,
    raises ValueError for an image that cannot be decoded; it is asked where no verdict is known.
    """

    def __init__(self, domains, verdicts, vet=None):
        self.domains, self.bad = domains, {}
        self._verdicts, self._vet = verdicts, vet

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
        self._verdicts.reject(self.domains[domain], image, reason)
        self._meet(self.domains[domain], image)

    def _checked(self, domain, image, encoded=None):
        """The image if it is good, else None; reads it first where `encoded` is None."""
        verdict = self._verdicts.of(self.domains[domain], image)
        if verdict == BAD:
            return self._meet(self.domains[domain], image)
        try:
            encoded = self.domains[domain].jpeg(image) if encoded is None else encoded
            found = Found(image, encoded, checked_size(encoded))
            if self._vet and verdict == UNKNOWN:
                self._vet(encoded)
                self._verdicts.accept(self.domains[domain], image)
            return found
        except (ValueError, OSError) as error:
            return self.reject(domain, image, str(error))

    def _meet(self, domain, image):
        name = full_key(domain, image)
        self.bad[name] = self._verdicts.bad[name]

    def _substitute(self, domain, image):
        for candidate in islice(self._after(domain, image), MAX_TRIES):
            if found := self._checked(domain, candidate):
                return found
        name = full_key(self.domains[domain], image)
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
    need_B: np.ndarray  # what their sizes lack, see pipeline.needed
    domain_B: np.ndarray
    image_B: np.ndarray  # as asked for
    found_B: list[int]  # as read


class Source:
    """DALI's callback: the k-th call gives batch first + k; a StopIteration ends the stream before batch `last`.

    `ahead` keeps the batches DALI has not given back yet, for it reads their bytes in place. `error` is what ended the
    stream early: DALI calls a few batches ahead of the user, who must get those before the error.
    """

    def __init__(self, reader, requests, size, *, batch_images, first, last):
        self.reader, self.ahead, self.error = reader, {}, None
        self._requests, self._size, self._images = requests, size, batch_images
        self._first, self._last = first, last

    def __call__(self, call):
        number = self._first + call
        if self._last is not None and number >= self._last:
            raise StopIteration
        try:
            batch = self.fetch(*checked_request(self.reader.domains, self._requests, number, self._images))
        except Exception as error:
            self.error = error
            raise StopIteration from error
        self.ahead[number] = batch
        return batch[:2]

    def fetch(self, domain_B, image_B):
        """The batch of these images, bad ones replaced."""
        found = self.reader.read(domain_B, image_B)
        need_B = needed([size for _, _, size in found], self._size)
        return Batch([data for _, data, _ in found], need_B, domain_B, image_B, [i for i, _, _ in found])
