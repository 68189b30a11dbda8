"""Survey one domain, image by image: sizes, formats, what is broken, and a digest of the bytes of each image."""

import hashlib
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from fastmfr.decode.encoded import START, checked_size, format_of
from fastmfr.domains import Domain
from fastmfr.pack.images import ordered_map
from fastmfr.protocols.shared_people import names_of

CHUNK = 256  # images handed to a thread at once
DIGEST_BYTES = 8  # two of 50 million different images have one digest with a probability of 7e-5


@dataclass
class Survey:
    """What was found in a domain.

    Attributes:
        domain: the domain.
        names: the name of each person.
        image_N: int64, the numbers of the images that were read, ascending.
        digest_N: uint64, a digest of the bytes of each image; 0 for an image that cannot be read.
        sizes: how many images have each (width, height), in pixels.
        formats: how many images are "JPEG", "PNG", "BMP", "WEBP" or "TIFF".
        broken: (key, reason) of every broken image.
    """

    domain: Domain
    names: list[str]
    image_N: np.ndarray
    digest_N: np.ndarray
    sizes: Counter = field(default_factory=Counter)
    formats: Counter = field(default_factory=Counter)
    broken: list[tuple[str, str]] = field(default_factory=list)

    @property
    def counts(self) -> np.ndarray:
        """The number of images of each identity, int64 (identities,)."""
        return np.diff(self.domain.offsets)

    @property
    def sampled(self) -> bool:
        """Whether some images were left unread."""
        return len(self.image_N) < self.domain.images


def survey(
    domain: Domain,
    most: int | None = None,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Survey:
    """Read the images of a domain.

    Args:
        domain: the domain.
        most: how many images to read, of people drawn at random, always the same ones; None reads all.
        workers: the number of threads; by default one a core.
        progress: called with (images done, images in all), first with 0 done.

    Raises:
        ValueError: `most` or `workers` is below 1.
    """
    if workers is not None and workers < 1:
        raise ValueError(f"want workers of at least 1, got {workers}")
    image_N = _sample(domain, most)
    found = Survey(domain, names_of(domain), image_N, np.zeros(len(image_N), np.uint64))
    chunks = (image_N[at : at + CHUNK] for at in range(0, len(image_N), CHUNK))
    done = 0
    if progress:
        progress(0, len(image_N))
    for results in ordered_map(partial(_read, domain), chunks, workers or os.cpu_count() or 1):
        for digest, size, kind, reason in results:
            found.digest_N[done] = digest
            if reason is None:
                found.sizes[size] += 1
                found.formats[kind] += 1
            else:
                found.broken.append((domain.key(image_N[done]), reason))
            done += 1
        if progress:
            progress(done, len(image_N))
    return found


def _sample(domain: Domain, most: int | None) -> np.ndarray:
    """All image numbers, or `most` of people drawn at random; the same numbers every time."""
    if most is not None and most < 1:
        raise ValueError(f"want a sample of at least 1 image, got {most}")
    if most is None or most >= domain.images:
        return np.arange(domain.images)
    drawn = np.random.default_rng(0).permutation(domain.identities)
    counts = np.diff(domain.offsets)[drawn]
    drawn = np.sort(drawn[: np.searchsorted(np.cumsum(counts), most) + 1])
    images = [np.arange(int(domain.offsets[k]), int(domain.offsets[k + 1])) for k in drawn]
    return np.concatenate(images)[:most]


def _read(domain: Domain, images: np.ndarray) -> list[tuple]:
    """(digest, size, format, reason) of each image; the reason says why an image is broken."""
    results = []
    for image in images:
        digest = 0
        try:
            encoded = bytes(domain.jpeg(image))
            digest = int.from_bytes(hashlib.blake2b(encoded, digest_size=DIGEST_BYTES).digest()) if encoded else 0
            size = checked_size(encoded)
            results.append((digest, size, format_of(encoded[:START]), None))
        except ValueError as error:
            results.append((digest, None, None, str(error)))
    return results
