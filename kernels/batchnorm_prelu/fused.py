"""BatchNorm and PReLU in Triton: forward, backward, tangent and second backward, as reference.py defines them.

Each pass is two launches: one computes sums per channel, one is elementwise. They read nothing but x, dy, x' and dy',
since all values in between are computed again in registers. In eager PyTorch a double backward takes about 140 passes.
Tensors are treated as matrices, pixels x channels, channels last. Sums are float32, in a fixed order: an atomic count
only finds the program that is last, which joins the sums of all.
Shape suffixes: N = pixels of all images, C = channels, P = programs, K = sums.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..launching import ceil_div, launch, multiprocessors, next_power_of_2
from .tiles import (
    channel_block,
    join_sums,
    load_channel,
    load_normalised,
    load_normalised_tangent,
    load_slope,
    pixel_offsets,
)

_WARPS = 4
_EACH = 1024  # elements of one tile of the elementwise passes
_ROW_BYTES = 128  # of one pixel's channels that a tile takes: a line of the cache
_BLOCKS = 1 << 16  # of channels, at most


@triton.jit
def sum_statistics_kernel(
    sum_ptr,  # (1 + P, K, C): the joined sums, then each program's own
    count_ptr,  # (blocks of channels,), 0 between launches
    x_ptr,  # (N, C)
    N,
    C,
    share,  # pixels of one program
    ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Sums of x and of x^2, with x relative to the first pixel, so that the variance does not cancel."""
    p = tl.program_id(0)
    c, present = channel_block(C, CHANNELS)
    origin = load_channel(x_ptr, c, present)
    first_sum, second_sum = tl.zeros((ROWS, CHANNELS), tl.float32), tl.zeros((ROWS, CHANNELS), tl.float32)
    for first in range(p * share, tl.minimum((p + 1) * share, N), ROWS):
        at, inside = pixel_offsets(first, c, present, C, N, ROWS)
        x = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
        x = tl.where(inside, x - origin, 0.0)
        first_sum += x
        second_sum += x * x
    join_sums(sum_ptr, count_ptr, c, present, C, tl.sum(first_sum, 0), tl.sum(second_sum, 0), None)


@triton.jit
def normalise_input_kernel(
    y_ptr,  # (N, C)
    mean_ptr,  # (C,)
    r_ptr,  # (C,)
    run_mean_ptr,  # (C,) or None
    run_variance_ptr,  # (C,) or None
    sum_ptr,  # from sum_statistics_kernel, (2, C), or None: running statistics
    x_ptr,  # (N, C)
    weight_ptr,  # (C,)
    bias_ptr,  # (C,)
    slope_ptr,  # (C,), (1,), or None: no PReLU
    N,
    C,
    eps,
    momentum,
    STEP: tl.constexpr,  # 1 for a slope per channel, 0 for one slope
    ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """y. Mean and r are computed from the sums if these are given, else read. Updates running statistics if given."""
    c, present = channel_block(C, CHANNELS)
    at, inside = pixel_offsets(tl.program_id(0) * ROWS, c, present, C, N, ROWS)
    if sum_ptr is not None:
        shifted = load_channel(sum_ptr, c, present) / N
        mean = load_channel(x_ptr, c, present) + shifted
        variance = tl.maximum(load_channel(sum_ptr + C, c, present) / N - shifted * shifted, 0.0)
        r = 1 / tl.sqrt(variance + eps)
        if tl.program_id(0) == 0:
            tl.store(mean_ptr + c[None, :], mean, mask=present[None, :])
            tl.store(r_ptr + c[None, :], r, mask=present[None, :])
            if run_mean_ptr is not None:
                before, unbiased = load_channel(run_variance_ptr, c, present), variance * (N / tl.maximum(N - 1, 1))
                run_mean = load_channel(run_mean_ptr, c, present)
                tl.store(run_mean_ptr + c[None, :], run_mean + momentum * (mean - run_mean), mask=present[None, :])
                tl.store(run_variance_ptr + c[None, :], before + momentum * (unbiased - before), mask=present[None, :])
    else:
        mean, r = load_channel(mean_ptr, c, present), load_channel(r_ptr, c, present)
    x = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
    z = load_channel(weight_ptr, c, present) * ((x - mean) * r) + load_channel(bias_ptr, c, present)
    tl.store(y_ptr + at, tl.where(z > 0, z, z * load_slope(slope_ptr, c, present, STEP)), mask=inside)


@triton.jit
def sum_gradients_kernel(
    sum_ptr,  # (1 + P, K, C): the joined sums, then each program's own
    count_ptr,  # (blocks of channels,), 0 between launches
    x_ptr,  # (N, C)
    dy_ptr,  # (N, C)
    mean_ptr,  # (C,)
    r_ptr,  # (C,)
    weight_ptr,  # (C,)
    bias_ptr,  # (C,)
    slope_ptr,  # (C,), (1,), or None: no PReLU
    N,
    C,
    share,  # pixels of one program
    STEP: tl.constexpr,  # 1 for a slope per channel, 0 for one slope
    ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Sums of dz, of xh dz, and of z dy over the pixels with z <= 0."""
    p = tl.program_id(0)
    c, present = channel_block(C, CHANNELS)
    weight, bias = load_channel(weight_ptr, c, present), load_channel(bias_ptr, c, present)
    slope = load_slope(slope_ptr, c, present, STEP)
    plain = tl.zeros((ROWS, CHANNELS), tl.float32)
    along = tl.zeros((ROWS, CHANNELS), tl.float32)
    below = tl.zeros((ROWS, CHANNELS), tl.float32)
    for first in range(p * share, tl.minimum((p + 1) * share, N), ROWS):
        at, inside = pixel_offsets(first, c, present, C, N, ROWS)
        xh = load_normalised(x_ptr, at, inside, mean_ptr, r_ptr, c, present)
        dy = tl.load(dy_ptr + at, mask=inside, other=0.0).to(tl.float32)
        z = weight * xh + bias
        dz = tl.where(z > 0, dy, slope * dy)
        plain += dz
        along += xh * dz
        below += tl.where(z > 0, 0.0, z * dy)
    join_sums(sum_ptr, count_ptr, c, present, C, tl.sum(plain, 0), tl.sum(along, 0), tl.sum(below, 0))


@triton.jit
def compute_input_gradient_kernel(
    dx_ptr,  # (N, C)
    sum_ptr,  # from sum_gradients_kernel, (3, C)
    x_ptr,  # (N, C)
    dy_ptr,  # (N, C)
    mean_ptr,  # (C,)
    r_ptr,  # (C,)
    weight_ptr,  # (C,)
    bias_ptr,  # (C,)
    slope_ptr,  # (C,), (1,), or None: no PReLU
    N,
    C,
    STEP: tl.constexpr,  # 1 for a slope per channel, 0 for one slope
    BATCH: tl.constexpr,  # whether the statistics are the batch's
    ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    c, present = channel_block(C, CHANNELS)
    at, inside = pixel_offsets(tl.program_id(0) * ROWS, c, present, C, N, ROWS)
    xh = load_normalised(x_ptr, at, inside, mean_ptr, r_ptr, c, present)
    weight = load_channel(weight_ptr, c, present)
    dy = tl.load(dy_ptr + at, mask=inside, other=0.0).to(tl.float32)
    u = tl.where(weight * xh + load_channel(bias_ptr, c, present) > 0, dy, load_slope(slope_ptr, c, present, STEP) * dy)
    if BATCH:
        u -= (load_channel(sum_ptr, c, present) + xh * load_channel(sum_ptr + C, c, present)) / N
    tl.store(dx_ptr + at, weight * load_channel(r_ptr, c, present) * u, mask=inside)


@triton.jit
def sum_input_tangents_kernel(
    sum_ptr,  # (1 + P, K, C): the joined sums, then each program's own
    count_ptr,  # (blocks of channels,), 0 between launches
    x_ptr,  # (N, C)
    xd_ptr,  # x', (N, C)
    mean_ptr,  # (C,)
    r_ptr,  # (C,)
    N,
    C,
    share,  # pixels of one program
    ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Sums of x' and of xh x'."""
    p = tl.program_id(0)
    c, present = channel_block(C, CHANNELS)
    plain, along = tl.zeros((ROWS, CHANNELS), tl.float32), tl.zeros((ROWS, CHANNELS), tl.float32)
    for first in range(p * share, tl.minimum((p + 1) * share, N), ROWS):
        at, inside = pixel_offsets(first, c, present, C, N, ROWS)
        xd = tl.load(xd_ptr + at, mask=inside, other=0.0).to(tl.float32)
        plain += xd
        along += load_normalised(x_ptr, at, inside, mean_ptr, r_ptr, c, present) * xd
    join_sums(sum_ptr, count_ptr, c, present, C, tl.sum(plain, 0), tl.sum(along, 0), None)


@triton.jit
def compute_output_tangent_kernel(
    yd_ptr,  # y', (N, C)
    moved_ptr,  # sums of x' and xh x', (2, C), or None: running statistics
    x_ptr,  # (N, C)
    xd_ptr,  # x', (N, C)
    mean_ptr,  # (C,)
    r_ptr,  # (C,)
    weight_ptr,  # (C,)
    bias_ptr,  # (C,)
    slope_ptr,  # (C,), (1,), or None: no PReLU
    weight_d_ptr,  # (C,)
    bias_d_ptr,  # (C,)
    slope_d_ptr,  # as slope_ptr
    N,
    C,
    STEP: tl.constexpr,  # 1 for a slope per channel, 0 for one slope
    BATCH: tl.constexpr,  # whether the statistics are the batch's
    ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    c, present = channel_block(C, CHANNELS)
    at, inside = pixel_offsets(tl.program_id(0) * ROWS, c, present, C, N, ROWS)
    xh = load_normalised(x_ptr, at, inside, mean_ptr, r_ptr, c, present)
    weight = load_channel(weight_ptr, c, present)
    xhd = load_normalised_tangent(
        xd_ptr, xh, at, inside, load_channel(r_ptr, c, present), moved_ptr, N, C, c, present, BATCH
    )
    yd = weight * xhd + load_channel(weight_d_ptr, c, present) * xh + load_channel(bias_d_ptr, c, present)
    if slope_ptr is not None:
        z = weight * xh + load_channel(bias_ptr, c, present)
        below = load_slope(slope_ptr, c, present, STEP) * yd + load_slope(slope_d_ptr, c, present, STEP) * z
        yd = tl.where(z > 0, yd, below)
    tl.store(yd_ptr + at, yd, mask=inside)


@triton.jit
def sum_second_gradients_kernel(
    sum_ptr,  # (1 + P, K, C): the joined sums, then each program's own
    count_ptr,  # (blocks of channels,), 0 between launches
    moved_ptr,  # sums of x' and xh x', (2, C), or None: running statistics
    x_ptr,  # (N, C)
    dy_ptr,  # (N, C)
    xd_ptr,  # x', (N, C)
    dyd_ptr,  # dy', (N, C)
    mean_ptr,  # (C,)
    r_ptr,  # (C,)
    weight_ptr,  # (C,)
    bias_ptr,  # (C,)
    slope_ptr,  # (C,), (1,), or None: no PReLU
    weight_d_ptr,  # (C,)
    bias_d_ptr,  # (C,)
    slope_d_ptr,  # as slope_ptr
    N,
    C,
    share,  # pixels of one program
    STEP: tl.constexpr,  # 1 for a slope per channel, 0 for one slope
    BATCH: tl.constexpr,  # whether the statistics are the batch's
    ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Sums of dz', of xh dz' + xh' dz, and of z dy' + z' dy over the pixels with z <= 0."""
    p = tl.program_id(0)
    c, present = channel_block(C, CHANNELS)
    weight, bias, r = (
        load_channel(weight_ptr, c, present),
        load_channel(bias_ptr, c, present),
        load_channel(r_ptr, c, present),
    )
    weight_d, bias_d = load_channel(weight_d_ptr, c, present), load_channel(bias_d_ptr, c, present)
    slope = load_slope(slope_ptr, c, present, STEP)
    plain = tl.zeros((ROWS, CHANNELS), tl.float32)
    along = tl.zeros((ROWS, CHANNELS), tl.float32)
    below = tl.zeros((ROWS, CHANNELS), tl.float32)
    for first in range(p * share, tl.minimum((p + 1) * share, N), ROWS):
        at, inside = pixel_offsets(first, c, present, C, N, ROWS)
        xh = load_normalised(x_ptr, at, inside, mean_ptr, r_ptr, c, present)
        xhd = load_normalised_tangent(xd_ptr, xh, at, inside, r, moved_ptr, N, C, c, present, BATCH)
        dy = tl.load(dy_ptr + at, mask=inside, other=0.0).to(tl.float32)
        dyd = tl.load(dyd_ptr + at, mask=inside, other=0.0).to(tl.float32)
        z = weight * xh + bias
        dzd = tl.where(z > 0, dyd, slope * dyd)
        if slope_ptr is not None:
            dzd += tl.where(z > 0, 0.0, load_slope(slope_d_ptr, c, present, STEP) * dy)
            zd = weight * xhd + weight_d * xh + bias_d
            below += tl.where(z > 0, 0.0, z * dyd + zd * dy)
        plain += dzd
        along += xh * dzd + xhd * tl.where(z > 0, dy, slope * dy)
    join_sums(sum_ptr, count_ptr, c, present, C, tl.sum(plain, 0), tl.sum(along, 0), tl.sum(below, 0))


@triton.jit
def compute_second_gradient_kernel(
    dxd_ptr,  # dx', (N, C)
    sum_ptr,  # from sum_second_gradients_kernel, (3, C)
    first_sum_ptr,  # from sum_gradients_kernel, (3, C)
    moved_ptr,  # sums of x' and xh x', (2, C), or None: running statistics
    x_ptr,  # (N, C)
    dy_ptr,  # (N, C)
    xd_ptr,  # x', (N, C)
    dyd_ptr,  # dy', (N, C)
    mean_ptr,  # (C,)
    r_ptr,  # (C,)
    weight_ptr,  # (C,)
    bias_ptr,  # (C,)
    slope_ptr,  # (C,), (1,), or None: no PReLU
    weight_d_ptr,  # (C,)
    slope_d_ptr,  # as slope_ptr
    N,
    C,
    STEP: tl.constexpr,  # 1 for a slope per channel, 0 for one slope
    BATCH: tl.constexpr,  # whether the statistics are the batch's
    ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    c, present = channel_block(C, CHANNELS)
    at, inside = pixel_offsets(tl.program_id(0) * ROWS, c, present, C, N, ROWS)
    weight, r = load_channel(weight_ptr, c, present), load_channel(r_ptr, c, present)
    slope = load_slope(slope_ptr, c, present, STEP)
    xh = load_normalised(x_ptr, at, inside, mean_ptr, r_ptr, c, present)
    dy = tl.load(dy_ptr + at, mask=inside, other=0.0).to(tl.float32)
    dyd = tl.load(dyd_ptr + at, mask=inside, other=0.0).to(tl.float32)
    above = weight * xh + load_channel(bias_ptr, c, present) > 0
    u = tl.where(above, dy, slope * dy)
    dzd = tl.where(above, dyd, slope * dyd)
    if slope_ptr is not None:
        dzd += tl.where(above, 0.0, load_slope(slope_d_ptr, c, present, STEP) * dy)
    gain_d = load_channel(weight_d_ptr, c, present) * r
    if BATCH:
        along = load_channel(first_sum_ptr + C, c, present) / N
        u -= load_channel(first_sum_ptr, c, present) / N + xh * along
        gain_d -= weight * r * r * load_channel(moved_ptr + C, c, present) / N
        xhd = load_normalised_tangent(xd_ptr, xh, at, inside, r, moved_ptr, N, C, c, present, BATCH)
        turned = load_channel(sum_ptr + C, c, present)
        dzd -= (load_channel(sum_ptr, c, present) + xh * turned) / N + xhd * along
    tl.store(dxd_ptr + at, weight * r * dzd + gain_d * u, mask=inside)


def channels_last(tensor: Tensor) -> Tensor:
    """Return the tensor with its channels last in memory: itself, if they are."""
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor.contiguous()


_COUNTS = {}


def make_counts(device: torch.device) -> Tensor:
    """Return the counts of the current stream: how many programs of each block of channels have stored their sums.

    Counts are 0 between launches, and made at the first call on a stream. A CUDA graph must not record that call: each
    replay would clear counts in the graph's own memory, and graphs recorded later would begin with arbitrary counts.

    Raises:
        RuntimeError: If the first call on a stream is being recorded.
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
    """How a kernel sums over pixels. There are as many programs as registers leave room for; with about 24 kB in flight
    on a multiprocessor, they use the whole bandwidth.

    Attributes:
        sums: Sums per channel.
        elements: Elements of one tile.
        resident: Programs on a multiprocessor.
    """

    sums: int
    elements: int
    resident: int


_SUMMING = {
    sum_statistics_kernel: Summing(2, 2048, 6),
    sum_gradients_kernel: Summing(3, 1024, 4),
    sum_input_tangents_kernel: Summing(2, 2048, 6),
    sum_second_gradients_kernel: Summing(3, 512, 4),
}


def _tile(elements, C, itemsize):
    """(rows, channels) of a tile: whole lines of the cache, but no more channels than there are."""
    wide = min(_ROW_BYTES // itemsize, next_power_of_2(C))
    return elements // wide, wide


def _launch_sums(kernel, x, pointers, sizes, *flags):
    """The sums per channel (K, C) of a kernel whose programs share the pixels, joined in a fixed order."""
    (N, C), device, (count, elements, resident) = sizes, x.device, _SUMMING[kernel]
    rows, wide = _tile(elements, C, x.element_size())
    blocks = ceil_div(C, wide)
    programs = max(1, resident * multiprocessors(device) // blocks)
    share = ceil_div(ceil_div(N, programs), rows) * rows
    P = ceil_div(N, share)
    sum_KC = torch.empty((1 + P, count, C), device=device)  # and after it the programs' own
    counts = make_counts(device)
    launch(kernel, (P, blocks), sum_KC, counts, *pointers, N, C, share, *flags, rows, wide, num_warps=_WARPS)
    return sum_KC[0]


def _launch_elementwise(kernel, out, pointers, sizes, *flags):
    """`out`, written by an elementwise kernel."""
    N, C = sizes
    rows, wide = _tile(_EACH, C, out.element_size())
    grid = ceil_div(N, rows), ceil_div(C, wide)
    launch(kernel, grid, out, *pointers, N, C, *flags, rows, wide, num_warps=_WARPS)
    return out


def forward(
    ctx: Any,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    slope: Tensor | None,
    *,
    running: Sequence[Any],
    batch_statistics: bool,
    momentum: float,
    eps: float,
) -> Tensor:
    """Compute y, as reference.forward does."""
    x = ctx.x = channels_last(x)
    C = x.shape[1]
    ctx.sizes, ctx.batch = (x.numel() // C, C), batch_statistics
    ctx.layer, ctx.step = (weight, bias, slope), int(slope is not None and slope.numel() > 1)
    sums, moved = None, (None, None)
    if batch_statistics:
        ctx.mean, ctx.r = torch.empty((2, C), device=x.device).unbind()
        sums, moved = _launch_sums(sum_statistics_kernel, x, [x], ctx.sizes), running
    else:
        ctx.mean, ctx.r = running[0], torch.rsqrt(running[1] + eps)
    pointers = [ctx.mean, ctx.r, *moved, sums, x, *ctx.layer]
    return _launch_elementwise(
        normalise_input_kernel, torch.empty_like(x), pointers, ctx.sizes, eps, float(momentum), ctx.step
    )


def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Compute dx and the gradients of weight, bias and slope, as reference.backward does."""
    ctx.dy = channels_last(dy)
    pointers = [ctx.x, ctx.dy, ctx.mean, ctx.r, *ctx.layer]
    ctx.sums = _launch_sums(sum_gradients_kernel, ctx.x, pointers, ctx.sizes, ctx.step)
    dx = _launch_elementwise(
        compute_input_gradient_kernel, torch.empty_like(ctx.x), [ctx.sums, *pointers], ctx.sizes, ctx.step, ctx.batch
    )
    return dx, ctx.sums[1], ctx.sums[0], _of_slope(ctx, ctx.sums[2])


def tangent(ctx: Any, xd: Tensor, weight_d: Tensor, bias_d: Tensor, slope_d: Tensor | None) -> Tensor:
    """Compute y', as reference.tangent does."""
    ctx.xd, ctx.moving = channels_last(xd), (weight_d, bias_d, slope_d)
    ctx.moved = (
        _launch_sums(sum_input_tangents_kernel, ctx.x, [ctx.x, ctx.xd, ctx.mean, ctx.r], ctx.sizes)
        if ctx.batch
        else None
    )
    pointers = [ctx.moved, ctx.x, ctx.xd, ctx.mean, ctx.r, *ctx.layer, *ctx.moving]
    return _launch_elementwise(
        compute_output_tangent_kernel, torch.empty_like(ctx.x), pointers, ctx.sizes, ctx.step, ctx.batch
    )


def second_backward(ctx: Any, dyd: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Compute dx' and the derivatives of the gradients, as reference.second_backward does."""
    dyd = channels_last(dyd)
    weight_d, bias_d, slope_d = ctx.moving
    known = [ctx.moved, ctx.x, ctx.dy, ctx.xd, dyd, ctx.mean, ctx.r, *ctx.layer]
    sums = _launch_sums(
        sum_second_gradients_kernel, ctx.x, [*known, weight_d, bias_d, slope_d], ctx.sizes, ctx.step, ctx.batch
    )
    dxd = _launch_elementwise(
        compute_second_gradient_kernel,
        torch.empty_like(ctx.x),
        [sums, ctx.sums, *known, weight_d, slope_d],
        ctx.sizes,
        ctx.step,
        ctx.batch,
    )
    return dxd, sums[1], sums[0], _of_slope(ctx, sums[2])


def _of_slope(ctx, sum_C):
    """The gradient of PReLU's slope from its sums per channel; the slope may be one for all channels."""
    return None if ctx.layer[2] is None else sum_C.sum_to_size(ctx.layer[2].shape)
