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
from .preprocess import needed
from .verdicts import BAD, UNKNOWN, full_key

MAX_TRIES = 1000  # so many bad images in a row are no accident: the domain is not what it claims to be


class Found(NamedTuple):
    """A good image: its number in its domain, its encoded bytes (uint8 array), what its size lacks."""

    image: int
    encoded: np.ndarray
    need: int


class Reader:
    """Encoded images of several domains, bad ones replaced; `bad` maps "domain/key" to the reason, of those met here.

    `verdicts`: what other readers found is taken as found, and they learn what is found here. `vet(encoded)`, if given,
    raises ValueError for an image that cannot be decoded; it is asked where no verdict is known. `size`: the pixels a
    side that images are to have.
    """

    def __init__(self, domains, verdicts, size, vet=None):
        self.domains, self.bad = domains, {}
        self._verdicts, self._size, self._vet = verdicts, size, vet
        self._known = [np.zeros(domain.images, np.uint8) for domain in domains]  # what a good image needs, plus 1

    def read(self, domain_B, image_B):
        """(encoded, need_B, found_B) of the images `image_B` of the domains `domain_B`, or of their substitutes.

        Raises ValueError where a thousand images in a row are bad.
        """
        encoded, need_B, found_B = [None] * len(image_B), np.empty(len(image_B), np.uint8), image_B.copy()
        for domain in np.unique(domain_B).tolist():
            slots = np.flatnonzero(domain_B == domain)
            images = image_B[slots]
            known = self._known[domain][images] * (self._verdicts.of(self.domains[domain], images) != BAD)
            try:  # in one call, which lets a domain on a slow disk read ahead
                read = self.domains[domain].jpegs(images)
            except (ValueError, OSError):  # one of them cannot be read at all, so each for itself
                read, known = [None] * len(slots), np.zeros_like(known)
            need_B[slots] = known - 1
            for slot, data in zip(slots.tolist(), read, strict=True):
                encoded[slot] = data
            for slot in slots[known == 0].tolist():  # met for the first time, or bad
                image = int(image_B[slot])
                found = self._checked(domain, image, encoded[slot]) or self._substitute(domain, image)
                found_B[slot], encoded[slot], need_B[slot] = found
        return encoded, need_B, found_B

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
            (need,) = needed([checked_size(encoded)], self._size).tolist()
            if self._vet and verdict == UNKNOWN:
                self._vet(encoded)
                self._verdicts.accept(self.domains[domain], image)
            self._known[domain][image] = need + 1
            return Found(image, encoded, need)
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
        raise ValueError(
            f"{name} is bad ({self.bad[name]}), and so are all images tried in its place, up to "
            f"{MAX_TRIES}; check the files of this domain, or pack them again from the images"
        )

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
    need_B: np.ndarray  # what their sizes lack, see preprocess.needed
    domain_B: np.ndarray
    image_B: np.ndarray  # as asked for
    found_B: np.ndarray  # as read


class Source:
    """DALI's callback: the k-th call gives batch first + k; a StopIteration ends the stream before batch `last`.

    `ahead` keeps the batches DALI has not given back yet, for it reads their bytes in place. `error` is what ended the
    stream early: DALI calls a few batches ahead of the user, who must get those before the error.
    """

    def __init__(self, reader, requests, *, batch_images, first, last):
        self.reader, self.ahead, self.error = reader, {}, None
        self._requests, self._images = requests, batch_images
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
        encoded, need_B, found_B = self.reader.read(domain_B, image_B)
        return Batch(encoded, need_B, domain_B, image_B, found_B)
