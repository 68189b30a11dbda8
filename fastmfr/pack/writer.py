"""Write InsightFace RecordIO: a folder of train.rec, train.idx and property, which face-recognition trainers read.

    train.rec   record 0, without an image, with the labels (N + 1, M); images at keys 1..N; identity records at keys
                N + 1..M - 1, without an image, with the labels (first key, last key + 1) of one identity's images
    train.idx   one line per record, `key<TAB>byte offset`
    property    `classes,height,width`

Every payload begins with a 24-byte header of (number of extra labels, label, key, 0); extra labels are float32.
"""

import os
import struct
from array import array
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

MAGIC = struct.pack("<I", 0xCED7230A)
WHOLE, FIRST, MIDDLE, LAST = range(4)  # which part of a payload a record holds
LENGTH_BITS = 29
HEADER = struct.Struct("<IfQQ")
FLOAT32_EXACT = 1 << 24  # float32 cannot tell apart neighbouring whole numbers beyond this


def _parts(payload: bytes) -> Iterator[bytes]:
    """Cut at every 4-byte-aligned magic and drop the magic, so that a magic in the file always begins a record."""
    start = at = 0
    while (at := payload.find(MAGIC, at)) >= 0:
        if at % 4:
            at += 1
            continue
        yield payload[start:at]
        start = at = at + 4
    yield payload[start:]


def record(payload: bytes) -> bytes:
    """Encode one record, in several parts if the payload contains the magic; the length is a multiple of four.

    Raises:
        ValueError: a part has 512 MiB or more.
    """
    parts = list(_parts(payload))
    flags = [WHOLE] if len(parts) == 1 else [FIRST, *[MIDDLE] * (len(parts) - 2), LAST]
    packed = bytearray()
    for flag, part in zip(flags, parts, strict=True):
        if len(part) >> LENGTH_BITS:
            raise ValueError(f"a record holds less than 512 MiB, got {len(part):,} bytes; store a smaller image")
        packed += MAGIC + struct.pack("<I", flag << LENGTH_BITS | len(part)) + part + b"\0" * (-len(part) % 4)
    return bytes(packed)


def _without_image(key: int, labels: ArrayLike) -> bytes:
    """A record of two labels and no image; readers must not trust labels above FLOAT32_EXACT."""
    labels = np.asarray(labels, np.float32)
    return record(HEADER.pack(len(labels), 0.0, key, 0) + labels.tobytes())


class RecordWriter:
    """Writes images to a folder, identity by identity; the files get their final names at the end.

        with RecordWriter(folder) as writer:
            writer.add(identity, encoded)

    Attributes:
        folder: the folder written to.
        size: (height, width) in pixels, for the file `property`; may be set until the end.
        images: the number of images added so far.
    """

    def __init__(self, folder: str | os.PathLike, size: tuple[int, int] = (112, 112)):
        """Begin the files in `folder`, which is made; FileExistsError if the folder already holds a train.rec."""
        self.folder = Path(folder)
        self.size = size
        self.images = 0
        self._identity = -1
        self._first_keys = array("Q")
        if (self.folder / "train.rec").exists():
            raise FileExistsError(f"{self.folder} already holds a train.rec; choose another folder or delete it first")
        self._made = not self.folder.exists()
        self.folder.mkdir(parents=True, exist_ok=True)
        self._partial = {name: self.folder / f"{name}.partial" for name in ("train.rec", "train.idx", "property")}
        self._rec = open(self._partial["train.rec"], "wb")  # noqa: SIM115  (this object is the context manager)
        self._idx = open(self._partial["train.idx"], "w", newline="\n")  # noqa: SIM115
        self._write(0, _without_image(0, (0, 0)))  # reserved: the true labels are known at the end

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        if kind is None:
            self.close()
        else:
            self._discard()

    def add(self, identity: int, encoded: bytes) -> None:
        """Append one encoded image (JPEG or PNG).

        Args:
            identity: a number of at least 0, no less than the one before.
            encoded: the bytes of the image.

        Raises:
            ValueError: the identity is out of order or too large for a float32 label, or the image is empty.
        """
        if identity < self._identity or identity < 0:
            raise ValueError(
                "identities must be added in ascending order from 0, each with its images together: "
                f"got {identity} after {self._identity}; sort the images by identity first"
            )
        if identity >= FLOAT32_EXACT:
            raise ValueError(f"identity {identity} does not fit a float32 label; number identities below 16,777,216")
        if not encoded:
            raise ValueError(f"image {self.images + 1} (identity {identity}) is empty; leave it out")
        key = self.images + 1
        self._write(key, record(HEADER.pack(0, float(identity), key, 0) + bytes(encoded)))
        if identity > self._identity:
            self._first_keys.append(key)
        self._identity, self.images = identity, key

    def close(self) -> None:
        """Write the identity records, fill in record 0, and give the files their final names.

        Raises:
            ValueError: no image was added; then nothing is left behind.
        """
        if not self.images:
            self._discard()
            raise ValueError(f"no image was added, so {self.folder} would be an empty domain; add at least one")
        self._first_keys.append(self.images + 1)
        for key, first in enumerate(self._first_keys[:-1], start=self.images + 1):
            self._write(key, _without_image(key, (first, self._first_keys[key - self.images])))
        self._rec.seek(0)
        self._rec.write(_without_image(0, (self.images + 1, self.images + len(self._first_keys))))
        self._rec.close()
        self._idx.close()
        height, width = self.size
        self._partial["property"].write_text(f"{self._identity + 1},{height},{width}\n")
        for name in reversed(self._partial):  # train.rec last: with it the folder is complete
            self._partial[name].replace(self.folder / name)

    def _write(self, key: int, packed: bytes) -> None:
        self._idx.write(f"{key}\t{self._rec.tell()}\n")
        self._rec.write(packed)

    def _discard(self):
        self._rec.close()
        self._idx.close()
        for path in self._partial.values():
            path.unlink(missing_ok=True)
        if self._made:
            with suppress(OSError):  # somebody has put something there
                self.folder.rmdir()
