"""The paths of cos_lse that are timed beside each other, and how a call takes one."""

from fastmfr.kernels.cos_lse.operator import select as taking

PATHS = ("tiles", "chunks")

__all__ = ["PATHS", "taking"]
