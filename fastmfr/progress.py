"""How far a long task is: a bar with time left on a terminal, elsewhere a line at every tenth."""

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class Meter:
    """Rate, waiting share and time left of one stage; use as a context manager and call `step` after each step."""

    WINDOW = 50  # steps that the shown rate looks back on

    def __init__(self, console, title, first, total):
        self._console, self._title, self._first, self._total = console, title, first, total
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._bar = Progress(*columns, TextColumn("{task.fields[note]}"), console=console, transient=True)
        self._start = time.perf_counter()
        self._history = deque([(self._start, 0, 0.0)], maxlen=self.WINDOW + 1)
        self._task = None
        self._told = first * 10 // max(1, total)  # tenths already on the screen

    def __enter__(self):
        if self._console.is_terminal:
            self._bar.start()
            self._task = self._bar.add_task(self._title, total=self._total, completed=self._first, note="")
        return self

    def __exit__(self, *_):
        if self._task is not None:
            self._bar.stop()

    def step(self, done, images, waited=None, note=""):
        """After step number `done` (1-based): images so far and seconds waited for data so far, this stage.

        Returns (images per second, share of time waiting for data) over the last steps; the share is 0 where `waited`
        is None, for a stage that reads no data.
        """
        now = time.perf_counter()
        self._history.append((now, images, waited or 0.0))
        then, images_then, waited_then = self._history[0]
        rate, wait = (images - images_then) / (now - then), ((waited or 0.0) - waited_then) / (now - then)
        parts = (f"{rate:,.0f} images/s", "" if waited is None else f"{100 * wait:.0f} % waiting for data", note)
        text = " · ".join(part for part in parts if part)
        if self._task is not None:
            self._bar.update(self._task, completed=done, note=text)
        elif done * 10 // self._total > self._told:
            self._told = done * 10 // self._total
            left = (self._total - done) * (now - self._start) / max(1, done - self._first)
            self._console.print(f"{self._title} {done}/{self._total} · {left:.0f} s left · {text}", soft_wrap=True)
        return rate, wait


@contextmanager
def progress_of(title: str, console: Console) -> Iterator[Callable[[int, int], None]]:
    """A function progress(done, total), in images, that shows how far `title` is; the total is known at its first call.

    with progress_of("pack", console) as progress:
        pack(..., progress=progress)
    """
    meter = None
    with ExitStack() as stack:

        def progress(done, total):
            nonlocal meter
            if meter is None:
                meter = stack.enter_context(Meter(console, title, 0, max(1, total)))
            if done:
                meter.step(done, done)

        yield progress
