"""SGD with momentum and weight decay over weight rows, in place; each row's inverse norm is written in the same pass.

    m = momentum * m + (grad + weight_decay * w)     w = w - rate * m     inverse_norm = 1 / |w|

The kernel reads each of the three arrays once, and writes w and m once: 20 bytes a parameter in float32. Margin softmax
needs the inverse norm of every row at every step; here it costs no pass over the weights.
Shape suffixes: C = identities, N = rows that are updated, D = embedding.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .inverse_norm import inverse_norm_ref
from .launching import ceil_div, dispatch, launch, next_power_of_2

__all__ = ["sgd_rows", "sgd_rows_ref"]

_ELEMENTS = 2048  # of one program
_CHUNK = 1 << 18  # elements the CPU takes at a time: they stay in its cache from one operation to the next


def sgd_rows_ref(
    weight_CD: Tensor,
    grad_ND: Tensor,
    momentum_CD: Tensor,
    inverse_norm_C: Tensor,
    row_N: Tensor | None = None,
    *,
    rate: float,
    momentum: float,
    weight_decay: float,
) -> None:
    """Compute `sgd_rows` in plain PyTorch, equal to torch.optim.SGD to the bit: the path on the CPU."""
    size = max(1, _CHUNK // weight_CD.shape[1])
    for start in range(0, len(grad_ND), size):
        at = slice(start, start + size) if row_N is None else row_N[start : start + size]
        weight, velocity = weight_CD[at], momentum_CD[at]  # copies if `row_N` is given, else views
        velocity.mul_(momentum).add_(grad_ND[start : start + size].add(weight, alpha=weight_decay))
        weight.add_(velocity, alpha=-rate)
        inverse_norm_C[at] = inverse_norm_ref(weight)
        if row_N is not None:
            weight_CD[at], momentum_CD[at] = weight, velocity


@triton.jit
def update_rows_kernel(
    weight_ptr,  # (C, D)
    grad_ptr,  # (N, D)
    momentum_ptr,  # (C, D)
    inverse_norm_ptr,  # (C,)
    row_ptr,  # (N,), or None for all rows
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


def _launch_sgd_rows(weight_CD, grad_ND, momentum_CD, inverse_norm_C, row_N=None, *, rate, momentum, weight_decay):
    (N, D), padded = grad_ND.shape, next_power_of_2(grad_ND.shape[1])
    rows = max(1, _ELEMENTS // padded)
    if N:
        launch(
            update_rows_kernel,
            (ceil_div(N, rows),),
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
        )
    torch.autograd.graph.increment_version([weight_CD, momentum_CD, inverse_norm_C])  # PyTorch sees no kernel write


@torch.no_grad()
def sgd_rows(
    weight_CD: Tensor,
    grad_ND: Tensor,
    momentum_CD: Tensor,
    inverse_norm_C: Tensor,
    row_N: Tensor | None = None,
    *,
    rate: float,
    momentum: float,
    weight_decay: float,
) -> None:
    """Take one step of SGD over weight rows, in place.

    All tensors are contiguous, on one device, and float32 except for `row_N`.

    Args:
        weight_CD: Weights; updated.
        grad_ND: Gradient of all rows (N = C), or of those that `row_N` names.
        momentum_CD: Momentum buffer; updated.
        inverse_norm_C: Receives one over the length of each updated row.
        row_N: Rows to update, int64 in [0, C), none twice. All other rows and their momenta stay as they are.
        rate: Learning rate, as in torch.optim.SGD.
        momentum: Factor of the momentum buffer, as in torch.optim.SGD.
        weight_decay: Factor of the weights in the gradient, as in torch.optim.SGD.

    Raises:
        ValueError: If a shape, a dtype, a device or a memory layout does not fit.
    """
    _check(weight_CD, grad_ND, momentum_CD, inverse_norm_C, row_N)
    update = dispatch(weight_CD, kernels=_launch_sgd_rows, reference=sgd_rows_ref)
    update(
        weight_CD,
        grad_ND,
        momentum_CD,
        inverse_norm_C,
        row_N,
        rate=rate,
        momentum=momentum,
        weight_decay=weight_decay,
    )


def _check(weight_CD, grad_ND, momentum_CD, inverse_norm_C, row_N):
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
