"""cos_lse where weights get no gradient: its double backward sweeps all identities once, and loses nothing by it."""

import pytest
import torch
from fastmfr.kernels import cos_lse, cos_lse_ref
from fastmfr.kernels.cos_lse import backward, by_chunks, by_chunks_twice, chunked, double_backward, operator
from helpers import DEVICE, assert_as_accurate
from test_cos_lse_kernels import BF16, FLOOR, FP16, FP32, OVERFLOW, Problem, from_autograd
from torch.autograd import gradcheck, gradgradcheck
from torch.nn import functional as F

SIZE = 32 if DEVICE == "cpu" else by_chunks.MULTIPLE  # identities of a chunk, the fewest there can be
NAMES = "dx", "Dx", "Dg", "Dg_cos"
PATHS = "tiles", "chunks", "pytorch"
pytestmark = [pytest.mark.kernel, pytest.mark.filterwarnings(OVERFLOW)]


@pytest.fixture(params=PATHS)
def path(request, monkeypatch):
    """One of the paths, whatever the device, with chunks of few identities."""
    chosen = "reference" if request.param == "pytorch" else "kernels"
    monkeypatch.setattr(operator, "dispatch", lambda tensor, *, fits, **passes: passes[chosen])
    monkeypatch.setattr(operator, "_path", "auto" if request.param == "pytorch" else request.param)
    monkeypatch.setattr(chunked, "_LOGITS", 9 * SIZE)
    monkeypatch.setattr(by_chunks, "MULTIPLE", SIZE)
    for module in (by_chunks, by_chunks_twice):
        monkeypatch.setattr(module, "chunk_size", lambda *_: SIZE)
    return request.param


def passes_of(p, scale=64.0, keep=False):
    """(results in one sweep, results in two), by name, in memory that was NaN."""
    given, gradients = (p.x_BD, p.w_CD, p.r_C, p.label_B, scale), (p.g_B, p.g_cos_B)
    torch.use_deterministic_algorithms(True)  # new memory is filled with NaN then
    try:
        log_sum, _, kept = operator._forward(*given, keep)
        dx, *made, expected = operator._backward(*given, log_sum, kept, *gradients, True, False)
        found = []
        for one in (expected, expected[:0]):
            Dx, _, *rest = operator._double_backward(*given, log_sum, *gradients, *made, one, p.ux_BD, None, False)
            found.append(dict(zip(NAMES, (dx, Dx, *rest), strict=True)))
    finally:
        torch.use_deterministic_algorithms(False)
    return found


# Two blocks of rows and three chunks of identities, all ragged; one whole slab; nobody but the true identity and one.
@pytest.mark.parametrize(
    ("shape", "dtype", "scale", "keep"),
    [
        ((20, 2 * SIZE + 11, 24), BF16, 64.0, False),
        ((20, 2 * SIZE + 11, 24), FP16, 64.0, False),
        ((20, 2 * SIZE + 11, 24), FP32, 64.0, False),
        ((9, 2 * SIZE + 1, 16), BF16, 64.0, True),
        ((9, 2 * SIZE + 1, 16), FP16, 16.0, False),
        ((9, 2 * SIZE + 1, 16), FP32, 100.0, False),
        ((1, 2, 1), BF16, 64.0, False),
    ],
    ids=str,
)
@pytest.mark.parametrize("normed", [True, False], ids=["raw weights", "unit weights"])
def test_one_sweep_is_as_accurate_as_two(path, shape, dtype, scale, keep, normed):
    p = Problem(*shape, dtype, normed=normed)
    p.g_B[::3] = 0  # such a row has a Dg all the same
    one, two = passes_of(p, scale, keep)
    truth = from_autograd(p, torch.float64, scale, inner=False)
    for name in NAMES:
        floor = 0.25 * FLOOR[dtype] * truth[name].abs().max()
        if name == "Dx":  # T - mean is rounded, and then multiplied by scale^2 g: so where it is 0, too
            floor += torch.finfo(FP32).eps * scale**2 * p.g_B.abs().max()
        assert_as_accurate(one[name], two[name], truth[name], floor, slack=1.25)


@pytest.mark.parametrize("label", [-1, 2 * SIZE + 1, 2**31 - 1])
def test_a_label_out_of_range_names_nobody(path, label):
    p = Problem(5, 2 * SIZE + 1, 10, label_dtype=torch.int32)
    p.label_B.fill_(label)
    one, _ = passes_of(p)
    truth = from_autograd(p, torch.float64, inner=False)
    for name in NAMES:
        torch.testing.assert_close(one[name].double(), truth[name], rtol=1e-3, atol=2e-4)
    assert not one["Dg_cos"].any()


def test_with_nobody_else_there_is_nothing_to_move(path):
    p = Problem(3, 1, 10, ignored=False)
    one, _ = passes_of(p)
    assert not one["Dx"].any()
    assert not one["Dg"].any()
    torch.testing.assert_close(one["dx"], p.g_cos_B[:, None] * F.normalize(p.w_CD))


def test_an_empty_batch_is_fine(path):
    p = Problem(9, 40, 16)
    for name in ("x_BD", "label_B", "g_B", "g_cos_B", "ux_BD"):
        setattr(p, name, getattr(p, name)[:0])
    assert [tuple(one.shape) for one in passes_of(p)[0].values()] == [(0, 16), (0, 16), (0,), (0,)]


@pytest.mark.parametrize("frozen", [True, False])
def test_the_sweep_for_the_mean_is_saved(path, frozen, monkeypatch):
    begun = []
    sweeps = {  # what begins one
        "tiles": [(double_backward, name) for name in ("_average_tangents", "_launch_dx")],
        "chunks": [(by_chunks_twice, "chunks_of")],
        "pytorch": [(chunked, "_chunks")],
    }[path]
    for module, name in sweeps:
        call = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *given, call=call, **named: begun.append(1) or call(*given, **named))
    p = Problem(9, 2 * SIZE + 1, 16)
    x, w = p.x_BD.requires_grad_(), p.w_CD.requires_grad_(not frozen)
    log_sum, cos = cos_lse(x, w, p.label_B, 64.0, inverse_norm_C=p.r_C, keep="none")
    (dx,) = torch.autograd.grad(log_sum.sum() + cos.sum(), x, create_graph=True)
    begun.clear()
    torch.autograd.grad(dx.square().sum(), x)
    assert len(begun) == (1 if frozen else 2)


def test_weights_that_get_a_gradient_leave_the_first_derivative_as_it_was(path):
    p = Problem(9, 2 * SIZE + 1, 16, BF16)
    given = p.x_BD, p.w_CD, p.r_C, p.label_B, 64.0
    log_sum, _, kept = operator._forward(*given, False)
    given = *given, log_sum, kept, p.g_B, p.g_cos_B
    *got, expected = operator._backward(*given, True, True)
    assert expected.shape == (0,)
    want = operator._passes(p.x_BD, backward).backward(*given, True, True)
    assert all(torch.equal(one, other) for one, other in zip(got, want, strict=True))


@pytest.mark.parametrize("labels", [[0, 3, -1, 6, 3], [-1] * 5], ids=str)
@pytest.mark.parametrize("scale", [6.0, 100.0])
def test_equals_the_reference_where_gradients_are_zero(labels, scale):
    gen = torch.Generator().manual_seed(0)
    normal = lambda *shape: torch.randn(shape, generator=gen, dtype=torch.float64)  # noqa: E731
    unit, weight, label = F.normalize(normal(5, 4)).requires_grad_(), F.normalize(normal(7, 4)), torch.tensor(labels)
    upstream, tangent, results = normal(2, 5), normal(5, 4), []
    upstream[0, ::2] = 0
    upstream = [one.clone().requires_grad_() for one in upstream]
    for function in (cos_lse, cos_lse_ref):
        values = function(unit, weight, label, scale)
        (first,) = torch.autograd.grad(values, unit, upstream, create_graph=True)
        results.append([first, *torch.autograd.grad(first, (unit, *upstream), tangent)])
    for mine, theirs in zip(*results, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-9)
    function = lambda unit: cos_lse(unit, weight, label, scale)  # noqa: E731
    assert gradcheck(function, unit)
    assert gradgradcheck(function, unit, upstream)
