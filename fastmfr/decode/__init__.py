"""Encoded bytes in, normalised float32 images out: the data path between the sampler and the backbone.

    encoded.py     is this whole JPEG or PNG, and how large? answered from the bytes alone, before they are decoded
    preprocess.py  what is done to an image, and the same in Pillow: the reference
    augment.py     which images are changed at random, and how: drawn by (seed, batch number, slot)
    source.py      batch number -> encoded images; bad images replaced
    verdicts.py    which images are good and which are bad, found out once for all streams
    pipeline.py    encoded images -> pixels of one size, by DALI, or by Pillow where it is not installed
    dali.py        DALI's pipeline
    pillow.py      what stands in for it: Pillow on threads
    backend.py     decode on the CPU or the GPU? by a measurement
    batches.py     what all streams of batches share
    stream.py      source -> pipeline -> finish -> (batch number, image_B3HW)
    finish.py      pixels -> changed, normalised images: one fused operation, the same for every stream
    cache.py       all images decoded once; the same batches out of them, and the choice where to keep them

Everything is a pure function of the batch number: a stream that starts at batch k gives, bit for bit, the tail of the
stream that starts at 0, and a cached one what a decoding one gives. Decoders keep no random state and no
order of their own.
"""

from fastmfr.config import Augment, Preprocess

from .augment import Changes, changes, mirror_flags
from .backend import checked_decoder, choose_decoder
from .cache import CachedStream, DecodedCache, choose_cache, open_stream
from .pipeline import dali_installed
from .preprocess import decode_reference
from .stream import ImageStream
from .verdicts import Verdicts

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
    "mirror_flags",
    "open_stream",
]
