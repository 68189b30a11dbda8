import pytest
import torch
import triton_interpreter
from fastmfr.kernels.cos_lse import cos_lse_ref
from fastmfr.kernels.cos_lse.backward import backward
from fastmfr.kernels.cos_lse.double_backward import double_backward
from fastmfr.kernels.cos_lse.forward import forward
from fastmfr.kernels.inverse_norm import _launch_inverse_norm, inverse_norm, inverse_norm_ref
from helpers import DEVICE, assert_as_accurate
from torch.nn import functional as F

if DEVICE == "cpu":
    triton_interpreter.repair()
BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
NAMES = "log_sum", "cos", "dx", "dw", "Dx", "Dw", "Dg", "Dg_cos"
FLOOR = {FP32: 1e-5, FP16: 2e-3, BF16: 1e-2}  # of the largest element
# The interpreter's tile is 16 rows x 32 identities x 16 columns, shared among 2 "multiprocessors".
SHAPES = [
    (20, 70, 24),  # two blocks of rows, the second ragged; three tiles of identities; two slabs of columns, both ragged
    (9, 70, 16),  # two shares of the identities; one slab, whole: a tile serves both products
    (5, 33, 10),  # likewise, ragged in the columns
    (1, 2, 1),
]
# What a tile computes past the last row or identity may overflow before it is left out.
OVERFLOW = "ignore:(overflow|invalid value|divide by zero) encountered:RuntimeWarning"
pytestmark = [pytest.mark.kernel, pytest.mark.filterwarnings(OVERFLOW)]


class Problem:
    """Operands, and gradients that arrive, of every sign and of different sizes."""

    def __init__(self, B, C, D, dtype=FP32, weight_dtype=None, *, normed=True, label_dtype=torch.int64, ignored=True):
        generator = torch.Generator().manual_seed(B + C)

        def normal(*shape):
            return torch.randn(shape, generator=generator)

        self.x_BD = F.normalize(normal(B, D)).to(DEVICE, dtype)
        w_CD = normal(C, D) * 3 if normed else F.normalize(normal(C, D))
        self.w_CD = w_CD.to(DEVICE, weight_dtype or dtype)
        self.r_C = inverse_norm_ref(self.w_CD) if normed else None
        self.label_B = torch.randint(C, (B,), generator=generator).to(DEVICE, label_dtype)
        if ignored:
            self.label_B[1::4] = -1
        self.g_B, self.g_cos_B = normal(B).to(DEVICE) / B, normal(B).to(DEVICE)
        self.ux_BD, self.uw_CD = normal(B, D).to(DEVICE), normal(C, D).to(DEVICE)


def from_kernels(p, scale=64.0, keep=False, inner=True):
    """All results by name, made in memory that was NaN."""
    given = p.x_BD, p.w_CD, p.r_C, p.label_B, scale
    torch.use_deterministic_algorithms(True)  # new memory is filled with NaN then
    try:
        log_sum, cos, kept = forward(*given, keep)
        dx, dw, radial = backward(*given, log_sum, kept, p.g_B, p.g_cos_B, True, True)
        ux, uw = p.ux_BD, p.uw_CD if inner else None
        twice = double_backward(*given, log_sum, p.g_B, p.g_cos_B, dw, radial, ux, uw, True)
    finally:
        torch.use_deterministic_algorithms(False)
    return dict(zip(NAMES, (log_sum, cos, dx, dw, *twice), strict=True))


def from_autograd(p, dtype, scale=64.0, inner=True):
    """Likewise by the reference in PyTorch, at this dtype, differentiated twice."""
    x, w = (one.to(p.x_BD.dtype).to(dtype, copy=True).requires_grad_() for one in (p.x_BD, p.w_CD))
    g, g_cos = (one.to(dtype, copy=True).requires_grad_() for one in (p.g_B, p.g_cos_B))
    log_sum, cos = cos_lse_ref(x, w if p.r_C is None else F.normalize(w), p.label_B, scale)
    dx, dw = torch.autograd.grad((log_sum * g + cos * g_cos).sum(), (x, w), create_graph=True)
    reached = (dx * p.ux_BD.to(dtype)).sum() + ((dw * p.uw_CD.to(dtype)).sum() if inner else 0)
    twice = torch.autograd.grad(reached, (x, w, g, g_cos))
    return {name: one.detach() for name, one in zip(NAMES, (log_sum, cos, dx, dw, *twice), strict=True)}


def assert_accurate(p, floor=None, **variant):
    keep = variant.pop("keep", False)
    got = from_kernels(p, keep=keep, **variant)
    ref, truth = (from_autograd(p, dtype, **variant) for dtype in (p.x_BD.dtype, torch.float64))
    for name in truth:
        assert got[name].dtype == FP32, name
        lowest = (floor or FLOOR[p.x_BD.dtype]) * truth[name].abs().max()
        if name in ("Dx", "Dw"):  # T - mean is rounded, and then multiplied by scale^2 g: so where it is 0, too
            lowest = lowest + torch.finfo(FP32).eps * variant.get("scale", 64.0) ** 2 * p.g_B.abs().max()
        assert_as_accurate(got[name], ref[name], truth[name], lowest)
    return got


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        *((shape, BF16) for shape in SHAPES),
        (SHAPES[0], FP32),
        (SHAPES[1], FP32),
        (SHAPES[1], FP16),
    ],
    ids=str,
)
def test_as_accurate_as_pytorch(shape, dtype):
    assert_accurate(Problem(*shape, dtype))


@pytest.mark.parametrize("dtype", [BF16, FP32], ids=str)
def test_takes_weights_that_are_unit_rows_already(dtype):
    assert_accurate(Problem(18, 40, 24, dtype, normed=False))


@pytest.mark.parametrize("dtype", [BF16, FP16], ids=str)
def test_rounds_float32_weights_as_it_loads_them(dtype):
    assert_accurate(Problem(18, 40, 24, dtype, FP32))


@pytest.mark.parametrize(("shape", "dtype"), [(SHAPES[1], BF16), (SHAPES[1], FP32), (SHAPES[2], BF16)], ids=str)
def test_carries_a_running_maximum_above_scale_80(shape, dtype):
    assert_accurate(Problem(*shape, dtype), scale=100.0)


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [(SHAPES[0], BF16), (SHAPES[1], FP16), (SHAPES[1], FP32), (SHAPES[2], BF16)],
    ids=str,
)
def test_kept_exponentials_stand_in_for_the_logits(shape, dtype):
    assert_accurate(Problem(*shape, dtype), keep=True, floor=FLOOR[BF16])


@pytest.mark.parametrize(("shape", "normed"), [(SHAPES[0], True), (SHAPES[1], False), (SHAPES[2], True)], ids=str)
def test_weights_may_lie_outside_of_what_is_differentiated_twice(shape, normed):
    assert_accurate(Problem(*shape, BF16, normed=normed), inner=False)


@pytest.mark.parametrize(
    ("nobody", "label_dtype"),
    [(-1, torch.int32), (40, torch.int64), (2**31 - 1, torch.int32), (2**31 - 1, torch.int64)],
    ids=str,
)
def test_a_label_out_of_range_names_nobody(label_dtype, nobody):
    p = Problem(5, 40, 10, label_dtype=label_dtype)
    p.label_B.fill_(nobody)
    got = assert_accurate(p)
    assert not got["cos"].any()
    assert not got["Dg_cos"].any()


def test_takes_labels_of_either_width():
    wide, narrow = (from_kernels(Problem(5, 40, 10, label_dtype=dtype)) for dtype in (torch.int64, torch.int32))
    for name, one in wide.items():
        assert torch.equal(one, narrow[name]), name


@pytest.mark.parametrize(("scale", "dtype"), [(64.0, BF16), (64.0, FP16), (64.0, FP32), (100.0, BF16)], ids=str)
def test_with_nobody_else_the_sum_is_empty_and_its_gradients_are_zero(dtype, scale):
    p = Problem(3, 1, 10, dtype, ignored=False)
    got = from_kernels(p, scale)
    assert (got["log_sum"] < -1e30).all()
    assert all(one.isfinite().all() for one in got.values())
    assert not got["Dg"].any()
    want_BD = p.g_cos_B[:, None] * F.normalize(p.w_CD.float())
    torch.testing.assert_close(got["dx"], want_BD, rtol=0, atol=FLOOR[dtype] * float(want_BD.abs().max()))


@pytest.mark.parametrize("g_scale", [2.0**-40, 2.0**16])
def test_float16_holds_gradients_of_any_size(g_scale):
    p = Problem(9, 70, 16, FP16)
    p.g_B, p.g_cos_B = p.g_B * g_scale, p.g_cos_B * g_scale
    p.ux_BD, p.uw_CD = p.ux_BD / g_scale, p.uw_CD / g_scale
    got, truth = from_kernels(p), from_autograd(p, torch.float64)
    for name in NAMES:
        assert (got[name] - truth[name]).abs().max() <= FLOOR[FP16] * truth[name].abs().max(), name


def test_makes_what_is_needed():
    p = Problem(9, 40, 16)
    log_sum_B, _, kept = forward(p.x_BD, p.w_CD, p.r_C, p.label_B, 64.0, False)
    given = p.x_BD, p.w_CD, p.r_C, p.label_B, 64.0, log_sum_B
    assert kept.shape == (0,)
    every = backward(*given, kept, p.g_B, p.g_cos_B, True, True)
    for need_x, need_w in ((True, False), (False, True), (False, False)):
        some = backward(*given, kept, p.g_B, p.g_cos_B, need_x, need_w)
        for whole, one, need in zip(every, some, (need_x, need_w, need_w), strict=True):
            assert torch.equal(one, whole) if need else one.shape == (0,)
    arrives = every[1], every[2], p.ux_BD, p.uw_CD
    whole, part = (double_backward(*given, p.g_B, p.g_cos_B, *arrives, need) for need in (True, False))
    assert part[1].shape == (0,)
    for at in (0, 2, 3):
        assert torch.equal(whole[at], part[at])


def test_radial_is_the_part_of_the_gradient_that_unit_rows_lose():
    p = Problem(18, 40, 24)
    log_sum_B, _, kept = forward(p.x_BD, p.w_CD, p.r_C, p.label_B, 64.0, False)
    unit_CD = p.w_CD * p.r_C[:, None]
    results = []
    for w_CD, r_C in ((p.w_CD, p.r_C), (unit_CD, None)):
        results += backward(p.x_BD, w_CD, r_C, p.label_B, 64.0, log_sum_B, kept, p.g_B, p.g_cos_B, False, True)[1:]
    dw_CD, radial_C, unit_dw_CD, unit_radial_C = results
    torch.testing.assert_close(radial_C, (unit_CD * unit_dw_CD).sum(1), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(radial_C, unit_radial_C, rtol=1e-4, atol=1e-4)
    assert (dw_CD * unit_CD).sum(1).abs().max() < 1e-5


def test_columns_kept_past_the_last_identity_are_not_read():
    p = Problem(9, 70, 16)
    given = p.x_BD, p.w_CD, p.r_C, p.label_B, 64.0
    log_sum_B, _, kept_BC = forward(*given, True)
    assert kept_BC.dtype == BF16
    assert kept_BC.shape == (9, 128)
    before = backward(*given, log_sum_B, kept_BC, p.g_B, p.g_cos_B, True, True)
    kept_BC[:, 70:] = torch.nan
    for one, other in zip(before, backward(*given, log_sum_B, kept_BC, p.g_B, p.g_cos_B, True, True), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("variant", [{}, {"keep": True}, {"scale": 100.0}], ids=str)
def test_repeats_to_the_bit_and_keeps_its_operands(variant):
    p = Problem(9, 40, 24, BF16)
    before = {name: one.clone() for name, one in vars(p).items()}
    first, second = (from_kernels(p, **variant) for _ in range(2))
    for name, one in first.items():
        assert torch.equal(one, second[name]), name
    for name, one in vars(p).items():
        assert torch.equal(one, before[name]), name


def test_takes_operands_of_any_strides():
    p, strided = Problem(9, 40, 16), Problem(9, 40, 16)
    for name, one in vars(p).items():
        spread = torch.stack([one, torch.zeros_like(one)], dim=-1)[..., 0]
        assert not spread.is_contiguous()
        setattr(strided, name, spread.T.contiguous().T if spread.ndim == 2 else spread)
    for (name, one), other in zip(from_kernels(p).items(), from_kernels(strided).values(), strict=True):
        assert torch.equal(one, other), name


def test_an_empty_batch_gives_nothing_and_zero_gradients():
    p = Problem(9, 40, 16)
    for name in ("x_BD", "label_B", "g_B", "g_cos_B", "ux_BD"):
        setattr(p, name, getattr(p, name)[:0])
    got = from_kernels(p)
    assert [tuple(got[name].shape) for name in NAMES] == [(0,), (0,), (0, 16), (40, 16), (0, 16), (40, 16), (0,), (0,)]
    assert not got["dw"].any()
    assert not got["Dw"].any()


def test_refuses_embeddings_that_are_too_wide():
    p = Problem(2, 3, 1025)
    with pytest.raises(ValueError, match="want embeddings of at most 1024, got 1025"):
        forward(p.x_BD, p.w_CD, p.r_C, p.label_B, 64.0, False)


@pytest.mark.parametrize("dtype", FLOOR, ids=str)
@pytest.mark.parametrize("shape", [(9, 300), (8, 256), (1, 1)], ids=str)
def test_inverse_norm_equals_its_reference(shape, dtype):
    weight_CD = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(DEVICE, dtype)
    weight_CD[-1] = 0
    want_C = inverse_norm_ref(weight_CD)
    for got_C in (_launch_inverse_norm(weight_CD), _launch_inverse_norm(weight_CD.T.contiguous().T)):
        assert got_C.dtype == FP32
        torch.testing.assert_close(got_C, want_C, rtol=1e-6, atol=0)
    assert want_C[-1] == inverse_norm(weight_CD)[-1] == 1e12
    assert _launch_inverse_norm(weight_CD[:0]).shape == (0,)


def test_inverse_norm_refuses_what_is_not_a_matrix():
    with pytest.raises(ValueError, match=r"want weights \(C, D\), got \(4,\)"):
        inverse_norm(torch.ones(4))


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE == "cpu", reason="needs a CUDA device")
@pytest.mark.parametrize("D", [256, 320, 512, 1024])
@pytest.mark.parametrize(("dtype", "weight_dtype"), [(BF16, BF16), (FP16, FP16), (BF16, FP32), (FP32, FP32)], ids=str)
@pytest.mark.parametrize("variant", [{}, {"keep": True}, {"scale": 100.0}, {"inner": False}], ids=str)
def test_the_tiles_that_ship_are_as_accurate(D, dtype, weight_dtype, variant):
    floor = FLOOR[BF16] if "keep" in variant else None
    assert_accurate(Problem(300, 5003, D, dtype, weight_dtype), floor, **variant)
