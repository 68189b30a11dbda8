"""cos_lse double backward in Triton: from the gradients ux of dx and uw of dw, those of the inputs of `backward`.

    T = ux . w + x . u     mean[b] = sum_c P T     R = scale^2 g P (T - mean), 0 at c = label     M as in backward.py
    Dx = R w + M u         Dw = R^T x + M^T ux     Dg = scale * mean     Dg_cos[b] = T[b, label]

u is the tangent of the unit rows w that uw makes. One pass computes `mean`; one pass each computes Dx and Dw, as in
backward.py. Where `mean` is known but for a rounding, the pass for Dx says how far off it was.
Shape suffixes: B = batch, C = identities, D = embedding, S = shares of the identities.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..launching import ceil_div, launch
from .normalisation import (
    launch_on_rows,
    project_gradient_kernel,
    project_second_gradient_kernel,
    project_tangent_kernel,
)
from .tiles import (
    LOG2E,
    all_contiguous,
    choose_tile,
    divide_identities,
    empty_float32,
    load_column,
    load_label,
    load_tile,
    operand_pointers,
    precision,
    scale_for_fp16,
)


@triton.jit
def cosines_and_tangents(
    a_at,
    da_at,
    b_at,
    db_at,
    A: tl.constexpr,
    B: tl.constexpr,
    D: tl.constexpr,
    DEPTH: tl.constexpr,
    dtype: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """(a . b, da . b + a . db) of tiles with A and B rows, DEPTH columns at a time; da or db may be None."""
    EVEN: tl.constexpr = D % DEPTH == 0
    z = tl.zeros((A, B), tl.float32)
    t = tl.zeros((A, B), tl.float32)
    for k in range(0, D, DEPTH):
        column = k + tl.arange(0, DEPTH)
        a = load_tile(a_at + k, column, D, EVEN, dtype)
        b = tl.trans(load_tile(b_at + k, column, D, EVEN, dtype))
        z = tl.dot(a, b, z, input_precision=PRECISION)
        if da_at is not None:
            t = tl.dot(load_tile(da_at + k, column, D, EVEN, dtype), b, t, input_precision=PRECISION)
        if db_at is not None:
            t = tl.dot(a, tl.trans(load_tile(db_at + k, column, D, EVEN, dtype)), t, input_precision=PRECISION)
    return z, t


@triton.jit
def average_tangents_kernel(
    weighted_ptr,  # (S, B)
    total_ptr,  # (S, B)
    true_ptr,  # (S, B)
    x_ptr,  # unit rows, (B, D)
    ux_ptr,  # (B, D)
    w_ptr,  # weights, (C, D)
    u_ptr,  # (C, D) or None
    r_ptr,  # inverse norms, (C,), or None: weights are unit rows
    label_ptr,  # (B,)
    log_sum_ptr,  # (B,)
    B,
    C,
    scale_log2e,  # scale / log(2)
    share,  # identities of one program
    D: tl.constexpr,
    ROWS: tl.constexpr,
    CLASSES: tl.constexpr,
    DEPTH: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Sums of P T and of P over share `program_id(1)` of the identities for a block of rows, and T of the true ones.

    P sums up to one except for the rounding of log_sum; T - mean would show that error, times scale squared.
    """
    dtype: tl.constexpr = x_ptr.dtype.element_ty
    first, split = tl.program_id(0) * ROWS, tl.program_id(1)
    row, class_ = tl.arange(0, ROWS), tl.arange(0, CLASSES)
    b = first + row
    label = load_label(label_ptr, b, B, C)
    log2_sum = load_column(log_sum_ptr, b, B) * LOG2E
    k = tl.arange(0, DEPTH)
    x_at, ux_at = operand_pointers(x_ptr, first, row, B, k, D), operand_pointers(ux_ptr, first, row, B, k, D)
    weighted = tl.zeros((ROWS,), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    true = tl.zeros((ROWS,), tl.float32)
    last = tl.minimum((split + 1) * share, C)
    for start in tl.range(split * share, last, CLASSES, disable_licm=True):  # pyright: ignore[reportGeneralTypeIssues]  # typed as not iterable
        c = start + class_
        w_at = operand_pointers(w_ptr, start, class_, last, k, D)
        u_at = operand_pointers(u_ptr, start, class_, last, k, D) if u_ptr is not None else None
        z, t = cosines_and_tangents(x_at, ux_at, w_at, u_at, ROWS, CLASSES, D, DEPTH, dtype, PRECISION)
        if r_ptr is not None:
            r = tl.load(r_ptr + tl.minimum(c, last - 1))[None, :]
            z *= r
            t *= r
        is_true = c[None, :] == label[:, None]
        true += tl.sum(tl.where(is_true, t, 0.0), 1)
        other = (c < last)[None, :] & (c[None, :] != label[:, None])
        p = tl.where(other, tl.exp2(z * scale_log2e - log2_sum), 0.0)
        weighted += tl.sum(p * t, 1)
        total += tl.sum(p, 1)
    tl.store(weighted_ptr + split * B + b, weighted, mask=b < B)
    tl.store(total_ptr + split * B + b, total, mask=b < B)
    tl.store(true_ptr + split * B + b, true, mask=b < B)


@triton.jit
def curvatures(z, t, log2_sum, mean, is_true, g, g_cos, scale):
    """(R, M) of a tile of z, in units of log 2, and of T; the other arguments broadcast against the tile."""
    m = g * tl.exp2(z - log2_sum)
    return tl.where(is_true, 0.0, scale * m * (t - mean)), tl.where(is_true, g_cos, m)


@triton.jit
def compute_second_dx_kernel(
    out_ptr,  # Dx, (S, B, D)
    left_ptr,  # receives sums of P (T - mean), (S, B), or None
    x_ptr,  # unit rows, (B, D)
    ux_ptr,  # (B, D)
    w_ptr,  # weights, (C, D)
    u_ptr,  # (C, D) or None
    r_ptr,  # inverse norms, (C,), or None: weights are unit rows
    label_ptr,  # (B,)
    log_sum_ptr,  # (B,)
    mean_ptr,  # (B,)
    g_ptr,  # (B,)
    g_cos_ptr,  # (B,)
    unscale_ptr,  # (), or None: nothing is scaled
    B,
    C,
    scale,
    scale_log2e,  # scale / log(2)
    share,  # identities of one program
    D: tl.constexpr,
    ROWS: tl.constexpr,
    CLASSES: tl.constexpr,
    DEPTH: tl.constexpr,
    SLAB: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Dx of a block of rows and a slab of columns, summed over share `program_id(1)` of the identities."""
    EVEN: tl.constexpr = D % SLAB == 0
    dtype: tl.constexpr = x_ptr.dtype.element_ty
    first, split = tl.program_id(0) * ROWS, tl.program_id(1)
    row, class_, k = tl.arange(0, ROWS), tl.arange(0, CLASSES), tl.arange(0, DEPTH)
    column = tl.program_id(2) * SLAB + tl.arange(0, SLAB)
    b = first + row
    inside = b < B
    label = load_label(label_ptr, b, B, C)
    log2_sum = load_column(log_sum_ptr, b, B) * LOG2E
    mean = load_column(mean_ptr, b, B)
    g = load_column(g_ptr, b, B)
    g_cos = load_column(g_cos_ptr, b, B)
    x_at, ux_at = operand_pointers(x_ptr, first, row, B, k, D), operand_pointers(ux_ptr, first, row, B, k, D)
    last = tl.minimum((split + 1) * share, C)
    left = tl.zeros((ROWS,), tl.float32)
    out = tl.zeros((ROWS, SLAB), tl.float32)
    for start in tl.range(split * share, last, CLASSES, disable_licm=True):  # pyright: ignore[reportGeneralTypeIssues]  # typed as not iterable
        c = start + class_
        w_at = operand_pointers(w_ptr, start, class_, last, k, D)
        u_at = operand_pointers(u_ptr, start, class_, last, k, D) if u_ptr is not None else None
        z, t = cosines_and_tangents(x_at, ux_at, w_at, u_at, ROWS, CLASSES, D, DEPTH, dtype, PRECISION)
        r = tl.full((1, CLASSES), 1.0, tl.float32)
        if r_ptr is not None:
            r = tl.load(r_ptr + tl.minimum(c, last - 1))[None, :]
        is_true = c[None, :] == label[:, None]
        curved, m = curvatures(z * (r * scale_log2e), t * r, log2_sum, mean, is_true, g, g_cos, scale)
        present = (c < last)[None, :]
        if left_ptr is not None:
            moved, _ = curvatures(z * (r * scale_log2e), t * r, log2_sum, mean, is_true, 1.0, 0.0, 1.0)
            left += tl.sum(tl.where(present, moved, 0.0), 1)
        curved = tl.where(present, curved * r, 0.0).to(dtype)
        w = load_tile(operand_pointers(w_ptr, start, class_, last, column, D), column, D, EVEN, dtype)
        out = tl.dot(curved, w, out, input_precision=PRECISION)
        if u_ptr is not None:
            m = tl.where(present, m * r, 0.0).to(dtype)
            u = load_tile(operand_pointers(u_ptr, start, class_, last, column, D), column, D, EVEN, dtype)
            out = tl.dot(m, u, out, input_precision=PRECISION)
    if unscale_ptr is not None:
        out *= tl.load(unscale_ptr)
    if left_ptr is not None:  # every slab stores the same sums
        tl.store(left_ptr + split * B + b, left, mask=inside)
    at = out_ptr + tl.cast(split * B + first, tl.int64) * D + (row[:, None] * D + column[None, :])
    tl.store(at, out, mask=inside[:, None] & (column < D)[None, :])


@triton.jit
def compute_second_dw_kernel(
    out_ptr,  # Dw, (C, D)
    x_ptr,  # unit rows, (B, D)
    ux_ptr,  # (B, D)
    w_ptr,  # weights, (C, D)
    u_ptr,  # (C, D) or None
    r_ptr,  # inverse norms, (C,), or None: weights are unit rows
    label_ptr,  # (B,)
    log_sum_ptr,  # (B,)
    mean_ptr,  # (B,)
    g_ptr,  # (B,)
    g_cos_ptr,  # (B,)
    unscale_ptr,  # (), or None: nothing is scaled
    B,
    C,
    scale,
    scale_log2e,  # scale / log(2)
    D: tl.constexpr,
    ROWS: tl.constexpr,
    CLASSES: tl.constexpr,
    DEPTH: tl.constexpr,
    SLAB: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Dw of a block of identities and a slab of columns, with respect to unit rows."""
    EVEN: tl.constexpr = D % SLAB == 0
    dtype: tl.constexpr = x_ptr.dtype.element_ty
    first = tl.program_id(0) * CLASSES
    row, class_, k = tl.arange(0, ROWS), tl.arange(0, CLASSES), tl.arange(0, DEPTH)
    column = tl.program_id(1) * SLAB + tl.arange(0, SLAB)
    c = first + class_
    r = tl.full((CLASSES, 1), 1.0, tl.float32)
    if r_ptr is not None:
        r = tl.load(r_ptr + c, mask=c < C, other=0.0)[:, None]
    w_at = operand_pointers(w_ptr, first, class_, C, k, D)
    u_at = operand_pointers(u_ptr, first, class_, C, k, D) if u_ptr is not None else None
    out = tl.zeros((CLASSES, SLAB), tl.float32)
    for start in tl.range(0, B, ROWS, disable_licm=True):  # pyright: ignore[reportGeneralTypeIssues]  # typed as not iterable
        b = start + row
        near = tl.minimum(b, B - 1)
        x_at, ux_at = operand_pointers(x_ptr, start, row, B, k, D), operand_pointers(ux_ptr, start, row, B, k, D)
        z, t = cosines_and_tangents(w_at, u_at, x_at, ux_at, CLASSES, ROWS, D, DEPTH, dtype, PRECISION)
        is_true = c[:, None] == tl.load(label_ptr + near)[None, :]
        log2_sum = tl.load(log_sum_ptr + near)[None, :] * LOG2E
        mean = tl.load(mean_ptr + near)[None, :]
        g = tl.load(g_ptr + b, mask=b < B, other=0.0)[None, :]
        g_cos = tl.load(g_cos_ptr + b, mask=b < B, other=0.0)[None, :]
        curved, m = curvatures(z * (r * scale_log2e), t * r, log2_sum, mean, is_true, g, g_cos, scale)
        x = load_tile(operand_pointers(x_ptr, start, row, B, column, D), column, D, EVEN, dtype)
        out = tl.dot(curved.to(dtype), x, out, input_precision=PRECISION)
        ux = load_tile(operand_pointers(ux_ptr, start, row, B, column, D), column, D, EVEN, dtype)
        out = tl.dot(m.to(dtype), ux, out, input_precision=PRECISION)
    if unscale_ptr is not None:
        out *= tl.load(unscale_ptr)
    at = out_ptr + tl.cast(first, tl.int64) * D + (class_[:, None] * D + column[None, :])
    tl.store(at, out, mask=(c < C)[:, None] & (column < D)[None, :])


def double_backward(
    unit_BD: Tensor,
    weight_CD: Tensor,
    inverse_norm_C: Tensor | None,
    label_B: Tensor,
    scale: float,
    log_sum_B: Tensor,
    g_B: Tensor,
    g_cos_B: Tensor,
    dw_CD: Tensor,
    radial_C: Tensor,
    ux_BD: Tensor,
    uw_CD: Tensor | None,
    need_w: bool,
    known: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Differentiate `backward`.

    Args:
        unit_BD: As in `backward`, with the seven that follow.
        weight_CD: As in `backward`.
        inverse_norm_C: As in `backward`.
        label_B: As in `backward`.
        scale: As in `backward`.
        log_sum_B: As in `backward`.
        g_B: As in `backward`.
        g_cos_B: As in `backward`.
        dw_CD: Result of `backward`.
        radial_C: Result of `backward`.
        ux_BD: Gradient of `dx_BD`.
        uw_CD: Gradient of `dw_CD`; None if the weights lie outside of what is differentiated twice.
        need_w: Whether Dw is wanted.
        known: The mean but for a rounding, and T of the true identities, if they are known: this saves a sweep.

    Returns:
        Dx_BD, Dw_CD, Dg_B and Dg_cos_B in float32: the gradients of the embeddings, of the weights as given (empty if
        not wanted), of `g_B` and of `g_cos_B`. If `known` is given, R in Dx and Dw is about its mean, rounding and all;
        Dg is free of the rounding.
    """
    (B, D), dtype = unit_BD.shape, unit_BD.dtype
    if not B:
        Dx_BD, Dw_CD, Dg_B, Dg_cos_B = empty_float32(unit_BD, (B, D), weight_CD.shape if need_w else (0,), (B,), (B,))
        return Dx_BD, Dw_CD.zero_(), Dg_B, Dg_cos_B
    unit_BD, weight_CD, inverse_norm_C, label_B, log_sum_B, dw_CD, radial_C, uw_CD = all_contiguous(
        unit_BD, weight_CD, inverse_norm_C, label_B, log_sum_B, dw_CD, radial_C, uw_CD
    )
    bound = bound_tangents(dtype, ux_BD, uw_CD, inverse_norm_C)
    ux_BD = (ux_BD if bound is None else ux_BD / bound).to(dtype).contiguous()
    u_CD = _tangent(uw_CD, weight_CD, inverse_norm_C, bound, dtype)
    operands = unit_BD, ux_BD, weight_CD.to(dtype), u_CD, inverse_norm_C, label_B, log_sum_B
    if known is None:
        mean_B, true_B = _average_tangents(operands, scale)
    else:
        mean_B, true_B = known if bound is None else (one_B / bound for one_B in known)
    gradients = scale * g_B, g_cos_B, mean_B, bound
    Dx_BD, left_B = _launch_dx(operands, scale, *gradients, known is not None)
    if not need_w:
        (Dw_CD,) = empty_float32(unit_BD, (0,))
    else:
        Dw_CD = _launch_dw(operands, scale, *gradients)
        if inverse_norm_C is not None and uw_CD is not None:
            launch_on_rows(
                project_second_gradient_kernel, Dw_CD, dw_CD, radial_C, weight_CD, uw_CD, inverse_norm_C, like=weight_CD
            )
        elif inverse_norm_C is not None:
            launch_on_rows(project_gradient_kernel, Dw_CD, None, weight_CD, inverse_norm_C, like=weight_CD)
    if left_B is not None:
        mean_B = mean_B + left_B
    if bound is not None:
        mean_B, true_B = mean_B * bound, true_B * bound
    return Dx_BD, Dw_CD, scale * mean_B, true_B


def _average_tangents(operands, scale):
    """(mean_B, T of the true identities)."""
    unit_BD, _, weight_CD, *_ = operands
    (B, D), C = unit_BD.shape, len(weight_CD)
    tile = choose_tile("mean", unit_BD, weight_CD)
    blocks = ceil_div(B, tile.rows)
    S, share = divide_identities(C, tile, blocks, unit_BD.device)
    (partial_3SB,) = empty_float32(unit_BD, (3, S, B))
    launch(
        average_tangents_kernel,
        (blocks, S),
        *partial_3SB,
        *operands,
        B,
        C,
        scale * LOG2E.value,
        share,
        D,
        tile.rows,
        tile.classes,
        tile.depth,
        precision(unit_BD.dtype),
        **tile.options,
    )
    weighted_B, total_B, true_B = partial_3SB.sum(1)
    return weighted_B / total_B.clamp_min(torch.finfo(torch.float32).tiny), true_B


def _launch_dx(operands, scale, g_B, g_cos_B, mean_B, bound, is_rounded):
    """(Dx_BD, the sums of P (T - mean) or None). Only a mean that `is_rounded` leaves any."""
    unit_BD, _, weight_CD, _, inverse_norm_C, *_ = operands
    (B, D), C = unit_BD.shape, len(weight_CD)
    tile = choose_tile("rows twice", unit_BD, weight_CD)
    blocks, slabs = ceil_div(B, tile.rows), ceil_div(D, tile.slab)
    S, share = divide_identities(C, tile, blocks * slabs, unit_BD.device)
    (Dx_SBD,) = empty_float32(unit_BD, (S, B, D))
    left_SB = empty_float32(unit_BD, (S, B))[0] if is_rounded else None
    scaled = scale_for_fp16(unit_BD.dtype, g_B, g_cos_B, inverse_norm_C, bound, 2 * scale)
    launch(
        compute_second_dx_kernel,
        (blocks, S, slabs),
        Dx_SBD,
        left_SB,
        *operands,
        mean_B,
        *scaled,
        B,
        C,
        scale,
        scale * LOG2E.value,
        share,
        D,
        tile.rows,
        tile.classes,
        tile.depth,
        tile.slab,
        precision(unit_BD.dtype),
        **tile.options,
    )
    return Dx_SBD.sum(0), None if left_SB is None else left_SB.sum(0)


def _launch_dw(operands, scale, g_B, g_cos_B, mean_B, bound):
    unit_BD, _, weight_CD, *_ = operands
    (B, D), C = unit_BD.shape, len(weight_CD)
    tile = choose_tile("classes twice", unit_BD, weight_CD)
    (Dw_CD,) = empty_float32(unit_BD, (C, D))
    scaled = scale_for_fp16(unit_BD.dtype, g_B, g_cos_B, None, bound, 2 * scale)
    launch(
        compute_second_dw_kernel,
        (ceil_div(C, tile.classes), ceil_div(D, tile.slab)),
        Dw_CD,
        *operands,
        mean_B,
        *scaled,
        B,
        C,
        scale,
        scale * LOG2E.value,
        D,
        tile.rows,
        tile.classes,
        tile.depth,
        tile.slab,
        precision(unit_BD.dtype),
        **tile.options,
    )
    return Dw_CD


def bound_tangents(
    dtype: torch.dtype, ux_BD: Tensor, uw_CD: Tensor | None, inverse_norm_C: Tensor | None
) -> Tensor | None:
    """Bound |T|, as a tensor (). Tangents in float16 are divided by it, to stay in the range that float16 represents
    exactly; None for other dtypes."""
    if dtype != torch.float16:
        return None
    bound = torch.linalg.vector_norm(ux_BD, dim=1, dtype=torch.float32).amax()
    if uw_CD is not None:
        norm_C = torch.linalg.vector_norm(uw_CD, dim=1, dtype=torch.float32)
        bound = bound + (norm_C if inverse_norm_C is None else norm_C * inverse_norm_C).amax()
    return bound.clamp_min(torch.finfo(torch.float32).tiny)


def _tangent(uw_CD, weight_CD, inverse_norm_C, bound, dtype):
    """u / r in `dtype`, divided by the bound; None if there is no tangent of the weights."""
    if uw_CD is None:
        return None
    if inverse_norm_C is None:
        return (uw_CD if bound is None else uw_CD / bound).to(dtype)
    u_CD = torch.empty_like(weight_CD, dtype=dtype)
    launch_on_rows(project_tangent_kernel, u_CD, uw_CD, weight_CD, inverse_norm_C, bound, like=weight_CD)
    return u_CD
