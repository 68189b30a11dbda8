"""cos_lse on a GPU a chunk of identities at a time: cosines in Triton, the products that make gradients in cuBLAS.

A chunk's weights are read from memory once and become unit rows in the dtype of the products. These rows and the
gradients at its cosines are kept until all products have been taken of them. Beyond one chunk nothing of size (B, C)
exists.

    M[b, c] = scale * g[b] * exp(z[b, c] - log_sum[b])     but g_cos[b] at c = label[b]
    dx += M w     dw = M^T x, then projected: see normalisation.py

Operands of 16 bits are summed and left in float32, so that what PyTorch allows of reduced precision does not apply.
Chunks follow one another in a fixed order, and no two programs add to the same element: the result is the same to the
bit every time.
Shape suffixes: B = batch, C = identities, N = those of one chunk, D = embedding, K = chunks, S = shares of a chunk.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..launching import FUSED, on_device
from .backward import gradient, kept_gradient
from .chunked import PLAIN_SCALE
from .forward import OF_NOTHING, forward_kernel, join_kernel
from .normalisation import project_kernel, rows_at, whole_rows
from .tiles import (
    KEPT_MULTIPLE,
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

MULTIPLE = 128  # identities of a chunk are a multiple of it; a last chunk is filled up to one, with rows of zeros
# Of gradients at a chunk's cosines. On an H200 chunks that stay in L2, of 12 or 24 MB, took 1.1 to 1.2 times as long.
CHUNK_BYTES = 256 << 20
MOST = 1 << 17  # identities of a chunk: its unit rows take as much memory again


class _Chunk(NamedTuple):
    """Identities `at`: their weights as given, and as unit rows, those filled up unless they are the weights."""

    at: slice
    weight_ND: Tensor
    inverse_norm_N: Tensor | None
    unit_ND: Tensor
    label_B: Tensor

    @property
    def padded(self):
        return triton.cdiv(len(self.weight_ND), MULTIPLE) * MULTIPLE


def chunk_size(B, C, itemsize=2):
    """How many identities a chunk has: a multiple of 128, such that (B, N) takes CHUNK_BYTES at most."""
    size = min(MOST, CHUNK_BYTES // (itemsize * max(1, B))) // MULTIPLE * MULTIPLE
    return min(max(MULTIPLE, size), triton.cdiv(C, MULTIPLE) * MULTIPLE)


def chunks_of(unit_BD, weight_CD, inverse_norm_C, label_B, size, rows_ND=None):
    """Each chunk in turn; the next one overwrites its unit rows, which lie at the beginning of `rows_ND` if given."""
    C, D = weight_CD.shape
    start_K1 = torch.arange(0, C, size, device=label_B.device).unsqueeze(1)
    label_KB = label_B.long() - start_K1  # outside of [0, N) a label names nobody in the chunk
    as_given = rows_ND is None and inverse_norm_C is None and weight_CD.dtype == unit_BD.dtype
    if rows_ND is None and not as_given:
        rows_ND = unit_BD.new_empty(size, D)
    for label_B, start in zip(label_KB.unbind(), range(0, C, size), strict=True):
        at = slice(start, min(C, start + size))
        weight_ND = weight_CD[at]
        inverse_norm_N = None if inverse_norm_C is None else inverse_norm_C[at]
        chunk = _Chunk(at, weight_ND, inverse_norm_N, weight_ND, label_B)
        if not as_given:
            chunk = chunk._replace(unit_ND=rows_ND[: chunk.padded])
            whole_rows(make_unit_kernel, chunk.unit_ND, weight_ND, inverse_norm_N, len(weight_ND), like=chunk.unit_ND)
        yield chunk


@triton.jit
def make_unit_kernel(unit_ptr, w_ptr, r_ptr, N, PADDED, D: tl.constexpr, CLASSES: tl.constexpr, WIDTH: tl.constexpr):
    """Weights as unit rows in the dtype of the products, and rows of zeros from N on."""
    at, mask, _ = rows_at(PADDED, D, CLASSES, WIDTH)
    c = tl.program_id(0) * CLASSES + tl.arange(0, CLASSES)
    unit = tl.load(w_ptr + at, mask=mask & (c < N)[:, None], other=0.0).to(tl.float32)
    if r_ptr is not None:
        unit *= tl.load(r_ptr + c, mask=c < N, other=0.0)[:, None]
    tl.store(unit_ptr + at, unit.to(unit_ptr.dtype.element_ty), mask=mask)


@triton.jit
def make_gradient_kernel(
    m_ptr,
    x_ptr,
    w_ptr,
    label_ptr,
    log_sum_ptr,
    kept_ptr,
    g_ptr,
    g_cos_ptr,
    B,
    N,
    PADDED,
    kept_stride,
    scale_log2e,
    share,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    CLASSES: tl.constexpr,
    DEPTH: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """M of a block of rows and share `program_id(1)` of a chunk of unit rows w, 0 from N on."""
    WHOLE: tl.constexpr = DEPTH >= D  # the block of x then stays, and only identities pass by
    dtype: tl.constexpr = x_ptr.dtype.element_ty
    first, split = tl.program_id(0) * ROWS, tl.program_id(1)  # blocks of rows run fastest: L2 serves them one w tile
    row, class_ = tl.arange(0, ROWS), tl.arange(0, CLASSES)
    b = first + row
    inside = b < B
    k = tl.arange(0, DEPTH)
    x_at = tile_at(x_ptr, first, row, B, k, D)
    if WHOLE:
        x = load_tile(x_at, k, D, DEPTH == D, dtype)
    for start in tl.range(split * share, tl.minimum((split + 1) * share, PADDED), CLASSES, disable_licm=True):
        if kept_ptr is None:
            w_at = tile_at(w_ptr, start, class_, N, k, D)
            z = tl.zeros((ROWS, CLASSES), tl.float32)
            if WHOLE:
                z = tl.dot(x, tl.trans(load_tile(w_at, k, D, DEPTH == D, dtype)), z, input_precision=PRECISION)
            else:
                z = products(z, x_at, w_at, D, DEPTH, dtype, PRECISION)
        c = start + class_
        is_true = c[None, :] == load_label(label_ptr, b, B, N)[:, None]
        log2_sum = tl.load(log_sum_ptr + b, mask=inside, other=0.0)[:, None] * LOG2E
        g = tl.load(g_ptr + b, mask=inside, other=0.0)[:, None]  # only now: next to a product there is no room for it
        g_cos = tl.load(g_cos_ptr + b, mask=inside, other=0.0)[:, None]
        if kept_ptr is None:
            m = gradient(z * scale_log2e, log2_sum, is_true, g, g_cos)
        else:
            at = kept_at(kept_ptr, first, row[:, None], start, class_[None, :], kept_stride)
            e = tl.load(at, mask=inside[:, None], other=0.0).to(tl.float32)
            m = kept_gradient(e, log2_sum, is_true, g, g_cos)
        m = tl.where((c < N)[None, :], m, 0.0)
        at = kept_at(m_ptr, first, row[:, None], start, class_[None, :], PADDED)
        tl.store(at, m.to(dtype), mask=inside[:, None])


def product(left, right, out):
    """`out`, float32, made to be left @ right."""
    if left.dtype == out.dtype:
        return torch.mm(left, right, out=out)
    if left.is_cuda:
        return torch.mm(left, right, out_dtype=out.dtype, out=out)
    return torch.mm(left.to(out.dtype), right.to(out.dtype), out=out)  # elsewhere PyTorch has no such product


def forward(unit_BD, weight_CD, inverse_norm_C, label_B, scale, keep, size=None):
    """(log_sum_B, cos_B), float32, and exp(z) in bfloat16, its columns rounded up to a multiple of 128, or nothing."""
    (B, D), C = unit_BD.shape, len(weight_CD)
    operands = contiguous(unit_BD, weight_CD, inverse_norm_C, label_B)
    size = size or chunk_size(B, C, unit_BD.element_size())
    width = triton.cdiv(C, KEPT_MULTIPLE) * KEPT_MULTIPLE
    kept_BC = unit_BD.new_empty((B, width) if keep else (0,), dtype=torch.bfloat16)
    log_sum_B, cos_B = floats(unit_BD, (B,), (B,))
    if not B:
        return log_sum_B, cos_B, kept_BC
    tile = choose("forward, kept" if keep else "forward", unit_BD, unit_BD)
    blocks = triton.cdiv(B, tile.rows)
    S, _ = shares(min(C, size), tile, blocks, unit_BD.device)
    sum_SB, cos_SB, peak_SB = floats(unit_BD, (S, B), (S, B), (S, B))
    peak_SB = peak_SB if scale > PLAIN_SCALE else None
    with on_device(unit_BD):
        for chunk in chunks_of(*operands, size):
            N = len(chunk.weight_ND)
            share = triton.cdiv(triton.cdiv(N, tile.classes), S) * tile.classes
            forward_kernel[blocks, S](
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
        join_kernel[(triton.cdiv(B, 128),)](log_sum_B, cos_B, sum_SB, peak_SB, cos_SB, B, S, OF_NOTHING, 128, **FUSED)
    return log_sum_B, cos_B, kept_BC


def backward(
    unit_BD, weight_CD, inverse_norm_C, label_B, scale, log_sum_B, kept_BC, g_B, g_cos_B, need_x, need_w, size=None
):
    """(dx_BD, dw_CD, radial_C), float32: gradients with respect to unit rows x and to weights as given, and w . dw.

    What is not needed is empty. Weights given with inverse norms lose the part of their gradient along themselves.
    """
    (B, D), C = unit_BD.shape, len(weight_CD)
    (dx_BD,) = floats(unit_BD, (B, D) if need_x else (0,))
    dw_CD, radial_C = floats(unit_BD, *((C, D), (C,)) if need_w else ((0,), (0,)))
    if not B or not (need_x or need_w):
        return dx_BD, dw_CD.zero_(), radial_C.zero_()
    unit_BD, *operands = contiguous(unit_BD, weight_CD, inverse_norm_C, label_B)
    rows = *contiguous(log_sum_B, kept_BC if kept_BC.numel() else None), scale * g_B, g_cos_B
    *rows, unlift = *rows[:2], *lift(unit_BD.dtype, *rows[2:])
    size = size or chunk_size(B, C, unit_BD.element_size())
    m_BN = unit_BD.new_empty(B * size)
    with on_device(unit_BD):
        for chunk in chunks_of(unit_BD, *operands, size):
            gradient_BN = _gradient(m_BN, unit_BD, chunk, scale, *rows)
            if need_x:
                add_product(dx_BD, gradient_BN[:, : len(chunk.unit_ND)], chunk.unit_ND, chunk.at.start == 0)
            if need_w:
                dw_ND, radial_N = dw_CD[chunk.at], radial_C[chunk.at]
                product(gradient_BN[:, : len(dw_ND)].T, unit_BD, dw_ND)
                if unlift is not None:
                    dw_ND *= unlift
                whole_rows(project_kernel, dw_ND, radial_N, chunk.weight_ND, chunk.inverse_norm_N, like=dw_ND)
    return dx_BD if unlift is None else dx_BD.mul_(unlift), dw_CD, radial_C


def _gradient(m_BN, unit_BD, chunk, scale, log_sum_B, kept_BC, g_B, g_cos_B):
    """M of a chunk (B, N), its identities filled up, at the beginning of the memory of `m_BN`."""
    B, D = unit_BD.shape
    tile = choose("gradient" if kept_BC is None else "gradient, kept", unit_BD, unit_BD)
    blocks = triton.cdiv(B, tile.rows)
    S, share = _spread(chunk.padded, tile, blocks, D, unit_BD.device)
    width = 0 if kept_BC is None else kept_BC.shape[1]
    m_BN = m_BN[: B * chunk.padded].view(B, chunk.padded)
    make_gradient_kernel[blocks, S](
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
    """(how many shares of a chunk, how many identities in one): one tile each, unless a block of rows stays."""
    return shares(N, tile, blocks, device) if tile.depth >= D else (triton.cdiv(N, tile.classes), tile.classes)


def add_product(sum_BD, left_BN, right_ND, is_first):
    """`sum_BD`, in place, plus left @ right; the first one is written, not added."""
    if is_first:
        product(left_BN, right_ND, sum_BD)
    else:
        sum_BD += product(left_BN, right_ND, torch.empty_like(sum_BD))
