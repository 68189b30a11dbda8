"""What the normalisation of weights adds to the derivatives of cos_lse: unit rows w = r * weight, r = inverse norm.

    a gradient a with respect to w is, with respect to the weights,    r (a - (w . a) w)
    a tangent u of the weights moves w by                              r (u - (w . u) w)

Each kernel reads a few whole rows once, and works in place if it can.
Shape suffixes: C = identities, D = embedding.
"""

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from ..launching import ceil_div, launch, next_power_of_2
from .tiles import whole_rows


def launch_on_rows(kernel: Any, *operands: Tensor | int | None, like: Tensor) -> None:
    """Launch a kernel that takes a few whole rows of the (C, D) matrix `like` at a time.

    Args:
        kernel: A kernel whose last arguments are C, D, and how many rows and columns one program holds.
        operands: The kernel's other arguments; the first one is a tensor.
        like: A matrix of the size that the kernel walks.
    """
    C, D = like.shape
    rows = whole_rows(like.device)
    launch(kernel, (ceil_div(C, rows),), *operands, C, D, rows, next_power_of_2(D))


@triton.jit
def row_offsets(C, D: tl.constexpr, CLASSES: tl.constexpr, WIDTH: tl.constexpr):
    """(offsets of this program's whole rows of a (C, D) matrix, a mask for them, a mask for the rows alone)"""
    class_, column = tl.arange(0, CLASSES), tl.arange(0, WIDTH)
    first = tl.program_id(0) * CLASSES
    inside = first + class_ < C
    at = tl.cast(first, tl.int64) * D + (class_[:, None] * D + column[None, :])
    return at, inside[:, None] & (column < D)[None, :], inside


@triton.jit
def project_gradient_kernel(
    dw_ptr,  # (C, D)
    radial_ptr,  # (C,) or None
    w_ptr,  # weights, (C, D)
    r_ptr,  # inverse norms, (C,), or None: weights are unit rows
    C,
    D: tl.constexpr,
    CLASSES: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """radial = w . dw for unit rows w. If `r_ptr` is given, dw becomes, in place, a gradient of the weights."""
    at, mask, inside = row_offsets(C, D, CLASSES, WIDTH)
    c = tl.program_id(0) * CLASSES + tl.arange(0, CLASSES)
    w = tl.load(w_ptr + at, mask=mask, other=0.0).to(tl.float32)
    dw = tl.load(dw_ptr + at, mask=mask, other=0.0)
    r = tl.load(r_ptr + c, mask=inside, other=0.0)[:, None] if r_ptr is not None else None
    if r_ptr is not None:
        w *= r
    radial = tl.sum(w * dw, 1)
    if r_ptr is not None:
        tl.store(dw_ptr + at, r * (dw - radial[:, None] * w), mask=mask)  # pyright: ignore[reportArgumentType]  # typed as a constexpr
    if radial_ptr is not None:
        tl.store(radial_ptr + c, radial, mask=inside)


@triton.jit
def project_tangent_kernel(
    u_ptr,  # (C, D)
    uw_ptr,  # (C, D)
    w_ptr,  # weights, (C, D)
    r_ptr,  # (C,)
    unscale_ptr,  # (), or None: nothing is scaled
    C,
    D: tl.constexpr,
    CLASSES: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """u = uw - (w . uw) w for unit rows w. The true tangent is r * u: products apply the factor r later, with w's."""
    at, mask, inside = row_offsets(C, D, CLASSES, WIDTH)
    r = tl.load(r_ptr + tl.program_id(0) * CLASSES + tl.arange(0, CLASSES), mask=inside, other=0.0)[:, None]
    w = tl.load(w_ptr + at, mask=mask, other=0.0).to(tl.float32) * r
    u = tl.load(uw_ptr + at, mask=mask, other=0.0).to(tl.float32)
    u -= tl.sum(w * u, 1)[:, None] * w  # pyright: ignore[reportArgumentType]  # typed as a constexpr
    if unscale_ptr is not None:
        u /= tl.load(unscale_ptr)
    tl.store(u_ptr + at, u.to(u_ptr.dtype.element_ty), mask=mask)


@triton.jit
def project_second_gradient_kernel(
    out_ptr,  # Dw, (C, D)
    dw_ptr,  # (C, D)
    radial_ptr,  # (C,)
    w_ptr,  # weights, (C, D)
    uw_ptr,  # (C, D)
    r_ptr,  # (C,)
    C,
    D: tl.constexpr,
    CLASSES: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Dw of the unit rows becomes, in place, Dw of the weights; the normalisation is differentiated a second time.

    r (out - (w . out) w) - r w (dw . uw) - r ((w . uw) dw + radial u)     u = r (uw - (w . uw) w)
    """
    at, mask, inside = row_offsets(C, D, CLASSES, WIDTH)
    c = tl.program_id(0) * CLASSES + tl.arange(0, CLASSES)
    r = tl.load(r_ptr + c, mask=inside, other=0.0)[:, None]
    radial = tl.load(radial_ptr + c, mask=inside, other=0.0)[:, None]
    w = tl.load(w_ptr + at, mask=mask, other=0.0).to(tl.float32) * r
    uw = tl.load(uw_ptr + at, mask=mask, other=0.0).to(tl.float32)
    dw = tl.load(dw_ptr + at, mask=mask, other=0.0)
    out = tl.load(out_ptr + at, mask=mask, other=0.0)
    along = tl.sum(w * uw, 1)[:, None]  # pyright: ignore[reportArgumentType]  # typed as a constexpr
    out -= (tl.sum(w * out, 1) + tl.sum(dw * uw, 1))[:, None] * w  # pyright: ignore[reportArgumentType]  # typed as a constexpr
    out -= along * dw + radial * (r * (uw - along * w))
    tl.store(out_ptr + at, r * out, mask=mask)
