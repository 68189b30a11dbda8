"""cos_lse backward in Triton: dx = M w and dw = M^T x, with a tile of logits computed again or read if they were kept.

    M[b, c] = scale * g[b] * exp(z[b, c] - log_sum[b])     but g_cos[b] at c = label[b]

For dx a block of rows stays while identities pass by; for dw a block of identities stays while rows pass by. Each
gradient is summed in registers, and no two programs add to the same element, so results repeat to the bit.
Shape suffixes: B = batch, C = identities, D = embedding, S = shares of the identities.
"""

import triton
import triton.language as tl
from torch import Tensor

from ..launching import ceil_div, launch
from .normalisation import launch_on_rows, project_gradient_kernel
from .tiles import (
    LOG2E,
    all_contiguous,
    choose_tile,
    divide_identities,
    dot_products,
    empty_float32,
    load_column,
    load_label,
    load_tile,
    logit_pointers,
    operand_pointers,
    precision,
    scale_for_fp16,
)


@triton.jit
def logit_gradient(z, log2_sum, is_true, g, g_cos):
    """M of a tile of z. z and log2_sum are in units of log 2; the other arguments broadcast against the tile."""
    return tl.where(is_true, g_cos, g * tl.exp2(z - log2_sum))


@triton.jit
def logit_gradient_of_kept(e, log2_sum, is_true, g, g_cos):
    """M of a tile of exp(z). In two factors: exp(-log_sum) alone would underflow for high logits."""
    half = tl.exp2(-0.5 * log2_sum)
    return tl.where(is_true, g_cos, (g * half) * (e * half))


@triton.jit
def compute_dx_kernel(
    dx_ptr,  # (S, B, D)
    x_ptr,  # unit rows, (B, D)
    w_ptr,  # weights, (C, D)
    r_ptr,  # inverse norms, (C,), or None: weights are unit rows
    label_ptr,  # (B,)
    log_sum_ptr,  # (B,)
    kept_ptr,  # exp(z), (B, kept_stride), or None
    g_ptr,  # (B,)
    g_cos_ptr,  # (B,)
    unscale_ptr,  # (), or None: nothing is scaled
    B,
    C,
    kept_stride,
    scale_log2e,  # scale / log(2)
    share,  # identities of one program
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
    log2_sum = load_column(log_sum_ptr, b, B) * LOG2E
    g = load_column(g_ptr, b, B)
    g_cos = load_column(g_cos_ptr, b, B)
    k = tl.arange(0, DEPTH)
    x_at = operand_pointers(x_ptr, first, row, B, k, D)
    x = load_tile(x_at, k, D, EVEN, dtype) if WHOLE else None
    last = tl.minimum((split + 1) * share, C)
    dx = tl.zeros((ROWS, SLAB), tl.float32)
    for start in tl.range(split * share, last, CLASSES, disable_licm=True):  # pyright: ignore[reportGeneralTypeIssues]  # typed as not iterable
        c = start + class_
        w = load_tile(operand_pointers(w_ptr, start, class_, last, column, D), column, D, EVEN, dtype)
        r = tl.full((CLASSES,), 1.0, tl.float32)
        if r_ptr is not None:
            r = tl.load(r_ptr + tl.minimum(c, last - 1))
        is_true = c[None, :] == label[:, None]
        if kept_ptr is None:
            z = tl.zeros((ROWS, CLASSES), tl.float32)
            if WHOLE:
                z = tl.dot(x, tl.trans(w), z, input_precision=PRECISION)
            else:
                w_at = operand_pointers(w_ptr, start, class_, last, k, D)
                z = dot_products(z, x_at, w_at, D, DEPTH, dtype, PRECISION)
            m = logit_gradient(z * (r * scale_log2e)[None, :], log2_sum, is_true, g, g_cos)
        else:
            at = logit_pointers(kept_ptr, first, row[:, None], start, class_[None, :], kept_stride)
            e = tl.load(at, mask=inside[:, None], other=0.0).to(tl.float32)
            m = logit_gradient_of_kept(e, log2_sum, is_true, g, g_cos)
        m = tl.where((c < last)[None, :], m * r[None, :], 0.0)
        dx = tl.dot(m.to(dtype), w, dx, input_precision=PRECISION)
    if unscale_ptr is not None:
        dx *= tl.load(unscale_ptr)
    at = dx_ptr + (split * B + first).to(tl.int64) * D + (row[:, None] * D + column[None, :])
    tl.store(at, dx, mask=inside[:, None] & (column < D)[None, :])


@triton.jit
def compute_dw_kernel(
    dw_ptr,  # (C, D)
    x_ptr,  # unit rows, (B, D)
    w_ptr,  # weights, (C, D)
    r_ptr,  # inverse norms, (C,), or None: weights are unit rows
    label_ptr,  # (B,)
    log_sum_ptr,  # (B,)
    kept_ptr,  # exp(z), (B, kept_stride), or None
    g_ptr,  # (B,)
    g_cos_ptr,  # (B,)
    unscale_ptr,  # (), or None: nothing is scaled
    B,
    C,
    kept_stride,
    scale_log2e,  # scale / log(2)
    D: tl.constexpr,
    ROWS: tl.constexpr,
    CLASSES: tl.constexpr,
    DEPTH: tl.constexpr,
    SLAB: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """dw of a block of identities and a slab of columns, with respect to unit rows."""
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
    w_at = operand_pointers(w_ptr, first, class_, C, k, D)
    w = load_tile(w_at, k, D, EVEN, dtype) if WHOLE else None
    dw = tl.zeros((CLASSES, SLAB), tl.float32)
    for start in tl.range(0, B, ROWS, disable_licm=True):  # pyright: ignore[reportGeneralTypeIssues]  # typed as not iterable
        b = start + row
        x = load_tile(operand_pointers(x_ptr, start, row, B, column, D), column, D, EVEN, dtype)
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
                z = dot_products(z, w_at, operand_pointers(x_ptr, start, row, B, k, D), D, DEPTH, dtype, PRECISION)
            m = logit_gradient(z * r[:, None], log2_sum, is_true, g, g_cos)
        else:
            present = tl.minimum(row, B - 1 - start)[None, :]
            at = logit_pointers(kept_ptr, start, present, first, class_[:, None], kept_stride)
            e = tl.load(at).to(tl.float32)
            m = logit_gradient_of_kept(e, log2_sum, is_true, g, g_cos)
        dw = tl.dot(m.to(dtype), x, dw, input_precision=PRECISION)
    if unscale_ptr is not None:
        dw *= tl.load(unscale_ptr)
    at = dw_ptr + tl.cast(first, tl.int64) * D + (class_[:, None] * D + column[None, :])
    tl.store(at, dw, mask=inside[:, None] & (column < D)[None, :])


def backward(
    unit_BD: Tensor,
    weight_CD: Tensor,
    inverse_norm_C: Tensor | None,
    label_B: Tensor,
    scale: float,
    log_sum_B: Tensor,
    kept_BC: Tensor,
    g_B: Tensor,
    g_cos_B: Tensor,
    need_x: bool,
    need_w: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the gradients of `cos_lse`.

    Args:
        unit_BD: As in `cos_lse`.
        weight_CD: As in `cos_lse`.
        inverse_norm_C: As in `cos_lse`.
        label_B: As in `cos_lse`.
        scale: As in `cos_lse`.
        log_sum_B: Result of forward.
        kept_BC: What forward kept; empty if nothing.
        g_B: Gradient of `log_sum_B`.
        g_cos_B: Gradient of the true cosines.
        need_x: Whether the gradient of the embeddings is wanted.
        need_w: Whether the gradient of the weights is wanted.

    Returns:
        dx_BD, dw_CD and radial_C in float32: the gradients of the unit rows x and of the weights as given, and w . dw.
        What is not wanted is empty. If inverse norms are given, dw has lost its part along the weights.
    """
    kept = kept_BC if kept_BC.numel() else None
    operands = all_contiguous(unit_BD, weight_CD, inverse_norm_C, label_B, log_sum_B, kept)
    dx_BD, dw_CD, radial_C = empty_float32(unit_BD, (0,), (0,), (0,))
    if need_x:
        dx_BD = _launch_dx(operands, scale, scale * g_B, g_cos_B)
    if need_w:
        dw_CD, radial_C = _launch_dw(operands, scale, scale * g_B, g_cos_B)
    return dx_BD, dw_CD, radial_C


def _launch_dx(operands, scale, g_B, g_cos_B):
    unit_BD, weight_CD, inverse_norm_C, *_, kept_BC = operands
    (B, D), C, width = unit_BD.shape, len(weight_CD), 0 if kept_BC is None else kept_BC.shape[1]
    if not B:
        return empty_float32(unit_BD, (B, D))[0]
    tile = choose_tile("rows", unit_BD, weight_CD)
    blocks, slabs = ceil_div(B, tile.rows), ceil_div(D, tile.slab)
    S, share = divide_identities(C, tile, blocks * slabs, unit_BD.device)
    (dx_SBD,) = empty_float32(unit_BD, (S, B, D))
    scaled = scale_for_fp16(unit_BD.dtype, g_B, g_cos_B, inverse_norm_C)
    launch(
        compute_dx_kernel,
        (blocks, S, slabs),
        dx_SBD,
        *operands,
        *scaled,
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


def _launch_dw(operands, scale, g_B, g_cos_B):
    unit_BD, weight_CD, inverse_norm_C, *_, kept_BC = operands
    (B, D), C, width = unit_BD.shape, len(weight_CD), 0 if kept_BC is None else kept_BC.shape[1]
    dw_CD, radial_C = empty_float32(unit_BD, (C, D), (C,))
    if not B:
        return dw_CD.zero_(), radial_C.zero_()
    tile = choose_tile("classes", unit_BD, weight_CD)
    scaled = scale_for_fp16(unit_BD.dtype, g_B, g_cos_B)
    launch(
        compute_dw_kernel,
        (ceil_div(C, tile.classes), ceil_div(D, tile.slab)),
        dw_CD,
        *operands,
        *scaled,
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
    launch_on_rows(project_gradient_kernel, dw_CD, radial_C, weight_CD, inverse_norm_C, like=weight_CD)
    return dw_CD, radial_C
