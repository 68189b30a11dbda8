"""Parquet files as a source: columns `image` (bytes, or a struct with `bytes`, as Hugging Face writes) and `label`.

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

from .source import Identities, Source

ROWS = 256  # read together


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


def list_parquet(path: Path, identities: Identities, spill: BinaryIO) -> Source:
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
    for row, (image, label) in enumerate(_rows(path, parquet.ParquetFile, (ArrowException, OSError))):
        if isinstance(image, dict):
            image = image.get("bytes")
        try:
            if not isinstance(image, bytes):
                raise ValueError(f"no image bytes but {type(image).__name__}")
            source.append(row, identities.number(label), image)
        except ValueError as reason:
            source.refused.append((f"{path.name}:{row}", str(reason)))
    spill.flush()
    return source


def _rows(path: Path, open_file: Any, errors: tuple[type[Exception], ...]) -> Iterator[tuple[Any, Any]]:
    """(image, label) of every row, as Python values; a label that Hugging Face's description names becomes its name."""
    try:
        with open_file(path, pre_buffer=False) as table:  # else the whole file gathers in memory
            _check_columns(path, table.schema_arrow.names)
            names = _class_names(table.schema_arrow.metadata or {})
            for batch in table.iter_batches(batch_size=ROWS, columns=["image", "label"]):
                for image, label in zip(batch["image"], batch["label"], strict=True):
                    label = label.as_py()
                    yield image.as_py(), names[label] if isinstance(label, int) and 0 <= label < len(names) else label
    except errors as error:
        raise ValueError(f"{path} cannot be read as Parquet ({error}); fetch it again") from error


def _check_columns(path: Path, columns: list[str]) -> None:
    missing = {"image", "label"} - set(columns)
    if missing:
        raise ValueError(
            f"{path} has no column {' nor '.join(sorted(missing))}; want `image` and `label`, found "
            f"{', '.join(columns)}: rename them first"
        )


def _class_names(metadata: dict[bytes, bytes]) -> list:
    """The names of the labels 0, 1, ..., if the file holds Hugging Face's description of them."""
    try:
        names = json.loads(metadata[b"huggingface"])["info"]["features"]["label"]["names"]
    except (KeyError, TypeError, ValueError):
        return []
    return names if isinstance(names, list) else []
