"""Is this a plain JPEG, which any decoder decodes the same way and nobody has to turn? The markers answer.

Plain: 8 bits a channel, luma and two chroma channels (YCbCr), baseline or progressive, in one of the usual samplings of
chroma, and upright. Grey, CMYK and RGB inside JPEG, arithmetic coding, and pictures that EXIF turns are not plain.
"""

import numpy as np
from PIL import Image

_BASELINE, _PROGRESSIVE = 0xC0, 0xC2
_TABLES = frozenset((0xC4, 0xDB, 0xDD, 0xFE, *range(0xE0, 0xF0)))  # DHT, DQT, DRI, COM, APP0 to APP15 (ITU T.81, B.1)
_START_OF_SCAN, _APP1, _ADOBE = 0xDA, 0xE1, 0xEE
_YCBCR = 1  # Adobe's number of the transform
_LUMA = frozenset((0x11, 0x12, 0x21, 0x22))  # samples of luma for one of chroma, across and down: 4:4:4 to 4:2:0
_ORIENTATION = 0x0112  # EXIF's tag


def plain_size(encoded: np.ndarray) -> tuple[int, int] | None:
    """Return (width, height) in pixels of a plain JPEG; None for anything else, which may be a good image all the same.

    Args:
        encoded: the bytes of an image, uint8.
    """
    data, at, size = encoded.data, 2, None
    if data[:2] != b"\xff\xd8":
        return None
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker, end = data[at + 1], at + 2 + (data[at + 2] << 8 | data[at + 3])
        if marker == _START_OF_SCAN:
            return size
        segment = data[at + 4 : end]
        if marker in (_BASELINE, _PROGRESSIVE):
            size = _size(segment)
        elif marker not in _TABLES or (marker in _TELLING and not _TELLING[marker](bytes(segment))):
            return None
        at = end
    return None


def _size(frame: memoryview) -> tuple[int, int] | None:
    """(width, height) by a frame header: precision, height, width, channels, and of each its name, sampling, table."""
    if len(frame) != 15 or frame[0] != 8 or bytes(frame[6::3]) != b"\1\2\3":
        return None
    if frame[7] not in _LUMA or frame[10] != 0x11 or frame[13] != 0x11:
        return None
    return frame[3] << 8 | frame[4], frame[1] << 8 | frame[2]


def _upright(segment: bytes) -> bool:
    """Tell whether a segment APP1 is an EXIF that says that the image is upright, in so many words."""
    exif = Image.Exif()
    try:
        exif.load(segment)
        return segment.startswith(b"Exif\0\0") and exif.get(_ORIENTATION) == 1
    except Exception:  # a damaged EXIF makes Pillow raise almost anything
        return False


def _is_ycbcr(segment: bytes) -> bool:
    return not segment.startswith(b"Adobe") or segment[11:12] == bytes((_YCBCR,))


_TELLING = {_APP1: _upright, _ADOBE: _is_ycbcr}
