"""The arithmetic between the passes of a meta step, on all parameters at once, which lie end to end in flat buffers.

    look_ahead    theta' = theta - alpha g                                                   12 bytes a parameter
    add_split     total += gamma g + (1 - gamma) (v - alpha hv)                              20
    meta_sgd      the same for the last split, mean = total / splits, then SGD in place:
                  m = momentum m + (mean + weight_decay theta)     theta -= rate m           32

g is the gradient of the meta-train loss at theta, v the gradient of the meta-test loss at theta', and hv the Hessian of
the meta-train loss times v; hv is None if the second order is left out. Bytes are for float32. Each operation is one
launch, and the host waits for none. PyTorch's foreach operations would move 36 bytes for the second operation and 80
for the third.
Shape suffixes: P = parameters, K = pieces of them.
"""

import itertools
from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launching import ceil_div, dispatch, launch

__all__ = ["add_split", "add_split_ref", "combine_ref", "look_ahead", "look_ahead_ref", "meta_sgd", "meta_sgd_ref"]

_BLOCK = 1024
_CHUNK = 1 << 17  # parameters the CPU takes at a time: they stay in its cache from one operation to the next
_DTYPES = (torch.float32,)  # that the kernels take


def combine_ref(g_P: Tensor, v_P: Tensor, hv_P: Tensor | None, alpha: float, gamma: float) -> Tensor:
    """Compute the gradient of one split: gamma g + (1 - gamma) (v - alpha hv)."""
    return gamma * g_P + (1 - gamma) * (v_P if hv_P is None else v_P - alpha * hv_P)


def look_ahead_ref(out_P: Tensor, theta_P: Tensor, g_P: Tensor, *, alpha: float) -> None:
    """Compute `look_ahead` in plain PyTorch."""
    torch.sub(theta_P, g_P, alpha=alpha, out=out_P)


def add_split_ref(
    total_P: Tensor, g_P: Tensor, v_P: Tensor, hv_P: Tensor | None, *, alpha: float, gamma: float
) -> None:
    """Compute `add_split` in plain PyTorch."""
    total_P += combine_ref(g_P, v_P, hv_P, alpha, gamma)


def meta_sgd_ref(
    theta_P: Tensor,
    momentum_P: Tensor,
    total_P: Tensor | None,
    g_P: Tensor,
    v_P: Tensor,
    hv_P: Tensor | None,
    *,
    alpha: float,
    gamma: float,
    splits: int,
    rate: float,
    momentum: float,
    weight_decay: float,
) -> Tensor:
    """Compute `meta_sgd` in plain PyTorch, and return the sum of squares of the mean gradient, a tensor ()."""
    mean_P = combine_ref(g_P, v_P, hv_P, alpha, gamma)
    if total_P is not None:
        mean_P = total_P + mean_P
    mean_P = mean_P / splits
    momentum_P.mul_(momentum).add_(mean_P + weight_decay * theta_P)
    theta_P.sub_(rate * momentum_P)
    return mean_P.square().sum()


@triton.jit
def _combined(g_ptr, v_ptr, hv_ptr, at, inside, alpha, gamma):
    v = tl.load(v_ptr + at, mask=inside, other=0.0)
    if hv_ptr is not None:
        v -= alpha * tl.load(hv_ptr + at, mask=inside, other=0.0)
    return gamma * tl.load(g_ptr + at, mask=inside, other=0.0) + (1 - gamma) * v


@triton.jit
def take_inner_step_kernel(
    out_ptr,  # (P,)
    theta_ptr,  # (P,)
    g_ptr,  # (P,)
    alpha,
    P,
    BLOCK: tl.constexpr,
):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < P
    theta, g = tl.load(theta_ptr + at, mask=inside), tl.load(g_ptr + at, mask=inside)
    tl.store(out_ptr + at, theta - alpha * g, mask=inside)


@triton.jit
def add_split_kernel(
    total_ptr,  # (P,)
    g_ptr,  # (P,)
    v_ptr,  # (P,)
    hv_ptr,  # (P,) or None
    alpha,
    gamma,
    P,
    BLOCK: tl.constexpr,
):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < P
    total = tl.load(total_ptr + at, mask=inside) + _combined(g_ptr, v_ptr, hv_ptr, at, inside, alpha, gamma)
    tl.store(total_ptr + at, total, mask=inside)


@triton.jit
def update_parameters_kernel(
    theta_ptr,  # (P,)
    momentum_ptr,  # (P,)
    square_ptr,  # sums of squares of the mean gradient, (programs,)
    total_ptr,  # (P,), or None for the first split
    g_ptr,  # (P,)
    v_ptr,  # (P,)
    hv_ptr,  # (P,) or None
    alpha,
    gamma,
    inverse_splits,
    rate,
    momentum,
    weight_decay,
    P,
    BLOCK: tl.constexpr,
):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < P
    mean = _combined(g_ptr, v_ptr, hv_ptr, at, inside, alpha, gamma)
    if total_ptr is not None:
        mean += tl.load(total_ptr + at, mask=inside, other=0.0)
    mean *= inverse_splits
    theta = tl.load(theta_ptr + at, mask=inside, other=0.0)
    velocity = momentum * tl.load(momentum_ptr + at, mask=inside, other=0.0) + (mean + weight_decay * theta)
    tl.store(momentum_ptr + at, velocity, mask=inside)
    tl.store(theta_ptr + at, theta - rate * velocity, mask=inside)
    tl.store(square_ptr + tl.program_id(0), tl.sum(mean * mean, 0))


def _blocks(flat_P):
    return (ceil_div(len(flat_P), _BLOCK),)


def _launch_look_ahead(out_P, theta_P, g_P, *, alpha):
    launch(take_inner_step_kernel, _blocks(theta_P), out_P, theta_P, g_P, float(alpha), len(theta_P), _BLOCK)


def _launch_add_split(total_P, g_P, v_P, hv_P, *, alpha, gamma):
    rates = float(alpha), float(gamma)
    launch(add_split_kernel, _blocks(total_P), total_P, g_P, v_P, hv_P, *rates, len(total_P), _BLOCK)


def _launch_meta_sgd(
    theta_P, momentum_P, total_P, g_P, v_P, hv_P, *, alpha, gamma, splits, rate, momentum, weight_decay
):
    """The sums of squares of the mean gradient, one a program."""
    blocks = _blocks(theta_P)
    square_K = torch.empty(blocks, device=theta_P.device)
    launch(
        update_parameters_kernel,
        blocks,
        theta_P,
        momentum_P,
        square_K,
        total_P,
        g_P,
        v_P,
        hv_P,
        float(alpha),
        float(gamma),
        1 / splits,
        float(rate),
        float(momentum),
        float(weight_decay),
        len(theta_P),
        _BLOCK,
    )
    return square_K


def _in_pieces(reference) -> Callable[..., Any]:
    """The reference, taking a piece of all flat buffers at a time; results (K,) of the pieces, if it has any."""

    def run(*flats, **settings):
        pieces = [itertools.repeat(None) if flat is None else flat.split(_CHUNK) for flat in flats]
        results = [reference(*piece, **settings) for piece in zip(*pieces, strict=False)]
        return None if results[0] is None else torch.stack(results)

    return run


def _check(*flats):
    first = flats[0]
    for flat in flats:
        if flat is not None and (
            flat.shape != first.shape
            or flat.ndim != 1
            or flat.device != first.device
            or flat.dtype != first.dtype
            or not flat.is_contiguous()
        ):
            raise ValueError(
                f"want flat buffers like the first, {first.dtype} {tuple(first.shape)} on {first.device}, "
                f"contiguous; got {flat.dtype} {tuple(flat.shape)} on {flat.device}"
            )


@torch.no_grad()
def look_ahead(out_P: Tensor, theta_P: Tensor, g_P: Tensor, alpha: float) -> None:
    """Take the inner step: write theta - alpha g into `out_P`.

    Args:
        out_P: Receives the result; may be one of the other two.
        theta_P: Parameters.
        g_P: Gradient of the meta-train loss.
        alpha: Inner learning rate.

    Raises:
        ValueError: Unless all buffers are flat, contiguous, and alike in size, dtype and device.
    """
    _check(out_P, theta_P, g_P)
    step = dispatch(out_P, kernels=_launch_look_ahead, reference=_in_pieces(look_ahead_ref), dtypes=_DTYPES)
    step(out_P, theta_P, g_P, alpha=alpha)


@torch.no_grad()
def add_split(total_P: Tensor, g_P: Tensor, v_P: Tensor, hv_P: Tensor | None, alpha: float, gamma: float) -> None:
    """Add the gradient of one split, gamma g + (1 - gamma) (v - alpha hv), to `total_P` in place.

    Args:
        total_P: Sum of the splits' gradients so far; updated.
        g_P: Gradient of the meta-train loss at theta.
        v_P: Gradient of the meta-test loss after the inner step.
        hv_P: Hessian of the meta-train loss times `v_P`; None leaves the second order out.
        alpha: Inner learning rate.
        gamma: Weight of the meta-train loss, in [0, 1].

    Raises:
        ValueError: Unless all buffers are flat, contiguous, and alike in size, dtype and device.
    """
    _check(total_P, g_P, v_P, hv_P)
    add = dispatch(total_P, kernels=_launch_add_split, reference=_in_pieces(add_split_ref), dtypes=_DTYPES)
    add(total_P, g_P, v_P, hv_P, alpha=alpha, gamma=gamma)


@torch.no_grad()
def meta_sgd(
    theta_P: Tensor,
    momentum_P: Tensor,
    total_P: Tensor | None,
    g_P: Tensor,
    v_P: Tensor,
    hv_P: Tensor | None,
    *,
    alpha: float,
    gamma: float,
    splits: int,
    rate: float,
    momentum: float,
    weight_decay: float,
) -> Tensor:
    """Add the last split's gradient, take the mean over all splits, and make one step of SGD in place.

    Args:
        theta_P: Parameters; updated.
        momentum_P: Momentum buffer; updated.
        total_P: Sum of the gradients of the splits before, or None if there is only one split.
        g_P: Gradient of the meta-train loss at theta.
        v_P: Gradient of the meta-test loss after the inner step.
        hv_P: Hessian of the meta-train loss times `v_P`; None leaves the second order out.
        alpha: Inner learning rate.
        gamma: Weight of the meta-train loss, in [0, 1].
        splits: Number of splits, the last one included.
        rate: Learning rate, as in torch.optim.SGD.
        momentum: Factor of the momentum buffer, as in torch.optim.SGD.
        weight_decay: Factor of the parameters in the gradient, as in torch.optim.SGD.

    Returns:
        The norm of the mean gradient, a tensor ().

    Raises:
        ValueError: Unless all buffers are flat, contiguous, and alike in size, dtype and device.
    """
    _check(theta_P, momentum_P, total_P, g_P, v_P, hv_P)
    step = dispatch(theta_P, kernels=_launch_meta_sgd, reference=_in_pieces(meta_sgd_ref), dtypes=_DTYPES)
    square_K = step(
        theta_P,
        momentum_P,
        total_P,
        g_P,
        v_P,
        hv_P,
        alpha=alpha,
        gamma=gamma,
        splits=splits,
        rate=rate,
        momentum=momentum,
        weight_decay=weight_decay,
    )
    return square_K.sum().sqrt()
