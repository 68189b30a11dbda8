"""From numbers to pixels: `render` is a pure function of (seed, domain, identity, image, size)."""

from types import SimpleNamespace

import numpy as np
from numpy.typing import ArrayLike

from . import paint
from .domains import CATALOG, DOMAINS, Domain
from .identity import TRAITS, describe
from .surface import EYES, MOUTH, NOSE, band, project, relief, shade

CHUNK_PIXELS = 4 * 112 * 112  # images made together: large enough to hide numpy's overhead, small enough for the cache


def render(
    domain: str,
    identities: ArrayLike,
    images: ArrayLike,
    *,
    size: int = 112,
    seed: int = 0,
    twins: float = 0.0,
) -> np.ndarray:
    """Render faces; the pixels of an image do not depend on the other images of the call.

    Args:
        domain: a name in DOMAINS. Each domain has other people.
        identities: identity numbers (n,), integers >= 0.
        images: image numbers (n,) within the identity, integers >= 0.
        size: pixels a side, at least 32.
        seed: an integer >= 0.
        twins: the share of people who are twins, from 0 to 1; see identity.py.

    Returns:
        uint8 RGB (n, size, size, 3).

    Raises:
        ValueError: an argument is out of range.
    """
    identities, images = np.atleast_1d(np.asarray(identities)), np.atleast_1d(np.asarray(images))
    check(domain, size, seed, twins)
    if identities.shape != images.shape or identities.ndim != 1:
        raise ValueError(f"want as many image numbers as identity numbers, got {identities.shape} and {images.shape}")
    if len(images) and min(identities.min(), images.min()) < 0:
        raise ValueError(f"identity and image numbers count from 0, got {min(identities.min(), images.min())}")
    np.empty(1 << 24, np.uint8)  # glibc keeps freed blocks up to the largest freed so far: 1.3 times the images/s
    out = np.empty((len(images), size, size, 3), np.uint8)
    step = max(CHUNK_PIXELS // size**2, 1)
    for start in range(0, len(images), step):
        part = slice(start, start + step)
        out[part] = _render(domain, identities[part].tolist(), images[part].tolist(), size, seed, twins)
    return out


def check(domain: str, size: int, seed: int, *shares: float) -> None:
    """Raise ValueError for a domain that is not known, a size below 32, a seed below 0 or a share not in [0, 1]."""
    if domain not in CATALOG:
        raise ValueError(f"want a domain of {', '.join(DOMAINS)}, got {domain!r}")
    if size < 32 or seed < 0:
        raise ValueError(f"want a size of at least 32 pixels and a seed of at least 0, got size {size}, seed {seed}")
    if not all(0 <= share <= 1 for share in shares):
        raise ValueError(f"want shares of people from 0 to 1, got {', '.join(map(str, shares))}")


def _render(name: str, identities: list[int], images: list[int], size: int, seed: int, twins: float) -> np.ndarray:
    domain = CATALOG[name]
    face = describe(seed, DOMAINS.index(name), identities, images, domain.traits, domain.conditions, twins)
    if domain.change:
        domain.change(face, {**TRAITS, **domain.traits})
    colours = domain.colours(face)
    x, y, u, v, depth = project(face, size)
    light, gloss = shade(face, relief(face, u, v, depth), size)
    canvas = paint.backdrop(face, colours, x, y, u, v)
    head = _head(face, colours, domain, u, v, light, gloss)
    paint.blend(canvas, paint.edge(1 - paint.outline(face, u, v), size / 5), head)
    hair, strands = paint.hair_front(face, u, v)
    paint.blend(canvas, hair, colours.hair * (light * strands)[:, None])
    if domain.cover:
        domain.cover(face, u, v, light, canvas)
    pixels = domain.finish(face, canvas)
    return (np.clip(pixels, 0, 1) * 255 + 0.5).astype(np.uint8).transpose(0, 2, 3, 1)


def _head(
    face: SimpleNamespace,
    colours: SimpleNamespace,
    domain: Domain,
    u: np.ndarray,
    v: np.ndarray,
    light: np.ndarray,
    gloss: np.ndarray,
) -> np.ndarray:
    """Lit skin with its features, linear RGB (n, 3, size, size)."""
    canvas, fold = paint.skin(face, colours, u, v), paint.wrinkles(face, u, v)
    if domain.coat:
        domain.coat(face, u, v, canvas)
    dark = np.zeros_like(fold)
    paint.brows(face, colours, *band(EYES, u, v, canvas))
    glint = paint.eyes(face, colours, *band(EYES, u, v, canvas, fold, dark))
    paint.nose(face, *band(NOSE, u, v, fold, dark))
    paint.mouth(face, colours, *band(MOUTH, u, v, canvas, fold, dark))
    paint.blend(canvas, np.minimum(fold, 0.7), colours.fold)
    paint.blend(canvas, np.minimum(dark, 0.95), colours.dark)
    canvas *= light[:, None]
    if domain.shine:
        canvas += (0.10 * gloss)[:, None]
        band(EYES, canvas)[0][:] += 0.8 * glint[:, None]
    return canvas
