"""Fused operations of fastmfr; each Triton kernel takes its place here, behind these names, beside its reference.

Knows torch and triton, and nothing of fastmfr.
"""

if __name__ != "fastmfr.kernels":
    raise ImportError(
        f"this package is fastmfr.kernels, but it was imported as {__name__!r} (another `kernels` is on PyPI); "
        "install fastmfr with `pip install .` and write `import fastmfr.kernels`"
    )

from .cos_lse import cos_lse
from .gather import gather_images
from .margin_softmax import ArcFace, Combined, CosFace, margin_softmax

__all__ = ["ArcFace", "Combined", "CosFace", "cos_lse", "gather_images", "margin_softmax"]
