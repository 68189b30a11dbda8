"""BatchNorm followed by PReLU, or by nothing, as one operation with all that an exact Hessian-vector product needs.

    reference.py  the formulas, in plain PyTorch: the path on the CPU
    fused.py      the same in Triton, two launches a pass

Forward, backward, tangent and second backward are called in this order with one `ctx`; see reference.py.
"""

import torch

from . import fused, reference


def forward(ctx, x, weight, bias, slope, *, running, batch_statistics, momentum, eps):
    """y; see reference.forward. On a GPU by the kernels, but for float64."""
    ctx.path = fused if x.is_cuda and x.dtype != torch.float64 else reference
    return ctx.path.forward(
        ctx, x, weight, bias, slope, running=running, batch_statistics=batch_statistics, momentum=momentum, eps=eps
    )


def prepare_capture(device):
    """Makes what the kernels keep for the current stream of a CUDA `device`; to be called before a CUDA graph is
    recorded on that stream, and waited for."""
    fused.make_counts(device)


def backward(ctx, dy):
    """dx, and the gradients of weight, bias and slope (None without one)."""
    return ctx.path.backward(ctx, dy)


def tangent(ctx, xd, weight_d, bias_d, slope_d):
    """y' along (x', weight', bias', slope')."""
    return ctx.path.tangent(ctx, xd, weight_d, bias_d, slope_d)


def second_backward(ctx, dyd):
    """dx', and the derivatives of the gradients of weight, bias and slope (None without one)."""
    return ctx.path.second_backward(ctx, dyd)
