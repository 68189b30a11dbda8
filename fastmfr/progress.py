"""How far a long task is: a bar with time left on a terminal, elsewhere a line at every tenth and every half minute."""

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import IO, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

__all__ = ["Meter", "duration", "new_console", "progress_of", "rate_text"]


def new_console(file: IO[str] | None = None, **options: Any) -> Console:
    """A console that prints text as it stands: no markup in names and keys, no colours in numbers, no broken lines."""
    return Console(file=file, highlight=False, markup=False, soft_wrap=True, **options)


def duration(seconds: float) -> str:
    """Return a time in seconds, minutes or hours, whichever reads best."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 90 else f"{minutes / 60:.1f} h"


def rate_text(rate: float) -> str:
    """Return a rate with two digits at least if it is below 10, so that a slow task is not shown as one that stands."""
    return f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}"


class Meter:
    """Shows rate, time waiting for data and time left; a context manager whose `step` is called after each step."""

    WINDOW = 50  # steps that the shown rate looks back on
    QUIET = 30.0  # seconds, at most, from line to line where there is no terminal

    def __init__(self, console: Console, title: str, first: int, total: int):
        self._console, self._title, self._first, self._total = console, title, first, total
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
        )
        note = TextColumn("{task.fields[note]}", markup=False)
        self._bar = Progress(*columns, note, console=console, transient=True)
        self._start = time.perf_counter()
        self._history = deque([(self._start, 0, 0.0)], maxlen=self.WINDOW + 1)
        self._task = None
        self._told = first * 10 // max(1, total)  # tenths already on the screen
        self._told_at = self._start  # seconds

    def __enter__(self) -> "Meter":
        if self._console.is_terminal:
            self._bar.start()
            self._task = self._bar.add_task(self._title, total=self._total, completed=self._first, note="")
        return self

    def __exit__(self, *_: object) -> None:
        if self._task is not None:
            self._bar.stop()

    def step(self, done: int, images: int, waited: float | None = None, note: str = "") -> tuple[float, float]:
        """Show that step number `done`, counted from 1, is over.

        Args:
            done: steps done, those before a resume included.
            images: images seen so far, in this process.
            waited: seconds spent waiting for data so far; None for a task that reads no data.
            note: what else to show, such as the loss.

        Returns:
            (images a second, share of the time spent waiting for data), over the last steps.
        """
        now = time.perf_counter()
        self._history.append((now, images, waited or 0.0))
        then, images_then, waited_then = self._history[0]
        rate, wait = (images - images_then) / (now - then), ((waited or 0.0) - waited_then) / (now - then)
        parts = (f"{rate_text(rate)} images/s", "" if waited is None else f"{100 * wait:.0f} % waiting for data", note)
        text = " · ".join(part for part in parts if part)
        if self._task is not None:
            self._bar.update(self._task, completed=done, note=text)
        elif done * 10 // self._total > self._told or now - self._told_at >= self.QUIET:
            self._told, self._told_at = done * 10 // self._total, now
            left = (self._total - done) * (now - self._start) / max(1, done - self._first)
            self._console.print(f"{self._title} {done:,}/{self._total:,} · {duration(left)} left · {text}")
        return rate, wait


@contextmanager
def progress_of(title: str, console: Console) -> Iterator[Callable[[int, int], None]]:
    """Yield progress(done, total), in images, which shows how far the task `title` is.

    The first call says how many images are there before the task begins: they count in no rate.

    Example:
        with progress_of("pack", console) as progress:
            pack(..., progress=progress)
    """
    meter, first = None, 0
    with ExitStack() as stack:

        def progress(done, total):
            nonlocal meter, first
            if meter is None:
                meter, first = stack.enter_context(Meter(console, title, done, max(1, total))), done
            else:
                meter.step(done, done - first)

        yield progress
