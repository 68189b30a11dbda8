"""cos_lse as PyTorch knows it: arguments are checked, a path is chosen, and the result is differentiable twice.

Forward, backward and double backward are operators of torch.library, so torch.compile treats each as one node.

Where the weights get no gradient, the backward pass makes E = sum_c P w, of which dx = scale g E + g_cos w[label]. The
double backward then needs no sweep of its own for the mean. It takes R about ux . E, which is the mean but for the
rounding of E, and corrects both results by what that leaves; uncorrected, Dx in bfloat16 was up to three times as far
from float64:

    left[b] = sum_c P (T - ux . E)     mean = ux . E + left     Dx -= scale^2 g left E

Shape suffixes: B = batch, C = identities, D = embedding.
"""

import contextlib
import os
import warnings
from collections.abc import Iterator
from types import ModuleType
from typing import Literal, get_args

import torch
from torch import Tensor

from ..launching import dispatch
from . import backward, by_chunks, by_chunks_twice, chunked, double_backward, forward
from .tiles import MAX_EMBEDDING, kept_width

Keep = Literal["none", "exp", "auto"]
PATHS = ("auto", "tiles", "chunks")  # on a GPU; see `select`
CHUNKS_FROM = 64  # rows of a batch whose 16-bit gradients "auto" computes by chunks: measured on an H200
_path = "auto"
_CPU_MEMORY = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")  # bytes
_KEPT_FRACTION = 64  # keep="auto" spends at most 1/64 of the device's memory: B = 1024, C = 1M on an H200


@contextlib.contextmanager
def select(path: str) -> Iterator[None]:
    """Force a path for all passes on a GPU inside of this context, on every thread: for measuring.

    Args:
        path: "tiles" takes products in Triton, a tile at a time. "chunks" takes products in cuBLAS, see by_chunks.py.
            "auto" takes "chunks" for both derivatives of batches of at least CHUNKS_FROM rows in 16 bits, else "tiles".

    Raises:
        ValueError: If there is no such path.
    """
    global _path
    if path not in PATHS:
        raise ValueError(f"want a path out of {', '.join(map(repr, PATHS))}, got {path!r}")
    before, _path = _path, path
    try:
        yield
    finally:
        _path = before


def _passes(unit_BD, tiles=forward, chunks=by_chunks) -> ModuleType:
    """The module whose passes serve a call: `tiles`, `chunks`, or chunked.py in plain PyTorch."""
    prefers_chunks = tiles is not forward and unit_BD.dtype != torch.float32 and len(unit_BD) >= CHUNKS_FROM
    kernels = chunks if _path == "chunks" or (_path == "auto" and prefers_chunks) else tiles
    return dispatch(unit_BD, kernels=kernels, reference=chunked, fits=unit_BD.shape[1] <= MAX_EMBEDDING)


def _without_autocast(unit_BD):
    """Turns autocast off, which also reaches into operators: the dtypes are settled."""
    return torch.autocast(unit_BD.device.type, enabled=False)


@torch.library.custom_op("fastmfr::cos_lse", mutates_args=())
def _forward(
    unit: Tensor, weight: Tensor, inverse_norm: Tensor | None, label: Tensor, scale: float, keep: bool
) -> tuple[Tensor, Tensor, Tensor]:
    with _without_autocast(unit):
        return _passes(unit).forward(unit, weight, inverse_norm, label, scale, keep)


@torch.library.custom_op("fastmfr::cos_lse_backward", mutates_args=())
def _backward(
    unit: Tensor,
    weight: Tensor,
    inverse_norm: Tensor | None,
    label: Tensor,
    scale: float,
    log_sum: Tensor,
    kept: Tensor,
    g: Tensor,
    g_cos: Tensor,
    need_x: bool,
    need_w: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What `backward` of the path computes, and E; E is empty unless dx is wanted alone."""
    alone = need_x and not need_w
    upstream = (torch.full_like(g, 1 / scale), torch.zeros_like(g_cos)) if alone else (g, g_cos)
    with _without_autocast(unit):
        dx, dw, radial = _passes(unit, backward).backward(
            unit, weight, inverse_norm, label, scale, log_sum, kept, *upstream, need_x, need_w
        )
        if not alone:
            return dx, dw, radial, _wide(unit, (0,))
        true = _true_rows(weight, inverse_norm, label, dx.dtype)
        return (scale * g).unsqueeze(1) * dx + g_cos.unsqueeze(1) * true, dw, radial, dx


@torch.library.custom_op("fastmfr::cos_lse_double_backward", mutates_args=())
def _double_backward(
    unit: Tensor,
    weight: Tensor,
    inverse_norm: Tensor | None,
    label: Tensor,
    scale: float,
    log_sum: Tensor,
    g: Tensor,
    g_cos: Tensor,
    dw: Tensor,
    radial: Tensor,
    expected: Tensor,
    ux: Tensor,
    uw: Tensor | None,
    need_w: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What `double_backward` of the path computes; in a single sweep unless `expected`, which is E, is empty."""
    twice = _passes(unit, double_backward, by_chunks_twice).double_backward
    given = unit, weight, inverse_norm, label, scale, log_sum, g, g_cos, dw, radial, ux, uw, need_w
    with _without_autocast(unit):
        if not expected.numel():
            return twice(*given)
        true = _true_rows(weight, inverse_norm, label, expected.dtype)
        near, t_true = (torch.linalg.vecdot(ux.to(one.dtype), one) for one in (expected, true))
        Dx, Dw, Dg, Dg_cos = twice(*given, known=(near, t_true))
        left = Dg - scale * near  # times scale
        return Dx - (scale * g * left).unsqueeze(1) * expected, Dw, Dg, Dg_cos


def _true_rows(weight, inverse_norm, label, dtype):
    """Unit rows (B, D) of the true identities; zeros for a label that names nobody."""
    at = label.long().clamp(0, len(weight) - 1)
    row = weight[at].to(dtype)
    if inverse_norm is not None:
        row = row * inverse_norm[at].to(dtype).unsqueeze(1)
    return row.masked_fill((label != at).unsqueeze(1), 0)


def _wide(tensor, shape):
    return tensor.new_empty(shape, dtype=torch.promote_types(tensor.dtype, torch.float32))


@_forward.register_fake
def _(unit, weight, inverse_norm, label, scale, keep):
    if _passes(unit) is chunked:
        kept = _wide(unit, (unit.shape[0] * weight.shape[0] if keep else 0,))
    else:
        kept = unit.new_empty((unit.shape[0], kept_width(weight.shape[0])) if keep else (0,), dtype=torch.bfloat16)
    return _wide(unit, label.shape), _wide(unit, label.shape), kept


@_backward.register_fake
def _(unit, weight, inverse_norm, label, scale, log_sum, kept, g, g_cos, need_x, need_w):
    return (
        _wide(unit, unit.shape if need_x else (0,)),
        _wide(unit, weight.shape if need_w else (0,)),
        _wide(unit, weight.shape[:1] if need_w else (0,)),
        _wide(unit, unit.shape if need_x and not need_w else (0,)),
    )


@_double_backward.register_fake
def _(unit, weight, inverse_norm, label, scale, log_sum, g, g_cos, dw, radial, expected, ux, uw, need_w):
    return (
        _wide(unit, unit.shape),
        _wide(unit, weight.shape if need_w else (0,)),
        _wide(unit, label.shape),
        _wide(unit, label.shape),
    )


def _remember_forward(ctx, inputs, output):
    unit, weight, inverse_norm, label, ctx.scale, _ = inputs
    log_sum, _, kept = output
    ctx.save_for_backward(unit, weight, inverse_norm, label, log_sum, kept)
    ctx.mark_non_differentiable(kept)
    ctx.set_materialize_grads(False)  # zeros for `kept` would be as large as the logits


def _differentiate_forward(ctx, g, g_cos, _):
    unit, weight, inverse_norm, label, log_sum, kept = ctx.saved_tensors
    g, g_cos = (torch.zeros_like(log_sum) if one is None else one for one in (g, g_cos))
    need_x, need_w = ctx.needs_input_grad[:2]
    dx, dw, *_ = _backward(
        unit, weight, inverse_norm, label, ctx.scale, log_sum.detach(), kept, g, g_cos, need_x, need_w
    )
    return dx.to(unit.dtype) if need_x else None, dw.to(weight.dtype) if need_w else None, None, None, None, None


def _remember_backward(ctx, inputs, output):
    unit, weight, inverse_norm, label, ctx.scale, log_sum, _, g, g_cos, _, need_w = inputs
    _, *made = output
    ctx.save_for_backward(unit, weight, inverse_norm, label, log_sum, g, g_cos, *made)
    ctx.has_dw = need_w
    ctx.mark_non_differentiable(*made[1:])
    ctx.set_materialize_grads(False)  # a `uw` of None halves the work


def _differentiate_backward(ctx, ux, uw, *_):
    unit, weight, inverse_norm, label, log_sum, g, g_cos, *made = ctx.saved_tensors
    need_w = ctx.needs_input_grad[1]
    Dx, Dw, Dg, Dg_cos = _double_backward(
        unit,
        weight,
        inverse_norm,
        label,
        ctx.scale,
        log_sum,
        g,
        g_cos,
        *made,
        torch.zeros_like(unit) if ux is None else ux,
        uw if ctx.has_dw else None,
        need_w,
    )
    return (Dx.to(unit.dtype), Dw.to(weight.dtype) if need_w else None, *[None] * 5, Dg, Dg_cos, None, None)


def _refuse_third_order(ctx, *_):
    raise RuntimeError("cos_lse is differentiable twice, not three times; for more use fastmfr.kernels.cos_lse_ref")


_forward.register_autograd(_differentiate_forward, setup_context=_remember_forward)
_backward.register_autograd(_differentiate_backward, setup_context=_remember_backward)
_double_backward.register_autograd(_refuse_third_order, setup_context=lambda ctx, inputs, output: None)


def cos_lse(
    unit_BD: Tensor,
    weight_CD: Tensor,
    label_B: Tensor,
    scale: float,
    *,
    inverse_norm_C: Tensor | None = None,
    keep: Keep = "auto",
) -> tuple[Tensor, Tensor]:
    """Compute the log-sum-exp of scale * cosine over all identities but the true one. Differentiable twice.

    Args:
        unit_BD: Embeddings of length one, in bfloat16, float16, float32 or float64. Products are taken in this dtype
            and summed in float32, or in float64 for float64.
        weight_CD: Weight rows of length one; of any length if `inverse_norm_C` is given. float64 only with float64
            embeddings.
        label_B: Labels, int32 or int64. A label outside [0, C), such as -1, names no identity.
        scale: Factor of the cosines, above 0.
        inverse_norm_C: One over the lengths of the weight rows. The normalisation is then differentiated too.
        keep: "exp" keeps exp(scale * cosine) in bfloat16 (B, C), and the backward pass reads instead of computing it
            again. "none" keeps nothing. "auto" means "exp" if that is faster, which it is for small batches of 16 bits,
            and if it takes at most 1/64 of the GPU's memory. On the CPU the logits are kept, in float32 or float64,
            and "auto" means "exp" if they take at most 1/64 of the memory; results are the same to the bit.

    Returns:
        The log-sum-exp (B,) and the true identity's cosine (B,), in float32, or in float64 for float64. If a label
        names no identity, the sum runs over all identities and the cosine is 0.

    Raises:
        ValueError: If a shape, a dtype, a device, `scale` or `keep` does not fit.
    """
    _check(unit_BD, weight_CD, inverse_norm_C, label_B, scale, keep)
    if unit_BD.is_cuda and unit_BD.shape[1] > MAX_EMBEDDING:
        warnings.warn(
            f"the kernels of cos_lse take embeddings of up to {MAX_EMBEDDING}, these have "
            f"{unit_BD.shape[1]}; PyTorch computes them, more slowly",
            stacklevel=2,
        )
    inverse_norm_C = None if inverse_norm_C is None else inverse_norm_C.detach()
    kept = torch.is_grad_enabled() and _keeps(keep, unit_BD, len(weight_CD), scale)
    return _forward(unit_BD, weight_CD, inverse_norm_C, label_B, float(scale), kept)[:2]


def _keeps(keep, unit_BD, C, scale):
    """Whether forward keeps exp(z), or z where PyTorch computes."""
    if keep == "none":
        return False
    if _passes(unit_BD) is chunked:
        return keep == "exp" or max(4, unit_BD.element_size()) * len(unit_BD) * C <= _memory(unit_BD) // _KEPT_FRACTION
    if scale > chunked.PLAIN_SCALE:
        return False
    if keep == "auto" and (unit_BD.dtype == torch.float32 or _passes(unit_BD, backward) is by_chunks):
        return False  # kept values have 8 bits, too few for products of 24; by chunks nothing was gained on an H200
    return keep == "exp" or 2 * len(unit_BD) * C <= _memory(unit_BD) // _KEPT_FRACTION


def _memory(tensor):
    """Bytes of memory of a tensor's device, in use or not."""
    if tensor.is_cuda:
        return torch.cuda.get_device_properties(tensor.device).total_memory
    return _CPU_MEMORY


def _check(unit_BD, weight_CD, inverse_norm_C, label_B, scale, keep):
    if unit_BD.ndim != 2 or weight_CD.ndim != 2 or unit_BD.shape[1] != weight_CD.shape[1]:
        raise ValueError(
            f"want embeddings (B, D) and weights (C, D), got {tuple(unit_BD.shape)} and {tuple(weight_CD.shape)}"
        )
    for name, rows in (("embeddings", unit_BD), ("weights", weight_CD)):
        if rows.dtype not in (torch.bfloat16, torch.float16, torch.float32, torch.float64):
            raise ValueError(f"want {name} in bfloat16, float16, float32 or float64, got {rows.dtype}")
    if (unit_BD.dtype == torch.float64) != (weight_CD.dtype == torch.float64):
        raise ValueError(f"want float64 for both or neither, got {unit_BD.dtype} and {weight_CD.dtype}")
    if not len(weight_CD):
        raise ValueError("want weights of at least one identity, got none")
    if label_B.shape != unit_BD.shape[:1]:
        raise ValueError(f"want one label for each of {unit_BD.shape[0]} rows, got {tuple(label_B.shape)}")
    if label_B.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"want int32 or int64 labels, got {label_B.dtype}; use label.long()")
    if inverse_norm_C is not None and inverse_norm_C.shape != weight_CD.shape[:1]:
        raise ValueError(
            f"want one inverse norm for each of {len(weight_CD)} identities, got {tuple(inverse_norm_C.shape)}"
        )
    devices = {rows.device for rows in (unit_BD, weight_CD, label_B, inverse_norm_C) if rows is not None}
    if len(devices) > 1:
        raise ValueError(f"want everything on one device, got {', '.join(sorted(map(str, devices)))}")
    if not scale > 0:
        raise ValueError(f"want scale > 0, got {scale}")
    if keep not in get_args(Keep):
        raise ValueError(f"want keep out of {', '.join(map(repr, get_args(Keep)))}, got {keep!r}")
