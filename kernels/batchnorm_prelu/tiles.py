"""What the BatchNorm + PReLU kernels share: tiles of pixels x channels, and sums over programs.

Shape suffixes: N = pixels of all images, C = channels, P = programs, K = sums.
"""

import triton
import triton.language as tl

PARTS = tl.constexpr(64)  # programs whose sums are joined at a time


@triton.jit
def channel_block(C, CHANNELS: tl.constexpr):
    """(this program's block of channels, a mask for those that exist)"""
    c = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    return c, c < C


@triton.jit
def pixel_offsets(first, c, present, C, N, ROWS: tl.constexpr):
    """(offsets, mask) of ROWS pixels from `first` on, in a block of channels."""
    n = first + tl.arange(0, ROWS)
    return n.to(tl.int64)[:, None] * C + c[None, :], (n < N)[:, None] & present[None, :]


@triton.jit
def load_channel(ptr, c, present):
    """Values of a block of channels as a row (1, channels), in float32."""
    return tl.load(ptr + c, mask=present, other=0.0).to(tl.float32)[None, :]


@triton.jit
def load_normalised(x_ptr, at, inside, mean_ptr, r_ptr, c, present):
    """xh of a tile; 0 outside of the image, so that sums are not changed."""
    x = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
    return tl.where(inside, (x - load_channel(mean_ptr, c, present)) * load_channel(r_ptr, c, present), 0.0)


@triton.jit
def load_slope(slope_ptr, c, present, STEP: tl.constexpr):
    """PReLU's slope below zero; 1 if there is no PReLU, which changes nothing."""
    slope = tl.full((1, c.shape[0]), 1.0, tl.float32)
    if slope_ptr is not None:
        slope = tl.load(slope_ptr + c * STEP, mask=present, other=1.0).to(tl.float32)[None, :]
    return slope


@triton.jit
def _sum_parts(part_ptr, first, k, P, K, C, c, present, ROWS: tl.constexpr):
    """Sum k of ROWS programs from `first` on; read past the first-level cache, because other programs wrote it."""
    p = first + tl.arange(0, ROWS)
    at = (K * p + k)[:, None] * C + c[None, :]
    return tl.sum(tl.load(part_ptr + at, mask=(p < P)[:, None] & present[None, :], other=0.0, cache_modifier=".cg"), 0)


@triton.jit
def join_sums(sum_ptr, count_ptr, c, present, C, first, second, third):
    """Stores this program's two or three sums. The last program to do so adds up all of them and resets the count.

    Which program is last is left to chance; the order of the addition is not.
    """
    p, P, K = tl.program_id(0), tl.num_programs(0), 2 if third is None else 3
    part_ptr = sum_ptr + K * C  # after the joined sums
    tl.store(part_ptr + K * p * C + c, first, mask=present)
    tl.store(part_ptr + (K * p + 1) * C + c, second, mask=present)
    if third is not None:
        tl.store(part_ptr + (K * p + 2) * C + c, third, mask=present)
    tl.debug_barrier()  # every thread has stored before one of them counts
    if tl.atomic_add(count_ptr + tl.program_id(1), 1, sem="acq_rel") == P - 1:
        tl.debug_barrier()
        first, second = tl.zeros_like(first), tl.zeros_like(second)
        if third is not None:
            third = tl.zeros_like(third)
        for start in range(0, P, PARTS):
            first += _sum_parts(part_ptr, start, 0, P, K, C, c, present, PARTS)
            second += _sum_parts(part_ptr, start, 1, P, K, C, c, present, PARTS)
            if third is not None:
                third += _sum_parts(part_ptr, start, 2, P, K, C, c, present, PARTS)
        tl.store(sum_ptr + c, first, mask=present)
        tl.store(sum_ptr + C + c, second, mask=present)
        if third is not None:
            tl.store(sum_ptr + 2 * C + c, third, mask=present)
        tl.store(count_ptr + tl.program_id(1), 0)


@triton.jit
def load_normalised_tangent(xd_ptr, xh, at, inside, r, moved_ptr, N, C, c, present, BATCH: tl.constexpr):
    """xh' of a tile, with the sums of x' and xh x' at `moved_ptr`; 0 outside of the image."""
    xd = tl.load(xd_ptr + at, mask=inside, other=0.0).to(tl.float32)
    if BATCH:
        xd -= (load_channel(moved_ptr, c, present) + xh * load_channel(moved_ptr + C, c, present)) / N
    return tl.where(inside, r * xd, 0.0)
