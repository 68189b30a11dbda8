"""One over the length of each weight row: multiplying by it makes unit rows without a copy of the weights.

    out[c] = 1 / max(|w[c]|, eps)

The kernel reads the weights once. The operation is not differentiable: `cos_lse` differentiates the normalisation.
Shape suffixes: C = identities, D = embedding.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launching import ceil_div, dispatch, launch

__all__ = ["inverse_norm", "inverse_norm_ref"]

_ROWS = 8  # of one program
_COLUMNS = 256  # that one program holds at a time


def inverse_norm_ref(weight_CD: Tensor, eps: float = 1e-12) -> Tensor:
    """Compute `inverse_norm` in plain PyTorch: what the kernel must equal, and the path on the CPU."""
    wide = torch.promote_types(weight_CD.dtype, torch.float32)
    return torch.linalg.vector_norm(weight_CD.detach(), dim=1, dtype=wide).clamp_min_(eps).reciprocal_()


@triton.jit
def compute_inverse_norm_kernel(
    out_ptr,  # (C,), float32
    w_ptr,  # weights, (C, D)
    eps,
    C,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    first = tl.program_id(0) * ROWS
    row, column = tl.arange(0, ROWS), tl.arange(0, COLUMNS)
    inside = first + row < C
    at = w_ptr + tl.cast(first, tl.int64) * D + (row[:, None] * D + column[None, :])  # C * D may pass 2**31
    squares = tl.zeros((ROWS, COLUMNS), tl.float32)
    for k in range(0, D, COLUMNS):
        w = tl.load(at + k, mask=inside[:, None] & (k + column < D)[None, :], other=0.0).to(tl.float32)
        squares += w * w
    norm = tl.sqrt_rn(tl.sum(squares, 1))
    tl.store(out_ptr + first + row, 1.0 / tl.maximum(norm, eps), mask=inside)


def _launch_inverse_norm(weight_CD, eps=1e-12):
    C, D = weight_CD.shape
    out_C = torch.empty(C, dtype=torch.float32, device=weight_CD.device)
    if C:
        blocks = ceil_div(C, _ROWS)
        launch(compute_inverse_norm_kernel, (blocks,), out_C, weight_CD.contiguous(), eps, C, D, _ROWS, _COLUMNS)
    return out_C


@torch.library.custom_op("fastmfr::inverse_norm", mutates_args=())
def _inverse_norm(weight: Tensor, eps: float) -> Tensor:
    """The operation as one node of torch.compile's graph."""
    return dispatch(weight, kernels=_launch_inverse_norm, reference=inverse_norm_ref)(weight, eps)


@_inverse_norm.register_fake
def _(weight, eps):
    return weight.new_empty(weight.shape[:1], dtype=torch.promote_types(weight.dtype, torch.float32))


def inverse_norm(weight_CD: Tensor, eps: float = 1e-12) -> Tensor:
    """Compute one over the length of each row. Not differentiable.

    Args:
        weight_CD: Rows of any floating dtype.
        eps: A shorter row counts as this long.

    Returns:
        The inverse lengths (C,), in float32, or in float64 if the weights are float64.

    Raises:
        ValueError: If `weight_CD` is not a matrix.
    """
    if weight_CD.ndim != 2:
        raise ValueError(f"want weights (C, D), got {tuple(weight_CD.shape)}")
    return _inverse_norm(weight_CD.detach(), eps)
