"""Which image each row is of, as a table: keys.parquet, or keys.csv if pyarrow is not installed."""

import csv
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from fastmfr.atomic import replacing

from .source import Source

PARQUET, CSV = "keys.parquet", "keys.csv"
ROWS = 1 << 16  # written together


def write_keys(folder: Path, source: Source, bad: Collection[int]) -> Path:
    """Write the columns row, key, identity and decoded, one row an image, in the order of the images.

    A byte of a file's name that is no UTF-8 is written as \\udc80 to \\udcff.

    Args:
        folder: where the table is written.
        source: the images.
        bad: the rows of the images that could not be decoded.

    Returns:
        The file.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        return _write_csv(folder / CSV, source, bad)
    kinds = {"row": pyarrow.int64(), "key": pyarrow.string(), "identity": pyarrow.string(), "decoded": pyarrow.bool_()}
    schema = pyarrow.schema(list(kinds.items()))
    with replacing(folder / PARQUET) as partial, parquet.ParquetWriter(partial, schema) as writer:
        for columns in _columns(source, bad):
            writer.write_table(pyarrow.table(columns, schema))
    return folder / PARQUET


def _write_csv(path, source, bad):
    with replacing(path) as partial, partial.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["row", "key", "identity", "decoded"])
        for columns in _columns(source, bad):
            writer.writerows(zip(*columns.values(), strict=True))
    return path


def _columns(source, bad) -> Iterator[dict[str, list[Any]]]:
    """Parts of the table, by column."""
    names = [_utf8(name) for name in source.names]
    for first in range(0, source.images.images, ROWS):
        rows = range(first, min(first + ROWS, source.images.images))
        yield {
            "row": list(rows),
            "key": [_utf8(source.images.key(row)) for row in rows],
            "identity": [names[person] for person in source.person[rows.start : rows.stop].tolist()],
            "decoded": [row not in bad for row in rows],
        }


def _utf8(text):
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
