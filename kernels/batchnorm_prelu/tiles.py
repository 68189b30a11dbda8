"""What the BatchNorm + PReLU kernels have in common: tiles of pixels x channels, and sums over programs.

Shape suffixes: N = pixels of all images, C = channels, P = programs, K = sums.
"""

import triton
import triton.language as tl


@triton.jit
def channels(C, CHANNELS: tl.constexpr):
    """This program's block of channels, and which of them there are."""
    c = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    return c, c < C


@triton.jit
def pixels(first, c, present, C, N, ROWS: tl.constexpr):
    """(offsets, mask) of these channels of ROWS pixels from `first`."""
    n = first + tl.arange(0, ROWS)
    return n.to(tl.int64)[:, None] * C + c[None, :], (n < N)[:, None] & present[None, :]


@triton.jit
def channel(ptr, c, present):
    return tl.load(ptr + c, mask=present, other=0.0).to(tl.float32)[None, :]


@triton.jit
def normalised(x_ptr, at, inside, mean_ptr, r_ptr, c, present):
    """xh of a tile; 0 outside, so that no sum sees it."""
    x = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
    return tl.where(inside, (x - channel(mean_ptr, c, present)) * channel(r_ptr, c, present), 0.0)


@triton.jit
def slope_of(slope_ptr, c, present, STEP: tl.constexpr):
    """PReLU's slope below zero; 1, which changes nothing, where there is no PReLU."""
    slope = tl.full((1, c.shape[0]), 1.0, tl.float32)
    if slope_ptr is not None:
        slope = tl.load(slope_ptr + c * STEP, mask=present, other=1.0).to(tl.float32)[None, :]
    return slope


@triton.jit
def _joined(part_ptr, first, k, P, K, C, c, present, ROWS: tl.constexpr):
    """Sum k of ROWS programs from `first`; past the first-level cache, for others wrote it."""
    p = first + tl.arange(0, ROWS)
    at = (K * p + k)[:, None] * C + c[None, :]
    return tl.sum(tl.load(part_ptr + at, mask=(p < P)[:, None] & present[None, :], other=0.0, cache_modifier=".cg"), 0)


@triton.jit
def hand_in(sum_ptr, count_ptr, c, present, C, first, second, third, ROWS: tl.constexpr = 64):
    """Stores this program's two or three sums; the last one that does joins them all, and sets its count back to 0.

    Which program is last is chance, what it adds up in which order is not.
    """
    p, P, K = tl.program_id(0), tl.num_programs(0), 2 if third is None else 3
    part_ptr = sum_ptr + K * C  # after what is made of them
    tl.store(part_ptr + K * p * C + c, first, mask=present)
    tl.store(part_ptr + (K * p + 1) * C + c, second, mask=present)
    if third is not None:
        tl.store(part_ptr + (K * p + 2) * C + c, third, mask=present)
    tl.debug_barrier()  # every thread has stored before one of them says so
    if tl.atomic_add(count_ptr + tl.program_id(1), 1, sem="acq_rel") == P - 1:
        tl.debug_barrier()
        first, second = tl.zeros_like(first), tl.zeros_like(second)
        if third is not None:
            third = tl.zeros_like(third)
        for start in range(0, P, ROWS):
            first += _joined(part_ptr, start, 0, P, K, C, c, present, ROWS)
            second += _joined(part_ptr, start, 1, P, K, C, c, present, ROWS)
            if third is not None:
                third += _joined(part_ptr, start, 2, P, K, C, c, present, ROWS)
        tl.store(sum_ptr + c, first, mask=present)
        tl.store(sum_ptr + C + c, second, mask=present)
        if third is not None:
            tl.store(sum_ptr + 2 * C + c, third, mask=present)
        tl.store(count_ptr + tl.program_id(1), 0)


@triton.jit
def normalised_tangent(xd_ptr, xh, at, inside, r, moved_ptr, N, C, c, present, BATCH: tl.constexpr):
    """xh' of a tile, `moved_ptr` the sums of x' and xh x'; 0 outside."""
    xd = tl.load(xd_ptr + at, mask=inside, other=0.0).to(tl.float32)
    if BATCH:
        xd -= (channel(moved_ptr, c, present) + xh * channel(moved_ptr + C, c, present)) / N
    return tl.where(inside, r * xd, 0.0)
