"""Margin softmax against the textbook form on materialised logits, in float64, and its derivatives by gradcheck."""

import math

import pytest
import torch
from fastmfr.kernels import ArcFace, Combined, CosFace, cos_lse, margin_softmax
from torch.autograd import gradcheck, gradgradcheck
from torch.nn import functional as F

from fastmfr.head import MarginHead, make_margin

MARGINS = [CosFace(0.35), ArcFace(0.5), Combined(1.0, 0.3, 0.2), Combined(0.9, 0.4, 0.15)]


def inputs(B=6, C=9, D=5, dtype=torch.float64):
    gen = torch.Generator().manual_seed(0)
    weight = torch.randn(C, D, generator=gen, dtype=dtype)
    label = torch.randint(C, (B,), generator=gen)
    embedding = weight[label] + torch.randn(B, D, generator=gen, dtype=dtype)  # of the identity, more or less
    return embedding.requires_grad_(), weight.requires_grad_(), label


def textbook(embedding, weight, label, margin, scale):
    """acos, add the margin to the angle, cos, cross entropy; no input here reaches the turn-over past pi."""
    cos = F.normalize(embedding) @ F.normalize(weight).T
    theta = torch.acos(cos.clamp(-1 + 1e-12, 1 - 1e-12))
    m1, m2, m3 = {
        CosFace: lambda m: (1.0, 0.0, m.m),
        ArcFace: lambda m: (1.0, m.m, 0.0),
        Combined: lambda m: (m.m1, m.m2, m.m3),
    }[type(margin)](margin)
    true = F.one_hot(label, weight.shape[0]).bool()
    return F.cross_entropy(scale * torch.where(true, torch.cos(m1 * theta + m2) - m3, cos), label, reduction="none")


@pytest.mark.parametrize("margin", MARGINS, ids=str)
@pytest.mark.parametrize("scale", [1.0, 64.0])
def test_equals_the_textbook_form_with_its_gradients(margin, scale):
    embedding, weight, label = inputs()
    assert ((F.normalize(embedding) @ F.normalize(weight).T)[range(6), label] > -math.cos(0.5)).all()
    got = margin_softmax(embedding, weight, label, margin=margin, scale=scale)
    want = textbook(embedding, weight, label, margin, scale)
    torch.testing.assert_close(got, want)
    upstream = torch.linspace(-1, 1, 6, dtype=torch.float64)
    for mine, theirs in zip(
        torch.autograd.grad(got, (embedding, weight), upstream),
        torch.autograd.grad(want, (embedding, weight), upstream),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("margin", [*MARGINS, lambda cos, norm: cos - 0.1 * torch.tanh(norm)], ids=str)
def test_is_twice_differentiable(margin):
    embedding, weight, label = inputs()
    f = lambda e, w: margin_softmax(e, w, label, margin=margin, scale=4.0)  # noqa: E731
    assert gradcheck(f, (embedding, weight))
    assert gradgradcheck(f, (embedding, weight))


def test_keeps_relative_accuracy_where_the_loss_is_tiny():
    unit = torch.eye(2)
    loss = margin_softmax(unit[:1], unit, torch.tensor([0]), margin=CosFace(0.2), scale=64.0)
    expected = math.log1p(math.exp(-64 * 0.8))
    assert loss.item() == pytest.approx(expected, rel=1e-4)  # lse - logit in float32 would be 0


def test_a_row_labelled_minus_one_has_no_loss_and_no_gradient():
    embedding, weight, label = inputs()
    label[2] = -1
    loss = margin_softmax(embedding, weight, label, margin=ArcFace(), scale=64.0)
    gradient = torch.autograd.grad(loss.sum(), embedding)[0]
    assert loss[2] == 0
    assert not gradient[2].any()
    assert gradient[1].any()
    all_ignored = margin_softmax(embedding, weight, torch.full((6,), -1), margin=ArcFace())
    assert not all_ignored.any()


def test_a_single_identity_and_an_empty_batch_are_fine():
    embedding, weight, _ = inputs()
    loss = margin_softmax(embedding, weight[:1], torch.zeros(6, dtype=torch.long), margin=CosFace())
    assert not loss.any()
    assert torch.isfinite(torch.autograd.grad(loss.sum(), embedding)[0]).all()
    assert margin_softmax(embedding[:0], weight, torch.zeros(0, dtype=torch.int32), margin=CosFace()).shape == (0,)


@pytest.mark.parametrize("cos", [1.0, -1.0, math.nextafter(1, 0)])
@pytest.mark.parametrize("margin", MARGINS, ids=str)
def test_margins_are_finite_twice_at_the_ends(margin, cos):
    cos_B = torch.tensor([cos], dtype=torch.float64, requires_grad=True)
    first = torch.autograd.grad(margin(cos_B, torch.ones(1)).sum(), cos_B, create_graph=True)[0]
    second = torch.autograd.grad(first.sum(), cos_B, allow_unused=True)[0] if first.requires_grad else None
    assert torch.isfinite(first).all()
    assert second is None or torch.isfinite(second).all()


def test_arcface_never_rewards_a_falling_cosine():
    cos = torch.linspace(-1, 1, 2001, dtype=torch.float64)
    assert (ArcFace(0.5)(cos, None).diff() >= 0).all()


def test_cos_lse_leaves_the_true_identity_out():
    embedding, weight, label = inputs()
    unit_B, unit_C = F.normalize(embedding), F.normalize(weight)
    log_sum, cos = cos_lse(unit_B, unit_C, label, 10.0)
    for b in range(6):
        all_cos = (unit_C @ unit_B[b]).tolist()
        true = all_cos.pop(label[b].item())
        assert cos[b].item() == pytest.approx(true)
        assert log_sum[b].item() == pytest.approx(math.log(sum(math.exp(10 * c) for c in all_cos)))


def test_errors_name_what_was_given():
    embedding, weight, label = inputs()
    with pytest.raises(ValueError, match=r"got \(6, 5\) and \(9, 4\)"):
        margin_softmax(embedding, weight[:, :4], label, margin=CosFace())
    with pytest.raises(ValueError, match="one label for each of 6 rows"):
        margin_softmax(embedding, weight, label[:3], margin=CosFace())
    with pytest.raises(ValueError, match=r"use label.long\(\)"):
        margin_softmax(embedding, weight, label.double(), margin=CosFace())
    with pytest.raises(ValueError, match="scale > 0"):
        margin_softmax(embedding, weight, label, margin=CosFace(), scale=0)


def test_a_margin_by_name():
    assert make_margin("arcface", [0.4]) == ArcFace(0.4)
    assert make_margin("combined") == Combined()
    with pytest.raises(ValueError, match="cosface, arcface, combined, got 'sphere'"):
        make_margin("sphere")
    with pytest.raises(ValueError, match=r"takes at most \(m\), got 2 numbers"):
        make_margin("cosface", [0.1, 0.2])


def test_the_head_starts_at_chance():
    torch.manual_seed(0)
    head = MarginHead(16, 50, CosFace(0.0), scale=1.0)
    loss = head(torch.randn(64, 16), torch.arange(64) % 50).mean()
    assert loss.item() == pytest.approx(math.log(50), rel=0.05)
    with pytest.raises(ValueError, match="at least 2 identities, got 1"):
        MarginHead(16, 1, CosFace())
