"""Progress of a command as a function of (done, total): a bar with ETA on a terminal, elsewhere a line each tenth."""

from contextlib import ExitStack, contextmanager

from fastmfr.logbook import Meter


@contextmanager
def progress_of(title, console):
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
