"""Encoded bytes in, normalised float32 images out: the data path between the sampler and the backbone.

    encoded.py     whether bytes are a whole JPEG or PNG, and its size; nothing is decoded
    preprocess.py  the steps from bytes to the input of the backbone, and their reference in Pillow
    formats.py     which domains hold images that are turned into PNG first
    augment.py     which images are changed at random, and how: drawn by (seed, batch number, slot)
    source.py      batch number -> encoded images; bad images replaced
    verdicts.py    which images are good and which are bad, found out once for all streams
    pipeline.py    encoded images -> pixels of one size, by DALI, or without DALI by torchvision or Pillow
    dali.py        DALI's pipeline
    dali_aligned.py  aligning on threads what DALI decoded on the CPU
    align.py       landmarks -> the map of an aligned crop, and the crop
    shapes.py      what becomes of images that are not square, in sentences
    pillow.py      Pillow's pipeline, on threads
    nvjpeg.py      torchvision's nvJPEG for what it can decode, and Pillow's threads for the rest
    plain_jpeg.py  which JPEGs every decoder decodes the same way
    backend.py     the choice between decoding on the CPU and on the GPU, by a measurement
    batches.py     what all streams of batches share
    stream.py      source -> pipeline -> finish -> (batch number, image_B3HW)
    finish.py      pixels -> changed, normalised images: one fused operation, the same for every stream
    cache.py       all images decoded once, the same batches out of them, and the choice where to keep them

Everything is a pure function of the batch number: a stream that starts at batch k returns, bit for bit, the tail of the
stream that starts at 0, and a stream from a cache returns what a decoding stream returns. Decoders draw nothing.

The names below are imported when first used: most need torch, which takes seconds to import.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from fastmfr.config import Augment, Preprocess

if TYPE_CHECKING:
    from .augment import Changes, changes, mirror_flags
    from .backend import checked_decoder, choose_decoder, exact_decoder
    from .cache import CachedStream, DecodedCache, choose_cache, open_stream
    from .formats import other_formats
    from .pipeline import dali_installed
    from .preprocess import decode_reference
    from .stream import ImageStream
    from .verdicts import Verdicts

_HOMES = {  # public name: the module that defines it
    "CachedStream": "cache",
    "Changes": "augment",
    "DecodedCache": "cache",
    "ImageStream": "stream",
    "Verdicts": "verdicts",
    "changes": "augment",
    "checked_decoder": "backend",
    "choose_cache": "cache",
    "choose_decoder": "backend",
    "dali_installed": "pipeline",
    "decode_reference": "preprocess",
    "exact_decoder": "backend",
    "mirror_flags": "augment",
    "open_stream": "cache",
    "other_formats": "formats",
}

__all__ = [
    "Augment",
    "CachedStream",
    "Changes",
    "DecodedCache",
    "ImageStream",
    "Preprocess",
    "Verdicts",
    "changes",
    "checked_decoder",
    "choose_cache",
    "choose_decoder",
    "dali_installed",
    "decode_reference",
    "exact_decoder",
    "mirror_flags",
    "open_stream",
    "other_formats",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value  # so that this is asked once
    return value
