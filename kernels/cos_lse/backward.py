"""cos_lse backward in Triton: dx = M w and dw = M^T x, the logits made once more a tile at a time, or kept ones read.

    M[b, c] = scale * g[b] * exp(z[b, c] - log_sum[b])     but g_cos[b] at c = label[b]

For dx a block of rows stays while identities pass by, for dw a block of identities while rows pass by: each gradient
gathers in registers, no two programs add to the same element, and so the result is the same to the bit every time.
Shape suffixes: B = batch, C = identities, D = embedding, S = shares of the identities.
"""

import triton
import triton.language as tl

from ..launching import on_device
from .normalisation import project_kernel, whole_rows
from .tiles import (
    LOG2E,
    choose,
    contiguous,
    floats,
    kept_at,
    lift,
    load_label,
    load_tile,
    precision,
    products,
    shares,
    tile_at,
)


@triton.jit
def gradient(z, log2_sum, is_true, g, g_cos):
    """M of a tile of z, both in units of log 2; the last three are shaped to broadcast against the tile."""
    return tl.where(is_true, g_cos, g * tl.exp2(z - log2_sum))


@triton.jit
def kept_gradient(e, log2_sum, is_true, g, g_cos):
    """Likewise of exp(z). In two factors: exp(-log_sum) alone would underflow where logits are high."""
    half = tl.exp2(-0.5 * log2_sum)
    return tl.where(is_true, g_cos, (g * half) * (e * half))


@triton.jit
def rows_kernel(
    dx_ptr,
    x_ptr,
    w_ptr,
    r_ptr,
    label_ptr,
    log_sum_ptr,
    kept_ptr,
    g_ptr,
    g_cos_ptr,
    unlift_ptr,
    B,
    C,
    kept_stride,
    scale_log2e,
    share,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    CLASSES: tl.constexpr,
    DEPTH: tl.constexpr,
    SLAB: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """dx of a block of rows and a slab of columns, summed over share `program_id(1)` of the identities."""
    EVEN: tl.constexpr = D % SLAB == 0
    WHOLE: tl.constexpr = DEPTH >= D and SLAB >= D  # one tile of w serves both products
    dtype: tl.constexpr = x_ptr.dtype.element_ty
    first, split = tl.program_id(0) * ROWS, tl.program_id(1)
    row, class_ = tl.arange(0, ROWS), tl.arange(0, CLASSES)
    column = tl.program_id(2) * SLAB + tl.arange(0, SLAB)
    b = first + row
    inside = b < B
    label = load_label(label_ptr, b, B, C)
    log2_sum = tl.load(log_sum_ptr + b, mask=inside, other=0.0)[:, None] * LOG2E
    g = tl.load(g_ptr + b, mask=inside, other=0.0)[:, None]
    g_cos = tl.load(g_cos_ptr + b, mask=inside, other=0.0)[:, None]
    k = tl.arange(0, DEPTH)
    x_at = tile_at(x_ptr, first, row, B, k, D)
    if WHOLE:
        x = load_tile(x_at, k, D, EVEN, dtype)
    last = tl.minimum((split + 1) * share, C)
    dx = tl.zeros((ROWS, SLAB), tl.float32)
    for start in tl.range(split * share, last, CLASSES, disable_licm=True):
        c = start + class_
        w = load_tile(tile_at(w_ptr, start, class_, last, column, D), column, D, EVEN, dtype)
        r = tl.full((CLASSES,), 1.0, tl.float32)
        if r_ptr is not None:
            r = tl.load(r_ptr + tl.minimum(c, last - 1))
        is_true = c[None, :] == label[:, None]
        if kept_ptr is None:
            z = tl.zeros((ROWS, CLASSES), tl.float32)
            if WHOLE:
                z = tl.dot(x, tl.trans(w), z, input_precision=PRECISION)
            else:
                z = products(z, x_at, tile_at(w_ptr, start, class_, last, k, D), D, DEPTH, dtype, PRECISION)
            m = gradient(z * (r * scale_log2e)[None, :], log2_sum, is_true, g, g_cos)
        else:
            at = kept_at(kept_ptr, first, row[:, None], start, class_[None, :], kept_stride)
            e = tl.load(at, mask=inside[:, None], other=0.0).to(tl.float32)
            m = kept_gradient(e, log2_sum, is_true, g, g_cos)
        m = tl.where((c < last)[None, :], m * r[None, :], 0.0)
        dx = tl.dot(m.to(dtype), w, dx, input_precision=PRECISION)
    if unlift_ptr is not None:
        dx *= tl.load(unlift_ptr)
    at = dx_ptr + (split * B + first).to(tl.int64) * D + (row[:, None] * D + column[None, :])
    tl.store(at, dx, mask=inside[:, None] & (column < D)[None, :])


@triton.jit
def classes_kernel(
    dw_ptr,
    x_ptr,
    w_ptr,
    r_ptr,
    label_ptr,
    log_sum_ptr,
    kept_ptr,
    g_ptr,
    g_cos_ptr,
    unlift_ptr,
    B,
    C,
    kept_stride,
    scale_log2e,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    CLASSES: tl.constexpr,
    DEPTH: tl.constexpr,
    SLAB: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Gradient at unit rows w of a block of identities and a slab of columns."""
    EVEN: tl.constexpr = D % SLAB == 0
    WHOLE: tl.constexpr = DEPTH >= D and SLAB >= D  # one tile of x serves both products
    dtype: tl.constexpr = x_ptr.dtype.element_ty
    first = tl.program_id(0) * CLASSES
    row, class_ = tl.arange(0, ROWS), tl.arange(0, CLASSES)
    column = tl.program_id(1) * SLAB + tl.arange(0, SLAB)
    c = first + class_
    inside = c < C
    r = tl.full((CLASSES,), 1.0, tl.float32)
    if r_ptr is not None:
        r = tl.load(r_ptr + c, mask=inside, other=0.0)
    r *= scale_log2e
    k = tl.arange(0, DEPTH)
    w_at = tile_at(w_ptr, first, class_, C, k, D)
    if WHOLE:
        w = load_tile(w_at, k, D, EVEN, dtype)
    dw = tl.zeros((CLASSES, SLAB), tl.float32)
    for start in tl.range(0, B, ROWS, disable_licm=True):
        b = start + row
        x = load_tile(tile_at(x_ptr, start, row, B, column, D), column, D, EVEN, dtype)
        near = tl.minimum(b, B - 1)
        is_true = c[:, None] == tl.load(label_ptr + near)[None, :]
        log2_sum = tl.load(log_sum_ptr + near)[None, :] * LOG2E
        g = tl.load(g_ptr + b, mask=b < B, other=0.0)[None, :]
        g_cos = tl.load(g_cos_ptr + b, mask=b < B, other=0.0)[None, :]
        if kept_ptr is None:
            z = tl.zeros((CLASSES, ROWS), tl.float32)
            if WHOLE:
                z = tl.dot(w, tl.trans(x), z, input_precision=PRECISION)
            else:
                z = products(z, w_at, tile_at(x_ptr, start, row, B, k, D), D, DEPTH, dtype, PRECISION)
            m = gradient(z * r[:, None], log2_sum, is_true, g, g_cos)
        else:
            present = tl.minimum(row, B - 1 - start)[None, :]
            at = kept_at(kept_ptr, start, present, first, class_[:, None], kept_stride)
            e = tl.load(at).to(tl.float32)
            m = kept_gradient(e, log2_sum, is_true, g, g_cos)
        dw = tl.dot(m.to(dtype), x, dw, input_precision=PRECISION)
    if unlift_ptr is not None:
        dw *= tl.load(unlift_ptr)
    at = dw_ptr + tl.cast(first, tl.int64) * D + (class_[:, None] * D + column[None, :])
    tl.store(at, dw, mask=inside[:, None] & (column < D)[None, :])


def backward(unit_BD, weight_CD, inverse_norm_C, label_B, scale, log_sum_B, kept_BC, g_B, g_cos_B, need_x, need_w):
    """(dx_BD, dw_CD, radial_C), float32: gradients with respect to unit rows x and to weights as given, and w . dw.

    What is not needed is empty. Weights given with inverse norms lose the part of their gradient along themselves.
    """
    operands = contiguous(unit_BD, weight_CD, inverse_norm_C, label_B, log_sum_B, kept_BC if kept_BC.numel() else None)
    with on_device(unit_BD):
        dx_BD = _to_rows(operands, scale, scale * g_B, g_cos_B) if need_x else floats(unit_BD, (0,))[0]
        if not need_w:
            return dx_BD, *floats(unit_BD, (0,), (0,))
        return dx_BD, *_to_classes(operands, scale, scale * g_B, g_cos_B)


def _to_rows(operands, scale, g_B, g_cos_B):
    unit_BD, weight_CD, inverse_norm_C, *_, kept_BC = operands
    (B, D), C, width = unit_BD.shape, len(weight_CD), 0 if kept_BC is None else kept_BC.shape[1]
    if not B:
        return floats(unit_BD, (B, D))[0]
    tile = choose("rows", unit_BD, weight_CD)
    blocks, slabs = triton.cdiv(B, tile.rows), triton.cdiv(D, tile.slab)
    S, share = shares(C, tile, blocks * slabs, unit_BD.device)
    (dx_SBD,) = floats(unit_BD, (S, B, D))
    lifted = lift(unit_BD.dtype, g_B, g_cos_B, inverse_norm_C)
    rows_kernel[blocks, S, slabs](
        dx_SBD,
        *operands,
        *lifted,
        B,
        C,
        width,
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
    return dx_SBD.sum(0)


def _to_classes(operands, scale, g_B, g_cos_B):
    unit_BD, weight_CD, inverse_norm_C, *_, kept_BC = operands
    (B, D), C, width = unit_BD.shape, len(weight_CD), 0 if kept_BC is None else kept_BC.shape[1]
    dw_CD, radial_C = floats(unit_BD, (C, D), (C,))
    if not B:
        return dw_CD.zero_(), radial_C.zero_()
    tile = choose("classes", unit_BD, weight_CD)
    lifted = lift(unit_BD.dtype, g_B, g_cos_B)
    classes_kernel[triton.cdiv(C, tile.classes), triton.cdiv(D, tile.slab)](
        dw_CD,
        *operands,
        *lifted,
        B,
        C,
        width,
        scale * LOG2E.value,
        D,
        tile.rows,
        tile.classes,
        tile.depth,
        tile.slab,
        precision(unit_BD.dtype),
        **tile.options,
    )
    whole_rows(project_kernel, dw_CD, radial_C, weight_CD, inverse_norm_C, like=weight_CD)
    return dw_CD, radial_C
