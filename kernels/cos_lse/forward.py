"""cos_lse forward in Triton: the sum of exp(z) over all but the true identity, and the true cosine.

A program keeps a block of rows and walks a share of the identities; the shares' results are joined in a fixed order.
Up to scale 80 sums need no maximum: exp(z) of 1e7 identities stays within float32 if all their cosines are 0.9, and at
scale 64 if all are 1. Above scale 80, each row carries a running maximum.
Shape suffixes: B = batch, C = identities, D = embedding, S = shares of the identities.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..launching import ceil_div, launch
from .chunked import PLAIN_SCALE
from .tiles import (
    LOG2E,
    LOWEST,
    all_contiguous,
    choose_tile,
    cosines_of,
    divide_identities,
    empty_float32,
    kept_width,
    load_label,
    load_tile,
    logit_pointers,
    operand_pointers,
    precision,
)

EMPTY_LOG_SUM = torch.finfo(torch.float32).min / 4  # of an empty sum; finite, so that nothing becomes NaN


@triton.jit
def sum_exponentials_kernel(
    sum_ptr,  # (S, B)
    peak_ptr,  # (S, B), or None: exp(z) cannot overflow
    cos_ptr,  # (S, B)
    kept_ptr,  # receives exp(z), (B, kept_stride), or None
    x_ptr,  # unit rows, (B, D)
    w_ptr,  # weights, (C, D)
    r_ptr,  # inverse norms, (C,), or None: weights are unit rows
    label_ptr,  # (B,)
    B,
    C,
    kept_stride,
    scale_log2e,  # scale / log(2)
    share,  # identities of one program
    D: tl.constexpr,
    ROWS: tl.constexpr,
    CLASSES: tl.constexpr,
    DEPTH: tl.constexpr,
    PRECISION: tl.constexpr,
    CARRIES: tl.constexpr,
):
    """Sums over share `program_id(1)` of the identities for a block of rows, relative to their maximum if `peak_ptr`.

    CARRIES adds to the results of an earlier launch; weights are then unit rows.
    """
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
    x_at = operand_pointers(x_ptr, first, row, B, k, D)
    x = load_tile(x_at, k, D, DEPTH == D, dtype) if WHOLE else None
    last = tl.minimum((split + 1) * share, C)
    for start in tl.range(split * share, last, CLASSES, disable_licm=True):  # pyright: ignore[reportGeneralTypeIssues]  # typed as not iterable
        c = start + class_
        w_at = operand_pointers(w_ptr, start, class_, last, k, D)
        z = cosines_of(x, x_at, w_at, k, ROWS, CLASSES, D, DEPTH, dtype, PRECISION)
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
            z = tl.where((c < last)[None, :], z - peak[:, None], LOWEST)  # also if the peak itself is the lowest
        e = tl.exp2(z)
        if kept_ptr is not None:
            at = logit_pointers(kept_ptr, first, row[:, None], start, class_[None, :], kept_stride)
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
def join_shares_kernel(
    log_sum_ptr,  # (B,)
    total_cos_ptr,  # (B,)
    sum_ptr,  # (S, B)
    peak_ptr,  # (S, B) or None
    cos_ptr,  # (S, B)
    B,
    S,
    lowest,  # log of an empty sum
    BLOCK: tl.constexpr,
):
    """Joins the shares: the log of the sum over them, and the one cosine that is not 0."""
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


def forward(
    unit_BD: Tensor,
    weight_CD: Tensor,
    inverse_norm_C: Tensor | None,
    label_B: Tensor,
    scale: float,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute (log_sum_B, cos_B, kept_BC); the arguments are those of `cos_lse`.

    Returns:
        The two results in float32. If `keep`, also exp(z) in bfloat16, its columns rounded up to a multiple of 128;
        else an empty tensor.
    """
    (B, D), C = unit_BD.shape, len(weight_CD)
    operands = all_contiguous(unit_BD, weight_CD, inverse_norm_C, label_B)
    tile = choose_tile("forward, kept" if keep else "forward", unit_BD, weight_CD)
    width = kept_width(C)
    kept_BC = unit_BD.new_empty((B, width) if keep else (0,), dtype=torch.bfloat16)
    log_sum_B, cos_B = empty_float32(unit_BD, (B,), (B,))
    if not B:
        return log_sum_B, cos_B, kept_BC
    blocks = ceil_div(B, tile.rows)
    S, share = divide_identities(C, tile, blocks, unit_BD.device)
    sum_SB, cos_SB, peak_SB = empty_float32(unit_BD, (S, B), (S, B), (S, B))
    peak_SB = peak_SB if scale > PLAIN_SCALE else None
    launch(
        sum_exponentials_kernel,
        (blocks, S),
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
        False,  # nothing comes before
        **tile.options,
    )
    return *join_shares(sum_SB, peak_SB, cos_SB), kept_BC


def join_shares(sum_SB: Tensor, peak_SB: Tensor | None, cos_SB: Tensor) -> tuple[Tensor, Tensor]:
    """Join the shares' sums and cosines: (log_sum_B, cos_B)."""
    S, B = sum_SB.shape
    log_sum_B, cos_B = empty_float32(sum_SB, (B,), (B,))
    shares = sum_SB, peak_SB, cos_SB
    launch(join_shares_kernel, (ceil_div(B, 128),), log_sum_B, cos_B, *shares, B, S, EMPTY_LOG_SUM, 128)
    return log_sum_B, cos_B
