"""BatchNorm followed by PReLU (or by nothing) as one operation: forward, backward, tangent and second backward.

Per channel, over its n elements, with r = 1 / sqrt(var + eps), g = weight, a = slope, and <h> the mean of h:

    forward   xh = r (x - mean)          z = g xh + bias                 y = m z,  m = 1 where z > 0, a elsewhere
    backward  dz = m dy                  dx = g r u                      u = dz - <dz> - xh <xh dz>
    tangent   xh' = r (x' - <x'> - xh <xh x'>)      z' = g xh' + g' xh + bias'      y' = m z' + a' z where z <= 0
    second    dz' = m dy' + a' dy where z <= 0
              dx' = g r (dz' - <dz'> - xh <xh dz'>) + (g' r - g r r <xh x'>) u - g r (xh <xh' dz> + xh' <xh dz>)
              dg' = sum(xh dz' + xh' dz)            dbias' = sum(dz')    da' = sum(z dy' + z' dy where z <= 0)

A prime is the derivative along the direction (x', g', bias', a'). The tangent of the normalisation is the same operator
as its backward, so x' goes through that. With running statistics, mean and r are constants: all <> terms are dropped.

With a process group, each rank has its rows of a batch, as many as the others, and statistics are those of all rows:
every <> is a mean over all ranks. The gradients of weight, bias and slope are sums over the rank's own rows; their sums
over the ranks are the gradients.

`ctx` carries what one call leaves for the next, as in torch.autograd.Function. The four functions are called in this
order. Shapes: x, y and their like (B, C, ...) in any memory format; weight, bias (C,); slope (C,), (1,) or None for no
PReLU. Everything is computed in the dtype of the weight. x, dy, x' and dy' may have 16 bits beside a float32 weight; y,
dx, y' and dx' then have the same 16 bits.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist
from torch.distributed import ProcessGroup

_aten = torch.ops.aten


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
    group: ProcessGroup | None = None,
) -> Tensor:
    """Compute y. `running` is (mean, variance) or (None, None): updated with `batch_statistics`, else used."""
    ctx.dtype, ctx.weight, ctx.slope = x.dtype, weight, slope
    ctx.x, ctx.batch_statistics, ctx.running = x.to(weight.dtype), batch_statistics, (None, None)
    ctx.group = group if batch_statistics else None
    if ctx.group is not None:
        mean, variance = _statistics_of_all(ctx, running, momentum)
        z, *_ = _aten.native_batch_norm(ctx.x, weight, bias, mean, variance, False, 0.0, eps)
        ctx.mean, ctx.r = mean, torch.rsqrt(variance + eps)
    else:
        z, ctx.mean, ctx.r = _aten.native_batch_norm(ctx.x, weight, bias, *running, batch_statistics, momentum, eps)
    if not batch_statistics:
        ctx.mean, ctx.r = running[0], torch.rsqrt(running[1] + eps)
        ctx.running = ctx.mean, ctx.r.square().reciprocal()  # the backward computes r from it, with an eps of 0
    if slope is None:
        return z.to(ctx.dtype)
    ctx.z = z
    return torch.prelu(z, slope).to(ctx.dtype)


def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Compute dx and the gradients of weight, bias and slope (None without a slope)."""
    ctx.dy = ctx.dz = dy.to(ctx.weight.dtype)
    dslope = None
    if ctx.slope is not None:
        ctx.dz = _times_m(ctx, ctx.dy)
        dslope = _dot(ctx.dy, ctx.z.clamp_max(0)).sum_to_size(ctx.slope.shape)
    dx, (xh_dz, sum_dz), (ctx.xh_dz, ctx.sum_dz) = _normalisation_backward(ctx, ctx.dz, ctx.weight)
    return dx.to(ctx.dtype), xh_dz, sum_dz, dslope


def tangent(ctx: Any, xd: Tensor, weight_d: Tensor, bias_d: Tensor, slope_d: Tensor | None) -> Tensor:
    """Compute y' along (x', weight', bias', slope')."""
    xd = xd.to(ctx.weight.dtype)
    ctx.xhd, _, (ctx.xh_xd, _) = _normalisation_backward(ctx, xd, _weight_of_one(xd))
    ctx.slope_d, ctx.scale_d = slope_d, weight_d * ctx.r
    ctx.shift_d = torch.addcmul(bias_d, ctx.scale_d, ctx.mean, value=-1)
    zd = _z_tangent(ctx)
    if ctx.slope is None:
        return zd.to(ctx.dtype)
    return _times_m(ctx, zd).addcmul_(ctx.z.clamp_max(0), _wide(slope_d, zd)).to(ctx.dtype)


def second_backward(ctx: Any, dyd: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Compute dx' and the derivatives of the gradients of weight, bias and slope (None without a slope)."""
    dyd = dzd = dyd.to(ctx.weight.dtype)
    dslope_d = None
    if ctx.slope is not None:
        dy_below = ctx.dy - _where_above(ctx, ctx.dy)
        dzd = _times_m(ctx, dyd).addcmul_(dy_below, _wide(ctx.slope_d, dyd))
        dslope_d = _dot(dyd, ctx.z.clamp_max(0)) + _dot(dy_below, _z_tangent(ctx))
        dslope_d = dslope_d.sum_to_size(ctx.slope.shape)
    dxd, (xh_dzd, dbias_d), _ = _normalisation_backward(ctx, dzd, ctx.weight)
    xhd_dz = _dot(ctx.dz, ctx.xhd)
    gain_d = ctx.scale_d
    if ctx.batch_statistics:
        gain = ctx.weight * ctx.r
        per_element = -1 / _elements(ctx)  # turns sums into means, taken off
        gain_d = torch.addcmul(gain_d, gain * ctx.r, ctx.xh_xd, value=per_element)
        on_x = (gain_d * ctx.xh_dz).addcmul_(gain, _sum_of_all(ctx, xhd_dz)).mul_(ctx.r)
        constant = (gain_d * ctx.sum_dz).addcmul_(on_x, ctx.mean, value=-1)
        dxd.addcmul_(ctx.x, _wide(on_x, dxd), value=per_element)
        dxd.addcmul_(ctx.xhd, _wide(gain.mul_(ctx.xh_dz), dxd), value=per_element)
        dxd.add_(_wide(constant, dxd), alpha=per_element)
    dxd.addcmul_(ctx.dz, _wide(gain_d, dxd))
    return dxd.to(ctx.dtype), xh_dzd + xhd_dz, dbias_d, dslope_d


def _where_above(ctx, values):
    """`values` where z > 0, else 0."""
    return _aten.threshold_backward(values, ctx.z, 0)


def _times_m(ctx, values):
    """`values` times the slope where z <= 0. On a CPU this is faster than torch.where and than PReLU's backward."""
    return torch.lerp(_where_above(ctx, values), values, _wide(ctx.slope, values))


def _wide(value_C, like):
    """Values per channel, shaped to broadcast against a whole tensor."""
    return value_C.view(1, -1, *(1,) * (like.ndim - 2))


def _normalisation_backward(ctx, dz, weight):
    """dx of z = weight * xh + bias; (sum(xh dz), sum(dz)) of this rank's rows, and of all rows."""
    wanted = [ctx.group is None, True, True]
    dx, *sums = _aten.native_batch_norm_backward(
        dz, ctx.x, weight, *ctx.running, ctx.mean, ctx.r, ctx.batch_statistics, 0.0, wanted
    )
    if ctx.group is None:
        return dx, sums, sums
    xh_dz, sum_dz = _sum_of_all(ctx, torch.stack(sums))
    gain = ctx.r if weight is None else weight * ctx.r
    on_x = gain * ctx.r * xh_dz / -_elements(ctx)
    constant = torch.addcmul(gain * sum_dz / -_elements(ctx), on_x, ctx.mean, value=-1)
    dx = torch.addcmul(_wide(constant, dz), dz, _wide(gain, dz)).addcmul_(ctx.x, _wide(on_x, dz))
    return dx, sums, (xh_dz, sum_dz)


def _elements(ctx):
    """How many elements of a channel the statistics are of."""
    own = ctx.x.numel() // ctx.x.shape[1]
    return own if ctx.group is None else own * dist.get_world_size(ctx.group)


def _sum_of_all(ctx, own):
    """The sum over the ranks of values that are sums over this rank's rows."""
    if ctx.group is None:
        return own
    whole = own.clone()
    dist.all_reduce(whole, group=ctx.group)
    return whole


def _statistics_of_all(ctx, running, momentum):
    """(mean, variance) over the rows of all ranks, by which the running statistics are updated if there are any.

    Means and sums of squared deviations are joined as by Chan, Golub and LeVeque, "Updating formulae" (1979): a sum of
    squares about 0 would cancel.
    """
    dims = [dim for dim in range(ctx.x.ndim) if dim != 1]
    variance, mean = torch.var_mean(ctx.x, dims, correction=0)
    world, elements = dist.get_world_size(ctx.group), _elements(ctx)
    own = torch.stack([variance, mean])
    of_ranks = own.new_empty(world, *own.shape)
    dist.all_gather(list(of_ranks.unbind()), own, group=ctx.group)
    variance_RC, mean_RC = of_ranks.unbind(1)
    mean = mean_RC.mean(0)
    variance = variance_RC.mean(0) + (mean_RC - mean).square().mean(0)
    if running[0] is not None:
        running[0].lerp_(mean, momentum)
        running[1].lerp_(variance * (elements / max(elements - 1, 1)), momentum)
    return mean, variance


def _dot(a, b):
    """Sum of a * b per channel in one reading: BatchNorm's weight gradient for a mean of 0 and r = 1."""
    zeros, ones = _zeros_and_ones(b)
    return _aten.native_batch_norm_backward(
        a, b, _weight_of_one(b), None, None, zeros, ones, True, 0.0, [False, True, False]
    )[1]


def _weight_of_one(like):
    """A weight of ones: None on the CPU, which is faster; on a GPU PyTorch returns no gradient for a weight of None."""
    return _zeros_and_ones(like)[1] if like.is_cuda else None


def _zeros_and_ones(like):
    """Zeros and ones per channel. Cached on the CPU only: memory of a CUDA graph must not be used outside of it."""
    make = _cached_on_the_cpu if like.device.type == "cpu" else _new
    return make(like.shape[1], like.dtype, like.device)


def _new(channels, dtype, device):
    return torch.zeros(channels, dtype=dtype, device=device), torch.ones(channels, dtype=dtype, device=device)


_cached_on_the_cpu = lru_cache(_new)


def _z_tangent(ctx):
    zd = torch.addcmul(_wide(ctx.shift_d, ctx.x), ctx.x, _wide(ctx.scale_d, ctx.x))
    return zd.addcmul_(ctx.xhd, _wide(ctx.weight, zd))
