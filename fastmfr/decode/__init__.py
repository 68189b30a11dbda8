"""Encoded bytes in, normalised float32 images out: the data path between the sampler and the backbone.

    encoded.py     is this whole JPEG or PNG, and how large? answered from the bytes alone, before they are decoded
    preprocess.py  what is done to an image, and the same in Pillow: the reference
    augment.py     which images are changed at random, and how: drawn by (seed, batch number, slot)
    source.py      batch number -> encoded images; bad images replaced
    verdicts.py    which images are good and which are bad, found out once for all streams
    pipeline.py    encoded images -> pixels of one size, in DALI
    backend.py     decode on the CPU or the GPU? by a measurement
    batches.py     what all streams of batches share
    stream.py      source -> pipeline -> finish -> (batch number, image_B3HW)
    finish.py      pixels -> changed, normalised images: one fused operation, the same for every stream
    cache.py       all images decoded once; the same batches out of them, and the choice where to keep them

Everything is a pure function of the batch number: a stream that starts at batch k gives, bit for bit, the tail of the
stream that starts at 0, and a cached one what a decoding one gives. DALI keeps no random state and no order of its own.
"""

from .augment import Augment, Changes, changes, mirror_flags
from .backend import choose_decoder
from .cache import CachedStream, DecodedCache, choose_cache, open_stream
from .preprocess import Preprocess, decode_reference
from .stream import ImageStream
from .verdicts import Verdicts

__all__ = [
    "Augment", "CachedStream", "Changes", "DecodedCache", "ImageStream", "Preprocess", "Verdicts", "changes",
    "choose_cache", "choose_decoder", "decode_reference", "mirror_flags", "open_stream",
]  # fmt: skip
