"""The frame around every command: the one place where an error becomes a sentence and an exit status."""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from fastmfr.training.errors import NonFiniteLoss

SENTENCES = (ValueError, OSError, ImportError, NonFiniteLoss)  # errors whose text says what to do


class Terminated(KeyboardInterrupt):
    """The process was asked to end by SIGTERM."""


def status_of(command: Callable[[], int]) -> int:
    """Run a command; print an error that ends it as one sentence on stderr.

    Returns:
        What the command returned, or 1 after an error, 130 after Ctrl-C, 143 after SIGTERM.
    """
    try:
        with _terminated_by_sigterm():
            return command()
    except SENTENCES as error:
        print(f"error: {printable(str(error))}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as stopped:
        print(printable("; ".join(["stopped", *getattr(stopped, "__notes__", ())])), file=sys.stderr)
        return 143 if isinstance(stopped, Terminated) else 130


def is_rank() -> bool:
    """Whether torchrun started this process, as one of several."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def printable(text: str) -> str:
    """The text with control characters and broken bytes written out, as \\x1b: names in it may hold anything."""
    shown = (one if one.isprintable() else one.encode("unicode_escape", "surrogatepass").decode() for one in text)
    return "".join(shown)


@contextmanager
def _terminated_by_sigterm() -> Iterator[None]:
    """SIGTERM raises Terminated within the block, if this is the main thread and no one else handles SIGTERM.

    A rank keeps the system's handling: torchrun ends ranks that wait for one another by SIGTERM, and Python would see
    the signal only after the wait.
    """

    def end(*_: object) -> None:
        raise Terminated

    is_main = threading.current_thread() is threading.main_thread()
    if is_rank() or not is_main or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
