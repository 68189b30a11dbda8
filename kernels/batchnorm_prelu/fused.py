"""BatchNorm and PReLU in Triton: forward, backward, tangent and second backward, as reference.py defines them.

Each is one pass that makes sums per channel and one that is elementwise; nothing but x, dy, x' and y's gradients is
read, since what lies between is recomputed in registers. In eager PyTorch a double backward takes about 140 passes.
Tensors are seen as matrices, pixels x channels, channels last. Sums are float32, in a fixed order: no atomics.
Shape suffixes: N = pixels of all images, C = channels, P = programs, K = sums.
"""

import torch
import triton
import triton.language as tl

from ..launching import FUSED, multiprocessors, on_device

_ROWS, _CHANNELS, _WARPS = 16, 32, 4  # of one tile: larger ones take so many registers that few programs run beside
_PER_MULTIPROCESSOR = 4  # programs that make sums


@triton.jit
def _channels(C, CHANNELS: tl.constexpr):
    """This program's block of channels, and which of them there are."""
    c = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    return c, c < C


@triton.jit
def _pixels(first, c, present, C, N, ROWS: tl.constexpr):
    """(offsets, mask) of these channels of ROWS pixels from `first`."""
    n = first + tl.arange(0, ROWS)
    return n.to(tl.int64)[:, None] * C + c[None, :], (n < N)[:, None] & present[None, :]


@triton.jit
def _channel(ptr, c, present):
    return tl.load(ptr + c, mask=present, other=0.0).to(tl.float32)[None, :]


@triton.jit
def _normalised(x_ptr, at, inside, mean_ptr, r_ptr, c, present):
    """xh of a tile; 0 outside, so that no sum sees it."""
    x = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
    return tl.where(inside, (x - _channel(mean_ptr, c, present)) * _channel(r_ptr, c, present), 0.0)


@triton.jit
def _slope(slope_ptr, c, present, STEP: tl.constexpr):
    """PReLU's slope below zero; 1, which changes nothing, where there is no PReLU."""
    slope = tl.full((1, c.shape[0]), 1.0, tl.float32)
    if slope_ptr is not None:
        slope = tl.load(slope_ptr + c * STEP, mask=present, other=1.0).to(tl.float32)[None, :]
    return slope


@triton.jit
def _statistics(sum_ptr, x_ptr, N, C, share, ROWS: tl.constexpr, CHANNELS: tl.constexpr):
    """Sums of x and of its square, both counted from the first pixel: so their difference does not cancel."""
    p = tl.program_id(0)
    c, present = _channels(C, CHANNELS)
    origin = _channel(x_ptr, c, present)
    first_sum, second_sum = tl.zeros((CHANNELS,), tl.float32), tl.zeros((CHANNELS,), tl.float32)
    for first in range(p * share, tl.minimum((p + 1) * share, N), ROWS):
        at, inside = _pixels(first, c, present, C, N, ROWS)
        x = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
        x = tl.where(inside, x - origin, 0.0)
        first_sum += tl.sum(x, 0)
        second_sum += tl.sum(x * x, 0)
    tl.store(sum_ptr + 2 * p * C + c, first_sum, mask=present)
    tl.store(sum_ptr + (2 * p + 1) * C + c, second_sum, mask=present)


@triton.jit
def _forward(y_ptr, mean_ptr, r_ptr, variance_ptr, sum_ptr, x_ptr, weight_ptr, bias_ptr, slope_ptr, N, C, eps,
             STEP: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr):  # fmt: skip
    """y; mean, r and variance come of the sums where they are given, else mean and r are read."""
    c, present = _channels(C, CHANNELS)
    at, inside = _pixels(tl.program_id(0) * ROWS, c, present, C, N, ROWS)
    if sum_ptr is not None:
        shifted = _channel(sum_ptr, c, present) / N
        mean = _channel(x_ptr, c, present) + shifted
        variance = tl.maximum(_channel(sum_ptr + C, c, present) / N - shifted * shifted, 0.0)
        r = 1 / tl.sqrt(variance + eps)
        if tl.program_id(0) == 0:
            tl.store(mean_ptr + c[None, :], mean, mask=present[None, :])
            tl.store(r_ptr + c[None, :], r, mask=present[None, :])
            tl.store(variance_ptr + c[None, :], variance, mask=present[None, :])
    else:
        mean, r = _channel(mean_ptr, c, present), _channel(r_ptr, c, present)
    x = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
    z = _channel(weight_ptr, c, present) * ((x - mean) * r) + _channel(bias_ptr, c, present)
    tl.store(y_ptr + at, tl.where(z > 0, z, z * _slope(slope_ptr, c, present, STEP)), mask=inside)


@triton.jit
def _backward_sums(sum_ptr, x_ptr, dy_ptr, mean_ptr, r_ptr, weight_ptr, bias_ptr, slope_ptr, N, C, share,
                   STEP: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr):  # fmt: skip
    """Sums of dz, xh dz, and z dy where z <= 0."""
    p = tl.program_id(0)
    c, present = _channels(C, CHANNELS)
    weight, bias = _channel(weight_ptr, c, present), _channel(bias_ptr, c, present)
    slope = _slope(slope_ptr, c, present, STEP)
    plain, along, below = (tl.zeros((CHANNELS,), tl.float32), tl.zeros((CHANNELS,), tl.float32),
                           tl.zeros((CHANNELS,), tl.float32))  # fmt: skip
    for first in range(p * share, tl.minimum((p + 1) * share, N), ROWS):
        at, inside = _pixels(first, c, present, C, N, ROWS)
        xh = _normalised(x_ptr, at, inside, mean_ptr, r_ptr, c, present)
        dy = tl.load(dy_ptr + at, mask=inside, other=0.0).to(tl.float32)
        z = weight * xh + bias
        dz = tl.where(z > 0, dy, slope * dy)
        plain += tl.sum(dz, 0)
        along += tl.sum(xh * dz, 0)
        below += tl.sum(tl.where(z > 0, 0.0, z * dy), 0)
    tl.store(sum_ptr + 3 * p * C + c, plain, mask=present)
    tl.store(sum_ptr + (3 * p + 1) * C + c, along, mask=present)
    tl.store(sum_ptr + (3 * p + 2) * C + c, below, mask=present)


@triton.jit
def _backward(dx_ptr, sum_ptr, x_ptr, dy_ptr, mean_ptr, r_ptr, weight_ptr, bias_ptr, slope_ptr, N, C,
              STEP: tl.constexpr, BATCH: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr):  # fmt: skip
    c, present = _channels(C, CHANNELS)
    at, inside = _pixels(tl.program_id(0) * ROWS, c, present, C, N, ROWS)
    xh = _normalised(x_ptr, at, inside, mean_ptr, r_ptr, c, present)
    weight = _channel(weight_ptr, c, present)
    dy = tl.load(dy_ptr + at, mask=inside, other=0.0).to(tl.float32)
    u = tl.where(weight * xh + _channel(bias_ptr, c, present) > 0, dy, _slope(slope_ptr, c, present, STEP) * dy)
    if BATCH:
        u -= (_channel(sum_ptr, c, present) + xh * _channel(sum_ptr + C, c, present)) / N
    tl.store(dx_ptr + at, weight * _channel(r_ptr, c, present) * u, mask=inside)


@triton.jit
def _tangent_sums(sum_ptr, x_ptr, xd_ptr, mean_ptr, r_ptr, N, C, share, ROWS: tl.constexpr, CHANNELS: tl.constexpr):
    """Sums of x' and xh x'."""
    p = tl.program_id(0)
    c, present = _channels(C, CHANNELS)
    plain, along = tl.zeros((CHANNELS,), tl.float32), tl.zeros((CHANNELS,), tl.float32)
    for first in range(p * share, tl.minimum((p + 1) * share, N), ROWS):
        at, inside = _pixels(first, c, present, C, N, ROWS)
        xd = tl.load(xd_ptr + at, mask=inside, other=0.0).to(tl.float32)
        plain += tl.sum(xd, 0)
        along += tl.sum(_normalised(x_ptr, at, inside, mean_ptr, r_ptr, c, present) * xd, 0)
    tl.store(sum_ptr + 2 * p * C + c, plain, mask=present)
    tl.store(sum_ptr + (2 * p + 1) * C + c, along, mask=present)


@triton.jit
def _normalised_tangent(xd_ptr, xh, at, inside, r, moved_ptr, N, C, c, present, BATCH: tl.constexpr):
    """xh' of a tile, `moved_ptr` the sums of x' and xh x'; 0 outside."""
    xd = tl.load(xd_ptr + at, mask=inside, other=0.0).to(tl.float32)
    if BATCH:
        xd -= (_channel(moved_ptr, c, present) + xh * _channel(moved_ptr + C, c, present)) / N
    return tl.where(inside, r * xd, 0.0)


@triton.jit
def _tangent(yd_ptr, moved_ptr, x_ptr, xd_ptr, mean_ptr, r_ptr, weight_ptr, bias_ptr, slope_ptr, weight_d_ptr,
             bias_d_ptr, slope_d_ptr, N, C, STEP: tl.constexpr, BATCH: tl.constexpr, ROWS: tl.constexpr,
             CHANNELS: tl.constexpr):  # fmt: skip
    c, present = _channels(C, CHANNELS)
    at, inside = _pixels(tl.program_id(0) * ROWS, c, present, C, N, ROWS)
    xh = _normalised(x_ptr, at, inside, mean_ptr, r_ptr, c, present)
    weight = _channel(weight_ptr, c, present)
    xhd = _normalised_tangent(xd_ptr, xh, at, inside, _channel(r_ptr, c, present), moved_ptr, N, C, c, present, BATCH)
    yd = weight * xhd + _channel(weight_d_ptr, c, present) * xh + _channel(bias_d_ptr, c, present)
    if slope_ptr is not None:
        z = weight * xh + _channel(bias_ptr, c, present)
        below = _slope(slope_ptr, c, present, STEP) * yd + _slope(slope_d_ptr, c, present, STEP) * z
        yd = tl.where(z > 0, yd, below)
    tl.store(yd_ptr + at, yd, mask=inside)


@triton.jit
def _second_sums(sum_ptr, moved_ptr, x_ptr, dy_ptr, xd_ptr, dyd_ptr, mean_ptr, r_ptr, weight_ptr, bias_ptr, slope_ptr,
                 weight_d_ptr, bias_d_ptr, slope_d_ptr, N, C, share, STEP: tl.constexpr, BATCH: tl.constexpr,
                 ROWS: tl.constexpr, CHANNELS: tl.constexpr):  # fmt: skip
    """Sums of dz', xh dz', xh' dz, and z dy' + z' dy where z <= 0."""
    p = tl.program_id(0)
    c, present = _channels(C, CHANNELS)
    weight, bias, r = _channel(weight_ptr, c, present), _channel(bias_ptr, c, present), _channel(r_ptr, c, present)
    weight_d, bias_d = _channel(weight_d_ptr, c, present), _channel(bias_d_ptr, c, present)
    slope = _slope(slope_ptr, c, present, STEP)
    plain, along = tl.zeros((CHANNELS,), tl.float32), tl.zeros((CHANNELS,), tl.float32)
    turned, below = tl.zeros((CHANNELS,), tl.float32), tl.zeros((CHANNELS,), tl.float32)
    for first in range(p * share, tl.minimum((p + 1) * share, N), ROWS):
        at, inside = _pixels(first, c, present, C, N, ROWS)
        xh = _normalised(x_ptr, at, inside, mean_ptr, r_ptr, c, present)
        xhd = _normalised_tangent(xd_ptr, xh, at, inside, r, moved_ptr, N, C, c, present, BATCH)
        dy = tl.load(dy_ptr + at, mask=inside, other=0.0).to(tl.float32)
        dyd = tl.load(dyd_ptr + at, mask=inside, other=0.0).to(tl.float32)
        z = weight * xh + bias
        dzd = tl.where(z > 0, dyd, slope * dyd)
        if slope_ptr is not None:
            dzd += tl.where(z > 0, 0.0, _slope(slope_d_ptr, c, present, STEP) * dy)
            zd = weight * xhd + weight_d * xh + bias_d
            below += tl.sum(tl.where(z > 0, 0.0, z * dyd + zd * dy), 0)
        plain += tl.sum(dzd, 0)
        along += tl.sum(xh * dzd, 0)
        turned += tl.sum(xhd * tl.where(z > 0, dy, slope * dy), 0)
    tl.store(sum_ptr + 4 * p * C + c, plain, mask=present)
    tl.store(sum_ptr + (4 * p + 1) * C + c, along, mask=present)
    tl.store(sum_ptr + (4 * p + 2) * C + c, turned, mask=present)
    tl.store(sum_ptr + (4 * p + 3) * C + c, below, mask=present)


@triton.jit
def _second(dxd_ptr, sum_ptr, first_sum_ptr, moved_ptr, x_ptr, dy_ptr, xd_ptr, dyd_ptr, mean_ptr, r_ptr, weight_ptr,
            bias_ptr, slope_ptr, weight_d_ptr, slope_d_ptr, N, C, STEP: tl.constexpr, BATCH: tl.constexpr,
            ROWS: tl.constexpr, CHANNELS: tl.constexpr):  # fmt: skip
    """dx'; `first_sum_ptr` holds what _backward_sums made, `sum_ptr` what _second_sums did."""
    c, present = _channels(C, CHANNELS)
    at, inside = _pixels(tl.program_id(0) * ROWS, c, present, C, N, ROWS)
    weight, r = _channel(weight_ptr, c, present), _channel(r_ptr, c, present)
    slope = _slope(slope_ptr, c, present, STEP)
    xh = _normalised(x_ptr, at, inside, mean_ptr, r_ptr, c, present)
    dy = tl.load(dy_ptr + at, mask=inside, other=0.0).to(tl.float32)
    dyd = tl.load(dyd_ptr + at, mask=inside, other=0.0).to(tl.float32)
    above = weight * xh + _channel(bias_ptr, c, present) > 0
    u = tl.where(above, dy, slope * dy)
    dzd = tl.where(above, dyd, slope * dyd)
    if slope_ptr is not None:
        dzd += tl.where(above, 0.0, _slope(slope_d_ptr, c, present, STEP) * dy)
    gain_d = _channel(weight_d_ptr, c, present) * r
    if BATCH:
        along = _channel(first_sum_ptr + C, c, present) / N
        u -= _channel(first_sum_ptr, c, present) / N + xh * along
        gain_d -= weight * r * r * _channel(moved_ptr + C, c, present) / N
        xhd = _normalised_tangent(xd_ptr, xh, at, inside, r, moved_ptr, N, C, c, present, BATCH)
        turned = _channel(sum_ptr + C, c, present) + _channel(sum_ptr + 2 * C, c, present)
        dzd -= (_channel(sum_ptr, c, present) + xh * turned) / N + xhd * along
    tl.store(dxd_ptr + at, weight * r * dzd + gain_d * u, mask=inside)


def _last(tensor):
    """The tensor with its channels last in memory."""
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor.contiguous()


def _sums(kernel, count, x, pointers, sizes, *flags):
    """The `count` sums per channel (K, C) that a kernel makes in shares of the pixels, joined in a fixed order."""
    (N, C), device = sizes, x.device
    share = triton.cdiv(triton.cdiv(N, _PER_MULTIPROCESSOR * multiprocessors(device)), _ROWS) * _ROWS
    P = triton.cdiv(N, share)
    partial_PKC = torch.empty((P, count, C), device=device)
    with on_device(x):
        kernel[P, triton.cdiv(C, _CHANNELS)](partial_PKC, *pointers, N, C, share, *flags, _ROWS, _CHANNELS,
                                             num_warps=_WARPS, **FUSED)  # fmt: skip
    return partial_PKC.sum(0)


def _each(kernel, out, pointers, sizes, *flags):
    N, C = sizes
    with on_device(out):
        kernel[triton.cdiv(N, _ROWS), triton.cdiv(C, _CHANNELS)](out, *pointers, N, C, *flags, _ROWS, _CHANNELS,
                                                                 num_warps=_WARPS, **FUSED)  # fmt: skip
    return out


def forward(ctx, x, weight, bias, slope, *, running, batch_statistics, momentum, eps):
    """y, as reference.forward."""
    x = ctx.x = _last(x)
    C = x.shape[1]
    ctx.sizes, ctx.batch = (x.numel() // C, C), batch_statistics
    ctx.layer, ctx.step = (weight, bias, slope), int(slope is not None and slope.numel() > 1)
    sums = variance = None
    if batch_statistics:
        ctx.mean, ctx.r, variance = torch.empty((3, C), device=x.device).unbind()
        sums = _sums(_statistics, 2, x, [x], ctx.sizes)
    else:
        ctx.mean, ctx.r = running[0], torch.rsqrt(running[1] + eps)
    y = _each(_forward, torch.empty_like(x), [ctx.mean, ctx.r, variance, sums, x, *ctx.layer], ctx.sizes, eps, ctx.step)
    if batch_statistics and running[0] is not None:
        N = ctx.sizes[0]
        running[0].lerp_(ctx.mean, momentum)
        running[1].lerp_(variance * (N / max(1, N - 1)), momentum)
    return y


def backward(ctx, dy):
    """dx, and the gradients of weight, bias and slope, as reference.backward."""
    ctx.dy = _last(dy)
    pointers = [ctx.x, ctx.dy, ctx.mean, ctx.r, *ctx.layer]
    ctx.sums = _sums(_backward_sums, 3, ctx.x, pointers, ctx.sizes, ctx.step)
    dx = _each(_backward, torch.empty_like(ctx.x), [ctx.sums, *pointers], ctx.sizes, ctx.step, ctx.batch)
    return dx, ctx.sums[1], ctx.sums[0], _of_slope(ctx, ctx.sums[2])


def tangent(ctx, xd, weight_d, bias_d, slope_d):
    """y', as reference.tangent."""
    ctx.xd, ctx.moving = _last(xd), (weight_d, bias_d, slope_d)
    ctx.moved = _sums(_tangent_sums, 2, ctx.x, [ctx.x, ctx.xd, ctx.mean, ctx.r], ctx.sizes) if ctx.batch else None
    pointers = [ctx.moved, ctx.x, ctx.xd, ctx.mean, ctx.r, *ctx.layer, *ctx.moving]
    return _each(_tangent, torch.empty_like(ctx.x), pointers, ctx.sizes, ctx.step, ctx.batch)


def second_backward(ctx, dyd):
    """dx', and the derivatives of the gradients of weight, bias and slope, as reference.second_backward."""
    dyd = _last(dyd)
    weight_d, bias_d, slope_d = ctx.moving
    known = [ctx.moved, ctx.x, ctx.dy, ctx.xd, dyd, ctx.mean, ctx.r, *ctx.layer]
    sums = _sums(_second_sums, 4, ctx.x, [*known, weight_d, bias_d, slope_d], ctx.sizes, ctx.step, ctx.batch)
    dxd = _each(_second, torch.empty_like(ctx.x), [sums, ctx.sums, *known, weight_d, slope_d], ctx.sizes, ctx.step,
                ctx.batch)  # fmt: skip
    return dxd, sums[1] + sums[2], sums[0], _of_slope(ctx, sums[3])


def _of_slope(ctx, sum_C):
    """The sum as the gradient of PReLU's slope, which may be one for all channels."""
    return None if ctx.layer[2] is None else sum_C.sum_to_size(ctx.layer[2].shape)
