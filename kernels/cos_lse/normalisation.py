"""What the normalisation of weights adds to the derivatives of cos_lse: unit rows w = r * weight, r = inverse norm.

    a gradient a at w is one at the weights as       r (a - (w . a) w)
    a tangent u at the weights moves w by            r (u - (w . u) w)

Each kernel reads a few whole rows once and works in place where it can.
Shape suffixes: C = identities, D = embedding.
"""

import triton
import triton.language as tl

from ..launching import FUSED


def whole_rows(kernel, *operands, like):
    """Launches a kernel that works on a few whole rows of the (C, D) matrix `like` at a time."""
    C, D = like.shape
    kernel[(triton.cdiv(C, 4),)](*operands, C, D, 4, triton.next_power_of_2(D), **FUSED)


@triton.jit
def rows_at(C, D: tl.constexpr, CLASSES: tl.constexpr, WIDTH: tl.constexpr):
    """Offsets of this program's whole rows of a (C, D) matrix, a mask for them, and which rows there are."""
    class_, column = tl.arange(0, CLASSES), tl.arange(0, WIDTH)
    first = tl.program_id(0) * CLASSES
    inside = first + class_ < C
    at = tl.cast(first, tl.int64) * D + (class_[:, None] * D + column[None, :])
    return at, inside[:, None] & (column < D)[None, :], inside


@triton.jit
def project_kernel(dw_ptr, radial_ptr, w_ptr, r_ptr, C, D: tl.constexpr, CLASSES: tl.constexpr, WIDTH: tl.constexpr):
    """radial = w . dw at unit rows w; where `r_ptr` is given dw, in place, becomes a gradient at the weights."""
    at, mask, inside = rows_at(C, D, CLASSES, WIDTH)
    c = tl.program_id(0) * CLASSES + tl.arange(0, CLASSES)
    w = tl.load(w_ptr + at, mask=mask, other=0.0).to(tl.float32)
    dw = tl.load(dw_ptr + at, mask=mask, other=0.0)
    if r_ptr is not None:
        r = tl.load(r_ptr + c, mask=inside, other=0.0)[:, None]
        w *= r
    radial = tl.sum(w * dw, 1)
    if r_ptr is not None:
        tl.store(dw_ptr + at, r * (dw - radial[:, None] * w), mask=mask)
    if radial_ptr is not None:
        tl.store(radial_ptr + c, radial, mask=inside)


@triton.jit
def tangent_kernel(
    u_ptr, uw_ptr, w_ptr, r_ptr, unlift_ptr, C, D: tl.constexpr, CLASSES: tl.constexpr, WIDTH: tl.constexpr
):
    """The part of uw across w: what moves the unit rows, but for a factor r that products take along with w's."""
    at, mask, inside = rows_at(C, D, CLASSES, WIDTH)
    r = tl.load(r_ptr + tl.program_id(0) * CLASSES + tl.arange(0, CLASSES), mask=inside, other=0.0)[:, None]
    w = tl.load(w_ptr + at, mask=mask, other=0.0).to(tl.float32) * r
    u = tl.load(uw_ptr + at, mask=mask, other=0.0).to(tl.float32)
    u -= tl.sum(w * u, 1)[:, None] * w
    if unlift_ptr is not None:
        u /= tl.load(unlift_ptr)
    tl.store(u_ptr + at, u.to(u_ptr.dtype.element_ty), mask=mask)


@triton.jit
def bend_kernel(
    out_ptr, dw_ptr, radial_ptr, w_ptr, uw_ptr, r_ptr, C, D: tl.constexpr, CLASSES: tl.constexpr, WIDTH: tl.constexpr
):
    """Dw at unit rows, in place, to Dw at the weights, with what comes of the normalisation turning with them.

    r (out - (w . out) w) - r w (dw . uw) - r ((w . uw) dw + radial u)     u = r (uw - (w . uw) w)
    """
    at, mask, inside = rows_at(C, D, CLASSES, WIDTH)
    c = tl.program_id(0) * CLASSES + tl.arange(0, CLASSES)
    r = tl.load(r_ptr + c, mask=inside, other=0.0)[:, None]
    radial = tl.load(radial_ptr + c, mask=inside, other=0.0)[:, None]
    w = tl.load(w_ptr + at, mask=mask, other=0.0).to(tl.float32) * r
    uw = tl.load(uw_ptr + at, mask=mask, other=0.0).to(tl.float32)
    dw = tl.load(dw_ptr + at, mask=mask, other=0.0)
    out = tl.load(out_ptr + at, mask=mask, other=0.0)
    along = tl.sum(w * uw, 1)[:, None]
    out -= (tl.sum(w * out, 1) + tl.sum(dw * uw, 1))[:, None] * w
    out -= along * dw + radial * (r * (uw - along * w))
    tl.store(out_ptr + at, r * out, mask=mask)
