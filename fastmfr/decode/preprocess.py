"""From the encoded bytes of an image to the input of the backbone: the steps, and their reference in Pillow.

    RGB -> size x size, by `fit` or by landmarks -> changed at random or not -> (x - mean) / std

RGB: grey is repeated three times, a palette is looked up, alpha is dropped (not blended), 16-bit grey is scaled to 8.
JPEG and PNG are what decoders take; any other format is turned into a PNG of the same pixels by Pillow first.
EXIF orientation is applied first, as every picture viewer does. An image with landmarks is aligned, see align.py. Any
other image is resized by `fit`: "crop" brings the shorter side to `size` and cuts the middle out of the longer one,
"pad" brings the longer side to `size` and adds black at both ends of the shorter one, "stretch" brings both sides to
`size`. Of an odd number of pixels, one more is cut, or added, at the top or left.
Resizing is bilinear with an antialiasing (triangular) filter; a side that follows the other one is rounded to whole
pixels, and the border pixel is repeated outwards.
"""

import io
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from fastmfr.config import Preprocess
from fastmfr.config.choices import Fit

from .align import aligned, alignment_maps
from .encoded import START, check_sides, checked_size, format_of

DECODED = ("JPEG", "PNG")  # the formats that every decoder takes
FORMATS = (*DECODED, "BMP", "WEBP", "TIFF")
# What an image needs to have the wanted size: CROP cuts or adds at the ends of one side, RESIZE is followed by a CROP.
AS_IS, CROP, RESIZE, ALIGN = range(4)


class Frame(NamedTuple):
    """What every decoder brings images to: `size` pixels a side, by `fit`; or by landmarks, if `aligned` is true."""

    size: int
    fit: Fit = "crop"
    aligned: bool = False


def needed(sizes: Sequence[tuple[int, int]], frame: Frame) -> np.ndarray:
    """Return AS_IS, CROP or RESIZE, uint8 (B,), for images of these (width, height) to fit the frame."""
    size = frame.size

    def need(pair):
        if pair == (size, size):
            return AS_IS
        follows = {"crop": min, "pad": max}.get(frame.fit)
        return CROP if follows and follows(pair) == size else RESIZE

    return np.array([need(pair) for pair in sizes], np.uint8)


def decode_reference(
    encoded: bytes | np.ndarray, preprocess: Preprocess, mirror: bool, landmark_52: np.ndarray | None = None
) -> np.ndarray:
    """Decode one image by Pillow: the reference of every stream without changes at random.

    The DALI path on the CPU differs by at most one grey level (1 / std): by none if the image already has its size,
    since both decode with libjpeg-turbo; by one after resizing, since Pillow rounds to 8 bits between rows and columns.

    Args:
        encoded: the bytes of an image, or a uint8 array of them.
        preprocess: size, fit and normalisation; changes at random are ignored.
        mirror: whether to mirror the image left to right.
        landmark_52: five landmarks, to align the image by; None fits the image.

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
    pixel_HW3 = fitted(image, preprocess.size, preprocess.fit)
    if landmark_52 is not None:
        (map_23,) = alignment_maps(landmark_52[None], preprocess.size)
        pixel_HW3 = aligned(np.asarray(image), map_23, preprocess.size)
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


def fitted(image: Image.Image, size: int, fit: Fit = "crop") -> np.ndarray:
    """Bring an RGB image to `size` pixels a side by `fit`; returns pixels, uint8 (size, size, 3)."""
    if fit == "stretch":
        return _resized(image, (size, size))
    follows = min(image.size) if fit == "crop" else max(image.size)
    resized_HW3 = _resized(image, tuple(max(1, int(side * size / follows + 0.5)) for side in image.size))
    return _centre(resized_HW3, size) if fit == "crop" else _amid_black(resized_HW3, size)


def _resized(image: Image.Image, sides: tuple[int, ...]) -> np.ndarray:
    """The pixels of an image of (width, height) `sides`."""
    if image.size == sides:
        return np.asarray(image)
    width, height = sides
    # At the border Pillow shortens its filter; a margin of repeated pixels makes it read what DALI reads there.
    margin = math.ceil(max(1, image.width / width, image.height / height))
    padded = np.pad(np.asarray(image), ((margin, margin), (margin, margin), (0, 0)), mode="edge")
    box = (margin, margin, margin + image.width, margin + image.height)
    return np.asarray(Image.fromarray(padded).resize((width, height), Image.Resampling.BILINEAR, box))


def _centre(pixel_HW3: np.ndarray, size: int) -> np.ndarray:
    top, left = ((side - size + 1) // 2 for side in pixel_HW3.shape[:2])  # an odd rest is larger there, as in DALI
    return pixel_HW3[top : top + size, left : left + size]


def _amid_black(pixel_HW3: np.ndarray, size: int) -> np.ndarray:
    height, width, _ = pixel_HW3.shape
    top, left = (size - height + 1) // 2, (size - width + 1) // 2  # likewise
    framed_HW3 = np.zeros((size, size, 3), np.uint8)
    framed_HW3[top : top + height, left : left + width] = pixel_HW3
    return framed_HW3
