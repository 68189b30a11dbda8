"""Is this a whole JPEG or PNG, and how large? The markers answer; no pixel is decoded.

The check finds what bad data sets are full of: empty records, other formats, files cut short, absurd sizes. The check
cannot find a flipped bit inside the compressed pixels: decoders report some of those (PNG has checksums), and decode
the rest to a wrong picture in silence.
"""

import struct

import numpy as np

MAX_SIDE = 8192  # pixels; 8192 x 8192 x 3 bytes are 200 MB, already far beyond any picture of one face
MAX_RATIO = 16  # longer / shorter side; a strip 8192 x 1 would be resized to a picture of gigabytes

_PNG_START = b"\x89PNG\r\n\x1a\n"
_PNG_END = b"IEND\xae\x42\x60\x82"  # the chunk is empty, so its checksum is always the same
_JPEG_END = b"\xff\xd9"
_FRAME_HEADERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # those three are DHT, JPG and DAC (ITU T.81, B.1)
_START_OF_SCAN = 0xDA


def checked_size(encoded: bytes | np.ndarray) -> tuple[int, int]:
    """Return (width, height) in pixels, as stored, of an encoded image.

    Bytes after the end marker are allowed: cameras and record writers leave such bytes, and decoders skip them.

    Args:
        encoded: the bytes of the image, or a uint8 array of them.

    Raises:
        ValueError: the image is bad; the message is the reason.
    """
    data = bytes(encoded)
    if not data:
        raise ValueError("empty")
    if data.startswith(b"\xff\xd8"):
        width, height = _jpeg_size(data)
    elif data.startswith(_PNG_START):
        width, height = _png_size(data)
    else:
        raise ValueError("neither JPEG nor PNG")
    short, long = sorted((width, height))
    if not (short >= 1 and long <= MAX_SIDE and long <= MAX_RATIO * short):
        raise ValueError(f"{width} x {height} pixels; want sides of 1 to {MAX_SIDE}, at most 1 : {MAX_RATIO}")
    return width, height


def _jpeg_size(data: bytes) -> tuple[int, int]:
    at, end = 2, len(data) - 9  # a frame header is at least marker, length, precision, height and width: 9 bytes
    while at <= end and data[at] == 0xFF:
        marker = data[at + 1]
        if marker in _FRAME_HEADERS:
            # FF D9 cannot occur within compressed pixels (FF is stuffed with 00), so any one after here is the end
            if data.rfind(_JPEG_END, at) < 0:
                raise ValueError("JPEG cut short: no end marker")
            height, width = struct.unpack_from(">HH", data, at + 5)
            return width, height
        if marker == _START_OF_SCAN:
            break
        at += 1 if marker == 0xFF else 2 + int.from_bytes(data[at + 2 : at + 4])  # 0xFF: a fill byte
    raise ValueError("JPEG without a frame header")


def _png_size(data: bytes) -> tuple[int, int]:
    if data[12:16] != b"IHDR":
        raise ValueError("PNG without a header")
    if data.rfind(_PNG_END) < 0:
        raise ValueError("PNG cut short: no end chunk")
    width, height = struct.unpack_from(">II", data, 16)
    return width, height
