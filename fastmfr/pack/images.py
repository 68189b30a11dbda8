"""One image on its way into the records: checked, and resized if asked."""

import io
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from PIL import Image, ImageOps

from fastmfr.decode.encoded import checked_size

QUALITY = 95  # of a resized JPEG
Item = TypeVar("Item")
Result = TypeVar("Result")


def prepare(encoded: bytes, short: int | None = None, decode: bool = False) -> tuple[bytes, tuple[int, int]]:
    """Check one encoded JPEG or PNG, and resize the image if asked.

    Args:
        encoded: the bytes of the image.
        short: the wanted shorter side in pixels. An image of another size is stored upright, as JPEG of quality 95;
            None keeps all bytes.
        decode: whether to decode every pixel, to find damage that the markers do not show.

    Returns:
        The bytes to store, and (width, height) in pixels.

    Raises:
        ValueError: the image is bad; the message is the reason.
    """
    size = checked_size(encoded)
    wanted = None if min(size) == short else short
    if wanted is None and not decode:
        return encoded, size
    try:
        with Image.open(io.BytesIO(encoded)) as image:
            image.load()
            return (encoded, size) if wanted is None else _resized(image, wanted)
    except Exception as error:  # decoders meet damage in more ways than they document
        raise ValueError(f"does not decode: {error}") from error


def _resized(image: Image.Image, short: int) -> tuple[bytes, tuple[int, int]]:
    image = ImageOps.exif_transpose(image).convert("RGB")
    scale = short / min(image.size)
    width, height = (max(short, round(side * scale)) for side in image.size)
    buffer = io.BytesIO()
    image.resize((width, height), Image.Resampling.LANCZOS).save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue(), (width, height)


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
