"""Fused operations of fastmfr: each has a reference in plain PyTorch and Triton kernels beside it.

The package imports torch and triton, and no other part of fastmfr.
"""

if __name__ != "fastmfr.kernels":
    raise ImportError(
        f"this package is fastmfr.kernels, but it was imported as {__name__!r} (another `kernels` is on PyPI); "
        "install fastmfr with `pip install .` and write `import fastmfr.kernels`"
    )

from .cos_lse import cos_lse, cos_lse_ref
from .gather import gather_images
from .inverse_norm import inverse_norm
from .margin_softmax import margin_loss, margin_softmax, unit_rows
from .margins import AdaFace, ArcFace, Combined, CosFace, MagFace, as_margin, make_margin
from .meta_update import add_split, look_ahead, meta_sgd
from .sgd_rows import sgd_rows

__all__ = [
    "AdaFace",
    "ArcFace",
    "Combined",
    "CosFace",
    "MagFace",
    "add_split",
    "as_margin",
    "cos_lse",
    "cos_lse_ref",
    "gather_images",
    "inverse_norm",
    "look_ahead",
    "make_margin",
    "margin_loss",
    "margin_softmax",
    "meta_sgd",
    "sgd_rows",
    "unit_rows",
]
