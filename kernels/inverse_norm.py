"""One over the length of each row: what makes unit rows of a classifier's weights, without a copy of them.

    out[c] = 1 / max(|w[c]|, eps)

Reads the weights once. Not differentiable: `cos_lse` differentiates the normalisation itself.
Shape suffixes: C = identities, D = embedding.
"""

import torch
import triton
import triton.language as tl

from .launching import FUSED

_ROWS = 8  # of one program
_COLUMNS = 256  # of these that it holds at a time


def inverse_norm_ref(weight_CD, eps=1e-12):
    """What the kernel must equal, in plain PyTorch; also the path on the CPU."""
    wide = torch.promote_types(weight_CD.dtype, torch.float32)
    return torch.linalg.vector_norm(weight_CD.detach(), dim=1, dtype=wide).clamp_min_(eps).reciprocal_()


@triton.jit
def inverse_norm_kernel(out_ptr, w_ptr, eps, C, D: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
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


def _launch(weight_CD, eps=1e-12):
    C, D = weight_CD.shape
    out_C = torch.empty(C, dtype=torch.float32, device=weight_CD.device)
    if C:
        inverse_norm_kernel[(triton.cdiv(C, _ROWS),)](
            out_C, weight_CD.contiguous(), eps, C, D, _ROWS, _COLUMNS, **FUSED
        )
    return out_C


@torch.library.custom_op("fastmfr::inverse_norm", mutates_args=())
def _operator(weight: torch.Tensor, eps: float) -> torch.Tensor:
    if weight.is_cuda and weight.dtype != torch.float64:
        with torch.cuda.device(weight.device):
            return _launch(weight, eps)
    return inverse_norm_ref(weight, eps)


@_operator.register_fake
def _(weight, eps):
    return weight.new_empty(weight.shape[:1], dtype=torch.promote_types(weight.dtype, torch.float32))


def inverse_norm(weight_CD, eps=1e-12):
    """One over the length of each row of weights (C, D) of any floating dtype: (C,), float32, or float64 of float64.

    A row shorter than `eps` counts as that long. Not differentiable, see above. Raises ValueError where `weight_CD` is
    not a matrix.
    """
    if weight_CD.ndim != 2:
        raise ValueError(f"want weights (C, D), got {tuple(weight_CD.shape)}")
    return _operator(weight_CD.detach(), eps)
