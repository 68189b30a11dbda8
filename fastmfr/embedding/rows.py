"""embeddings.npy while it is written: a memory-mapped file beside it, and how many of its rows are whole.

Shape suffixes: N images, B images of a batch, D embedding.
"""

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from fastmfr.atomic import write_text

NAME = "embeddings.npy"
SAVED_EVERY = 5.0  # seconds; so much work a process that is killed loses


class Rows:
    """The rows of a folder, written in order.

    Attributes:
        whole: whether all rows were written before, and the file has its name.
        done: how many rows are written.
        bad: {row: reason} of the images among them that could not be decoded; their rows are zeros.
    """

    def __init__(self, folder: Path, images: int):
        """Go on with what is in the folder, or begin."""
        self.done, self.bad = 0, dict[int, str]()
        self._path, self._partial = folder / NAME, folder / f"{NAME}.partial"
        self._saved_to, self._images, self._saved_at = folder / "progress.json", images, time.monotonic()
        self.whole = self._path.is_file()
        self._row_ND = None if self.whole else self._opened()

    def write(self, embedding_BD: np.ndarray, bad: Mapping[int, str]) -> None:
        """Write the next rows; those of the images `bad`, {row: reason}, become zeros."""
        if self._row_ND is None:
            self._row_ND = self._made(embedding_BD.shape[1])
        end = self.done + len(embedding_BD)
        self._row_ND[self.done : end] = embedding_BD
        self._row_ND[list(bad)] = 0
        self.done, self.bad = end, self.bad | dict(bad)
        if time.monotonic() - self._saved_at >= SAVED_EVERY:
            self.save()

    def save(self) -> None:
        """Note that the rows written so far are on the disk; a process that is killed later goes on from there."""
        if self._row_ND is not None:
            self._row_ND.flush()
            write_text(self._saved_to, json.dumps({"rows": self.done, "bad": self.bad}))
        self._saved_at = time.monotonic()

    def finish(self) -> tuple[int, int]:
        """Give the whole file its name, and return its shape (N, D)."""
        if self._partial.is_file():
            self._row_ND = None
            self._partial.replace(self._path)
        self._saved_to.unlink(missing_ok=True)
        return np.load(self._path, mmap_mode="r").shape

    def _opened(self):
        """The rows that another process began to write, or None."""
        try:
            saved = json.loads(self._saved_to.read_text())
            row_ND = np.load(self._partial, mmap_mode="r+")
            done, bad = int(saved["rows"]), {int(row): str(reason) for row, reason in saved["bad"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None  # nothing is saved, or it is damaged: the rows are written from the first one on
        if row_ND.ndim != 2 or len(row_ND) != self._images or row_ND.dtype != np.float32 or done > self._images:
            return None
        self.done, self.bad = done, bad
        return row_ND

    def _made(self, width):
        """New rows. Their space is taken at once: a full disk would end the process while it writes to memory."""
        row_ND = np.lib.format.open_memmap(self._partial, "w+", np.float32, (self._images, width))
        try:
            with self._partial.open("r+b") as file:
                os.posix_fallocate(file.fileno(), 0, self._partial.stat().st_size)
        except OSError as error:
            self._partial.unlink()
            error.filename = str(self._partial)
            raise
        return row_ND
