"""The decoder's input: encoded images, and whether each must be resized, as a pure function of the batch number.

A bad image never ends a run. The substitute is the next good image of the identity, else the next good image of the
domain, counted from the image that was asked for; so the substitute depends on the data alone, and a resumed run takes
the same one. (In an identity of two images the substitute is the other one: a pair then shows one photograph twice.
Such an identity has nothing better.)
Shape suffix: B = images of a batch.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import NamedTuple

import numpy as np

from fastmfr.image_set import ImageSet
from fastmfr.native import FileChanged

from .align import alignment_maps
from .batches import Requests, checked_request
from .encoded import checked_size
from .preprocess import ALIGN, RESIZE, Frame, jpeg_or_png, needed
from .verdicts import BAD, UNKNOWN, Verdicts

MAX_TRIES = 1000  # that many bad images in a row are no accident: the domain's files are broken
MOST_PIXELS = 1 << 27  # that a batch decodes at once, 400 MB; more are decoded part by part
_ONE_PIXEL = bytes.fromhex(  # a PNG
    "89504e470d0a1a0a0000000d49484452000000010000000108000000003a7e9b550000000a49444154789c6360"
    "00000002000148afa4710000000049454e44ae426082"
)

# What is known of a good image, in a byte: bits 0 and 1 what its size needs plus one, so that 0 is unknown; bits 2 to
# 6 the power of two of its pixels, rounded up; bit 7 whether it is neither JPEG nor PNG, to be turned into PNG.
_NEED, _POWER, _FOREIGN = 3, 2, 128


class Found(NamedTuple):
    """A good image."""

    image: int  # number in its domain
    encoded: np.ndarray  # bytes, uint8, of a JPEG or PNG
    known: int  # what is known of it, see _NEED


class Reader:
    """Reads encoded images of several domains and replaces bad images.

    Attributes:
        domains: the domains.
        bad: {"domain/key": reason} of the bad images that this reader met.
    """

    def __init__(
        self,
        domains: Sequence[ImageSet],
        verdicts: Verdicts,
        frame: Frame,
        vet: Callable[[np.ndarray], None] | None = None,
    ):
        """Prepare to read.

        Args:
            domains: the domains to read from.
            verdicts: what all readers that share this object found out.
            frame: what images will be brought to.
            vet: called with the encoded bytes of an image without a verdict; raises ValueError if the image cannot be
                decoded. None trusts the markers of the image.
        """
        self.domains, self.bad = domains, dict[str, str]()
        self._verdicts, self._frame, self._vet = verdicts, frame, vet
        self._known = [np.zeros(domain.images, np.uint8) for domain in domains]  # Found.known of good images

    def read(self, domain_B: np.ndarray, image_B: np.ndarray) -> tuple[list, np.ndarray, np.ndarray, np.ndarray]:
        """Read the images `image_B` of the domains `domain_B`, or their substitutes.

        Returns:
            The encoded bytes of each image, what each size needs (uint8), the numbers of the images read, and the
            pixels of each rounded up to a power of two (int64).

        Raises:
            ValueError: MAX_TRIES images in a row are bad, or a file of many images was changed since it was opened.
        """
        encoded, known_B, found_B = [None] * len(image_B), np.empty(len(image_B), np.uint8), image_B.copy()
        for domain in np.unique(domain_B).tolist():
            slots = np.flatnonzero(domain_B == domain)
            images = image_B[slots]
            known = self._known[domain][images] * (self._verdicts.of(self.domains[domain], images) != BAD)
            try:  # in one call, which lets a domain on a slow disk read ahead
                read = self.domains[domain].jpegs(images)
            except (ValueError, OSError):  # one of them cannot be read at all, so each is read alone
                read, known = [None] * len(slots), np.zeros_like(known)
            known_B[slots] = known
            for slot, data in zip(slots.tolist(), read, strict=True):
                encoded[slot] = data
            for slot in slots[(known == 0) | (known >= _FOREIGN)].tolist():  # never read before, bad, or to be turned
                image = int(image_B[slot])
                found = self._checked(domain, image, encoded[slot]) or self._substitute(domain, image)
                found_B[slot], encoded[slot], known_B[slot] = found
        pixel_B = 1 << (known_B % _FOREIGN >> _POWER).astype(np.int64)
        return encoded, (known_B & _NEED) - np.uint8(1), found_B, pixel_B

    def maps(self, domain_B: np.ndarray, found_B: np.ndarray) -> np.ndarray:
        """Return where the aligned crops of images read lie, as alignment_maps does; NaN for images without landmarks.

        Args:
            domain_B: the domain of each image.
            found_B: the number of each image.
        """
        map_B23 = np.full((len(found_B), 2, 3), np.nan)
        if self._frame.aligned:
            for domain in np.unique(domain_B).tolist():
                landmark_N52, slots = self.domains[domain].landmark_N52, domain_B == domain
                if landmark_N52 is not None:
                    map_B23[slots] = alignment_maps(landmark_N52[found_B[slots]], self._frame.size)
        return map_B23

    def reject(self, domain: int, image: int, reason: str) -> None:
        """Report an image as bad, and never return that image again."""
        self._verdicts.reject(self.domains[domain], image, reason)
        self._meet(self.domains[domain], image)

    def _checked(self, domain: int, image: int, encoded: np.ndarray | None = None) -> Found | None:
        """The image if it is good, else None; the image is read first if `encoded` is None."""
        verdict = self._verdicts.of(self.domains[domain], image)
        if verdict == BAD:
            return self._meet(self.domains[domain], image)
        try:
            encoded = self.domains[domain].jpeg(image) if encoded is None else encoded
            width, height = checked_size(encoded)
            taken = jpeg_or_png(encoded)
            if self._vet and verdict == UNKNOWN:
                self._vet(taken)
                self._verdicts.accept(self.domains[domain], image)
            (need,) = needed([(width, height)], self._frame).tolist()
            power = (width * height - 1).bit_length()
            known = need + 1 | power << _POWER | _FOREIGN * (taken is not encoded)
            self._known[domain][image] = known
            return Found(image, taken, known)
        except FileChanged:  # not the fault of one image: no number stands for the image that it stood for
            raise
        except (ValueError, OSError) as error:
            return self.reject(domain, image, str(error))

    def _meet(self, domain: ImageSet, image: int) -> None:
        label = domain.label_of(image)
        self.bad[label] = self._verdicts.bad[label]

    def _substitute(self, domain: int, image: int) -> Found:
        for candidate in islice(self._after(domain, image), MAX_TRIES):
            if found := self._checked(domain, candidate):
                return found
        label = self.domains[domain].label_of(image)
        raise ValueError(
            f"{label} is bad ({self.bad[label]}), and so are all images tried in its place, up to "
            f"{MAX_TRIES}; check the files of this domain, or pack them again from the images"
        )

    def _after(self, domain: int, image: int) -> Iterator[int]:
        """The images that may replace an image, the best first."""
        offsets, images = self.domains[domain].offsets, self.domains[domain].images
        identity = int(self.domains[domain].identity_of(image))
        start, end = int(offsets[identity]), int(offsets[identity + 1])
        yield from range(image + 1, end)
        yield from range(start, image)
        yield from range(end, images)
        yield from range(start)


class Batch(NamedTuple):
    """One batch as DALI takes it, with the images asked for and the images read."""

    encoded: list[np.ndarray]  # uint8, of B lengths
    need_B: np.ndarray  # what they need, see preprocess.needed
    map_B23: np.ndarray  # where aligned crops lie in them
    domain_B: np.ndarray
    image_B: np.ndarray  # as asked for
    found_B: np.ndarray  # as read
    pixel_B: np.ndarray  # how many pixels each has, rounded up to a power of two

    @property
    def most(self) -> int:
        """How many of the images may be decoded at once."""
        if self.pixel_B.sum() <= MOST_PIXELS:
            return len(self.encoded)
        return int(max(1, MOST_PIXELS // self.pixel_B.max()))


class Source:
    """DALI's callback: call k returns batch first + k; a StopIteration ends the stream before batch `last`.

    Attributes:
        reader: reads the images.
        ahead: {number: batch} of the batches that DALI still decodes; DALI reads their bytes in place.
        error: what ended the stream early. DALI calls a few batches ahead of the user, who must get those batches
            before the error.
    """

    def __init__(self, reader: Reader, requests: Requests, *, batch_images: int, first: int, last: int | None):
        """Prepare to serve the batches `first` up to `last` - 1 of `batch_images` images each; None sets no end."""
        self.reader, self.ahead = reader, dict[int, Batch]()
        self.error: Exception | None = None
        self._requests, self._images = requests, batch_images
        self._first, self._last = first, last
        stand_in = [np.frombuffer(_ONE_PIXEL, np.uint8)] * batch_images
        self._stand_in = stand_in, np.full(batch_images, RESIZE, np.uint8), np.zeros((batch_images, 2, 3))

    def __call__(self, call: int) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
        """Return (encoded, need_B, map_B23) of batch first + `call`, or raise StopIteration.

        A batch of too many pixels is kept in `ahead` only, and images of one pixel are returned in its place.
        """
        number = self._first + call
        if self._last is not None and number >= self._last:
            raise StopIteration
        try:
            batch = self.fetch(*checked_request(self.reader.domains, self._requests, number, self._images))
        except Exception as error:
            self.error = error
            raise StopIteration from error
        self.ahead[number] = batch
        return batch[:3] if batch.most == self._images else self._stand_in

    def fetch(self, domain_B: np.ndarray, image_B: np.ndarray) -> Batch:
        """Read the batch of these images, with bad images replaced."""
        encoded, need_B, found_B, pixel_B = self.reader.read(domain_B, image_B)
        map_B23 = self.reader.maps(domain_B, found_B)
        is_aligned_B = ~np.isnan(map_B23[:, 0, 0])
        need_B[is_aligned_B] = ALIGN
        map_B23[~is_aligned_B] = 0
        return Batch(encoded, need_B, map_B23, domain_B, image_B, found_B, pixel_B)
