"""The parts of a training step by name: a profile adds up their seconds; without a profile they cost next to nothing.

`with part_of_step(FORWARD): ...` stands where the work of a part is done. `fastmfr.training.profile` switches a clock
on. A part within another one counts as the outer one: H v has a forward pass, and is H v all the same.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from torch.autograd.profiler import record_function

__all__ = [
    "BACKWARD",
    "CURVATURE",
    "DATA",
    "FORWARD",
    "LOSSES",
    "OCCASIONAL",
    "PARTS",
    "PREFIX",
    "RECORDS",
    "REPLAY",
    "SAVING",
    "SCORING",
    "UPDATE",
    "Clock",
    "clocked",
    "is_taken_apart",
    "part_of_step",
]

DATA = "data wait"
FORWARD = "forward"
LOSSES = "losses"
BACKWARD = "backward"
CURVATURE = "H v"
UPDATE = "update"
REPLAY = "replayed step"
RECORDS = "losses read and recorded"
SCORING = "scoring"
SAVING = "state saving"
PARTS = (DATA, FORWARD, LOSSES, BACKWARD, CURVATURE, UPDATE, REPLAY, RECORDS, SCORING, SAVING)
OCCASIONAL = (SCORING, SAVING)  # parts that most steps do not have
PREFIX = "fastmfr: "  # of the names of parts and steps in a trace

_NOTHING = nullcontext()


class Clock:
    """Adds up the seconds of the parts of steps, in the thread that made the clock.

    Attributes:
        traced: whether parts are named in a trace of torch.profiler.
        apart: whether steps recorded as a CUDA graph are to run operation by operation, for a replay has no parts.
    """

    def __init__(self):
        self.traced = self.apart = False
        self._seconds: dict[str, float] = {}
        self._times: dict[str, int] = {}
        self._thread, self._is_open = threading.get_ident(), False

    def part(self, name: str) -> AbstractContextManager[None]:
        """Return a block whose seconds are added to a part, unless it is within another part or another thread."""
        if self._is_open or threading.get_ident() != self._thread:
            return _NOTHING
        return self._block(name)

    def take(self) -> tuple[dict[str, float], dict[str, int]]:
        """Return the seconds of each part since the last call, and how many times the part was done."""
        taken = self._seconds, self._times
        self._seconds, self._times = {}, {}
        return taken

    @contextmanager
    def _block(self, name):
        self._is_open = True
        begin = time.perf_counter()
        try:
            with record_function(PREFIX + name) if self.traced else _NOTHING:
                yield
        finally:
            self._is_open = False
            self._seconds[name] = self._seconds.get(name, 0.0) + time.perf_counter() - begin
            self._times[name] = self._times.get(name, 0) + 1


_clock: Clock | None = None


def part_of_step(name: str) -> AbstractContextManager[None]:
    """Return a block whose seconds a profile adds to a part of the step.

    Args:
        name: one of PARTS.
    """
    return _NOTHING if _clock is None else _clock.part(name)


def is_taken_apart() -> bool:
    """Return whether steps that would be replayed are to run operation by operation."""
    return _clock is not None and _clock.apart


@contextmanager
def clocked(clock: Clock) -> Iterator[None]:
    """Time parts with `clock` within the block."""
    global _clock
    before, _clock = _clock, clock
    try:
        yield
    finally:
        _clock = before
