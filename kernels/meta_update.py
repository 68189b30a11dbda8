"""The arithmetic between the passes of a meta step, over all parameters at once, laid end to end in flat buffers.

    look_ahead    theta' = theta - alpha g                                                   12 bytes a parameter
    add_split     total += gamma g + (1 - gamma) (v - alpha hv)                              20
    meta_sgd      the same of the last split, mean = total / splits, then SGD in place:
                  m = momentum m + (mean + weight_decay theta)     theta -= rate m           32

g = gradient of meta-train at theta, v = of meta-test at theta', hv = Hessian of meta-train times v, or None where it is
left out. Bytes are those of float32, one launch each, of which the host waits for none; PyTorch's foreach operations
would move 36 bytes for the second and 80 for the third.
Shape suffix: P = parameters.
"""

import torch
import triton
import triton.language as tl

from .launching import FUSED

_BLOCK = 1024
_CHUNK = 1 << 17  # parameters the CPU takes at a time: they stay in its cache from one operation to the next


def combine_ref(g_P, v_P, hv_P, alpha, gamma):
    """gamma g + (1 - gamma) (v - alpha hv): the gradient of one split."""
    return gamma * g_P + (1 - gamma) * (v_P if hv_P is None else v_P - alpha * hv_P)


def look_ahead_ref(out_P, theta_P, g_P, alpha):
    torch.sub(theta_P, g_P, alpha=alpha, out=out_P)


def add_split_ref(total_P, g_P, v_P, hv_P, alpha, gamma):
    total_P += combine_ref(g_P, v_P, hv_P, alpha, gamma)


def meta_sgd_ref(theta_P, momentum_P, total_P, g_P, v_P, hv_P, *, alpha, gamma, splits, rate, momentum, weight_decay):
    """Updates theta and m in place, and gives the sum of squares of `mean`."""
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
def _look_ahead(out_ptr, theta_ptr, g_ptr, alpha, P, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < P
    theta, g = tl.load(theta_ptr + at, mask=inside), tl.load(g_ptr + at, mask=inside)
    tl.store(out_ptr + at, theta - alpha * g, mask=inside)


@triton.jit
def _add_split(total_ptr, g_ptr, v_ptr, hv_ptr, alpha, gamma, P, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < P
    total = tl.load(total_ptr + at, mask=inside) + _combined(g_ptr, v_ptr, hv_ptr, at, inside, alpha, gamma)
    tl.store(total_ptr + at, total, mask=inside)


@triton.jit
def _meta_sgd(
    theta_ptr,
    momentum_ptr,
    square_ptr,
    total_ptr,
    g_ptr,
    v_ptr,
    hv_ptr,
    alpha,
    gamma,
    share,
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
    mean *= share
    theta = tl.load(theta_ptr + at, mask=inside, other=0.0)
    velocity = momentum * tl.load(momentum_ptr + at, mask=inside, other=0.0) + (mean + weight_decay * theta)
    tl.store(momentum_ptr + at, velocity, mask=inside)
    tl.store(theta_ptr + at, theta - rate * velocity, mask=inside)
    tl.store(square_ptr + tl.program_id(0), tl.sum(mean * mean, 0))


def _blocks(flat_P):
    return (triton.cdiv(len(flat_P), _BLOCK),)


def _launch_look_ahead(out_P, theta_P, g_P, alpha):
    _look_ahead[_blocks(theta_P)](out_P, theta_P, g_P, float(alpha), len(theta_P), _BLOCK, **FUSED)


def _launch_add_split(total_P, g_P, v_P, hv_P, alpha, gamma):
    _add_split[_blocks(total_P)](total_P, g_P, v_P, hv_P, float(alpha), float(gamma), len(total_P), _BLOCK, **FUSED)


def _launch_meta_sgd(
    theta_P, momentum_P, total_P, g_P, v_P, hv_P, *, alpha, gamma, splits, rate, momentum, weight_decay
):
    squares = torch.empty(_blocks(theta_P), device=theta_P.device)
    _meta_sgd[_blocks(theta_P)](
        theta_P,
        momentum_P,
        squares,
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
        **FUSED,
    )
    return squares.sum()


def _run(kernel, reference, flats, *arguments, **settings):
    """The kernel for float32 on a GPU, else the reference in pieces; `flats` are the tensors, each (P,) or None."""
    _check(flats)
    if flats[0].is_cuda and flats[0].dtype == torch.float32:
        with torch.cuda.device(flats[0].device):
            return kernel(*flats, *arguments, **settings)
    pieces = zip(
        *([None] * -(-len(flats[0]) // _CHUNK) if flat is None else flat.split(_CHUNK) for flat in flats), strict=True
    )
    return [reference(*piece, *arguments, **settings) for piece in pieces]


def _check(flats):
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
def look_ahead(out_P, theta_P, g_P, alpha):
    """Writes theta - alpha g into `out_P`, which may be one of them. Flat and alike; ValueError where they are not."""
    _run(_launch_look_ahead, look_ahead_ref, (out_P, theta_P, g_P), alpha)


@torch.no_grad()
def add_split(total_P, g_P, v_P, hv_P, alpha, gamma):
    """Adds the gradient of one split to `total_P`, in place; `hv_P` None leaves the second order out."""
    _run(_launch_add_split, add_split_ref, (total_P, g_P, v_P, hv_P), alpha, gamma)


@torch.no_grad()
def meta_sgd(theta_P, momentum_P, total_P, g_P, v_P, hv_P, *, alpha, gamma, splits, rate, momentum, weight_decay):
    """The last split's gradient added, the mean over `splits` taken, and one step of SGD made in place.

    `total_P`: of the splits before, None where there are none. Gives the norm of the mean gradient, a tensor ().
    """
    squares = _run(
        _launch_meta_sgd,
        meta_sgd_ref,
        (theta_P, momentum_P, total_P, g_P, v_P, hv_P),
        alpha=alpha,
        gamma=gamma,
        splits=splits,
        rate=rate,
        momentum=momentum,
        weight_decay=weight_decay,
    )
    return (squares if isinstance(squares, torch.Tensor) else torch.stack(squares).sum()).sqrt()
