"""Cells of a comparison made side by side: a process for each seed and domain left out, some of them at a time.

A process makes the models of its cell as the comparison would and sends their rows; the comparison alone writes them.
"""

import multiprocessing
import os
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from rich.console import Console

from fastmfr.config import Config
from fastmfr.prove.arms import Arm
from fastmfr.prove.comparison import Comparison
from fastmfr.prove.rows import Rows, Task

LOG = "log.txt"  # in the folder of a cell: what its process says
_FINISHED = None  # sent after the last row
_PATIENCE = 30  # seconds that a process has to end in after Ctrl-C


@dataclass(frozen=True)
class Work:
    """What the processes of a comparison have in common; see Comparison."""

    config: Config
    folder: Path
    arms: Mapping[str, Arm]
    names: Sequence[str]
    keep: bool = False


class _SentRows(Rows):
    """Rows that are sent instead of written."""

    def __init__(self, work: Work, connection: Connection):
        super().__init__(work.folder, work.config, work.arms)
        self._connection = connection

    def add(self, task: Task, row: Mapping[str, Any]) -> None:
        self.by_task[task] = asdict(task) | dict(row)
        self._connection.send((task, dict(row)))


def run_side_by_side(comparison: Comparison, work: Work, jobs: int, minutes: float) -> bool:
    """Make what is missing of a comparison in several processes; return whether all is there.

    Args:
        comparison: Gets the rows as they come.
        work: What the comparison was made of.
        jobs: How many processes run at a time.
        minutes: No cell is begun after so many, and no model that would be ready later, but for the first of a cell.

    Raises:
        ValueError: A process ended without its rows; the others are stopped. The same command goes on.
    """
    comparison.close()  # the cell that was measured
    end = time.monotonic() + 60 * minutes
    cells = list(dict.fromkeys((task.seed, task.left_out) for task in comparison.missing))
    shared = replace(work, config=_with_fewer_threads(work.config, jobs))
    running: dict[Connection, tuple[tuple[int, str], Any]] = {}
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])  # imported once for all cells, which takes seconds
    try:
        while cells or running:
            while cells and len(running) < jobs and time.monotonic() < end:
                cell = cells.pop(0)
                receiver, sender = multiprocessing.Pipe(duplex=False)
                left = (end - time.monotonic()) / 60
                process = context.Process(target=_make, args=(shared, cell, left, sender))
                process.start()
                sender.close()  # so that the end of the process is the end of what it sends
                running[receiver] = cell, process
            if not running:
                break
            for receiver in wait(list(running)):
                _receive(comparison, running, receiver, work.folder)
    finally:
        _stop([process for _, process in running.values()])
    return not comparison.missing


def _receive(comparison, running, receiver, folder):
    """Takes one row, or the end of a process."""
    cell, process = running[receiver]
    try:
        sent = receiver.recv()
    except EOFError:  # it ended before it was finished
        process.join()
        sent = f"its process ended, exit status {process.exitcode}"
    if isinstance(sent, tuple):
        comparison.add(*sent)
        return
    del running[receiver]
    process.join()
    if sent is not _FINISHED:
        log = folder / f"{cell[0]}-{cell[1]}" / LOG
        raise ValueError(f"seed {cell[0]}, {cell[1]} left out: {sent}; {log} has what it said")


def _stop(processes):
    """Ends processes that still run, as Ctrl-C does: their bases go on from the last state that they kept."""
    for process in processes:
        if process.is_alive():
            os.kill(process.pid, signal.SIGINT)
    for process in processes:
        process.join(_PATIENCE)
        process.kill()


def _make(work: Work, cell: tuple[int, str], minutes: float, connection: Connection) -> None:
    """Make the models of a cell and send their rows, and last None, or what went wrong."""
    os.setsid()  # Ctrl-C goes to the comparison, which hands it on once
    seed, left_out = cell
    log = work.folder / f"{seed}-{left_out}" / LOG
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a") as file:
        console = Console(file=file, width=120)
        try:
            rows = _SentRows(work, connection)
            comparison = Comparison(
                work.config, work.folder, work.arms, work.names, [seed], [left_out], console, work.keep, rows=rows
            )
            comparison.run(minutes)
            comparison.close()
            connection.send(_FINISHED)
        except KeyboardInterrupt:
            console.print("stopped")
        except Exception as error:
            console.print_exception()
            connection.send(" ".join(str(error).split()) or type(error).__name__)


def _with_fewer_threads(config, jobs):
    """The settings with this process's share of the cores."""
    most = max(1, (os.cpu_count() or 1) // jobs)
    data = replace(config.data, threads=min(config.data.threads, most))
    return replace(config, threads=min(config.threads or most, most), data=data)
