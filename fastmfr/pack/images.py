"""One image on its way into the records: checked, and resized or aligned if asked."""

import io
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from typing import TypeVar

import numpy as np
from PIL import Image

from fastmfr.decode.align import aligned, alignment_maps
from fastmfr.decode.encoded import START, checked_size, format_of
from fastmfr.decode.preprocess import DECODED, jpeg_or_png, upright_rgb

QUALITY = 95  # of a resized or aligned JPEG
LARGE = 1 << 22  # pixels; of larger images one is decoded at a time, so that memory does not grow with the threads
_ALONE = threading.Lock()
Item = TypeVar("Item")
Result = TypeVar("Result")


def prepare(encoded: bytes, short: int | None = None, decode: bool = False) -> tuple[bytes, tuple[int, int]]:
    """Check one encoded image, and resize the image if asked.

    Args:
        encoded: the bytes of the image: JPEG, PNG, BMP, WebP or TIFF.
        short: the wanted shorter side in pixels. An image of another size is stored upright, as JPEG of quality 95;
            None keeps all bytes.
        decode: whether to decode every pixel, to find damage that the markers do not show.

    Returns:
        The bytes to store, and (width, height) in pixels. What is neither JPEG nor PNG is stored as PNG, RGB and
        upright, since that is what trainers read.

    Raises:
        ValueError: the image is bad; the message is the reason.
    """
    size = checked_size(encoded)
    with _ALONE if size[0] * size[1] > LARGE else nullcontext():
        if short is not None and min(size) != short:
            return _resized(_decoded(encoded), short)
        if format_of(encoded[:START]) in DECODED:
            if decode:
                _decoded(encoded)
            return encoded, size
        stored = jpeg_or_png(np.frombuffer(encoded, np.uint8)).tobytes()
        return stored, checked_size(stored)


def align(encoded: bytes, landmark_52: np.ndarray, size: int) -> tuple[bytes, tuple[int, int]]:
    """Align one encoded image.

    Args:
        encoded: the bytes of the image, in any format that `prepare` takes.
        landmark_52: five points of the image.
        size: pixels a side of the crop.

    Returns:
        The crop as JPEG of quality 95, and (width, height) of the image it was cut out of, in pixels.

    Raises:
        ValueError: the image is bad; the message is the reason.
    """
    stored = checked_size(encoded)
    with _ALONE if stored[0] * stored[1] > LARGE else nullcontext():
        image = _decoded(encoded)
        (map_23,) = alignment_maps(landmark_52[None], size)
        crop = Image.fromarray(aligned(np.asarray(image), map_23, size))
    return _as_jpeg(crop), image.size


def _decoded(encoded: bytes) -> Image.Image:
    try:
        return upright_rgb(encoded)
    except ValueError as error:
        raise ValueError(f"does not decode: {error}") from error


def _resized(image: Image.Image, short: int) -> tuple[bytes, tuple[int, int]]:
    scale = short / min(image.size)
    width, height = (max(short, round(side * scale)) for side in image.size)
    return _as_jpeg(image.resize((width, height), Image.Resampling.LANCZOS)), (width, height)


def _as_jpeg(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()


def ordered_map(function: Callable[[Item], Result], items: Iterable[Item], workers: int) -> Iterator[Result]:
    """Yield function(item) of all `items`, in their order; `workers` threads compute a few items ahead."""
    waiting = deque()
    with ThreadPoolExecutor(workers) as pool:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
