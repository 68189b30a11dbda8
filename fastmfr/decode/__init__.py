"""Encoded bytes in, normalised float32 images out: the data path between the sampler and the backbone.

    encoded.py     is this whole JPEG or PNG, and how large? answered from the bytes alone, before they are decoded
    preprocess.py  what is done to an image, and the same in Pillow: the reference
    source.py      batch number -> encoded images, mirror flags; bad images replaced
    pipeline.py    what preprocess.py says, in DALI
    stream.py      source -> pipeline -> (batch number, image_B3HW)

Everything is a pure function of the batch number: a stream that starts at batch k gives, bit for bit, the tail of the
stream that starts at 0. DALI keeps no random state and no order of its own.
"""

from .preprocess import Preprocess, decode_reference
from .source import mirror_flags
from .stream import ImageStream

__all__ = ["ImageStream", "Preprocess", "decode_reference", "mirror_flags"]
