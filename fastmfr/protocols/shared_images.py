"""Whether targets hold images of sources under another name: a quick look at the bytes of some images of each."""

import hashlib
import time
from collections.abc import Iterator, Sequence

import numpy as np

from fastmfr.image_set import ImageSet

MOST = 10_000  # images read of each domain
SECONDS = 2.0  # that reading the images of one domain may take


def shared_images(
    sources: Sequence[ImageSet], targets: Sequence[ImageSet], most: int = MOST, seconds: float = SECONDS
) -> Iterator[str]:
    """Yield a sentence for each target and source that have images in common, byte for byte.

    All images of a small domain are compared. Of a larger domain as many as `most` and `seconds` allow are compared,
    spread over the domain and the same ones for domains of as many images, so that copies of whole domains are found.

    Args:
        sources: the domains trained on.
        targets: the domains scored.
        most: how many images of a domain are read at most.
        seconds: how long reading one domain may take.
    """
    of_sources = [_digests(source, most, seconds) for source in sources]
    for target in targets:
        digests = _digests(target, most, seconds)
        for source, of_source in zip(sources, of_sources, strict=True):
            shared = {image: of_source[digest] for digest, image in digests.items() if digest in of_source}
            if shared:
                first = min(shared)
                yield (
                    f"{len(shared):,} of {len(digests):,} images compared of target {target.name} are images "
                    f"of source {source.name}, byte for byte, the first {target.label_of(first)} = "
                    f"{source.label_of(shared[first])}: its score is not one on unseen images. Remove them from one "
                    "side; `python -m fastmfr inspect` with --out lists them all"
                )


def _digests(domain: ImageSet, most: int, seconds: float) -> dict[bytes, int]:
    """{digest: number} of images spread over a domain; images that cannot be read are left out."""
    numbers = np.unique(np.linspace(0, domain.images - 1, min(domain.images, most)).astype(np.int64))
    until, found = time.monotonic() + seconds, {}
    for image in np.random.default_rng(0).permutation(numbers).tolist():
        try:
            encoded = domain.jpeg(image)
        except (ValueError, OSError):
            continue
        if len(encoded):
            found.setdefault(hashlib.blake2b(bytes(encoded), digest_size=16).digest(), image)
        if time.monotonic() > until:
            break
    return found
