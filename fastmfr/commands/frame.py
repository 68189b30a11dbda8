"""The frame around every command: the one place where an error becomes a sentence and an exit status."""

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


def printable(text: str) -> str:
    """The text with control characters and broken bytes written out, as \\x1b: names in it may hold anything."""
    shown = (one if one.isprintable() else one.encode("unicode_escape", "surrogatepass").decode() for one in text)
    return "".join(shown)


@contextmanager
def _terminated_by_sigterm() -> Iterator[None]:
    """SIGTERM raises Terminated within the block, if this is the main thread and no one else handles SIGTERM."""

    def end(*_: object) -> None:
        raise Terminated

    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
