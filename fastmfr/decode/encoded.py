"""Is this a whole JPEG, PNG, BMP, WebP or TIFF, and how large? The markers answer; no pixel is decoded.

The check finds what bad data sets are full of: empty records, other formats, files cut short, absurd sizes. The check
cannot find a flipped bit inside the compressed pixels: decoders report some of those (PNG has checksums), and decode
the rest to a wrong picture in silence.
"""

import struct

import numpy as np

MAX_SIDE = 8192  # pixels; 8192 x 8192 x 3 bytes are 200 MB, already far beyond any picture of one face
MAX_RATIO = 16  # longer / shorter side; a strip 8192 x 1 would be resized to a picture of gigabytes

START = 18  # bytes that tell the format of an image

_PNG_START = b"\x89PNG\r\n\x1a\n"
_PNG_END = b"IEND\xae\x42\x60\x82"  # the chunk is empty, so its checksum is always the same
_JPEG_END = b"\xff\xd9"
_FRAME_HEADERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # those three are DHT, JPG and DAC (ITU T.81, B.1)
_START_OF_SCAN = 0xDA
_TIFF_STARTS = (b"II*\0", b"MM\0*")
_BMP_HEADERS = frozenset((12, 40, 52, 56, 64, 108, 124))  # bytes of the header's versions


def format_of(start: bytes) -> str | None:
    """Return "JPEG", "PNG", "BMP", "WEBP" or "TIFF" by an image's first START bytes; None if they are of no image."""
    if start.startswith(b"\xff\xd8"):
        return "JPEG"
    if start.startswith(_PNG_START):
        return "PNG"
    if start.startswith(b"RIFF") and start[8:12] == b"WEBP":
        return "WEBP"
    if start.startswith(_TIFF_STARTS):
        return "TIFF"
    is_bmp = start.startswith(b"BM") and len(start) >= START and int.from_bytes(start[14:18], "little") in _BMP_HEADERS
    return "BMP" if is_bmp else None


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
    form = format_of(data[:START])
    if form is None:
        raise ValueError("neither JPEG nor PNG, BMP, WebP or TIFF")
    try:
        width, height = _SIZES[form](data)
    except struct.error:
        raise ValueError(f"{form} cut short: no whole header") from None
    check_sides(width, height)
    return width, height


def check_sides(width: int, height: int) -> None:
    """Raise ValueError if an image of so many pixels is no picture of a face, or would take too much memory."""
    short, long = sorted((width, height))
    if not (short >= 1 and long <= MAX_SIDE and long <= MAX_RATIO * short):
        raise ValueError(f"{width} x {height} pixels; want sides of 1 to {MAX_SIDE}, at most 1 : {MAX_RATIO}")


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


def _bmp_size(data: bytes) -> tuple[int, int]:
    if int.from_bytes(data[14:18], "little") == 12:
        return struct.unpack_from("<HH", data, 18)
    width, height = struct.unpack_from("<ii", data, 18)
    return width, abs(height)  # below 0 if the rows go from top to bottom


def _webp_size(data: bytes) -> tuple[int, int]:
    """The size in the first chunk, of one of three kinds: extended, lossless, lossy (RFC 9649, 2.5 to 2.7)."""
    if len(data) < 8 + int.from_bytes(data[4:8], "little"):
        raise ValueError("WebP cut short: it announces more bytes")
    kind = data[12:16]
    if kind == b"VP8X":
        width, height = (1 + int.from_bytes(data[at : at + 3], "little") for at in (24, 27))
    elif kind == b"VP8L":
        (bits,) = struct.unpack_from("<I", data, 21)
        width, height = 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    else:
        width, height = (side & 0x3FFF for side in struct.unpack_from("<HH", data, 26))
    return width, height


def _tiff_size(data: bytes) -> tuple[int, int]:
    """The size in the first directory's entries 256 (width) and 257 (height), 12 bytes each (TIFF 6.0, section 2)."""
    order = "<" if data.startswith(b"II") else ">"
    (at,) = struct.unpack_from(f"{order}I", data, 4)
    (entries,) = struct.unpack_from(f"{order}H", data, at)
    sides = {}
    for entry in range(at + 2, at + 2 + 12 * entries, 12):
        tag, kind = struct.unpack_from(f"{order}HH", data, entry)
        if tag in (256, 257):
            (sides[tag],) = struct.unpack_from(order + ("H" if kind == 3 else "I"), data, entry + 8)
    if len(sides) < 2:
        raise ValueError("TIFF without a size")
    return sides[256], sides[257]


_SIZES = {"JPEG": _jpeg_size, "PNG": _png_size, "BMP": _bmp_size, "WEBP": _webp_size, "TIFF": _tiff_size}
