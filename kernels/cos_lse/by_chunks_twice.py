"""cos_lse double backward on a GPU a chunk of identities at a time: tiles in Triton, products of chunks in cuBLAS.

    T = ux . w + x . u     mean[b] = sum_c P T     R = scale^2 g P (T - mean), 0 at c = label     M as in by_chunks.py
    Dx += (R M) (w u)      Dw = (R M)^T (x ux), then projected and bent: see normalisation.py

u is the tangent that uw makes at the unit rows w. Each pair lies side by side: a product of twice the length sums both.
Shape suffixes: B = batch, C = identities, N = those of one chunk, D = embedding, S = tiles of a chunk.
"""

import torch
import triton
import triton.language as tl

from ..launching import on_device
from .by_chunks import add_product, chunk_size, chunks_of, product
from .double_backward import cosines, curvatures, reach_of
from .normalisation import bend_kernel, project_kernel, rows_at, whole_rows
from .tiles import LOG2E, choose, contiguous, floats, kept_at, lift, load_label, precision, tile_at


@triton.jit
def make_tangent_kernel(
    u_ptr, uw_ptr, w_ptr, r_ptr, unlift_ptr, N, PADDED, D: tl.constexpr, CLASSES: tl.constexpr, WIDTH: tl.constexpr
):
    """Tangents at the weights as tangents at their unit rows, r (uw - (w . uw) w), and rows of zeros from N on."""
    at, mask, _ = rows_at(PADDED, D, CLASSES, WIDTH)
    c = tl.program_id(0) * CLASSES + tl.arange(0, CLASSES)
    given = mask & (c < N)[:, None]
    u = tl.load(uw_ptr + at, mask=given, other=0.0).to(tl.float32)
    if r_ptr is not None:
        r = tl.load(r_ptr + c, mask=c < N, other=0.0)[:, None]
        w = tl.load(w_ptr + at, mask=given, other=0.0).to(tl.float32) * r
        u = r * (u - tl.sum(w * u, 1)[:, None] * w)
    if unlift_ptr is not None:
        u /= tl.load(unlift_ptr)
    tl.store(u_ptr + at, u.to(u_ptr.dtype.element_ty), mask=mask)


@triton.jit
def sum_tangents_kernel(
    weighted_ptr,
    total_ptr,
    true_ptr,
    x_ptr,
    ux_ptr,
    w_ptr,
    u_ptr,
    label_ptr,
    log_sum_ptr,
    B,
    N,
    scale_log2e,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    CLASSES: tl.constexpr,
    DEPTH: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Sums of P T and of P over a tile's identities, unit rows w, and T of the true ones; see mean_kernel."""
    dtype: tl.constexpr = x_ptr.dtype.element_ty
    first, start = tl.program_id(0) * ROWS, tl.program_id(1) * CLASSES
    row, class_, k = tl.arange(0, ROWS), tl.arange(0, CLASSES), tl.arange(0, DEPTH)
    w_at = tile_at(w_ptr, start, class_, N, k, D)
    u_at = tile_at(u_ptr, start, class_, N, k, D) if u_ptr is not None else None
    z, t = cosines(
        tile_at(x_ptr, first, row, B, k, D),
        tile_at(ux_ptr, first, row, B, k, D),
        w_at,
        u_at,
        ROWS,
        CLASSES,
        D,
        DEPTH,
        dtype,
        PRECISION,
    )
    b, c = first + row, start + class_
    is_true = c[None, :] == load_label(label_ptr, b, B, N)[:, None]
    log2_sum = tl.load(log_sum_ptr + b, mask=b < B, other=0.0)[:, None] * LOG2E
    p = tl.where((c < N)[None, :] & (is_true == 0), tl.exp2(z * scale_log2e - log2_sum), 0.0)
    at = tl.program_id(1) * B + b
    tl.store(weighted_ptr + at, tl.sum(p * t, 1), mask=b < B)
    tl.store(total_ptr + at, tl.sum(p, 1), mask=b < B)
    tl.store(true_ptr + at, tl.sum(tl.where(is_true, t, 0.0), 1), mask=b < B)


@triton.jit
def make_curvature_kernel(
    rm_ptr,
    x_ptr,
    ux_ptr,
    w_ptr,
    u_ptr,
    label_ptr,
    log_sum_ptr,
    mean_ptr,
    g_ptr,
    g_cos_ptr,
    B,
    N,
    PADDED,
    scale,
    scale_log2e,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    CLASSES: tl.constexpr,
    DEPTH: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """A tile of R, and of M beside it, of a chunk of unit rows w; both are 0 from N on."""
    dtype: tl.constexpr = x_ptr.dtype.element_ty
    first, start = tl.program_id(0) * ROWS, tl.program_id(1) * CLASSES
    row, class_, k = tl.arange(0, ROWS), tl.arange(0, CLASSES), tl.arange(0, DEPTH)
    w_at = tile_at(w_ptr, start, class_, N, k, D)
    u_at = tile_at(u_ptr, start, class_, N, k, D) if u_ptr is not None else None
    z, t = cosines(
        tile_at(x_ptr, first, row, B, k, D),
        tile_at(ux_ptr, first, row, B, k, D),
        w_at,
        u_at,
        ROWS,
        CLASSES,
        D,
        DEPTH,
        dtype,
        PRECISION,
    )
    b, c = first + row, start + class_
    inside = b < B
    is_true = c[None, :] == load_label(label_ptr, b, B, N)[:, None]
    log2_sum = tl.load(log_sum_ptr + b, mask=inside, other=0.0)[:, None] * LOG2E
    mean = tl.load(mean_ptr + b, mask=inside, other=0.0)[:, None]
    g = tl.load(g_ptr + b, mask=inside, other=0.0)[:, None]
    g_cos = tl.load(g_cos_ptr + b, mask=inside, other=0.0)[:, None]
    curved, m = curvatures(z * scale_log2e, t, log2_sum, mean, is_true, g, g_cos, scale)
    at = kept_at(rm_ptr, first, row[:, None], start, class_[None, :], 2 * PADDED)
    tl.store(at, tl.where((c < N)[None, :], curved, 0.0).to(dtype), mask=inside[:, None])
    tl.store(at + PADDED, tl.where((c < N)[None, :], m, 0.0).to(dtype), mask=inside[:, None])


def double_backward(
    unit_BD,
    weight_CD,
    inverse_norm_C,
    label_B,
    scale,
    log_sum_B,
    g_B,
    g_cos_B,
    dw_CD,
    radial_C,
    ux_BD,
    uw_CD,
    need_w,
    size=None,
):
    """(Dx_BD, Dw_CD, Dg_B, Dg_cos_B), float32: what `backward`'s inputs get from `ux_BD` and `uw_CD`.

    `uw_CD` is None where weights lie outside of what is differentiated twice; Dw is empty where it is not needed.
    """
    (B, D), C, dtype = unit_BD.shape, len(weight_CD), unit_BD.dtype
    Dx_BD, Dw_CD = floats(unit_BD, (B, D), (C, D) if need_w else (0,))
    if not B:
        return Dx_BD, Dw_CD.zero_(), *floats(unit_BD, (B,), (B,))
    operands = contiguous(unit_BD, weight_CD, inverse_norm_C, label_B)
    log_sum_B, dw_CD, radial_C, uw_CD = contiguous(log_sum_B, dw_CD, radial_C, uw_CD)
    reach = reach_of(dtype, ux_BD, uw_CD, inverse_norm_C)
    xu_B2D = torch.stack([operands[0], (ux_BD if reach is None else ux_BD / reach).to(dtype)], dim=1)
    pair = operands[0], xu_B2D[:, 1].contiguous()
    size = size or chunk_size(2 * B, C, unit_BD.element_size())
    rows_ND = None if uw_CD is None else unit_BD.new_empty(2 * size, D)
    with on_device(unit_BD):
        mean_B, true_B = _mean(pair, operands, scale, log_sum_B, uw_CD, reach, size, rows_ND)
        *gradients, unlift = lift(dtype, scale * g_B, g_cos_B, None, reach, 2 * scale)
        rm_BN = unit_BD.new_empty(2 * B * size)
        for chunk in chunks_of(*operands, size, rows_ND):
            N, first = len(chunk.weight_ND), chunk.at.start == 0
            u_ND = _tangent(uw_CD, chunk, reach, rows_ND)
            curved_B2N = _curvature(rm_BN, pair, chunk, u_ND, scale, log_sum_B, mean_B, *gradients)
            if u_ND is None:
                add_product(Dx_BD, curved_B2N[:, 0, : len(chunk.unit_ND)], chunk.unit_ND, first)
            else:
                add_product(Dx_BD, curved_B2N.flatten(1), rows_ND[: 2 * chunk.padded], first)
            if need_w:
                Dw_ND = product(curved_B2N.flatten(0, 1)[:, :N].T, xu_B2D.flatten(0, 1), Dw_CD[chunk.at])
                if unlift is not None:
                    Dw_ND *= unlift
                _bend(Dw_ND, chunk, dw_CD, radial_C, uw_CD)
    if reach is not None:
        mean_B, true_B, Dx_BD = mean_B * reach, true_B * reach, Dx_BD * unlift
    return Dx_BD, Dw_CD, scale * mean_B, true_B


def _mean(pair, operands, scale, log_sum_B, uw_CD, reach, size, rows_ND):
    """(mean_B, T of the true identities)."""
    B, D = pair[0].shape
    tile = choose("curvature", *pair)
    sum_3B = log_sum_B.new_zeros(3, B)
    for chunk in chunks_of(*operands, size, rows_ND):
        N, u_ND = len(chunk.weight_ND), _tangent(uw_CD, chunk, reach, rows_ND)
        S = triton.cdiv(N, tile.classes)
        (partial_3SB,) = floats(log_sum_B, (3, S, B))
        sum_tangents_kernel[triton.cdiv(B, tile.rows), S](
            *partial_3SB,
            *pair,
            chunk.unit_ND,
            u_ND,
            chunk.label_B,
            log_sum_B,
            B,
            N,
            scale * LOG2E.value,
            D,
            tile.rows,
            tile.classes,
            tile.depth,
            precision(pair[0].dtype),
            **tile.options,
        )
        sum_3B += partial_3SB.sum(1)
    weighted_B, total_B, true_B = sum_3B
    return weighted_B / total_B.clamp_min(torch.finfo(torch.float32).tiny), true_B


def _tangent(uw_CD, chunk, reach, rows_ND):
    """The tangents at a chunk's unit rows, in memory right behind these, or None."""
    if uw_CD is None:
        return None
    u_ND = rows_ND[chunk.padded : 2 * chunk.padded]
    whole_rows(
        make_tangent_kernel,
        u_ND,
        uw_CD[chunk.at],
        chunk.weight_ND,
        chunk.inverse_norm_N,
        reach,
        len(chunk.weight_ND),
        like=u_ND,
    )
    return u_ND


def _curvature(rm_BN, pair, chunk, u_ND, scale, log_sum_B, mean_B, g_B, g_cos_B):
    """(R, M) of a chunk (B, 2, N), its identities filled up, at the beginning of the memory of `rm_BN`."""
    B, D = pair[0].shape
    tile = choose("curvature", *pair)
    rm_B2N = rm_BN[: 2 * B * chunk.padded].view(B, 2, chunk.padded)
    make_curvature_kernel[triton.cdiv(B, tile.rows), triton.cdiv(chunk.padded, tile.classes)](
        rm_B2N,
        *pair,
        chunk.unit_ND,
        u_ND,
        chunk.label_B,
        log_sum_B,
        mean_B,
        g_B,
        g_cos_B,
        B,
        len(chunk.weight_ND),
        chunk.padded,
        scale,
        scale * LOG2E.value,
        D,
        tile.rows,
        tile.classes,
        tile.depth,
        precision(pair[0].dtype),
        **tile.options,
    )
    return rm_B2N


def _bend(Dw_ND, chunk, dw_CD, radial_C, uw_CD):
    """Makes Dw at unit rows, in place, Dw at the weights as given."""
    weight_ND, inverse_norm_N = chunk.weight_ND, chunk.inverse_norm_N
    if inverse_norm_N is not None and uw_CD is not None:
        whole_rows(
            bend_kernel,
            Dw_ND,
            dw_CD[chunk.at],
            radial_C[chunk.at],
            weight_ND,
            uw_CD[chunk.at],
            inverse_norm_N,
            like=Dw_ND,
        )
    elif inverse_norm_N is not None:
        whole_rows(project_kernel, Dw_ND, None, weight_ND, inverse_norm_N, like=Dw_ND)
