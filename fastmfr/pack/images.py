"""One image on its way into the records: checked, and shrunk or enlarged if asked."""

import io
from collections import deque
from concurrent.futures import ThreadPoolExecutor

from PIL import Image, ImageOps

from fastmfr.decode.encoded import checked_size

QUALITY = 95  # of a JPEG written anew


def prepare(encoded, short=None, decode=False):
    """(bytes to store, (width, height)) of an encoded JPEG or PNG; ValueError says why it is bad.

    The bytes stay as they are unless the shorter side is to be `short` pixels and is not: then the image is written
    anew as JPEG, upright. `decode`: decode every pixel to find damage that the markers do not show.
    """
    size = checked_size(encoded)
    change = short is not None and min(size) != short
    if not (change or decode):
        return encoded, size
    try:
        with Image.open(io.BytesIO(encoded)) as image:
            image.load()
            return _resized(image, short) if change else (encoded, size)
    except Exception as error:  # decoders meet damage in more ways than they document
        raise ValueError(f"does not decode: {error}") from error


def _resized(image, short):
    image = ImageOps.exif_transpose(image).convert("RGB")
    scale = short / min(image.size)
    size = tuple(max(short, round(side * scale)) for side in image.size)
    buffer = io.BytesIO()
    image.resize(size, Image.Resampling.LANCZOS).save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue(), size


def ordered_map(function, items, workers):
    """Yield function(item) of all `items`, in their order, worked out by `workers` threads a few items ahead."""
    waiting = deque()
    with ThreadPoolExecutor(workers) as pool:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
