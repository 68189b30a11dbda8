"""SGD with momentum and weight decay over weight rows, in place, which leaves 1 / |row| behind.

    m = momentum * m + (grad + weight_decay * w)     w = w - rate * m     inverse_norm = 1 / |w|

Each of the three arrays is read once, and w and m written once: 20 bytes a parameter in float32. The inverse norms,
which margin softmax needs of every row at every step, then cost no pass of their own.
Shape suffixes: C = identities, N = rows that are updated, D = embedding.
"""

import torch
import triton
import triton.language as tl

from .inverse_norm import inverse_norm_ref
from .launching import FUSED

_ELEMENTS = 2048  # of one program
_CHUNK = 1 << 18  # elements the CPU takes at a time: they stay in its cache from one operation to the next


def sgd_rows_ref(weight_CD, grad_ND, momentum_CD, inverse_norm_C, row_N=None, *, rate, momentum, weight_decay):
    """What the kernel must equal, in plain PyTorch, to the bit what torch.optim.SGD does; also the path on the CPU."""
    size = max(1, _CHUNK // weight_CD.shape[1])
    for start in range(0, len(grad_ND), size):
        at = slice(start, start + size) if row_N is None else row_N[start : start + size]
        weight, velocity = weight_CD[at], momentum_CD[at]  # copies where rows are named, else views
        velocity.mul_(momentum).add_(grad_ND[start : start + size].add(weight, alpha=weight_decay))
        weight.add_(velocity, alpha=-rate)
        inverse_norm_C[at] = inverse_norm_ref(weight)
        if row_N is not None:
            weight_CD[at], momentum_CD[at] = weight, velocity


@triton.jit
def _update(
    weight_ptr,
    grad_ptr,
    momentum_ptr,
    inverse_norm_ptr,
    row_ptr,
    N,
    rate,
    momentum,
    weight_decay,
    D: tl.constexpr,
    D_PADDED: tl.constexpr,
    ROWS: tl.constexpr,
):
    n = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)  # 64 bits: n * D passes 2**31 at 4M rows of 512
    d = tl.arange(0, D_PADDED)
    c = tl.load(row_ptr + n, mask=n < N, other=0).to(tl.int64) if row_ptr is not None else n
    inside = (n < N)[:, None] & (d < D)[None, :]
    at = c[:, None] * D + d[None, :]
    weight = tl.load(weight_ptr + at, mask=inside, other=0.0)
    grad = tl.load(grad_ptr + n[:, None] * D + d[None, :], mask=inside, other=0.0)
    velocity = momentum * tl.load(momentum_ptr + at, mask=inside, other=0.0) + (grad + weight_decay * weight)
    weight -= rate * velocity
    tl.store(momentum_ptr + at, velocity, mask=inside)
    tl.store(weight_ptr + at, weight, mask=inside)
    norm = tl.sqrt(tl.sum(weight * weight, 1))
    tl.store(inverse_norm_ptr + c, 1 / tl.maximum(norm, 1e-12), mask=n < N)  # as inverse_norm does


def _launch(weight_CD, grad_ND, momentum_CD, inverse_norm_C, row_N=None, *, rate, momentum, weight_decay):
    (N, D), padded = grad_ND.shape, triton.next_power_of_2(grad_ND.shape[1])
    rows = max(1, _ELEMENTS // padded)
    if N:
        _update[(triton.cdiv(N, rows),)](
            weight_CD,
            grad_ND,
            momentum_CD,
            inverse_norm_C,
            row_N,
            N,
            float(rate),
            float(momentum),
            float(weight_decay),
            D,
            padded,
            rows,
            **FUSED,
        )


@torch.no_grad()
def sgd_rows(weight_CD, grad_ND, momentum_CD, inverse_norm_C, row_N=None, *, rate, momentum, weight_decay):
    """One step, in place, on `weight_CD`, `momentum_CD` (C, D) and `inverse_norm_C` (C,), all float32 and contiguous.

    `grad_ND` is the gradient of all rows, or of those that `row_N` (int64, none twice, in [0, C)) names; the others,
    and their momenta, stay as they are. `rate`, `momentum` and `weight_decay` are torch.optim.SGD's. Raises ValueError
    where shapes or dtypes do not fit.
    """
    (C, D), N = weight_CD.shape, len(weight_CD) if row_N is None else len(row_N)
    for name, value, shape, dtype in (
        ("weight_CD", weight_CD, (C, D), torch.float32),
        ("grad_ND", grad_ND, (N, D), torch.float32),
        ("momentum_CD", momentum_CD, (C, D), torch.float32),
        ("inverse_norm_C", inverse_norm_C, (C,), torch.float32),
        ("row_N", row_N, (N,), torch.int64),
    ):
        if value is not None and (
            value.shape != shape
            or value.dtype != dtype
            or not value.is_contiguous()
            or value.device != weight_CD.device
        ):
            raise ValueError(
                f"want {name} {dtype} {shape}, contiguous, on {weight_CD.device}; got {value.dtype} "
                f"{tuple(value.shape)} on {value.device}"
            )
    settings = {"rate": rate, "momentum": momentum, "weight_decay": weight_decay}
    if weight_CD.is_cuda:
        with torch.cuda.device(weight_CD.device):
            _launch(weight_CD, grad_ND, momentum_CD, inverse_norm_C, row_N, **settings)
        torch.autograd.graph.increment_version([weight_CD, momentum_CD, inverse_norm_C])  # a kernel does not itself
    else:
        sgd_rows_ref(weight_CD, grad_ND, momentum_CD, inverse_norm_C, row_N, **settings)
