"""cos_lse double backward on a GPU a chunk of identities at a time: tiles in Triton, products of chunks in cuBLAS.

    T = ux . w + x . u     mean[b] = sum_c P T     R = scale^2 g P (T - mean), 0 at c = label     M as in by_chunks.py
    Dx += (R M) (w u)      Dw = (R M)^T (x ux), then of the weights as given: see normalisation.py

u is the tangent of the unit rows w that uw makes. The two of each pair lie side by side, so that one product of twice
the length sums both. One sweep over the chunks computes `mean`, another one Dx and Dw. Where `mean` is known but for a
rounding, the second sweep says how far off it was.
Shape suffixes: B = batch, C = identities, N = identities of one chunk, D = embedding, S = tiles of a chunk.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..launching import ceil_div, launch
from .by_chunks import add_product, chunk_size, chunks_of, product
from .double_backward import bound_tangents, cosines_and_tangents, curvatures
from .normalisation import launch_on_rows, project_gradient_kernel, project_second_gradient_kernel, row_offsets
from .tiles import (
    LOG2E,
    all_contiguous,
    choose_tile,
    empty_float32,
    load_column,
    load_label,
    logit_pointers,
    operand_pointers,
    precision,
    scale_for_fp16,
)


@triton.jit
def make_tangent_kernel(
    u_ptr,  # (PADDED, D)
    uw_ptr,  # (N, D)
    w_ptr,  # weights, (N, D)
    r_ptr,  # (N,) or None
    unscale_ptr,  # (), or None: nothing is scaled
    N,
    PADDED,
    D: tl.constexpr,
    CLASSES: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Makes tangents of the unit rows from those of the weights, r (uw - (w . uw) w), and rows of zeros from N on."""
    at, mask, _ = row_offsets(PADDED, D, CLASSES, WIDTH)
    c = tl.program_id(0) * CLASSES + tl.arange(0, CLASSES)
    given = mask & (c < N)[:, None]
    u = tl.load(uw_ptr + at, mask=given, other=0.0).to(tl.float32)
    if r_ptr is not None:
        r = tl.load(r_ptr + c, mask=c < N, other=0.0)[:, None]
        w = tl.load(w_ptr + at, mask=given, other=0.0).to(tl.float32) * r
        u = r * (u - tl.sum(w * u, 1)[:, None] * w)  # pyright: ignore[reportArgumentType]  # typed as a constexpr
    if unscale_ptr is not None:
        u /= tl.load(unscale_ptr)
    tl.store(u_ptr + at, u.to(u_ptr.dtype.element_ty), mask=mask)


@triton.jit
def chunk_tile(
    x_ptr,
    ux_ptr,
    w_ptr,
    u_ptr,
    first,
    start,
    B,
    N,
    ROWS: tl.constexpr,
    CLASSES: tl.constexpr,
    D: tl.constexpr,
    DEPTH: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """(x . w, T) of the tile of a chunk that begins at row `first` and identity `start`."""
    row, class_, k = tl.arange(0, ROWS), tl.arange(0, CLASSES), tl.arange(0, DEPTH)
    x_at, ux_at = operand_pointers(x_ptr, first, row, B, k, D), operand_pointers(ux_ptr, first, row, B, k, D)
    w_at = operand_pointers(w_ptr, start, class_, N, k, D)
    u_at = operand_pointers(u_ptr, start, class_, N, k, D) if u_ptr is not None else None
    return cosines_and_tangents(x_at, ux_at, w_at, u_at, ROWS, CLASSES, D, DEPTH, x_ptr.dtype.element_ty, PRECISION)


@triton.jit
def sum_tangents_kernel(
    weighted_ptr,  # (S, B)
    total_ptr,  # (S, B)
    true_ptr,  # (S, B)
    x_ptr,  # unit rows, (B, D)
    ux_ptr,  # (B, D)
    w_ptr,  # unit rows, (N, D)
    u_ptr,  # (N, D) or None
    label_ptr,  # (B,)
    log_sum_ptr,  # (B,)
    B,
    N,
    scale_log2e,  # scale / log(2)
    D: tl.constexpr,
    ROWS: tl.constexpr,
    CLASSES: tl.constexpr,
    DEPTH: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Sums of P T and of P over a tile's identities, and T of the true ones; see average_tangents_kernel."""
    first, start = tl.program_id(0) * ROWS, tl.program_id(1) * CLASSES
    b, c = first + tl.arange(0, ROWS), start + tl.arange(0, CLASSES)
    z, t = chunk_tile(x_ptr, ux_ptr, w_ptr, u_ptr, first, start, B, N, ROWS, CLASSES, D, DEPTH, PRECISION)
    is_true = c[None, :] == load_label(label_ptr, b, B, N)[:, None]
    log2_sum = load_column(log_sum_ptr, b, B) * LOG2E
    p = tl.where((c < N)[None, :] & (is_true == 0), tl.exp2(z * scale_log2e - log2_sum), 0.0)
    at = tl.program_id(1) * B + b
    tl.store(weighted_ptr + at, tl.sum(p * t, 1), mask=b < B)
    tl.store(total_ptr + at, tl.sum(p, 1), mask=b < B)
    tl.store(true_ptr + at, tl.sum(tl.where(is_true, t, 0.0), 1), mask=b < B)


@triton.jit
def make_curvature_kernel(
    rm_ptr,  # R and M, (B, 2, PADDED)
    left_ptr,  # receives sums of P (T - mean) over a tile's identities, (S, B), or None
    x_ptr,  # unit rows, (B, D)
    ux_ptr,  # (B, D)
    w_ptr,  # unit rows, (N, D)
    u_ptr,  # (N, D) or None
    label_ptr,  # (B,)
    log_sum_ptr,  # (B,)
    mean_ptr,  # (B,)
    g_ptr,  # (B,)
    g_cos_ptr,  # (B,)
    B,
    N,
    PADDED,
    scale,
    scale_log2e,  # scale / log(2)
    D: tl.constexpr,
    ROWS: tl.constexpr,
    CLASSES: tl.constexpr,
    DEPTH: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """A tile of R, and of M beside it, of a chunk of unit rows w; both are 0 from N on."""
    dtype: tl.constexpr = x_ptr.dtype.element_ty
    first, start = tl.program_id(0) * ROWS, tl.program_id(1) * CLASSES
    row, class_ = tl.arange(0, ROWS), tl.arange(0, CLASSES)
    b, c = first + row, start + class_
    z, t = chunk_tile(x_ptr, ux_ptr, w_ptr, u_ptr, first, start, B, N, ROWS, CLASSES, D, DEPTH, PRECISION)
    is_true = c[None, :] == load_label(label_ptr, b, B, N)[:, None]
    log2_sum = load_column(log_sum_ptr, b, B) * LOG2E
    mean = load_column(mean_ptr, b, B)
    g = load_column(g_ptr, b, B)
    g_cos = load_column(g_cos_ptr, b, B)
    curved, m = curvatures(z * scale_log2e, t, log2_sum, mean, is_true, g, g_cos, scale)
    if left_ptr is not None:
        moved, _ = curvatures(z * scale_log2e, t, log2_sum, mean, is_true, 1.0, 0.0, 1.0)
        left = tl.sum(tl.where((c < N)[None, :], moved, 0.0), 1)
        tl.store(left_ptr + tl.program_id(1) * B + b, left, mask=b < B)
    at = logit_pointers(rm_ptr, first, row[:, None], start, class_[None, :], 2 * PADDED)
    tl.store(at, tl.where((c < N)[None, :], curved, 0.0).to(dtype), mask=(b < B)[:, None])
    tl.store(at + PADDED, tl.where((c < N)[None, :], m, 0.0).to(dtype), mask=(b < B)[:, None])


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
    size: int | None = None,
    known: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Compute what double_backward.double_backward does, `size` identities at a time; None chooses the size."""
    (B, D), C, dtype = unit_BD.shape, len(weight_CD), unit_BD.dtype
    Dx_BD, Dw_CD = empty_float32(unit_BD, (B, D), (C, D) if need_w else (0,))
    if not B:
        Dg_B, Dg_cos_B = empty_float32(unit_BD, (B,), (B,))
        return Dx_BD, Dw_CD.zero_(), Dg_B, Dg_cos_B
    operands = all_contiguous(unit_BD, weight_CD, inverse_norm_C, label_B)
    log_sum_B, dw_CD, radial_C, uw_CD = all_contiguous(log_sum_B, dw_CD, radial_C, uw_CD)
    bound = bound_tangents(dtype, ux_BD, uw_CD, inverse_norm_C)
    xu_B2D = torch.stack([operands[0], (ux_BD if bound is None else ux_BD / bound).to(dtype)], dim=1)
    pair = operands[0], xu_B2D[:, 1].contiguous()
    size = size or chunk_size(2 * B, C, unit_BD.element_size())
    rows_ND = None if uw_CD is None else unit_BD.new_empty(2 * size, D)
    left_B = None
    if known is None:
        mean_B, true_B = _average_tangents(pair, operands, scale, log_sum_B, uw_CD, bound, size, rows_ND)
    else:
        mean_B, true_B = known if bound is None else (one_B / bound for one_B in known)
        left_B = torch.zeros_like(mean_B)
    *gradients, unscale = scale_for_fp16(dtype, scale * g_B, g_cos_B, None, bound, 2 * scale)
    rm_BN = unit_BD.new_empty(2 * B * size)
    for chunk in chunks_of(*operands, size=size, rows_ND=rows_ND):
        N, first = len(chunk.weight_ND), chunk.at.start == 0
        u_ND = _tangent(uw_CD, chunk, bound, rows_ND)
        curved_B2N = _curvature(rm_BN, left_B, pair, chunk, u_ND, scale, log_sum_B, mean_B, *gradients)
        if rows_ND is None:
            add_product(Dx_BD, curved_B2N[:, 0, : len(chunk.unit_ND)], chunk.unit_ND, first)
        else:
            add_product(Dx_BD, curved_B2N.flatten(1), rows_ND[: 2 * chunk.padded], first)
        if need_w:
            Dw_ND = product(curved_B2N.flatten(0, 1)[:, :N].T, xu_B2D.flatten(0, 1), Dw_CD[chunk.at])
            if unscale is not None:
                Dw_ND *= unscale
            _project_second(Dw_ND, chunk, dw_CD, radial_C, uw_CD)
    if left_B is not None:
        mean_B = mean_B + left_B
    if bound is not None:
        mean_B, true_B = mean_B * bound, true_B * bound
    if unscale is not None:
        Dx_BD = Dx_BD * unscale
    return Dx_BD, Dw_CD, scale * mean_B, true_B


def _average_tangents(pair, operands, scale, log_sum_B, uw_CD, bound, size, rows_ND):
    """(mean_B, T of the true identities)."""
    B, D = pair[0].shape
    tile = choose_tile("curvature", *pair)
    sum_3B = log_sum_B.new_zeros(3, B)
    for chunk in chunks_of(*operands, size=size, rows_ND=rows_ND):
        N, u_ND = len(chunk.weight_ND), _tangent(uw_CD, chunk, bound, rows_ND)
        S = ceil_div(N, tile.classes)
        (partial_3SB,) = empty_float32(log_sum_B, (3, S, B))
        launch(
            sum_tangents_kernel,
            (ceil_div(B, tile.rows), S),
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


def _tangent(uw_CD, chunk, bound, rows_ND):
    """The tangents of a chunk's unit rows, in the memory right behind these rows; None if there are none."""
    if uw_CD is None:
        return None
    u_ND = rows_ND[chunk.padded : 2 * chunk.padded]
    launch_on_rows(
        make_tangent_kernel,
        u_ND,
        uw_CD[chunk.at],
        chunk.weight_ND,
        chunk.inverse_norm_N,
        bound,
        len(chunk.weight_ND),
        like=u_ND,
    )
    return u_ND


def _curvature(rm_BN, left_B, pair, chunk, u_ND, scale, log_sum_B, mean_B, g_B, g_cos_B):
    """(R, M) of a chunk (B, 2, padded), at the beginning of the memory of `rm_BN`.

    Adds the sum of P (T - mean) to `left_B`, unless that is None.
    """
    B, D = pair[0].shape
    tile = choose_tile("curvature", *pair)
    S = ceil_div(chunk.padded, tile.classes)
    left_SB = None if left_B is None else left_B.new_empty(S, B)
    rm_B2N = rm_BN[: 2 * B * chunk.padded].view(B, 2, chunk.padded)
    launch(
        make_curvature_kernel,
        (ceil_div(B, tile.rows), S),
        rm_B2N,
        left_SB,
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
    if left_SB is not None:
        left_B += left_SB.sum(0)
    return rm_B2N


def _project_second(Dw_ND, chunk, dw_CD, radial_C, uw_CD):
    """Turns Dw of the unit rows, in place, into Dw of the weights as given."""
    weight_ND, inverse_norm_N = chunk.weight_ND, chunk.inverse_norm_N
    if inverse_norm_N is not None and uw_CD is not None:
        launch_on_rows(
            project_second_gradient_kernel,
            Dw_ND,
            dw_CD[chunk.at],
            radial_C[chunk.at],
            weight_ND,
            uw_CD[chunk.at],
            inverse_norm_N,
            like=Dw_ND,
        )
    elif inverse_norm_N is not None:
        launch_on_rows(project_gradient_kernel, Dw_ND, None, weight_ND, inverse_norm_N, like=Dw_ND)
