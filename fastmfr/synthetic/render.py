"""From numbers to pixels: `render` is a pure function of (seed, domain, identity, image, size)."""

import numpy as np

from . import paint
from .domains import CATALOG, DOMAINS
from .identity import describe
from .surface import EYES, MOUTH, NOSE, band, project, relief, shade

CHUNK_PIXELS = 4 * 112 * 112  # images made together: large enough to hide numpy's overhead, small enough for the cache


def render(domain, identities, images, *, size=112, seed=0):
    """Images (n, size, size, 3) uint8 RGB of identity numbers (n,) and image numbers (n,) of a domain.

    Equal arguments give equal pixels whatever else is in the batch. `seed` and the numbers are integers >= 0; the
    people of one domain are not those of another. Raises ValueError for an unknown domain or a size below 32.
    """
    identities, images = np.atleast_1d(np.asarray(identities)), np.atleast_1d(np.asarray(images))
    check(domain, size, seed)
    if identities.shape != images.shape or identities.ndim != 1:
        raise ValueError(f"want as many image numbers as identity numbers, got {identities.shape} and {images.shape}")
    if len(images) and min(identities.min(), images.min()) < 0:
        raise ValueError(f"identity and image numbers count from 0, got {min(identities.min(), images.min())}")
    np.empty(1 << 24, np.uint8)  # glibc keeps freed blocks up to the largest it saw freed: 1.3 times the images/s
    out = np.empty((len(images), size, size, 3), np.uint8)
    step = max(CHUNK_PIXELS // size**2, 1)
    for start in range(0, len(images), step):
        part = slice(start, start + step)
        out[part] = _render(domain, identities[part].tolist(), images[part].tolist(), size, seed)
    return out


def check(domain, size, seed):
    """Raise ValueError for a domain that is not known, a size below 32 or a seed below 0."""
    if domain not in CATALOG:
        raise ValueError(f"want a domain of {', '.join(DOMAINS)}, got {domain!r}")
    if size < 32 or seed < 0:
        raise ValueError(f"want a size of at least 32 pixels and a seed of at least 0, got size {size}, seed {seed}")


def _render(name, identities, images, size, seed):
    domain = CATALOG[name]
    face = describe(seed, DOMAINS.index(name), identities, images, domain.traits, domain.conditions)
    colours = domain.colours(face)
    x, y, u, v, depth = project(face, size)
    light, gloss = shade(face, relief(face, u, v, depth), size)
    canvas = paint.backdrop(face, colours, x, y, u, v)
    paint.blend(canvas, paint.edge(1 - paint.outline(face, u, v), size / 5), _head(face, colours, u, v, light, gloss))
    hair, strands = paint.hair_front(face, u, v)
    paint.blend(canvas, hair, colours.hair * (light * strands)[:, None])
    if domain.glasses:
        paint.spectacles(face, *band(EYES, u, v, canvas))
    pixels = domain.finish(face, canvas)
    return (np.clip(pixels, 0, 1) * 255 + 0.5).astype(np.uint8).transpose(0, 2, 3, 1)


def _head(face, colours, u, v, light, gloss):
    """Lit skin with its features, linear RGB (n, 3, size, size)."""
    canvas, fold = paint.skin(face, colours, u, v), paint.wrinkles(face, u, v)
    dark = np.zeros_like(fold)
    paint.brows(face, colours, *band(EYES, u, v, canvas))
    glint = paint.eyes(face, colours, *band(EYES, u, v, canvas, fold, dark))
    paint.nose(face, *band(NOSE, u, v, fold, dark))
    paint.mouth(face, colours, *band(MOUTH, u, v, canvas, fold, dark))
    paint.blend(canvas, np.minimum(fold, 0.7), colours.fold)
    paint.blend(canvas, np.minimum(dark, 0.95), colours.dark)
    canvas *= light[:, None]
    canvas += (0.10 * gloss)[:, None]
    band(EYES, canvas)[0][:] += 0.8 * glint[:, None]
    return canvas
