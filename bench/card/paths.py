"""The paths of cos_lse that can be timed beside each other; one that a version lacks is left out."""

import contextlib

from fastmfr.kernels.cos_lse import operator

PATHS = ("tiles", "chunks") if hasattr(operator, "select") else ("tiles",)


def taking(path):
    """All calls of cos_lse within take this path."""
    return operator.select(path) if len(PATHS) > 1 else contextlib.nullcontext()
