"""From the encoded bytes of an image to the input of the backbone: the steps, and their reference in Pillow.

    RGB -> shorter side resized to `size` -> centre crop size x size -> changed at random or not -> (x - mean) / std

RGB: grey is repeated three times, a palette is looked up, alpha is dropped (not blended), 16-bit grey is scaled to 8.
EXIF orientation is applied first, as every picture viewer does. Resizing is bilinear with an antialiasing (triangular)
filter; the longer side is rounded to whole pixels and the border pixel is repeated outwards.
"""

import io
import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from fastmfr.config import Preprocess

from .encoded import checked_size

AS_IS, CROP, RESIZE = range(3)  # what an image needs to have the wanted size; RESIZE is followed by a crop


def needed(sizes: Sequence[tuple[int, int]], size: int) -> np.ndarray:
    """Return AS_IS, CROP or RESIZE, uint8 (B,), for images of these (width, height) to become `size` pixels a side."""
    return np.array(
        [AS_IS if pair == (size, size) else CROP if min(pair) == size else RESIZE for pair in sizes], np.uint8
    )


def decode_reference(encoded: bytes | np.ndarray, preprocess: Preprocess, mirror: bool) -> np.ndarray:
    """Decode one image by Pillow: the reference of every stream without changes at random.

    The DALI path on the CPU differs by at most one grey level (1 / std): by none if the image already has its size,
    since both decode with libjpeg-turbo; by one after resizing, since Pillow rounds to 8 bits between rows and columns.

    Args:
        encoded: the bytes of a JPEG or PNG, or a uint8 array of them.
        preprocess: size and normalisation; changes at random are ignored.
        mirror: whether to mirror the image left to right.

    Returns:
        float32 (3, size, size).

    Raises:
        ValueError: the bytes are no whole JPEG or PNG, or Pillow cannot decode them.
    """
    checked_size(encoded)
    try:
        image = upright_rgb(encoded)
    except ValueError as error:
        raise ValueError(f"Pillow cannot decode these {len(encoded)} bytes: {error}") from error
    pixel_HW3 = fitted(image, preprocess.size)
    if mirror:
        pixel_HW3 = pixel_HW3[:, ::-1]
    normalised_HW3 = (pixel_HW3.astype(np.float32) - preprocess.mean) / preprocess.std
    return np.ascontiguousarray(normalised_HW3.transpose(2, 0, 1), dtype=np.float32)


def upright_rgb(encoded: bytes | np.ndarray) -> Image.Image:
    """Decode a JPEG or PNG to a Pillow image, RGB and upright.

    Raises:
        ValueError: Pillow cannot decode the image; the message is Pillow's reason.
    """
    try:
        image = Image.open(io.BytesIO(bytes(encoded)), formats=("JPEG", "PNG"))
        ImageOps.exif_transpose(image, in_place=True)
        return _as_rgb(image)
    except MemoryError:
        raise
    except UnidentifiedImageError:  # its text is the address of an object
        raise ValueError("the header is damaged") from None
    except Exception as error:  # damaged files make Pillow raise almost anything
        raise ValueError(f"{error}" or type(error).__name__) from error


def fitted(image: Image.Image, size: int) -> np.ndarray:
    """Resize the shorter side of an RGB image to `size` and crop the centre; returns pixels, uint8 (size, size, 3)."""
    return _centre(_resize_shorter(image, size), size)


def _as_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):  # Pillow itself would clip at 255
        image = Image.fromarray(np.rint(np.asarray(image) / 257).astype(np.uint8))
    return image.convert("RGB")


def _resize_shorter(image: Image.Image, size: int) -> np.ndarray:
    shorter = min(image.size)
    if shorter == size:
        return np.asarray(image)
    width, height = (int(side * size / shorter + 0.5) for side in image.size)
    # At the border Pillow shortens its filter; a margin of repeated pixels makes it read what DALI reads there.
    margin = math.ceil(max(1, shorter / size))
    padded = np.pad(np.asarray(image), ((margin, margin), (margin, margin), (0, 0)), mode="edge")
    box = (margin, margin, margin + image.width, margin + image.height)
    return np.asarray(Image.fromarray(padded).resize((width, height), Image.Resampling.BILINEAR, box))


def _centre(pixel_HW3: np.ndarray, size: int) -> np.ndarray:
    top, left = ((side - size + 1) // 2 for side in pixel_HW3.shape[:2])  # an odd rest is larger there, as in DALI
    return pixel_HW3[top : top + size, left : left + size]
