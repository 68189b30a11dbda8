"""BatchNorm and PReLU in Triton: forward, backward, tangent and second backward, as reference.py defines them.

Each is one pass that makes sums per channel and one that is elementwise; nothing but x, dy, x' and y's gradients is
read, since what lies between is recomputed in registers. In eager PyTorch a double backward takes about 140 passes.
Tensors are seen as matrices, pixels x channels, channels last. Sums are float32, in a fixed order: an atomic count only
tells who is last, and joins them.
Shape suffixes: N = pixels of all images, C = channels, P = programs, K = sums.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from ..launching import FUSED, multiprocessors, on_device
from .tiles import channel, channels, hand_in, normalised, normalised_tangent, pixels, slope_of

_WARPS = 4
_EACH = 1024  # elements of one tile of the elementwise passes
_ROW_BYTES = 128  # of one pixel's channels that a tile takes: a line of the cache
_BLOCKS = 1 << 16  # of channels, at most


@triton.jit
def _statistics(sum_ptr, count_ptr, x_ptr, N, C, share, ROWS: tl.constexpr, CHANNELS: tl.constexpr):
    """Sums of x and of its square, both counted from the first pixel: so their difference does not cancel."""
    p = tl.program_id(0)
    c, present = channels(C, CHANNELS)
    origin = channel(x_ptr, c, present)
    first_sum, second_sum = tl.zeros((ROWS, CHANNELS), tl.float32), tl.zeros((ROWS, CHANNELS), tl.float32)
    for first in range(p * share, tl.minimum((p + 1) * share, N), ROWS):
        at, inside = pixels(first, c, present, C, N, ROWS)
        x = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
        x = tl.where(inside, x - origin, 0.0)
        first_sum += x
        second_sum += x * x
    hand_in(sum_ptr, count_ptr, c, present, C, tl.sum(first_sum, 0), tl.sum(second_sum, 0), None)


@triton.jit
def _forward(
    y_ptr,
    mean_ptr,
    r_ptr,
    run_mean_ptr,
    run_variance_ptr,
    sum_ptr,
    x_ptr,
    weight_ptr,
    bias_ptr,
    slope_ptr,
    N,
    C,
    eps,
    momentum,
    STEP: tl.constexpr,
    ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """y; mean and r come of the sums where they are given, else they are read. Moves running statistics if given."""
    c, present = channels(C, CHANNELS)
    at, inside = pixels(tl.program_id(0) * ROWS, c, present, C, N, ROWS)
    if sum_ptr is not None:
        shifted = channel(sum_ptr, c, present) / N
        mean = channel(x_ptr, c, present) + shifted
        variance = tl.maximum(channel(sum_ptr + C, c, present) / N - shifted * shifted, 0.0)
        r = 1 / tl.sqrt(variance + eps)
        if tl.program_id(0) == 0:
            tl.store(mean_ptr + c[None, :], mean, mask=present[None, :])
            tl.store(r_ptr + c[None, :], r, mask=present[None, :])
            if run_mean_ptr is not None:
                before, unbiased = channel(run_variance_ptr, c, present), variance * (N / tl.maximum(N - 1, 1))
                run_mean = channel(run_mean_ptr, c, present)
                tl.store(run_mean_ptr + c[None, :], run_mean + momentum * (mean - run_mean), mask=present[None, :])
                tl.store(run_variance_ptr + c[None, :], before + momentum * (unbiased - before), mask=present[None, :])
    else:
        mean, r = channel(mean_ptr, c, present), channel(r_ptr, c, present)
    x = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
    z = channel(weight_ptr, c, present) * ((x - mean) * r) + channel(bias_ptr, c, present)
    tl.store(y_ptr + at, tl.where(z > 0, z, z * slope_of(slope_ptr, c, present, STEP)), mask=inside)


@triton.jit
def _backward_sums(
    sum_ptr,
    count_ptr,
    x_ptr,
    dy_ptr,
    mean_ptr,
    r_ptr,
    weight_ptr,
    bias_ptr,
    slope_ptr,
    N,
    C,
    share,
    STEP: tl.constexpr,
    ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Sums of dz, xh dz, and z dy where z <= 0."""
    p = tl.program_id(0)
    c, present = channels(C, CHANNELS)
    weight, bias = channel(weight_ptr, c, present), channel(bias_ptr, c, present)
    slope = slope_of(slope_ptr, c, present, STEP)
    plain = tl.zeros((ROWS, CHANNELS), tl.float32)
    along = tl.zeros((ROWS, CHANNELS), tl.float32)
    below = tl.zeros((ROWS, CHANNELS), tl.float32)
    for first in range(p * share, tl.minimum((p + 1) * share, N), ROWS):
        at, inside = pixels(first, c, present, C, N, ROWS)
        xh = normalised(x_ptr, at, inside, mean_ptr, r_ptr, c, present)
        dy = tl.load(dy_ptr + at, mask=inside, other=0.0).to(tl.float32)
        z = weight * xh + bias
        dz = tl.where(z > 0, dy, slope * dy)
        plain += dz
        along += xh * dz
        below += tl.where(z > 0, 0.0, z * dy)
    hand_in(sum_ptr, count_ptr, c, present, C, tl.sum(plain, 0), tl.sum(along, 0), tl.sum(below, 0))


@triton.jit
def _backward(
    dx_ptr,
    sum_ptr,
    x_ptr,
    dy_ptr,
    mean_ptr,
    r_ptr,
    weight_ptr,
    bias_ptr,
    slope_ptr,
    N,
    C,
    STEP: tl.constexpr,
    BATCH: tl.constexpr,
    ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    c, present = channels(C, CHANNELS)
    at, inside = pixels(tl.program_id(0) * ROWS, c, present, C, N, ROWS)
    xh = normalised(x_ptr, at, inside, mean_ptr, r_ptr, c, present)
    weight = channel(weight_ptr, c, present)
    dy = tl.load(dy_ptr + at, mask=inside, other=0.0).to(tl.float32)
    u = tl.where(weight * xh + channel(bias_ptr, c, present) > 0, dy, slope_of(slope_ptr, c, present, STEP) * dy)
    if BATCH:
        u -= (channel(sum_ptr, c, present) + xh * channel(sum_ptr + C, c, present)) / N
    tl.store(dx_ptr + at, weight * channel(r_ptr, c, present) * u, mask=inside)


@triton.jit
def _tangent_sums(
    sum_ptr, count_ptr, x_ptr, xd_ptr, mean_ptr, r_ptr, N, C, share, ROWS: tl.constexpr, CHANNELS: tl.constexpr
):
    """Sums of x' and xh x'."""
    p = tl.program_id(0)
    c, present = channels(C, CHANNELS)
    plain, along = tl.zeros((ROWS, CHANNELS), tl.float32), tl.zeros((ROWS, CHANNELS), tl.float32)
    for first in range(p * share, tl.minimum((p + 1) * share, N), ROWS):
        at, inside = pixels(first, c, present, C, N, ROWS)
        xd = tl.load(xd_ptr + at, mask=inside, other=0.0).to(tl.float32)
        plain += xd
        along += normalised(x_ptr, at, inside, mean_ptr, r_ptr, c, present) * xd
    hand_in(sum_ptr, count_ptr, c, present, C, tl.sum(plain, 0), tl.sum(along, 0), None)


@triton.jit
def _tangent(
    yd_ptr,
    moved_ptr,
    x_ptr,
    xd_ptr,
    mean_ptr,
    r_ptr,
    weight_ptr,
    bias_ptr,
    slope_ptr,
    weight_d_ptr,
    bias_d_ptr,
    slope_d_ptr,
    N,
    C,
    STEP: tl.constexpr,
    BATCH: tl.constexpr,
    ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    c, present = channels(C, CHANNELS)
    at, inside = pixels(tl.program_id(0) * ROWS, c, present, C, N, ROWS)
    xh = normalised(x_ptr, at, inside, mean_ptr, r_ptr, c, present)
    weight = channel(weight_ptr, c, present)
    xhd = normalised_tangent(xd_ptr, xh, at, inside, channel(r_ptr, c, present), moved_ptr, N, C, c, present, BATCH)
    yd = weight * xhd + channel(weight_d_ptr, c, present) * xh + channel(bias_d_ptr, c, present)
    if slope_ptr is not None:
        z = weight * xh + channel(bias_ptr, c, present)
        below = slope_of(slope_ptr, c, present, STEP) * yd + slope_of(slope_d_ptr, c, present, STEP) * z
        yd = tl.where(z > 0, yd, below)
    tl.store(yd_ptr + at, yd, mask=inside)


@triton.jit
def _second_sums(
    sum_ptr,
    count_ptr,
    moved_ptr,
    x_ptr,
    dy_ptr,
    xd_ptr,
    dyd_ptr,
    mean_ptr,
    r_ptr,
    weight_ptr,
    bias_ptr,
    slope_ptr,
    weight_d_ptr,
    bias_d_ptr,
    slope_d_ptr,
    N,
    C,
    share,
    STEP: tl.constexpr,
    BATCH: tl.constexpr,
    ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Sums of dz', xh dz' + xh' dz, and z dy' + z' dy where z <= 0."""
    p = tl.program_id(0)
    c, present = channels(C, CHANNELS)
    weight, bias, r = channel(weight_ptr, c, present), channel(bias_ptr, c, present), channel(r_ptr, c, present)
    weight_d, bias_d = channel(weight_d_ptr, c, present), channel(bias_d_ptr, c, present)
    slope = slope_of(slope_ptr, c, present, STEP)
    plain = tl.zeros((ROWS, CHANNELS), tl.float32)
    along = tl.zeros((ROWS, CHANNELS), tl.float32)
    below = tl.zeros((ROWS, CHANNELS), tl.float32)
    for first in range(p * share, tl.minimum((p + 1) * share, N), ROWS):
        at, inside = pixels(first, c, present, C, N, ROWS)
        xh = normalised(x_ptr, at, inside, mean_ptr, r_ptr, c, present)
        xhd = normalised_tangent(xd_ptr, xh, at, inside, r, moved_ptr, N, C, c, present, BATCH)
        dy = tl.load(dy_ptr + at, mask=inside, other=0.0).to(tl.float32)
        dyd = tl.load(dyd_ptr + at, mask=inside, other=0.0).to(tl.float32)
        z = weight * xh + bias
        dzd = tl.where(z > 0, dyd, slope * dyd)
        if slope_ptr is not None:
            dzd += tl.where(z > 0, 0.0, slope_of(slope_d_ptr, c, present, STEP) * dy)
            zd = weight * xhd + weight_d * xh + bias_d
            below += tl.where(z > 0, 0.0, z * dyd + zd * dy)
        plain += dzd
        along += xh * dzd + xhd * tl.where(z > 0, dy, slope * dy)
    hand_in(sum_ptr, count_ptr, c, present, C, tl.sum(plain, 0), tl.sum(along, 0), tl.sum(below, 0))


@triton.jit
def _second(
    dxd_ptr,
    sum_ptr,
    first_sum_ptr,
    moved_ptr,
    x_ptr,
    dy_ptr,
    xd_ptr,
    dyd_ptr,
    mean_ptr,
    r_ptr,
    weight_ptr,
    bias_ptr,
    slope_ptr,
    weight_d_ptr,
    slope_d_ptr,
    N,
    C,
    STEP: tl.constexpr,
    BATCH: tl.constexpr,
    ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """dx'; `first_sum_ptr` holds what _backward_sums made, `sum_ptr` what _second_sums did."""
    c, present = channels(C, CHANNELS)
    at, inside = pixels(tl.program_id(0) * ROWS, c, present, C, N, ROWS)
    weight, r = channel(weight_ptr, c, present), channel(r_ptr, c, present)
    slope = slope_of(slope_ptr, c, present, STEP)
    xh = normalised(x_ptr, at, inside, mean_ptr, r_ptr, c, present)
    dy = tl.load(dy_ptr + at, mask=inside, other=0.0).to(tl.float32)
    dyd = tl.load(dyd_ptr + at, mask=inside, other=0.0).to(tl.float32)
    above = weight * xh + channel(bias_ptr, c, present) > 0
    u = tl.where(above, dy, slope * dy)
    dzd = tl.where(above, dyd, slope * dyd)
    if slope_ptr is not None:
        dzd += tl.where(above, 0.0, slope_of(slope_d_ptr, c, present, STEP) * dy)
    gain_d = channel(weight_d_ptr, c, present) * r
    if BATCH:
        along = channel(first_sum_ptr + C, c, present) / N
        u -= channel(first_sum_ptr, c, present) / N + xh * along
        gain_d -= weight * r * r * channel(moved_ptr + C, c, present) / N
        xhd = normalised_tangent(xd_ptr, xh, at, inside, r, moved_ptr, N, C, c, present, BATCH)
        turned = channel(sum_ptr + C, c, present)
        dzd -= (channel(sum_ptr, c, present) + xh * turned) / N + xhd * along
    tl.store(dxd_ptr + at, weight * r * dzd + gain_d * u, mask=inside)


def _last(tensor):
    """The tensor with its channels last in memory."""
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor.contiguous()


_COUNTS = {}


def make_counts(device):
    """Of each block of channels, how many programs have handed in: 0 between launches. Streams do not share them.

    They are made at the first call on a stream. A CUDA graph must not record that: it would clear, at each replay,
    counts in its own memory, while graphs recorded later would begin with whatever is there.
    """
    is_cuda = device.type == "cuda"
    key = device, torch.cuda.current_stream(device).stream_id if is_cuda else 0
    if key not in _COUNTS:
        if is_cuda and torch.cuda.is_current_stream_capturing():
            raise RuntimeError(
                "the first BatchNorm + PReLU of a stream cannot be recorded as a CUDA graph; call "
                "fastmfr.kernels.batchnorm_prelu.prepare_capture(device) on the stream before"
            )
        _COUNTS[key] = torch.zeros(_BLOCKS, dtype=torch.int32, device=device)
    return _COUNTS[key]


class Summing(NamedTuple):
    """How a kernel makes its `sums` per channel: `elements` of one tile, `resident` programs to a multiprocessor.

    As many programs as registers leave room for, each with some 24 kB on their way in all: that fills the bandwidth.
    """

    sums: int
    elements: int
    resident: int


_SUMMING = {
    _statistics: Summing(2, 2048, 6),
    _backward_sums: Summing(3, 1024, 4),
    _tangent_sums: Summing(2, 2048, 6),
    _second_sums: Summing(3, 512, 4),
}


def tile_of(elements, C, itemsize):
    """(rows, channels) of a tile: whole lines of the cache, but no more channels than there are."""
    wide = min(_ROW_BYTES // itemsize, triton.next_power_of_2(C))
    return elements // wide, wide


def _sums(kernel, x, pointers, sizes, *flags):
    """The sums per channel (K, C) that a kernel makes in shares of the pixels, joined in a fixed order."""
    (N, C), device, (count, elements, resident) = sizes, x.device, _SUMMING[kernel]
    rows, wide = tile_of(elements, C, x.element_size())
    blocks = triton.cdiv(C, wide)
    programs = max(1, resident * multiprocessors(device) // blocks)
    share = triton.cdiv(triton.cdiv(N, programs), rows) * rows
    P = triton.cdiv(N, share)
    sum_KC = torch.empty((1 + P, count, C), device=device)  # and after it the programs' own
    with on_device(x):
        kernel[P, blocks](
            sum_KC, make_counts(x.device), *pointers, N, C, share, *flags, rows, wide, num_warps=_WARPS, **FUSED
        )
    return sum_KC[0]


def _each(kernel, out, pointers, sizes, *flags):
    N, C = sizes
    rows, wide = tile_of(_EACH, C, out.element_size())
    with on_device(out):
        kernel[triton.cdiv(N, rows), triton.cdiv(C, wide)](
            out, *pointers, N, C, *flags, rows, wide, num_warps=_WARPS, **FUSED
        )
    return out


def forward(ctx, x, weight, bias, slope, *, running, batch_statistics, momentum, eps):
    """y, as reference.forward."""
    x = ctx.x = _last(x)
    C = x.shape[1]
    ctx.sizes, ctx.batch = (x.numel() // C, C), batch_statistics
    ctx.layer, ctx.step = (weight, bias, slope), int(slope is not None and slope.numel() > 1)
    sums, moved = None, (None, None)
    if batch_statistics:
        ctx.mean, ctx.r = torch.empty((2, C), device=x.device).unbind()
        sums, moved = _sums(_statistics, x, [x], ctx.sizes), running
    else:
        ctx.mean, ctx.r = running[0], torch.rsqrt(running[1] + eps)
    pointers = [ctx.mean, ctx.r, *moved, sums, x, *ctx.layer]
    return _each(_forward, torch.empty_like(x), pointers, ctx.sizes, eps, float(momentum), ctx.step)


def backward(ctx, dy):
    """dx, and the gradients of weight, bias and slope, as reference.backward."""
    ctx.dy = _last(dy)
    pointers = [ctx.x, ctx.dy, ctx.mean, ctx.r, *ctx.layer]
    ctx.sums = _sums(_backward_sums, ctx.x, pointers, ctx.sizes, ctx.step)
    dx = _each(_backward, torch.empty_like(ctx.x), [ctx.sums, *pointers], ctx.sizes, ctx.step, ctx.batch)
    return dx, ctx.sums[1], ctx.sums[0], _of_slope(ctx, ctx.sums[2])


def tangent(ctx, xd, weight_d, bias_d, slope_d):
    """y', as reference.tangent."""
    ctx.xd, ctx.moving = _last(xd), (weight_d, bias_d, slope_d)
    ctx.moved = _sums(_tangent_sums, ctx.x, [ctx.x, ctx.xd, ctx.mean, ctx.r], ctx.sizes) if ctx.batch else None
    pointers = [ctx.moved, ctx.x, ctx.xd, ctx.mean, ctx.r, *ctx.layer, *ctx.moving]
    return _each(_tangent, torch.empty_like(ctx.x), pointers, ctx.sizes, ctx.step, ctx.batch)


def second_backward(ctx, dyd):
    """dx', and the derivatives of the gradients of weight, bias and slope, as reference.second_backward."""
    dyd = _last(dyd)
    weight_d, bias_d, slope_d = ctx.moving
    known = [ctx.moved, ctx.x, ctx.dy, ctx.xd, dyd, ctx.mean, ctx.r, *ctx.layer]
    sums = _sums(_second_sums, ctx.x, [*known, weight_d, bias_d, slope_d], ctx.sizes, ctx.step, ctx.batch)
    dxd = _each(
        _second, torch.empty_like(ctx.x), [sums, ctx.sums, *known, weight_d, slope_d], ctx.sizes, ctx.step, ctx.batch
    )
    return dxd, sums[1], sums[0], _of_slope(ctx, sums[2])


def _of_slope(ctx, sum_C):
    """The sum as the gradient of PReLU's slope, which may be one for all channels."""
    return None if ctx.layer[2] is None else sum_C.sum_to_size(ctx.layer[2].shape)
