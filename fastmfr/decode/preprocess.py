"""From the encoded bytes of an image to the input of the backbone: the steps, and their reference in Pillow.

    RGB -> shorter side resized to `size` -> centre crop size x size -> changed at random or not -> (x - mean) / std

RGB: grey is repeated three times, a palette is looked up, alpha is dropped (not blended), 16-bit grey is scaled to 8.
JPEG and PNG are what decoders take; any other format is turned into a PNG of the same pixels by Pillow first.
EXIF orientation is applied first, as every picture viewer does. Resizing is bilinear with an antialiasing (triangular)
filter; the longer side is rounded to whole pixels and the border pixel is repeated outwards.
"""

import io
import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from fastmfr.config import Preprocess

from .encoded import START, check_sides, checked_size, format_of

DECODED = ("JPEG", "PNG")  # the formats that every decoder takes
FORMATS = (*DECODED, "BMP", "WEBP", "TIFF")
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
        encoded: the bytes of an image, or a uint8 array of them.
        preprocess: size and normalisation; changes at random are ignored.
        mirror: whether to mirror the image left to right.

    Returns:
        float32 (3, size, size).

    Raises:
        ValueError: the bytes are no whole image, or Pillow cannot decode them.
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
    """Decode an image to a Pillow image, RGB and upright.

    Raises:
        ValueError: the image has no format or size that is wanted, or Pillow cannot decode the image; the message is
            the reason.
    """
    try:
        image = Image.open(io.BytesIO(bytes(encoded)), formats=FORMATS)
        check_sides(*image.size)
        ImageOps.exif_transpose(image, in_place=True)
        return as_rgb(image)
    except MemoryError:
        raise
    except UnidentifiedImageError:  # its text is the address of an object
        raise ValueError("the header is damaged") from None
    except Exception as error:  # damaged files make Pillow raise almost anything
        raise ValueError(f"{error}" or type(error).__name__) from error


def as_rgb(image: Image.Image) -> Image.Image:
    """Turn a Pillow image of any mode into RGB, 8 bits a channel; the only place that does so.

    Raises:
        ValueError: the pixels are numbers of an unknown range, as in a floating-point TIFF.
    """
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):  # Pillow would clip at 255
        image = Image.fromarray(np.rint(np.asarray(image) / 257).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError("its pixels are 32-bit numbers of an unknown range; save it with 8 or 16 bits a channel")
    return image.convert("RGB")


def jpeg_or_png(encoded: np.ndarray) -> np.ndarray:
    """Return a JPEG or PNG as it is, and any other image as a PNG of the same pixels, RGB and upright.

    Args:
        encoded: the bytes of an image, uint8.

    Raises:
        ValueError: Pillow cannot decode the image.
    """
    if format_of(bytes(encoded[:START])) in DECODED:
        return encoded
    try:
        image, buffer = upright_rgb(encoded), io.BytesIO()
    except ValueError as error:
        raise ValueError(f"cannot be decoded ({error})") from error
    image.save(buffer, "PNG", compress_level=1)
    return np.frombuffer(buffer.getvalue(), np.uint8)


def fitted(image: Image.Image, size: int) -> np.ndarray:
    """Resize the shorter side of an RGB image to `size` and crop the centre; returns pixels, uint8 (size, size, 3)."""
    return _centre(_resize_shorter(image, size), size)


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
