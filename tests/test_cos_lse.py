"""cos_lse on the CPU: the chunked passes against the reference in float64, and what PyTorch knows of the operator."""

import math

import pytest
import torch
from fastmfr.kernels import cos_lse, cos_lse_ref, inverse_norm
from fastmfr.kernels.cos_lse import chunked, operator
from helpers import assert_as_accurate
from torch.autograd import gradcheck, gradgradcheck
from torch.nn import functional as F

SCALES = [6.0, 100.0]  # without a running maximum, and with one
FLOOR = {torch.bfloat16: 2**-8, torch.float16: 2**-11, torch.float32: 1e-6}  # of the largest: the result's own rounding
LABELS = [[0, 3, -1, 6, 3], [-1] * 5, [6] * 5]


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch):
    monkeypatch.setattr(chunked, "_LOGITS", 15)  # 3 identities for 5 rows: chunks of 3, 3 and 1


def inputs(B=5, C=7, D=4, dtype=torch.float64, scale=6.0):
    gen = torch.Generator().manual_seed(0)
    unit = F.normalize(torch.randn(B, D, generator=gen, dtype=torch.float64))
    weight = torch.randn(C, D, generator=gen, dtype=torch.float64)
    return unit.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_()


def ours(unit, weight, label, scale, given):
    return cos_lse(unit, weight, label, scale, inverse_norm_C=inverse_norm(weight.detach()) if given else None)


def wanted(unit, weight, label, scale, given):
    return cos_lse_ref(unit, F.normalize(weight) if given else weight, label, scale)


@pytest.mark.parametrize("given", [True, False], ids=["raw weights", "unit weights"])
@pytest.mark.parametrize("labels", LABELS, ids=str)
@pytest.mark.parametrize("scale", SCALES)
def test_equals_the_reference_with_both_derivatives(scale, labels, given):
    (unit, weight), label = inputs(), torch.tensor(labels)
    gen = torch.Generator().manual_seed(1)
    results = []
    draw = lambda like: torch.randn(like.shape, generator=gen, dtype=like.dtype)  # noqa: E731
    upstream = [torch.randn(5, generator=gen, dtype=torch.float64).requires_grad_() for _ in range(2)]
    tangents = [draw(unit), draw(weight)]
    for function in (ours, wanted):
        values = function(unit, weight, label, scale, given)
        first = torch.autograd.grad(values, (unit, weight), upstream, create_graph=True)
        second = torch.autograd.grad(first, (unit, weight, *upstream), tangents, retain_graph=True)
        without = torch.autograd.grad(first[0], (unit, weight, *upstream), tangents[0])  # nothing arrives at dw
        results.append([*values, *first, *second, *without])
    for mine, theirs in zip(*results, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-9)


@pytest.mark.parametrize("which", ["both", "embeddings", "weights"])
def test_is_twice_differentiable(which):
    (unit, weight), label = inputs(), torch.tensor(LABELS[0], dtype=torch.int32)
    unit.requires_grad_(which != "weights")
    weight.requires_grad_(which != "embeddings")
    # inverse norms follow the weights as gradcheck moves them
    function = lambda unit, weight: ours(unit, weight, label, 6.0, True)  # noqa: E731
    assert gradcheck(function, (unit, weight))
    assert gradgradcheck(function, (unit, weight))


def test_leaves_the_true_identity_out():
    (unit, weight), label = inputs(), torch.tensor(LABELS[0])
    log_sum, cos = ours(unit, weight, label, 10.0, True)
    for b, true in enumerate(label.tolist()):
        all_cos = (F.normalize(weight) @ unit[b]).tolist()
        assert cos[b].item() == pytest.approx(all_cos.pop(true) if true >= 0 else 0)
        assert log_sum[b].item() == pytest.approx(math.log(sum(math.exp(10 * c) for c in all_cos)))


@pytest.mark.parametrize("scale", SCALES)
def test_a_single_identity_has_an_empty_sum_and_no_nan(scale):
    unit, weight = inputs(C=1)
    values = ours(unit, weight, torch.zeros(5, dtype=torch.long), scale, True)
    assert (values[0] < -1e30).all()
    gradients = torch.autograd.grad(sum(value.sum() for value in values), (unit, weight))
    assert all(torch.isfinite(gradient).all() for gradient in gradients)


def test_an_empty_batch_is_fine():
    unit, weight = inputs(B=0)
    log_sum, cos = ours(unit, weight, torch.zeros(0, dtype=torch.int32), 64.0, True)
    assert log_sum.shape == cos.shape == (0,)
    assert not torch.autograd.grad(log_sum.sum(), weight)[0].any()


@pytest.mark.parametrize("dtype", FLOOR, ids=str)
@pytest.mark.parametrize("scale", [64.0, 100.0])
def test_as_accurate_as_pytorch(dtype, scale):
    label = torch.tensor(LABELS[0])
    results = []
    for function, precision in ((ours, dtype), (wanted, dtype), (wanted, torch.float64)):
        unit, weight = (value.to(precision) for value in inputs(dtype=dtype))
        unit, weight = unit.detach().requires_grad_(), weight.detach().requires_grad_()
        log_sum, cos = function(unit, weight, label, scale, True)
        first = torch.autograd.grad((log_sum.sum() + cos.sum()) / scale, (unit, weight), create_graph=True)
        second = torch.autograd.grad(first[0].square().sum() + first[1].square().sum(), (unit, weight))
        results.append([log_sum, cos, *first, *second])
    for got, ref, truth in zip(*results, strict=True):
        assert_as_accurate(got, ref, truth, FLOOR[dtype] * (1 + truth.abs().max().item()))
    assert [value.dtype for value in results[0]] == [torch.float32] * 2 + [dtype] * 4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("scale", SCALES)
def test_kept_logits_give_the_bits_of_logits_computed_again(scale, dtype):
    results = []
    for keep in ("none", "exp"):
        (unit, weight), label = inputs(dtype=dtype), torch.tensor(LABELS[0])
        inverse = inverse_norm(weight.detach())
        for _ in range(2):  # what is kept serves a second call too
            values = cos_lse(unit, weight, label, scale, inverse_norm_C=inverse, keep=keep)
            first = torch.autograd.grad(sum(value.sum() for value in values), (unit, weight), create_graph=True)
            second = torch.autograd.grad(first[0].square().sum() + first[1].square().sum(), (unit, weight))
            again = torch.autograd.grad(sum(value.sum() for value in values), (unit, weight))
            results.append([*values, *first, *second, *again])
    for others in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], others, strict=True))


def test_logits_are_kept_where_they_are_wanted_and_memory_has_room(monkeypatch):
    monkeypatch.setattr(operator, "_memory", lambda tensor: 64 * 4 * 1000)  # room for 1,000 logits in float32
    kept = []
    forward = chunked.forward
    monkeypatch.setattr(chunked, "forward", lambda *given: kept.append(given[-1]) or forward(*given))
    for dtype, C, keep in ((torch.float32, 200, "auto"), (torch.float32, 201, "auto"), (torch.float64, 200, "auto")):
        cos_lse(*inputs(C=C, dtype=dtype), torch.tensor(LABELS[0]), 6.0, keep=keep)
    cos_lse(*inputs(C=201), torch.tensor(LABELS[0]), 6.0, keep="exp")
    cos_lse(*inputs(), torch.tensor(LABELS[0]), 6.0, keep="none")
    with torch.no_grad():  # nothing comes back to read them
        cos_lse(*inputs(), torch.tensor(LABELS[0]), 6.0, keep="exp")
    assert kept == [True, False, False, True, False, False]


@pytest.mark.parametrize("keep", [False, True])
def test_torch_knows_the_operators(keep):
    (unit, weight), label = inputs(dtype=torch.float32), torch.tensor(LABELS[0])
    arguments = unit, weight, inverse_norm(weight.detach()), label, 6.0
    torch.library.opcheck(operator._forward, (*arguments, keep))
    log_sum, _, kept = operator._forward(*arguments, keep)
    assert kept.numel() == keep * 5 * 7
    g = torch.randn(2, 5).unbind()
    opcheck = {"test_utils": ("test_schema", "test_faketensor")}  # a third derivative there is not
    for need_w, tangent in ((True, torch.randn(7, 4)), (False, None)):
        weight.requires_grad_(need_w)
        torch.library.opcheck(operator._backward, (*arguments, log_sum.detach(), kept, *g, True, need_w))
        _, *made = operator._backward(*arguments, log_sum.detach(), kept, *g, True, need_w)
        detached, tangents = (value.detach() for value in made), (torch.randn(5, 4), tangent)
        torch.library.opcheck(
            operator._double_backward,
            (unit.detach(), weight.detach(), *arguments[2:], log_sum.detach(), *g, *detached, *tangents, need_w),
            **opcheck,
        )


def test_a_third_derivative_is_refused():
    (unit, weight), label = inputs(), torch.tensor(LABELS[0])
    value = ours(unit, weight, label, 6.0, True)[0].sum()
    for _ in range(2):
        value = torch.autograd.grad(value, unit, create_graph=True)[0].square().sum()
    with pytest.raises(RuntimeError, match="twice, not three times"):
        torch.autograd.grad(value, unit)


def test_errors_name_what_was_given():
    (unit, weight), label = inputs(), torch.tensor(LABELS[0])
    for arguments, message in (
        ((unit, weight[:, :3], label, 1.0), r"got \(5, 4\) and \(7, 3\)"),
        ((unit, weight[:0], label, 1.0), "at least one identity"),
        ((unit, weight, label[:3], 1.0), "one label for each of 5 rows"),
        ((unit, weight, label.double(), 1.0), r"use label.long\(\)"),
        ((unit, weight.float(), label, 1.0), "want float64 for both or neither"),
        ((unit.long(), weight, label, 1.0), "want embeddings in bfloat16"),
        ((unit, weight, label.to("meta"), 1.0), "want everything on one device, got cpu, meta"),
        ((unit, weight, label, 0.0), "want scale > 0"),
    ):
        with pytest.raises(ValueError, match=message):
            cos_lse(*arguments)
    with pytest.raises(ValueError, match="want keep out of 'none', 'exp', 'auto', got 'all'"):
        cos_lse(unit, weight, label, 1.0, keep="all")
    with pytest.raises(ValueError, match=r"one inverse norm for each of 7 identities, got \(5,\)"):
        cos_lse(unit, weight, label, 1.0, inverse_norm_C=torch.ones(5))
