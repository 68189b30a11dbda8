"""cos_lse on a GPU a chunk of identities at a time: cosines in Triton, the products that make gradients in cuBLAS.

A chunk's weights are read from memory once and become unit rows in the dtype of the products. These rows, and the
gradients at the chunk's cosines, are kept until all products of them are taken. Nothing beyond one chunk has the size
(B, C).

    M[b, c] = scale * g[b] * exp(z[b, c] - log_sum[b])     but g_cos[b] at c = label[b]
    dx += M w     dw = M^T x, then projected: see normalisation.py

Products of 16-bit operands are summed and stored in float32, so that PyTorch's settings for reduced precision do not
apply. Chunks follow one another in a fixed order, and no two programs add to the same element: results repeat to the
bit.
Shape suffixes: B = batch, C = identities, N = those of one chunk, D = embedding, K = chunks, S = shares of a chunk.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..launching import ceil_div, launch
from .backward import logit_gradient, logit_gradient_of_kept
from .chunked import PLAIN_SCALE
from .forward import join_shares, sum_exponentials_kernel
from .normalisation import launch_on_rows, project_gradient_kernel, row_offsets
from .tiles import (
    LOG2E,
    all_contiguous,
    choose_tile,
    cosines_of,
    divide_identities,
    empty_float32,
    kept_width,
    load_column,
    load_label,
    load_tile,
    logit_pointers,
    operand_pointers,
    precision,
    scale_for_fp16,
)

MULTIPLE = 128  # identities of a chunk are a multiple of it; rows of zeros fill up the last chunk
# Of gradients at a chunk's cosines. On an H200, chunks that stay in L2 (12 or 24 MB) took 1.1 to 1.2 times as long.
CHUNK_BYTES = 256 << 20
MOST = 1 << 17  # identities of a chunk: its unit rows take as much memory again


class _Chunk(NamedTuple):
    """One chunk: identities `at`, their weights as given, and the same as unit rows, filled up unless both are one."""

    at: slice
    weight_ND: Tensor
    inverse_norm_N: Tensor | None
    unit_ND: Tensor
    label_B: Tensor

    @property
    def padded(self) -> int:
        """How many identities the chunk has once it is filled up."""
        return ceil_div(len(self.weight_ND), MULTIPLE) * MULTIPLE


def chunk_size(B: int, C: int, itemsize: int = 2) -> int:
    """Choose how many identities a chunk has: a multiple of 128, so that a matrix (B, N) takes at most CHUNK_BYTES."""
    size = min(MOST, CHUNK_BYTES // (itemsize * max(1, B))) // MULTIPLE * MULTIPLE
    return min(max(MULTIPLE, size), ceil_div(C, MULTIPLE) * MULTIPLE)


def chunks_of(
    unit_BD: Tensor,
    weight_CD: Tensor,
    inverse_norm_C: Tensor | None,
    label_B: Tensor,
    size: int,
    rows_ND: Tensor | None = None,
) -> Iterator[_Chunk]:
    """Yield each chunk in turn. The next chunk overwrites this one's unit rows.

    Args:
        unit_BD: Embeddings, whose dtype the unit rows get.
        weight_CD: Weights of all identities.
        inverse_norm_C: One over the weights' lengths; None for unit rows.
        label_B: Labels among all identities.
        size: Identities of a chunk.
        rows_ND: Memory that begins with the unit rows; None allocates it, unless the weights already are such rows.
    """
    C, D = weight_CD.shape
    start_K1 = torch.arange(0, C, size, device=label_B.device).unsqueeze(1)
    label_KB = label_B.long() - start_K1  # a label outside of [0, N) names nobody in the chunk
    as_given = rows_ND is None and inverse_norm_C is None and weight_CD.dtype == unit_BD.dtype
    if rows_ND is None and not as_given:
        rows_ND = unit_BD.new_empty(size, D)
    for label_B, start in zip(label_KB.unbind(), range(0, C, size), strict=True):
        at = slice(start, min(C, start + size))
        weight_ND = weight_CD[at]
        inverse_norm_N = None if inverse_norm_C is None else inverse_norm_C[at]
        chunk = _Chunk(at, weight_ND, inverse_norm_N, weight_ND, label_B)
        if rows_ND is not None:
            unit_ND = rows_ND[: chunk.padded]
            launch_on_rows(make_unit_rows_kernel, unit_ND, weight_ND, inverse_norm_N, len(weight_ND), like=unit_ND)
            chunk = chunk._replace(unit_ND=unit_ND)
        yield chunk


@triton.jit
def make_unit_rows_kernel(
    unit_ptr,  # (PADDED, D)
    w_ptr,  # weights, (N, D)
    r_ptr,  # (N,) or None
    N,
    PADDED,
    D: tl.constexpr,
    CLASSES: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Makes unit rows of the weights, in the dtype of the products, and rows of zeros from N on."""
    at, mask, _ = row_offsets(PADDED, D, CLASSES, WIDTH)
    c = tl.program_id(0) * CLASSES + tl.arange(0, CLASSES)
    unit = tl.load(w_ptr + at, mask=mask & (c < N)[:, None], other=0.0).to(tl.float32)
    if r_ptr is not None:
        unit *= tl.load(r_ptr + c, mask=c < N, other=0.0)[:, None]
    tl.store(unit_ptr + at, unit.to(unit_ptr.dtype.element_ty), mask=mask)


@triton.jit
def make_gradient_kernel(
    m_ptr,  # (B, PADDED)
    x_ptr,  # unit rows, (B, D)
    w_ptr,  # unit rows, (N, D)
    label_ptr,  # (B,)
    log_sum_ptr,  # (B,)
    kept_ptr,  # exp(z), (B, kept_stride), or None
    g_ptr,  # (B,)
    g_cos_ptr,  # (B,)
    B,
    N,
    PADDED,
    kept_stride,
    scale_log2e,  # scale / log(2)
    share,  # identities of one program
    D: tl.constexpr,
    ROWS: tl.constexpr,
    CLASSES: tl.constexpr,
    DEPTH: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """M of a block of rows and share `program_id(1)` of a chunk's unit rows w; 0 from N on."""
    WHOLE: tl.constexpr = DEPTH >= D  # the block of x then stays, and only identities pass by
    dtype: tl.constexpr = x_ptr.dtype.element_ty
    first, split = tl.program_id(0) * ROWS, tl.program_id(1)  # blocks of rows run fastest: L2 serves them one w tile
    row, class_ = tl.arange(0, ROWS), tl.arange(0, CLASSES)
    b = first + row
    inside = b < B
    k = tl.arange(0, DEPTH)
    x_at = operand_pointers(x_ptr, first, row, B, k, D)
    x = load_tile(x_at, k, D, DEPTH == D, dtype) if WHOLE else None
    for start in tl.range(split * share, tl.minimum((split + 1) * share, PADDED), CLASSES, disable_licm=True):  # pyright: ignore[reportGeneralTypeIssues]  # typed as not iterable
        if kept_ptr is None:
            w_at = operand_pointers(w_ptr, start, class_, N, k, D)
            z = cosines_of(x, x_at, w_at, k, ROWS, CLASSES, D, DEPTH, dtype, PRECISION)
        c = start + class_
        is_true = c[None, :] == load_label(label_ptr, b, B, N)[:, None]
        log2_sum = load_column(log_sum_ptr, b, B) * LOG2E
        g = load_column(g_ptr, b, B)  # loaded only now: next to a product there is no room for it
        g_cos = load_column(g_cos_ptr, b, B)
        if kept_ptr is None:
            m = logit_gradient(z * scale_log2e, log2_sum, is_true, g, g_cos)  # pyright: ignore[reportPossiblyUnboundVariable]
        else:
            at = logit_pointers(kept_ptr, first, row[:, None], start, class_[None, :], kept_stride)
            e = tl.load(at, mask=inside[:, None], other=0.0).to(tl.float32)
            m = logit_gradient_of_kept(e, log2_sum, is_true, g, g_cos)
        m = tl.where((c < N)[None, :], m, 0.0)
        at = logit_pointers(m_ptr, first, row[:, None], start, class_[None, :], PADDED)
        tl.store(at, m.to(dtype), mask=inside[:, None])


def product(left: Tensor, right: Tensor, out: Tensor) -> Tensor:
    """Compute left @ right into `out`, which is float32."""
    if left.dtype == out.dtype:
        return torch.mm(left, right, out=out)
    if left.is_cuda:
        return torch.mm(left, right, out_dtype=out.dtype, out=out)
    return torch.mm(left.to(out.dtype), right.to(out.dtype), out=out)  # elsewhere PyTorch has no such product


def forward(
    unit_BD: Tensor,
    weight_CD: Tensor,
    inverse_norm_C: Tensor | None,
    label_B: Tensor,
    scale: float,
    keep: bool,
    size: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute what forward.forward does, `size` identities at a time; None chooses the size."""
    (B, D), C = unit_BD.shape, len(weight_CD)
    operands = all_contiguous(unit_BD, weight_CD, inverse_norm_C, label_B)
    size = size or chunk_size(B, C, unit_BD.element_size())
    width = kept_width(C)
    kept_BC = unit_BD.new_empty((B, width) if keep else (0,), dtype=torch.bfloat16)
    log_sum_B, cos_B = empty_float32(unit_BD, (B,), (B,))
    if not B:
        return log_sum_B, cos_B, kept_BC
    tile = choose_tile("forward, kept" if keep else "forward", unit_BD, unit_BD)
    blocks = ceil_div(B, tile.rows)
    S, _ = divide_identities(min(C, size), tile, blocks, unit_BD.device)
    sum_SB, cos_SB, peak_SB = empty_float32(unit_BD, (S, B), (S, B), (S, B))
    peak_SB = peak_SB if scale > PLAIN_SCALE else None
    for chunk in chunks_of(*operands, size=size):
        N = len(chunk.weight_ND)
        share = ceil_div(ceil_div(N, tile.classes), S) * tile.classes
        launch(
            sum_exponentials_kernel,
            (blocks, S),
            sum_SB,
            peak_SB,
            cos_SB,
            kept_BC[:, chunk.at] if keep else None,
            operands[0],
            chunk.unit_ND,
            None,
            chunk.label_B,
            B,
            N,
            width,
            scale * LOG2E.value,
            share,
            D,
            tile.rows,
            tile.classes,
            tile.depth,
            precision(unit_BD.dtype),
            chunk.at.start > 0,
            **tile.options,
        )
    return *join_shares(sum_SB, peak_SB, cos_SB), kept_BC


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
    size: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute what backward.backward does, `size` identities at a time; None chooses the size."""
    (B, D), C = unit_BD.shape, len(weight_CD)
    (dx_BD,) = empty_float32(unit_BD, (B, D) if need_x else (0,))
    dw_CD, radial_C = empty_float32(unit_BD, *((C, D), (C,)) if need_w else ((0,), (0,)))
    if not B or not (need_x or need_w):
        return dx_BD, dw_CD.zero_(), radial_C.zero_()
    unit_BD, *operands = all_contiguous(unit_BD, weight_CD, inverse_norm_C, label_B)
    log_sum_B, kept_BC = all_contiguous(log_sum_B, kept_BC if kept_BC.numel() else None)
    g_B, g_cos_B, unscale = scale_for_fp16(unit_BD.dtype, scale * g_B, g_cos_B)
    size = size or chunk_size(B, C, unit_BD.element_size())
    m_BN = unit_BD.new_empty(B * size)
    for chunk in chunks_of(unit_BD, *operands, size=size):
        gradient_BN = _gradient(m_BN, unit_BD, chunk, scale, log_sum_B, kept_BC, g_B, g_cos_B)
        if need_x:
            add_product(dx_BD, gradient_BN[:, : len(chunk.unit_ND)], chunk.unit_ND, chunk.at.start == 0)
        if need_w:
            dw_ND, radial_N = dw_CD[chunk.at], radial_C[chunk.at]
            product(gradient_BN[:, : len(dw_ND)].T, unit_BD, dw_ND)
            if unscale is not None:
                dw_ND *= unscale
            launch_on_rows(project_gradient_kernel, dw_ND, radial_N, chunk.weight_ND, chunk.inverse_norm_N, like=dw_ND)
    return dx_BD if unscale is None else dx_BD.mul_(unscale), dw_CD, radial_C


def _gradient(m_BN, unit_BD, chunk, scale, log_sum_B, kept_BC, g_B, g_cos_B):
    """M of a chunk (B, padded), at the beginning of the memory of `m_BN`."""
    B, D = unit_BD.shape
    tile = choose_tile("gradient" if kept_BC is None else "gradient, kept", unit_BD, unit_BD)
    blocks = ceil_div(B, tile.rows)
    S, share = _spread(chunk.padded, tile, blocks, D, unit_BD.device)
    width = 0 if kept_BC is None else kept_BC.shape[1]
    m_BN = m_BN[: B * chunk.padded].view(B, chunk.padded)
    launch(
        make_gradient_kernel,
        (blocks, S),
        m_BN,
        unit_BD,
        chunk.unit_ND,
        chunk.label_B,
        log_sum_B,
        None if kept_BC is None else kept_BC[:, chunk.at],
        g_B,
        g_cos_B,
        B,
        len(chunk.weight_ND),
        chunk.padded,
        width,
        scale * LOG2E.value,
        share,
        D,
        tile.rows,
        tile.classes,
        tile.depth,
        precision(unit_BD.dtype),
        **tile.options,
    )
    return m_BN


def _spread(N, tile, blocks, D, device):
    """(how many shares a chunk has, how many identities one share has): one tile each, unless a block of rows stays."""
    if tile.depth >= D:
        return divide_identities(N, tile, blocks, device)
    return ceil_div(N, tile.classes), tile.classes


def add_product(sum_BD: Tensor, left_BN: Tensor, right_ND: Tensor, is_first: bool) -> None:
    """Add left @ right to `sum_BD` in place; the first product is written, not added."""
    if is_first:
        product(left_BN, right_ND, sum_BD)
    else:
        sum_BD += product(left_BN, right_ND, torch.empty_like(sum_BD))
