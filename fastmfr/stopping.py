"""Signals that ask a process to end: the first may wait until the work at hand can be kept, a second does not wait."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from types import FrameType
from typing import Any

__all__ = ["SIGNALS", "UNTOUCHED", "Stop", "Terminated", "raising", "status_of_stop"]

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
UNTOUCHED = (signal.SIG_DFL, signal.default_int_handler)  # nohup, for one, ignores SIGHUP: then it stays ignored


class Terminated(KeyboardInterrupt):
    """The process was asked to end by SIGTERM or SIGHUP.

    Attributes:
        number: the signal.
    """

    def __init__(self, number: int):
        super().__init__()
        self.number = number


def status_of_stop(stopped: KeyboardInterrupt) -> int:
    """Return the exit status after a signal: 130 after Ctrl-C, 143 after SIGTERM, 129 after SIGHUP."""
    return 128 + (stopped.number if isinstance(stopped, Terminated) else signal.SIGINT)


def _raise(number: int, frame: FrameType | None = None) -> None:
    raise KeyboardInterrupt if number == signal.SIGINT else Terminated(number)


@contextmanager
def _handled(handler: Callable[[int, FrameType | None], Any]) -> Iterator[None]:
    """Within the block `handler` gets the signals that nobody else handles; only in the main thread."""
    before = {}
    if threading.current_thread() is threading.main_thread():
        ours = (_raise, *UNTOUCHED)
        before = {number: signal.getsignal(number) for number in SIGNALS if signal.getsignal(number) in ours}
    try:
        for number in before:
            signal.signal(number, handler)
        yield
    finally:
        for number, one in before.items():
            signal.signal(number, one)


def raising() -> AbstractContextManager[None]:
    """Return a block within which a signal raises KeyboardInterrupt or Terminated at once."""
    return _handled(_raise)


class Stop:
    """A block within which the first signal waits for `if_asked`; a second ends the process at once.

    Args:
        warn: shows a person a sentence.
        patient: no signal ends the process at once, for other processes would wait for this one; torchrun, which hands
            one Ctrl-C on as two signals, ends processes that take too long by itself.
    """

    def __init__(self, warn: Callable[[str], None], *, patient: bool = False):
        self._warn, self._patient, self._asked, self._waits = warn, patient, 0, True
        self._block = _handled(self._note)

    def __enter__(self) -> "Stop":
        self._block.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._block.__exit__(*error)

    def _note(self, number, frame=None):
        if not self._waits:
            _raise(number)
        if self._asked and self._patient:
            return
        if self._asked:
            os.write(2, b"\nstopped at once\n")
            os._exit(128 + number)
        self._asked = number
        more = "" if self._patient else "; once more to stop at once"
        self._warn(f"the run stops after this step and keeps its state{more}")

    @property
    def asked(self) -> bool:
        """Whether a signal waits."""
        return bool(self._asked)

    def ask(self) -> None:
        """Act as if SIGTERM had come, unless a signal waits already: another process of the run has got one."""
        self._asked = self._asked or signal.SIGTERM

    def if_asked(self) -> None:
        """Raise what a signal that waits would have raised.

        Raises:
            KeyboardInterrupt: the signal was Ctrl-C's; Terminated, a kind of it, if it was another.
        """
        if self._asked:
            _raise(self._asked)

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Within the block a signal raises at once, unless the block is patient."""
        self._waits = self._patient
        try:
            yield
        finally:
            self._waits = True
