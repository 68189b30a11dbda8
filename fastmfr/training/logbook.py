"""What a run says while it runs: metrics.jsonl, bad_images.tsv, TensorBoard, a progress bar with ETA, and sentences."""

import json
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console
from rich.text import Text
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from fastmfr.atomic import replacing
from fastmfr.progress import Meter, new_console
from fastmfr.results import Results
from fastmfr.text import printable

END = "end"  # the part of TensorBoard that shows what a run found


class Logbook:
    """Writes one run's records into its folder and shows its progress; usable as a context manager.

    Args:
        folder: The run's folder.
        console: Where sentences and progress are shown; None is the terminal.
        writes: Whether anything is written: of several processes of a run only one writes.
    """

    def __init__(self, folder: Path, console: Console | None = None, *, writes: bool = True):
        self.folder, self.console, self._writes = folder, console or new_console(), writes
        self._boards: dict[str, SummaryWriter] = {}
        lines = self._bad_path.read_text(errors="replace").splitlines() if self._bad_path.exists() else []
        self.bad = dict(line.split("\t", 1) for line in lines if "\t" in line)

    def __enter__(self) -> "Logbook":
        return self

    def __exit__(self, *_: object) -> None:
        for board in self._boards.values():
            board.close()

    @property
    def path(self) -> Path:
        """The file of the records."""
        return self.folder / "metrics.jsonl"

    @property
    def _bad_path(self):
        return self.folder / "bad_images.tsv"

    def say(self, text: str) -> None:
        """Print a line for the person watching."""
        self.console.print(printable(text))

    def warn(self, text: str) -> None:
        """Print a line that should not be overlooked."""
        self.console.print(Text.assemble(("warning:", "bold yellow"), " ", printable(text)))

    def note_bad(self, bad: Mapping[str, str]) -> None:
        """Append images that cannot be read, {key: reason}, to bad_images.tsv; each once, also over a resume."""
        named = {printable(key): " ".join(reason.split()) for key, reason in bad.items()}
        new = {key: reason for key, reason in named.items() if key not in self.bad}
        if new:
            self.bad |= new
            if not self._writes:
                return
            with self._bad_path.open("a") as file:
                file.writelines(f"{key}\t{reason}\n" for key, reason in new.items())

    def record(self, stage: str, step: int, **values: float) -> None:
        """Write a line of metrics.jsonl and a point of TensorBoard for each value; NaN and infinities are null."""
        if not self._writes:
            return
        plain = {name: float(value) for name, value in values.items()}
        finite = {name: value if math.isfinite(value) else None for name, value in plain.items()}
        with self.path.open("a") as file:  # opened each time: a kill -9 costs no line but the one being written
            file.write(json.dumps({"stage": stage, "step": step, **finite}) + "\n")
        board = self._board(stage.split("/")[0])
        for name, value in plain.items():
            board.add_scalar(f"{stage}/{name}", value, step)

    def record_end(self, settings: Mapping[str, Any], results: Results, domains: Path) -> None:
        """Show a run's end in TensorBoard: the scores of its models, its settings as hparams, the picture of domains.

        Args:
            settings: the settings by dotted name.
            results: what the run found.
            domains: the PNG of the domains; left out if there is none.
        """
        if not self._writes:
            return
        shutil.rmtree(self.folder / "tensorboard" / END, ignore_errors=True)  # an earlier end, of a run gone on with
        board = self._board(END, purge_step=0)
        rates = {
            f"{target}/{model}/{name}": rate
            for target, found in results.scored.items()
            for model, scores in found.models.items()
            for name, rate in scores.rates.items()
        }
        kept = {name: value if isinstance(value, int | float | str) else str(value) for name, value in settings.items()}
        for summary in hparams(kept, rates):  # add_hparams would make a folder of its own
            board._get_file_writer().add_summary(summary)
        for name, rate in rates.items():
            board.add_scalar(name, rate, 0)
        if domains.is_file():
            with Image.open(domains) as picture:
                board.add_image("domains", np.asarray(picture.convert("RGB")), 0, dataformats="HWC")
        board.flush()

    def _board(self, stage, purge_step=None):
        """The TensorBoard writer of a stage; one opened anew with `purge_step` hides what was written from there on.

        Each stage has its own folder, for TensorBoard drops later steps of all that lies in one.
        """
        if purge_step is not None and stage in self._boards:
            self._boards.pop(stage).close()
        if stage not in self._boards:
            self._boards[stage] = SummaryWriter(str(self.folder / "tensorboard" / stage), purge_step=purge_step)
        return self._boards[stage]

    def rewind(self, stage: str, step: int) -> None:
        """Drop the records of `stage` and `stage/...` from `step` on, so that a resumed run records every step once."""
        if not self._writes:
            return
        self._board(stage, purge_step=step)
        if not self.path.exists():
            return
        kept = []
        for line in self.path.read_text(errors="replace").splitlines():
            try:
                record = json.loads(line)
                is_later = str(record["stage"]).split("/")[0] == stage and int(record["step"]) >= step
            except (ValueError, KeyError, TypeError, OverflowError, RecursionError):  # the line a kill cut short
                continue
            if not is_later:
                kept.append(line + "\n")
        with replacing(self.path) as partial:
            partial.write_text("".join(kept))

    def progress(self, title: str, first: int, total: int) -> Meter:
        """Return a Meter over the steps first .. total - 1."""
        return Meter(self.console, title, first, total)
