"""The frame around every command: the one place where an error becomes a sentence and an exit status."""

import errno
import os
import sys
from collections.abc import Callable
from contextlib import nullcontext

from fastmfr.stopping import raising, status_of_stop
from fastmfr.text import printable
from fastmfr.training.errors import NonFiniteLoss

ADVICE = {
    errno.ENOSPC: "free some, or write elsewhere",
    errno.EDQUOT: "free some of what you keep there, or write elsewhere",
    errno.EROFS: "name a folder that can be written to",
    errno.EACCES: "ask for access, or name a file or folder that is yours",
}
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
        print(f"error: {_with_notes(_sentence(error), error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as stopped:
        print(_with_notes("stopped", stopped), file=sys.stderr)
        return status_of_stop(stopped)


def _sentence(error):
    """The text of an error; of one that the system reports, with what to do."""
    if not isinstance(error, OSError) or error.errno not in ADVICE or not error.strerror:
        return str(error)
    return f"{error.filename or 'a file'}: {error.strerror.lower()}; {ADVICE[error.errno]}"


def _with_notes(text, error):
    return printable("; ".join([text, *getattr(error, "__notes__", ())]))


def is_rank() -> bool:
    """Whether torchrun started this process, as one of several."""
    return "TORCHELASTIC_RUN_ID" in os.environ
