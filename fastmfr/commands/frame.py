"""The frame around every command: the one place where an error becomes a sentence and an exit status."""

import os
import sys
from collections.abc import Callable
from contextlib import nullcontext

from fastmfr.stopping import raising, status_of_stop
from fastmfr.training.errors import NonFiniteLoss

SENTENCES = (ValueError, OSError, ImportError, NonFiniteLoss)  # errors whose text says what to do


def status_of(command: Callable[[], int]) -> int:
    """Run a command; print an error that ends it as one sentence on stderr.

    Returns:
        What the command returned, or 1 after an error, 130 after Ctrl-C, 143 after SIGTERM, 129 after SIGHUP.
    """
    try:
        # A rank keeps the system's handling: torchrun ends ranks that wait for one another by SIGTERM, and Python would
        # see the signal only after the wait.
        with nullcontext() if is_rank() else raising():
            return command()
    except SENTENCES as error:
        print(f"error: {printable(str(error))}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as stopped:
        print(printable("; ".join(["stopped", *getattr(stopped, "__notes__", ())])), file=sys.stderr)
        return status_of_stop(stopped)


def is_rank() -> bool:
    """Whether torchrun started this process, as one of several."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def printable(text: str) -> str:
    """The text with control characters and broken bytes written out, as \\x1b: names in it may hold anything."""
    shown = (one if one.isprintable() else one.encode("unicode_escape", "surrogatepass").decode() for one in text)
    return "".join(shown)
