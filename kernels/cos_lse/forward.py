"""cos_lse forward in Triton: the sum of exp(z) over all but the true identity, and the true cosine.

A program keeps a block of rows and walks a share of the identities; what the shares make is joined in a fixed order.
Up to scale 80 sums need no maximum: exp(z) of 1e7 identities stays within float32 if all their cosines are 0.9, at
scale 64 if all are 1. Above, each row carries its running maximum along.
Shape suffixes: B = batch, C = identities, D = embedding, S = shares of the identities.
"""

import torch
import triton
import triton.language as tl

from ..launching import FUSED, on_device
from .chunked import PLAIN_SCALE
from .tiles import (
    KEPT_MULTIPLE,
    LOG2E,
    choose,
    contiguous,
    floats,
    kept_at,
    load_label,
    load_tile,
    precision,
    products,
    shares,
    tile_at,
)

OF_NOTHING = torch.finfo(torch.float32).min / 4  # of an empty sum; finite, so that nothing becomes NaN


@triton.jit
def forward_kernel(
    sum_ptr,
    peak_ptr,
    cos_ptr,
    kept_ptr,
    x_ptr,
    w_ptr,
    r_ptr,
    label_ptr,
    B,
    C,
    kept_stride,
    scale_log2e,
    share,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    CLASSES: tl.constexpr,
    DEPTH: tl.constexpr,
    PRECISION: tl.constexpr,
    CARRIES: tl.constexpr = False,
):
    """Share `program_id(1)` of the identities for a block of rows; a maximum is kept where `peak_ptr` is given.

    Where it carries, it adds to the results of an earlier launch; weights are then unit rows.
    """
    LOWEST: tl.constexpr = -1e30
    WHOLE: tl.constexpr = DEPTH >= D  # the block of x then stays, and only identities pass by
    dtype: tl.constexpr = x_ptr.dtype.element_ty
    first, split = tl.program_id(0) * ROWS, tl.program_id(1)  # blocks of rows run fastest: L2 serves them one w tile
    row, class_ = tl.arange(0, ROWS), tl.arange(0, CLASSES)
    b = first + row
    label = load_label(label_ptr, b, B, C)
    total = tl.zeros((ROWS,), tl.float32)
    true_dot = tl.zeros((ROWS,), tl.float32)
    peak = tl.full((ROWS,), LOWEST, tl.float32)
    k = tl.arange(0, DEPTH)
    x_at = tile_at(x_ptr, first, row, B, k, D)
    if WHOLE:
        x = load_tile(x_at, k, D, DEPTH == D, dtype)
    last = tl.minimum((split + 1) * share, C)
    for start in tl.range(split * share, last, CLASSES, disable_licm=True):
        c = start + class_
        w_at = tile_at(w_ptr, start, class_, last, k, D)
        z = tl.zeros((ROWS, CLASSES), tl.float32)
        if WHOLE:
            z = tl.dot(x, tl.trans(load_tile(w_at, k, D, DEPTH == D, dtype)), z, input_precision=PRECISION)
        else:
            z = products(z, x_at, w_at, D, DEPTH, dtype, PRECISION)
        is_true = c[None, :] == label[:, None]
        true_dot += tl.sum(tl.where(is_true, z, 0.0), 1)
        factor = scale_log2e
        if r_ptr is not None:
            factor *= tl.load(r_ptr + tl.minimum(c, last - 1))[None, :]
        z = z * factor + tl.where(c < last, 0.0, LOWEST)[None, :]
        if peak_ptr is not None:
            risen = tl.maximum(peak, tl.max(tl.where(is_true, LOWEST, z), 1))
            total *= tl.exp2(peak - risen)
            peak = risen
            z = tl.where((c < last)[None, :], z - peak[:, None], LOWEST)  # where the peak itself is the lowest
        e = tl.exp2(z)
        if kept_ptr is not None:
            at = kept_at(kept_ptr, first, row[:, None], start, class_[None, :], kept_stride)
            tl.store(at, e.to(tl.bfloat16), mask=(b < B)[:, None])  # a tile may pass C, never `kept_stride`
        total += tl.sum(tl.where(is_true, 0.0, e), 1)
    if r_ptr is not None:
        true_dot *= tl.load(r_ptr + label, mask=label >= 0, other=0.0)
    if CARRIES:  # after the loop: within it there is no room
        earlier = tl.load(sum_ptr + split * B + b, mask=b < B, other=0.0)
        true_dot += tl.load(cos_ptr + split * B + b, mask=b < B, other=0.0)
        if peak_ptr is not None:
            earlier_peak = tl.load(peak_ptr + split * B + b, mask=b < B, other=LOWEST)
            risen = tl.maximum(peak, earlier_peak)
            earlier *= tl.exp2(earlier_peak - risen)
            total *= tl.exp2(peak - risen)
            peak = risen
        total += earlier
    tl.store(sum_ptr + split * B + b, total, mask=b < B)
    tl.store(cos_ptr + split * B + b, true_dot, mask=b < B)
    if peak_ptr is not None:
        tl.store(peak_ptr + split * B + b, peak, mask=b < B)


@triton.jit
def join_kernel(log_sum_ptr, total_cos_ptr, sum_ptr, peak_ptr, cos_ptr, B, S, lowest, BLOCK: tl.constexpr):
    """Shares joined: log of the sum over them, and the one cosine that is not 0."""
    b = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    peak = tl.zeros((BLOCK,), tl.float32)
    if peak_ptr is not None:
        peak = tl.load(peak_ptr + b, mask=b < B, other=0.0)
        for s in range(1, S):
            peak = tl.maximum(peak, tl.load(peak_ptr + s * B + b, mask=b < B, other=0.0))
    total = tl.zeros((BLOCK,), tl.float32)
    cos = tl.zeros((BLOCK,), tl.float32)
    for s in range(S):
        share = tl.load(sum_ptr + s * B + b, mask=b < B, other=0.0)
        if peak_ptr is not None:
            share *= tl.exp2(tl.load(peak_ptr + s * B + b, mask=b < B, other=0.0) - peak)
        total += share
        cos += tl.load(cos_ptr + s * B + b, mask=b < B, other=0.0)
    log_sum = tl.where(total > 0, (peak + tl.log2(total)) / LOG2E, lowest)
    tl.store(log_sum_ptr + b, log_sum, mask=b < B)
    tl.store(total_cos_ptr + b, cos, mask=b < B)


def forward(unit_BD, weight_CD, inverse_norm_C, label_B, scale, keep):
    """(log_sum_B, cos_B), float32, and exp(z) in bfloat16, its columns rounded up to a multiple of 128, or nothing."""
    (B, D), C = unit_BD.shape, len(weight_CD)
    operands = contiguous(unit_BD, weight_CD, inverse_norm_C, label_B)
    tile = choose("forward, kept" if keep else "forward", unit_BD, weight_CD)
    width = triton.cdiv(C, KEPT_MULTIPLE) * KEPT_MULTIPLE
    kept_BC = unit_BD.new_empty((B, width) if keep else (0,), dtype=torch.bfloat16)
    log_sum_B, cos_B = floats(unit_BD, (B,), (B,))
    if not B:
        return log_sum_B, cos_B, kept_BC
    blocks = triton.cdiv(B, tile.rows)
    S, share = shares(C, tile, blocks, unit_BD.device)
    sum_SB, cos_SB, peak_SB = floats(unit_BD, (S, B), (S, B), (S, B))
    peak_SB = peak_SB if scale > PLAIN_SCALE else None
    with on_device(unit_BD):
        forward_kernel[blocks, S](
            sum_SB,
            peak_SB,
            cos_SB,
            kept_BC if keep else None,
            *operands,
            B,
            C,
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
        join_kernel[(triton.cdiv(B, 128),)](log_sum_B, cos_B, sum_SB, peak_SB, cos_SB, B, S, OF_NOTHING, 128, **FUSED)
    return log_sum_B, cos_B, kept_BC
