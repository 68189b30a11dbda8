"""cos_lse and its two derivatives in plain PyTorch, a chunk of identities at a time.

This is the path on the CPU, and on a GPU for calls that the Triton kernels cannot serve. Beside its results it needs
memory for one chunk: logits (B, N) and, for the double backward, a few (N, D). Logits exist as a whole only if they are
kept for the backward pass, which then takes three products in place of four, and gives the same bits. Embeddings x are
unit rows; weights become unit rows w here.

    z[b, c] = scale * x[b] . w[c]     P = exp(z - log_sum), but 0 at c = y     M = scale * g * P, but g_cos at c = y

    backward, given the gradients g of log_sum and g_cos of cos:              dx = M w     dw = M^T x
    double backward, given the gradients ux of dx and uw of dw:
        T = ux . w + x . uw     mean[b] = sum_c P T     R = scale^2 g P (T - mean), 0 at c = y
        Dx = R w + M uw     Dw = R^T x + M^T ux     Dg = scale * mean     Dg_cos[b] = T[b, y]

The double backward sweeps all identities for the mean and T[b, y], and again for Dx and Dw. Where these two are known,
the mean but for a rounding, the second sweep says how far off it was.
Shape suffixes: B = batch, C = identities, N = those of one chunk, D = embedding.
"""

from typing import NamedTuple

import torch
from torch import Tensor

PLAIN_SCALE = 80.0  # up to here a sum of exp(z) needs no running maximum: 1e7 cosines of 0.9 stay within float32
_LOGITS = 1 << 20  # of one chunk: a CPU's cache keeps them from one pass over them to the next


class _Chunk(NamedTuple):
    """One chunk: identities `at`, their weights as given, the factors that make unit rows, the true identities."""

    at: slice
    weight_ND: Tensor
    inverse_norm_N: Tensor | None
    column_B1: Tensor
    true_B1: Tensor

    def scaled(self, matrix_BN: Tensor) -> Tensor:
        """Multiply each column, in place, by its identity's inverse norm."""
        return matrix_BN if self.inverse_norm_N is None else matrix_BN.mul_(self.inverse_norm_N)

    def true(self, matrix_BN: Tensor) -> Tensor:
        """Take the entry of each row's true identity (B,), 0 if that identity is not in this chunk."""
        return matrix_BN.gather(1, self.column_B1).masked_fill_(~self.true_B1, 0).squeeze(1)

    def set_true(self, matrix_BN: Tensor, value_B: Tensor) -> Tensor:
        """Write a value, in place, to the entry of each row's true identity."""
        entry_B1 = torch.where(self.true_B1, value_B.unsqueeze(1), matrix_BN.gather(1, self.column_B1))
        return matrix_BN.scatter_(1, self.column_B1, entry_B1)

    def logits(self, unit_BD: Tensor, scale: float, out_BN: Tensor | None = None) -> Tensor:
        """Compute z of this chunk (B, N), into `out_BN` if given."""
        return self.scaled(self.products(unit_BD, out_BN)).mul_(scale)

    def products(self, rows_BD: Tensor, out_BN: Tensor | None = None) -> Tensor:
        """Compute rows . weights (B, N), an identity's side by side in memory: so oneMKL was 1.5 times as fast."""
        return torch.mm(self.weight_ND, rows_BD.T, out=None if out_BN is None else out_BN.T).T

    def kept(self, kept: Tensor) -> Tensor | None:
        """The place (B, N) of this chunk's logits in what is kept of all; None if nothing is."""
        B = len(self.column_B1)
        return kept[B * self.at.start : B * self.at.stop].view(-1, B).T if kept.numel() else None

    def softmax(self, z_BN: Tensor, log_sum_B: Tensor) -> Tensor:
        """Compute P of this chunk (B, N)."""
        return self.set_true((z_BN - log_sum_B.unsqueeze(1)).exp_(), torch.zeros_like(log_sum_B))


def _chunks(unit_BD, weight_CD, inverse_norm_C, label_B):
    B, C = len(unit_BD), len(weight_CD)
    size = min(C, max(1, _LOGITS // max(1, B)))
    for start in range(0, C, size):
        at = slice(start, min(C, start + size))
        inverse_norm_N = None if inverse_norm_C is None else inverse_norm_C[at].to(unit_BD.dtype)
        column_B1 = label_B.long().unsqueeze(1) - start
        true_B1 = (column_B1 >= 0) & (column_B1 < at.stop - start)
        column_B1 = column_B1.clamp(0, at.stop - start - 1)
        yield _Chunk(at, weight_CD[at].to(unit_BD.dtype), inverse_norm_N, column_B1, true_B1)


def _wide(unit_BD):
    """The embeddings in the dtype of the arithmetic: at least float32."""
    return unit_BD.to(torch.promote_types(unit_BD.dtype, torch.float32))


def forward(
    unit_BD: Tensor,
    weight_CD: Tensor,
    inverse_norm_C: Tensor | None,
    label_B: Tensor,
    scale: float,
    keep: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute what forward.forward does, in float32 or float64; what is kept are the logits, a chunk after another."""
    x_BD = _wide(unit_BD)
    kept = x_BD.new_empty(len(unit_BD) * len(weight_CD) if keep else 0)
    lowest = torch.finfo(x_BD.dtype).min / 4  # of an empty sum; finite, so that nothing becomes NaN
    peak_B = x_BD.new_full(label_B.shape, 0.0 if scale <= PLAIN_SCALE else lowest)
    sum_B, cos_B = torch.zeros_like(peak_B), torch.zeros_like(peak_B)
    for chunk in _chunks(x_BD, weight_CD, inverse_norm_C, label_B):
        z_BN = chunk.logits(x_BD, scale, chunk.kept(kept))
        cos_B += chunk.true(z_BN) / scale
        if keep:
            z_BN = z_BN.clone()
        chunk.set_true(z_BN, torch.full_like(cos_B, -torch.inf))
        if scale > PLAIN_SCALE:
            risen_B = torch.maximum(peak_B, z_BN.amax(1))
            sum_B, peak_B = sum_B * torch.exp(peak_B - risen_B), risen_B
            z_BN -= peak_B.unsqueeze(1)
        sum_B += z_BN.exp_().sum(1)
    return (peak_B + sum_B.log()).clamp_min_(lowest), cos_B, kept


def backward(
    unit_BD: Tensor,
    weight_CD: Tensor,
    inverse_norm_C: Tensor | None,
    label_B: Tensor,
    scale: float,
    log_sum_B: Tensor,
    kept: Tensor,
    g_B: Tensor,
    g_cos_B: Tensor,
    need_x: bool,
    need_w: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute what backward.backward does, in float32 or float64."""
    x_BD = _wide(unit_BD)
    dx_BD = torch.zeros_like(x_BD) if need_x else x_BD.new_empty(0)
    dw_CD = x_BD.new_empty(weight_CD.shape if need_w else 0)
    radial_C = x_BD.new_empty(len(weight_CD) if need_w else 0)
    for chunk in _chunks(x_BD, weight_CD, inverse_norm_C, label_B):
        z_BN = chunk.kept(kept)
        if z_BN is None:
            z_BN = chunk.logits(x_BD, scale)
        m_BN = chunk.set_true(chunk.softmax(z_BN, log_sum_B).mul_(scale * g_B.unsqueeze(1)), g_cos_B)
        if need_w:  # w . (M^T x), from the logits
            radial_C[chunk.at] = (z_BN * m_BN).sum(0).div_(scale)
        chunk.scaled(m_BN)
        if need_x:
            dx_BD.addmm_(m_BN, chunk.weight_ND)
        if need_w:
            dw_ND = torch.mm(m_BN.T, x_BD, out=dw_CD[chunk.at])
            _project(dw_ND, radial_C[chunk.at], chunk)
    return dx_BD, dw_CD, radial_C


def double_backward(
    unit_BD: Tensor,
    weight_CD: Tensor,
    inverse_norm_C: Tensor | None,
    label_B: Tensor,
    scale: float,
    log_sum_B: Tensor,
    g_B: Tensor,
    g_cos_B: Tensor,
    dw_CD: Tensor,
    radial_C: Tensor,
    ux_BD: Tensor,
    uw_CD: Tensor | None,
    need_w: bool,
    known: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Compute what double_backward.double_backward does, in float32 or float64."""
    x_BD, ux_BD = _wide(unit_BD), _wide(ux_BD)
    left_B, Dx_BD = torch.zeros_like(g_B), torch.zeros_like(x_BD)
    Dw_CD = x_BD.new_empty(weight_CD.shape if need_w else 0)
    arguments = x_BD, weight_CD, inverse_norm_C, label_B
    mean_B, true_B = _average_tangents(arguments, scale, log_sum_B, ux_BD, uw_CD) if known is None else known
    for chunk in _chunks(*arguments):
        uw_ND = _unit_tangent(uw_CD, chunk)
        m_BN = chunk.softmax(chunk.logits(x_BD, scale), log_sum_B)
        r_BN = _tangent(x_BD, ux_BD, uw_ND, chunk).sub_(mean_B.unsqueeze(1))
        if known is not None:
            left_B += (m_BN * r_BN).sum(1)
        r_BN.mul_(m_BN.mul_(scale * g_B.unsqueeze(1))).mul_(scale)
        chunk.scaled(r_BN)  # at the true identity m_BN is still 0, and so is r_BN
        chunk.set_true(m_BN, g_cos_B)
        Dx_BD.addmm_(r_BN, chunk.weight_ND)
        if uw_ND is not None:
            Dx_BD.addmm_(m_BN, uw_ND)
        if need_w:
            Dw_ND = torch.mm(r_BN.T, x_BD, out=Dw_CD[chunk.at])
            Dw_ND.addmm_(chunk.scaled(m_BN).T, ux_BD)
            _project(Dw_ND, torch.linalg.vecdot(chunk.weight_ND, Dw_ND), chunk)
            if chunk.inverse_norm_N is not None and uw_CD is not None:
                _project_second(Dw_ND, chunk, uw_CD[chunk.at], uw_ND, dw_CD[chunk.at], radial_C[chunk.at])
    return Dx_BD, Dw_CD, scale * (mean_B + left_B), true_B


def _average_tangents(arguments, scale, log_sum_B, ux_BD, uw_CD):
    """(mean_B, T of the true identities)."""
    x_BD = arguments[0]
    mean_B, whole_B, true_B = (torch.zeros_like(log_sum_B) for _ in range(3))
    for chunk in _chunks(*arguments):
        t_BN = _tangent(x_BD, ux_BD, _unit_tangent(uw_CD, chunk), chunk)
        p_BN = chunk.softmax(chunk.logits(x_BD, scale), log_sum_B)
        whole_B += p_BN.sum(1)
        mean_B += p_BN.mul_(t_BN).sum(1)
        true_B += chunk.true(t_BN)
    mean_B /= whole_B.clamp_min(torch.finfo(mean_B.dtype).tiny)  # not by 1: so the rounding of log_sum cancels
    return mean_B, true_B


def _project(dw_ND, radial_N, chunk):
    """Removes from `dw_ND` = r a, in place, its part along w; a is the gradient of unit rows w, `radial_N` = w . a."""
    if chunk.inverse_norm_N is not None:
        dw_ND.addcmul_(chunk.weight_ND, (-radial_N * chunk.inverse_norm_N.square()).unsqueeze(1))


def _unit_tangent(uw_CD, chunk):
    """The tangent of the unit rows, r (uw - (w . uw) w), from a tangent of the weights."""
    if uw_CD is None or chunk.inverse_norm_N is None:
        return None if uw_CD is None else uw_CD[chunk.at].to(chunk.weight_ND.dtype)
    uw_ND = uw_CD[chunk.at] * chunk.inverse_norm_N.unsqueeze(1)
    _project(uw_ND, torch.linalg.vecdot(chunk.weight_ND, uw_ND), chunk)
    return uw_ND


def _tangent(x_BD, ux_BD, uw_ND, chunk):
    """T of this chunk (B, N): how the cosines move."""
    t_BN = chunk.scaled(chunk.products(ux_BD))
    return t_BN if uw_ND is None else t_BN.addmm_(x_BD, uw_ND.T)


def _project_second(Dw_ND, chunk, u_ND, uw_ND, dw_ND, radial_N):
    """Adds, in place, the second derivative of the normalisation: - r w (dw . u) - r ((w . u) dw + radial uw).

    u is the tangent of the weights, uw the tangent of their unit rows, and r the inverse norm.
    """
    r_N = chunk.inverse_norm_N
    along_N = torch.linalg.vecdot(chunk.weight_ND, u_ND) * r_N
    Dw_ND.addcmul_(chunk.weight_ND, (-torch.linalg.vecdot(dw_ND, u_ND) * r_N.square()).unsqueeze(1))
    Dw_ND.addcmul_(dw_ND, (-along_N * r_N).unsqueeze(1))
    Dw_ND.addcmul_(uw_ND, (-radial_N * r_N).unsqueeze(1))
