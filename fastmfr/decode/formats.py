"""Which domains hold images that are neither JPEG nor PNG: Pillow turns these into PNG each time they are decoded."""

from collections.abc import Iterable, Iterator

import numpy as np

from fastmfr.image_set import ImageSet

from .encoded import START, format_of
from .preprocess import DECODED

MOST = 64  # images of a domain that are looked at, spread over the domain


def other_formats(domains: Iterable[ImageSet]) -> Iterator[str]:
    """Yield a sentence for each domain with such images among those looked at."""
    for domain in domains:
        found = {form for form in _formats(domain) if form and form not in DECODED}
        if found:
            yield (
                f"{domain.name} holds images in {', '.join(sorted(found))}: Pillow turns them into PNG before they are "
                "decoded, which takes longer; `python -m fastmfr pack` stores them as PNG once"
            )


def _formats(domain: ImageSet) -> Iterator[str | None]:
    for image in np.unique(np.linspace(0, domain.images - 1, min(domain.images, MOST)).astype(int)).tolist():
        try:
            yield format_of(bytes(domain.jpeg(image)[:START]))
        except (ValueError, OSError):  # decoding reports what cannot be read
            continue
