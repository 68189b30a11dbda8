"""cos_lse by chunks of identities, on a GPU or in Triton's interpreter, against the reference in float64."""

import os
from functools import partial

import pytest
import torch
from fastmfr.kernels.cos_lse import backward as tiles_backward
from fastmfr.kernels.cos_lse import by_chunks, chunked, operator
from fastmfr.kernels.cos_lse import forward as tiles_forward
from fastmfr.kernels.cos_lse.by_chunks import backward, chunk_size, forward
from fastmfr.kernels.cos_lse.by_chunks_twice import double_backward
from helpers import DEVICE, assert_as_accurate
from test_cos_lse_kernels import BF16, FLOOR, FP16, FP32, OVERFLOW, Problem, from_autograd

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it PyTorch lets no product be deterministic
NAMES = "log_sum", "cos", "dx", "dw", "Dx", "Dw", "Dg", "Dg_cos"
SIZE = 32 if DEVICE == "cpu" else by_chunks.MULTIPLE  # identities of a chunk, the fewest there can be
# The last chunk is ragged, is one identity, is whole, is the only one.
SHAPES = [(20, 2 * SIZE + 11, 24), (9, 2 * SIZE + 1, 16), (5, 2 * SIZE, 10), (1, 2, 1)]
pytestmark = [pytest.mark.kernel, pytest.mark.filterwarnings(OVERFLOW)]


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch):
    monkeypatch.setattr(by_chunks, "MULTIPLE", SIZE)


def by_chunks_of(size, p, scale=64.0, keep=False, inner=True):
    """All results by name, made in memory that was NaN."""
    given = p.x_BD, p.w_CD, p.r_C, p.label_B, scale
    torch.use_deterministic_algorithms(True)  # new memory is filled with NaN then
    try:
        log_sum, cos, kept = forward(*given, keep, size)
        dx, dw, radial = backward(*given, log_sum, kept, p.g_B, p.g_cos_B, True, True, size)
        ux, uw = p.ux_BD, p.uw_CD if inner else None
        twice = double_backward(*given, log_sum, p.g_B, p.g_cos_B, dw, radial, ux, uw, True, size)
    finally:
        torch.use_deterministic_algorithms(False)
    assert radial.isfinite().all()
    return dict(zip(NAMES, (log_sum, cos, dx, dw, *twice), strict=True))


def assert_accurate(p, floor=None, scale=64.0, size=SIZE, inner=True, **variant):
    got = by_chunks_of(size, p, scale, inner=inner, **variant)
    ref, truth = (from_autograd(p, dtype, scale, inner) for dtype in (p.x_BD.dtype, torch.float64))
    for name in NAMES:
        assert got[name].dtype == FP32, name
        lowest = (floor or FLOOR[p.x_BD.dtype]) * truth[name].abs().max()
        assert_as_accurate(got[name], ref[name], truth[name], lowest)
    return got


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        *((shape, BF16) for shape in SHAPES),
        (SHAPES[0], FP32),
        (SHAPES[1], FP16),
    ],
    ids=str,
)
def test_as_accurate_as_pytorch(shape, dtype):
    assert_accurate(Problem(*shape, dtype))


@pytest.mark.parametrize(
    ("dtype", "weight_dtype", "normed"),
    [
        (BF16, BF16, True),
        (BF16, FP32, True),
        (FP16, FP32, True),
        (BF16, BF16, False),
        (BF16, FP32, False),
    ],
    ids=str,
)
def test_takes_weights_of_either_kind(dtype, weight_dtype, normed):
    assert_accurate(Problem(18, SIZE + 9, 24, dtype, weight_dtype, normed=normed))


@pytest.mark.parametrize(("dtype", "normed"), [(BF16, True), (FP16, False)], ids=str)
def test_weights_may_lie_outside_of_what_is_differentiated_twice(dtype, normed):
    assert_accurate(Problem(*SHAPES[1], dtype, normed=normed), inner=False)


@pytest.mark.parametrize("dtype", [BF16, FP32], ids=str)
def test_carries_a_running_maximum_above_scale_80(dtype):
    assert_accurate(Problem(*SHAPES[1], dtype), scale=100.0)


@pytest.mark.parametrize(("shape", "dtype"), [(SHAPES[0], BF16), (SHAPES[1], FP16), (SHAPES[2], BF16)], ids=str)
def test_kept_exponentials_stand_in_for_the_logits(shape, dtype):
    assert_accurate(Problem(*shape, dtype), floor=FLOOR[BF16], keep=True)


@pytest.mark.parametrize("label_dtype", [torch.int32, torch.int64], ids=str)
def test_true_identities_lie_at_the_edges_of_chunks(label_dtype):
    p = Problem(8, 2 * SIZE + 11, 16, BF16, FP32, label_dtype=label_dtype)
    p.label_B.copy_(torch.tensor([0, SIZE - 1, SIZE, 2 * SIZE - 1, 2 * SIZE, 2 * SIZE + 10, -1, 2 * SIZE + 11]))
    assert_accurate(p)


@pytest.mark.parametrize(
    ("nobody", "label_dtype"),
    [
        (-1, torch.int32),
        (SIZE + 1, torch.int64),
        (2**31 - 1, torch.int32),
        (-(2**31), torch.int64),
    ],
    ids=str,
)
def test_a_label_out_of_range_names_nobody(label_dtype, nobody):
    p = Problem(5, SIZE + 1, 10, BF16, label_dtype=label_dtype)
    p.label_B.fill_(nobody)
    assert not assert_accurate(p)["cos"].any()


@pytest.mark.parametrize("g_scale", [2.0**-40, 2.0**16])
def test_float16_holds_gradients_of_any_size(g_scale):
    p = Problem(9, 2 * SIZE + 1, 16, FP16)
    plain = by_chunks_of(SIZE, p)
    p.g_B, p.g_cos_B = p.g_B * g_scale, p.g_cos_B * g_scale
    p.ux_BD, p.uw_CD = p.ux_BD / g_scale, p.uw_CD / g_scale
    grown = dict.fromkeys(("dx", "dw"), g_scale) | dict.fromkeys(("Dg", "Dg_cos"), 1 / g_scale)
    for name, one in by_chunks_of(SIZE, p).items():
        torch.testing.assert_close(one, plain[name] * grown.get(name, 1), rtol=1e-5, atol=0, msg=name)


def test_makes_what_is_needed():
    p = Problem(9, SIZE + 1, 16, BF16)
    log_sum_B, _, kept = forward(p.x_BD, p.w_CD, p.r_C, p.label_B, 64.0, False, SIZE)
    given = p.x_BD, p.w_CD, p.r_C, p.label_B, 64.0, log_sum_B, kept, p.g_B, p.g_cos_B
    every = backward(*given, True, True, SIZE)
    for need_x, need_w in ((True, False), (False, True), (False, False)):
        some = backward(*given, need_x, need_w, SIZE)
        for whole, one, need in zip(every, some, (need_x, need_w, need_w), strict=True):
            assert torch.equal(one, whole) if need else one.shape == (0,)
    given = *given[:6], p.g_B, p.g_cos_B, *every[1:], p.ux_BD, p.uw_CD
    whole, part = (double_backward(*given, need, SIZE) for need in (True, False))
    assert part[1].shape == (0,)
    for at in (0, 2, 3):
        assert torch.equal(whole[at], part[at])


def test_one_chunk_and_several_agree():
    p = Problem(9, 2 * SIZE + 11, 16)
    several, one = by_chunks_of(SIZE, p), by_chunks_of(None, p)
    for name in NAMES:
        torch.testing.assert_close(several[name], one[name], rtol=1e-4, atol=1e-4)


def test_the_radial_part_is_what_the_tiles_make():
    p = Problem(9, 2 * SIZE + 11, 16)
    log_sum_B, _, kept = forward(p.x_BD, p.w_CD, p.r_C, p.label_B, 64.0, False, SIZE)
    given = p.x_BD, p.w_CD, p.r_C, p.label_B, 64.0, log_sum_B, kept, p.g_B, p.g_cos_B, False, True
    want, got = tiles_backward.backward(*given)[2], backward(*given, SIZE)[2]
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("variant", [{}, {"keep": True}, {"scale": 100.0}], ids=str)
def test_repeats_to_the_bit_and_keeps_its_operands(variant):
    p = Problem(9, 2 * SIZE + 11, 24, BF16, FP32)
    before = {name: one.clone() for name, one in vars(p).items()}
    first, second = (by_chunks_of(SIZE, p, **variant) for _ in range(2))
    for name, one in first.items():
        assert torch.equal(one, second[name]), name
    for name, one in vars(p).items():
        assert torch.equal(one, before[name]), name


def test_an_empty_batch_gives_nothing_and_zero_gradients():
    p = Problem(9, 2 * SIZE + 1, 16, BF16)
    for name in ("x_BD", "label_B", "g_B", "g_cos_B", "ux_BD"):
        setattr(p, name, getattr(p, name)[:0])
    got = by_chunks_of(SIZE, p)
    shapes = [(0,), (0,), (0, 16), (2 * SIZE + 1, 16)]
    assert [tuple(got[name].shape) for name in NAMES] == [*shapes, *shapes[2:], (0,), (0,)]
    assert not got["dw"].any()
    assert not got["Dw"].any()


@pytest.mark.parametrize("scale", [64.0, 100.0])
def test_with_nobody_else_the_sum_is_empty(scale):
    got = by_chunks_of(SIZE, Problem(3, 1, 10, BF16, ignored=False), scale)
    assert (got["log_sum"] < -1e30).all()
    assert all(one.isfinite().all() for one in got.values())


def test_a_chunk_takes_its_share_of_memory_whatever_the_batch(monkeypatch):
    monkeypatch.setattr(by_chunks, "MULTIPLE", 128)
    assert [chunk_size(B, 10**7) for B in (1, 1024, 2048, 10**6)] == [131072, 131072, 65536, 128]
    assert chunk_size(1024, 10**7, itemsize=4) == 65536
    assert chunk_size(1024, 1000) == 1024


def test_auto_keeps_exponentials_only_where_they_save_time(monkeypatch):
    monkeypatch.setattr(operator, "dispatch", lambda tensor, *, kernels, **_: kernels)  # as on a GPU
    monkeypatch.setattr(operator, "_memory", lambda tensor: 80 << 30)
    keeps = lambda B, dtype, keep="auto", C=100_000: operator._keeps(keep, torch.empty(B, 1, dtype=dtype), C, 64.0)  # noqa: E731
    assert [keeps(32, BF16), keeps(64, BF16), keeps(32, FP32)] == [True, False, False]
    assert [keeps(64, BF16, "exp"), keeps(32, BF16, "none"), keeps(32, BF16, C=10**8)] == [True, False, False]


def test_the_path_is_selected_by_name(monkeypatch):
    monkeypatch.setattr(operator, "dispatch", lambda tensor, *, kernels, **_: kernels)  # as on a GPU
    large, small, single = torch.empty(64, 1, dtype=BF16), torch.empty(63, 1, dtype=BF16), torch.empty(64, 1)
    passes = partial(operator._passes, tiles=tiles_backward)
    assert [passes(one) for one in (large, small, single)] == [by_chunks, tiles_backward, tiles_backward]
    assert operator._passes(large, tiles_forward) is tiles_forward
    with operator.select("tiles"):
        assert passes(large) is tiles_backward
        with operator.select("chunks"):
            assert passes(small) is passes(single) is by_chunks
        assert passes(large) is tiles_backward
    assert passes(large) is by_chunks
    with pytest.raises(ValueError, match="path out of 'auto', 'tiles', 'chunks', got 'both'"), operator.select("both"):
        pass
    monkeypatch.undo()
    assert passes(large.double()) is chunked


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE == "cpu", reason="needs a CUDA device")
@pytest.mark.parametrize("D", [256, 320, 512, 1024])
@pytest.mark.parametrize(("dtype", "weight_dtype"), [(BF16, BF16), (FP16, FP16), (BF16, FP32), (FP32, FP32)], ids=str)
@pytest.mark.parametrize("variant", [{}, {"keep": True}, {"scale": 100.0}, {"inner": False}], ids=str)
def test_the_chunks_that_ship_are_as_accurate(D, dtype, weight_dtype, variant):
    floor = FLOOR[BF16] if "keep" in variant else None
    assert_accurate(Problem(300, 5003, D, dtype, weight_dtype), floor, size=2048, **variant)
