"""cos_lse double backward in Triton: what `backward`'s inputs get from the gradients ux of dx and uw of dw.

    T = ux . w + x . u     mean[b] = sum_c P T     R = scale^2 g P (T - mean), 0 at c = label     M as in backward
    Dx = R w + M u         Dw = R^T x + M^T ux     Dg = scale * mean     Dg_cos[b] = T[b, label]

u is the tangent that uw makes at the unit rows w. One pass makes `mean`, then one each Dx and Dw, as in backward.
Shape suffixes: B = batch, C = identities, D = embedding, S = shares of the identities.
"""

import torch
import triton
import triton.language as tl

from ..launching import on_device
from .normalisation import bend_kernel, project_kernel, tangent_kernel, whole_rows
from .tiles import (
    LOG2E,
    choose,
    contiguous,
    floats,
    lift,
    load_label,
    load_tile,
    precision,
    shares,
    tile_at,
)


@triton.jit
def cosines(
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
def mean_kernel(
    weighted_ptr,
    total_ptr,
    true_ptr,
    x_ptr,
    ux_ptr,
    w_ptr,
    u_ptr,
    r_ptr,
    label_ptr,
    log_sum_ptr,
    B,
    C,
    scale_log2e,
    share,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    CLASSES: tl.constexpr,
    DEPTH: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Sums of P T and of P over share `program_id(1)` of the identities for a block of rows, and T of the true ones.

    P sums up to one but for what log_sum was rounded by, and T - mean would show that, times scale squared.
    """
    dtype: tl.constexpr = x_ptr.dtype.element_ty
    first, split = tl.program_id(0) * ROWS, tl.program_id(1)
    row, class_ = tl.arange(0, ROWS), tl.arange(0, CLASSES)
    b = first + row
    label = load_label(label_ptr, b, B, C)
    log2_sum = tl.load(log_sum_ptr + b, mask=b < B, other=0.0)[:, None] * LOG2E
    k = tl.arange(0, DEPTH)
    x_at, ux_at = tile_at(x_ptr, first, row, B, k, D), tile_at(ux_ptr, first, row, B, k, D)
    weighted = tl.zeros((ROWS,), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    true = tl.zeros((ROWS,), tl.float32)
    last = tl.minimum((split + 1) * share, C)
    for start in tl.range(split * share, last, CLASSES, disable_licm=True):
        c = start + class_
        w_at = tile_at(w_ptr, start, class_, last, k, D)
        u_at = tile_at(u_ptr, start, class_, last, k, D) if u_ptr is not None else None
        z, t = cosines(x_at, ux_at, w_at, u_at, ROWS, CLASSES, D, DEPTH, dtype, PRECISION)
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
    """(R, M) of a tile, of z in units of log 2 and of T; the others are shaped to broadcast against the tile."""
    m = g * tl.exp2(z - log2_sum)
    return tl.where(is_true, 0.0, scale * m * (t - mean)), tl.where(is_true, g_cos, m)


@triton.jit
def rows_kernel(
    out_ptr,
    x_ptr,
    ux_ptr,
    w_ptr,
    u_ptr,
    r_ptr,
    label_ptr,
    log_sum_ptr,
    mean_ptr,
    g_ptr,
    g_cos_ptr,
    unlift_ptr,
    B,
    C,
    scale,
    scale_log2e,
    share,
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
    log2_sum = tl.load(log_sum_ptr + b, mask=inside, other=0.0)[:, None] * LOG2E
    mean = tl.load(mean_ptr + b, mask=inside, other=0.0)[:, None]
    g = tl.load(g_ptr + b, mask=inside, other=0.0)[:, None]
    g_cos = tl.load(g_cos_ptr + b, mask=inside, other=0.0)[:, None]
    x_at, ux_at = tile_at(x_ptr, first, row, B, k, D), tile_at(ux_ptr, first, row, B, k, D)
    last = tl.minimum((split + 1) * share, C)
    out = tl.zeros((ROWS, SLAB), tl.float32)
    for start in tl.range(split * share, last, CLASSES, disable_licm=True):
        c = start + class_
        w_at = tile_at(w_ptr, start, class_, last, k, D)
        u_at = tile_at(u_ptr, start, class_, last, k, D) if u_ptr is not None else None
        z, t = cosines(x_at, ux_at, w_at, u_at, ROWS, CLASSES, D, DEPTH, dtype, PRECISION)
        r = tl.full((1, CLASSES), 1.0, tl.float32)
        if r_ptr is not None:
            r = tl.load(r_ptr + tl.minimum(c, last - 1))[None, :]
        is_true = c[None, :] == label[:, None]
        curved, m = curvatures(z * (r * scale_log2e), t * r, log2_sum, mean, is_true, g, g_cos, scale)
        present = (c < last)[None, :]
        curved = tl.where(present, curved * r, 0.0).to(dtype)
        w = load_tile(tile_at(w_ptr, start, class_, last, column, D), column, D, EVEN, dtype)
        out = tl.dot(curved, w, out, input_precision=PRECISION)
        if u_ptr is not None:
            m = tl.where(present, m * r, 0.0).to(dtype)
            u = load_tile(tile_at(u_ptr, start, class_, last, column, D), column, D, EVEN, dtype)
            out = tl.dot(m, u, out, input_precision=PRECISION)
    if unlift_ptr is not None:
        out *= tl.load(unlift_ptr)
    at = out_ptr + tl.cast(split * B + first, tl.int64) * D + (row[:, None] * D + column[None, :])
    tl.store(at, out, mask=inside[:, None] & (column < D)[None, :])


@triton.jit
def classes_kernel(
    out_ptr,
    x_ptr,
    ux_ptr,
    w_ptr,
    u_ptr,
    r_ptr,
    label_ptr,
    log_sum_ptr,
    mean_ptr,
    g_ptr,
    g_cos_ptr,
    unlift_ptr,
    B,
    C,
    scale,
    scale_log2e,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    CLASSES: tl.constexpr,
    DEPTH: tl.constexpr,
    SLAB: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Dw at unit rows w of a block of identities and a slab of columns."""
    EVEN: tl.constexpr = D % SLAB == 0
    dtype: tl.constexpr = x_ptr.dtype.element_ty
    first = tl.program_id(0) * CLASSES
    row, class_, k = tl.arange(0, ROWS), tl.arange(0, CLASSES), tl.arange(0, DEPTH)
    column = tl.program_id(1) * SLAB + tl.arange(0, SLAB)
    c = first + class_
    r = tl.full((CLASSES, 1), 1.0, tl.float32)
    if r_ptr is not None:
        r = tl.load(r_ptr + c, mask=c < C, other=0.0)[:, None]
    w_at = tile_at(w_ptr, first, class_, C, k, D)
    u_at = tile_at(u_ptr, first, class_, C, k, D) if u_ptr is not None else None
    out = tl.zeros((CLASSES, SLAB), tl.float32)
    for start in tl.range(0, B, ROWS, disable_licm=True):
        b = start + row
        near = tl.minimum(b, B - 1)
        x_at, ux_at = tile_at(x_ptr, start, row, B, k, D), tile_at(ux_ptr, start, row, B, k, D)
        z, t = cosines(w_at, u_at, x_at, ux_at, CLASSES, ROWS, D, DEPTH, dtype, PRECISION)
        is_true = c[:, None] == tl.load(label_ptr + near)[None, :]
        log2_sum = tl.load(log_sum_ptr + near)[None, :] * LOG2E
        mean = tl.load(mean_ptr + near)[None, :]
        g = tl.load(g_ptr + b, mask=b < B, other=0.0)[None, :]
        g_cos = tl.load(g_cos_ptr + b, mask=b < B, other=0.0)[None, :]
        curved, m = curvatures(z * (r * scale_log2e), t * r, log2_sum, mean, is_true, g, g_cos, scale)
        x = load_tile(tile_at(x_ptr, start, row, B, column, D), column, D, EVEN, dtype)
        out = tl.dot(curved.to(dtype), x, out, input_precision=PRECISION)
        ux = load_tile(tile_at(ux_ptr, start, row, B, column, D), column, D, EVEN, dtype)
        out = tl.dot(m.to(dtype), ux, out, input_precision=PRECISION)
    if unlift_ptr is not None:
        out *= tl.load(unlift_ptr)
    at = out_ptr + tl.cast(first, tl.int64) * D + (class_[:, None] * D + column[None, :])
    tl.store(at, out, mask=(c < C)[:, None] & (column < D)[None, :])


def double_backward(
    unit_BD, weight_CD, inverse_norm_C, label_B, scale, log_sum_B, g_B, g_cos_B, dw_CD, radial_C, ux_BD, uw_CD, need_w
):
    """(Dx_BD, Dw_CD, Dg_B, Dg_cos_B), float32: what `backward`'s inputs get from `ux_BD` and `uw_CD`.

    `uw_CD` is None where weights lie outside of what is differentiated twice; Dw is empty where it is not needed.
    """
    (B, D), dtype = unit_BD.shape, unit_BD.dtype
    if not B:
        Dx_BD, Dw_CD, Dg_B, Dg_cos_B = floats(unit_BD, (B, D), weight_CD.shape if need_w else (0,), (B,), (B,))
        return Dx_BD, Dw_CD.zero_(), Dg_B, Dg_cos_B
    unit_BD, weight_CD, inverse_norm_C, label_B, log_sum_B, dw_CD, radial_C, uw_CD = contiguous(
        unit_BD, weight_CD, inverse_norm_C, label_B, log_sum_B, dw_CD, radial_C, uw_CD
    )
    reach = reach_of(dtype, ux_BD, uw_CD, inverse_norm_C)
    ux_BD = (ux_BD if reach is None else ux_BD / reach).to(dtype).contiguous()
    with on_device(unit_BD):
        u_CD = _tangent(uw_CD, weight_CD, inverse_norm_C, reach, dtype)
        operands = unit_BD, ux_BD, weight_CD.to(dtype), u_CD, inverse_norm_C, label_B, log_sum_B
        mean_B, true_B = _mean(operands, scale)
        gradients = scale * g_B, g_cos_B, mean_B, reach
        Dx_BD = _to_rows(operands, scale, *gradients)
        if not need_w:
            (Dw_CD,) = floats(unit_BD, (0,))
        else:
            Dw_CD = _to_classes(operands, scale, *gradients)
            if inverse_norm_C is not None and uw_CD is not None:
                whole_rows(bend_kernel, Dw_CD, dw_CD, radial_C, weight_CD, uw_CD, inverse_norm_C, like=weight_CD)
            elif inverse_norm_C is not None:
                whole_rows(project_kernel, Dw_CD, None, weight_CD, inverse_norm_C, like=weight_CD)
    if reach is not None:
        mean_B, true_B = mean_B * reach, true_B * reach
    return Dx_BD, Dw_CD, scale * mean_B, true_B


def _mean(operands, scale):
    """(mean_B, T of the true identities)."""
    unit_BD, _, weight_CD, *_ = operands
    (B, D), C = unit_BD.shape, len(weight_CD)
    tile = choose("mean", unit_BD, weight_CD)
    blocks = triton.cdiv(B, tile.rows)
    S, share = shares(C, tile, blocks, unit_BD.device)
    (partial_3SB,) = floats(unit_BD, (3, S, B))
    mean_kernel[blocks, S](
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


def _to_rows(operands, scale, g_B, g_cos_B, mean_B, reach):
    unit_BD, _, weight_CD, _, inverse_norm_C, *_ = operands
    (B, D), C = unit_BD.shape, len(weight_CD)
    tile = choose("rows twice", unit_BD, weight_CD)
    blocks, slabs = triton.cdiv(B, tile.rows), triton.cdiv(D, tile.slab)
    S, share = shares(C, tile, blocks * slabs, unit_BD.device)
    (Dx_SBD,) = floats(unit_BD, (S, B, D))
    lifted = lift(unit_BD.dtype, g_B, g_cos_B, inverse_norm_C, reach, 2 * scale)
    rows_kernel[blocks, S, slabs](
        Dx_SBD,
        *operands,
        mean_B,
        *lifted,
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
    return Dx_SBD.sum(0)


def _to_classes(operands, scale, g_B, g_cos_B, mean_B, reach):
    unit_BD, _, weight_CD, *_ = operands
    (B, D), C = unit_BD.shape, len(weight_CD)
    tile = choose("classes twice", unit_BD, weight_CD)
    (Dw_CD,) = floats(unit_BD, (C, D))
    lifted = lift(unit_BD.dtype, g_B, g_cos_B, None, reach, 2 * scale)
    classes_kernel[triton.cdiv(C, tile.classes), triton.cdiv(D, tile.slab)](
        Dw_CD,
        *operands,
        mean_B,
        *lifted,
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


def reach_of(dtype, ux_BD, uw_CD, inverse_norm_C):
    """A bound of |T|, by which float16 tangents are divided to stay where float16 is exact; None for other dtypes."""
    if dtype != torch.float16:
        return None
    reach = torch.linalg.vector_norm(ux_BD, dim=1, dtype=torch.float32).amax()
    if uw_CD is not None:
        norm_C = torch.linalg.vector_norm(uw_CD, dim=1, dtype=torch.float32)
        reach = reach + (norm_C if inverse_norm_C is None else norm_C * inverse_norm_C).amax()
    return reach.clamp_min(torch.finfo(torch.float32).tiny)


def _tangent(uw_CD, weight_CD, inverse_norm_C, reach, dtype):
    """u over r in `dtype`, or None."""
    if uw_CD is None:
        return None
    if inverse_norm_C is None:
        return (uw_CD if reach is None else uw_CD / reach).to(dtype)
    u_CD = torch.empty_like(weight_CD, dtype=dtype)
    whole_rows(tangent_kernel, u_CD, uw_CD, weight_CD, inverse_norm_C, reach, like=weight_CD)
    return u_CD
