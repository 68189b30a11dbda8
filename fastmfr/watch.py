"""Names the process of a run that hangs, while the others wait for it."""

import json
import os
import platform
import sys
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from types import FrameType
from typing import Any

from fastmfr.distributed import Ranks, common_store

__all__ = ["EVERY", "OURS", "PATIENCE", "WAITING", "Watch"]

PATIENCE, EVERY = 120.0, 10.0  # seconds
OURS = Path(__file__).parent
WAITING = (
    "torch/distributed/",
    "torch/autograd/",
    "torch/nn/parallel/",
    "fastmfr/distributed.py",
)  # DDP sends in backward


class Watch(AbstractContextManager["Watch"]):
    """A block within which a thread of each process tells the first one where its main thread stands.

    If no main thread has moved for a while, those that do not wait for others are named, once.

    Args:
        ranks: the processes.
        warn: shows a person a sentence.
        patience: seconds without a move.
        every: seconds between two looks.
    """

    def __init__(self, ranks: Ranks, warn: Callable[[str], Any], *, patience: float = PATIENCE, every: float = EVERY):
        self._ranks, self._warn, self._patience, self._every = ranks, warn, patience, every
        self._ended, self._still, self._named = threading.Event(), (None, time.monotonic()), False
        self._main = threading.current_thread().ident
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "Watch":
        if self._ranks.world > 1:
            self._thread.start()
        return self

    def __exit__(self, *error: Any) -> None:
        self._ended.set()
        if self._thread.ident:
            self._thread.join()

    def _run(self):
        """Tells, and looks, until the block ends or the processes' common store has gone."""
        try:
            store = common_store()
            while not self._ended.wait(self._every):
                store.set(f"watch/{self._ranks.number}", json.dumps(self._stand()))
                keys = [f"watch/{number}" for number in range(self._ranks.world)]
                if self._ranks.is_first and store.check(keys):
                    self._look([json.loads(value) for value in store.multi_get(keys)])
        except (RuntimeError, KeyError, OSError):
            return

    def _stand(self):
        """[seconds since the main thread has moved, whether it waits for others, where it stands]."""
        frame, stack = sys._current_frames().get(self._main or 0), []
        while frame:
            stack.append(frame)
            frame = frame.f_back
        place = [(id(one), one.f_lasti) for one in stack]
        if place != self._still[0]:
            self._still = place, time.monotonic()
        waits = any(part in one.f_code.co_filename for one in stack[:8] for part in WAITING)
        return [time.monotonic() - self._still[1], waits, _named(stack)]

    def _look(self, stands):
        still = min(seconds for seconds, _, _ in stands)
        if still < self._patience:
            self._named = False
        elif not self._named:
            self._named = True
            stuck = [f"process {number}, {where}" for number, (_, waits, where) in enumerate(stands) if not waits]
            waiting = len(stands) - len(stuck)
            self._warn(
                f"no process of this run has moved for {still:.0f} s; {waiting} of {len(stands)} wait for others"
                f"{': ' if stuck else ''}{'; '.join(stuck)}"
            )


def _named(stack: list[FrameType]) -> str:
    """Where a thread stands: the innermost line of this package, the machine and the number of the process."""
    ours = [frame for frame in stack if OURS in Path(frame.f_code.co_filename).parents]
    at = f"at {Path(ours[0].f_code.co_filename).name}:{ours[0].f_lineno}, " if ours else ""
    return f"{at}on {platform.node()}, pid {os.getpid()}"
