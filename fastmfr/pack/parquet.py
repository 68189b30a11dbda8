"""Parquet files as a source: columns `image` (bytes, or a struct with `bytes`, as Hugging Face writes) and `label`.

The columns may have another common name, see IMAGES and LABELS, or those that `Reading` gives. An image that is a path
is read from that file, which must lie in the folder of the Parquet file.

A row of a Parquet file can only be reached by decompressing its whole row group, and rows rarely come person by person.
So the images are copied once, in the order of the file, to a temporary file, and read from there: twice the disk space
while packing, and time that does not depend on the order.
"""

import json
import os
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from fastmfr.protocols.files import entry_path, regular_bytes

from .source import Identities, Reading, Source

ROWS = 256  # read together
# names of columns, the first that is there is taken
IMAGES = ("image", "img", "images", "jpg", "jpeg", "png", "webp", "image_bytes", "image_path", "path", "file_name")
LABELS = ("label", "labels", "cls", "class", "identity", "identity_id", "person", "person_id", "subject", "target")


class _Spilled(Source):
    """Images at byte ranges of the temporary file `spill`."""

    def __init__(self, path: Path, spill: BinaryIO):
        super().__init__(path)
        self._spill = spill
        self._rows, self._offsets, self._lengths = array("q"), array("q"), array("q")

    def append(self, row: int, identity: int, encoded: bytes) -> None:
        self.identity.append(identity)
        self._rows.append(row)
        self._offsets.append(self._spill.tell())
        self._lengths.append(len(encoded))
        self._spill.write(encoded)

    def key(self, image: int) -> str:
        return f"{self.path.name}:{self._rows[image]}"

    def read(self, image: int) -> bytes:
        return os.pread(self._spill.fileno(), self._lengths[image], self._offsets[image])


def list_parquet(path: Path, identities: Identities, spill: BinaryIO, reading: Reading) -> Source:
    """List the rows of the file at `path`, with people numbered by `identities`; copy the images to the file `spill`.

    Raises:
        ImportError: pyarrow is missing.
        ValueError: the file is damaged or lacks a column.
    """
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise ImportError(f"{path} is a Parquet file; to read it, run `pip install pyarrow`") from error
    source = _Spilled(path, spill)
    for row, (image, label) in enumerate(
        _rows(source, reading, parquet.ParquetFile, (ArrowException, OSError, UnicodeDecodeError))
    ):
        try:
            source.append(row, identities.number(_whole(label)), _bytes(path, image))
        except (ValueError, OSError) as reason:
            source.refused.append((f"{path.name}:{row}", str(reason)))
    spill.flush()
    return source


def _bytes(path: Path, image: object) -> bytes:
    """The encoded image of a row of the file at `path`."""
    if isinstance(image, dict):
        image = image.get("bytes") or image.get("path")
    if isinstance(image, bytes):
        return image
    if not isinstance(image, str):
        raise ValueError("no image bytes, and no path of a file")
    file = (path.parent / entry_path(image)).resolve()
    if not file.is_relative_to(path.parent.resolve()):
        raise ValueError(f"its file {image!r} is outside the folder of the Parquet file")
    return regular_bytes(file)


def _whole(label: Any) -> Any:
    """The label, as a whole number if it is one: columns with gaps hold floats."""
    return int(label) if isinstance(label, float) and label.is_integer() else label


def _rows(
    source: Source, reading: Reading, open_file: Any, errors: tuple[type[Exception], ...]
) -> Iterator[tuple[Any, Any]]:
    """(image, label) of every row, as Python values; a label that Hugging Face's description names becomes its name."""
    path = source.path
    try:
        with open_file(path, pre_buffer=False) as table:  # else the whole file gathers in memory
            columns = _columns(path, table.schema_arrow.names, reading)
            if columns != [reading.image or "image", reading.label or "label"]:
                source.notes.append(
                    f"{path}: its column {columns[0]!r} was taken for images, {columns[1]!r} for labels"
                )
            names = _class_names(table.schema_arrow.metadata or {}, columns[1])
            for batch in table.iter_batches(batch_size=ROWS, columns=columns):
                for image, label in zip(*(batch[column] for column in columns), strict=True):
                    label = label.as_py()
                    yield image.as_py(), names[label] if isinstance(label, int) and 0 <= label < len(names) else label
    except errors as error:
        raise ValueError(f"{path} cannot be read as Parquet ({error}); fetch it again") from error


def _columns(path: Path, found: list[str], reading: Reading) -> list[str]:
    """The columns of images and labels."""
    wanted = [(reading.image,) if reading.image else IMAGES, (reading.label,) if reading.label else LABELS]
    columns = [next((name for name in names if name in found), None) for names in wanted]
    missing = [names[0] for names, column in zip(wanted, columns, strict=True) if column is None]
    if missing:
        raise ValueError(
            f"{path} has no column {' nor '.join(missing)}; want `image` and `label`, found "
            f"{', '.join(found)}: rename them first, or name them by --image and --label"
        )
    return [column for column in columns if column]


def _class_names(metadata: dict[bytes, bytes], column: str) -> list:
    """The names of the labels 0, 1, ..., if the file holds Hugging Face's description of them."""
    try:
        names = json.loads(metadata[b"huggingface"])["info"]["features"][column]["names"]
    except (KeyError, TypeError, ValueError):
        return []
    return names if isinstance(names, list) else []
