"""Margin softmax against the textbook form on materialised logits, in float64, and its derivatives by gradcheck."""

import math

import pytest
import torch
from fastmfr.kernels import AdaFace, ArcFace, Combined, CosFace, MagFace, margin_softmax
from fastmfr.kernels.cos_lse import chunked, operator
from torch.autograd import gradcheck, gradgradcheck
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

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


def any_callable(cos, norm):
    return cos - 0.1 * torch.tanh(norm)


def adaface_at_one_quality(cos, norm):
    """No gradient passes through the quality, so what gradcheck sees of it must not move."""
    return AdaFace().eval()(cos, torch.full_like(norm, 30.0))


@pytest.mark.parametrize(
    "margin",
    [*MARGINS, MagFace(1, 3), adaface_at_one_quality, any_callable],
    ids=lambda margin: getattr(margin, "__name__", str(margin)),
)
def test_is_twice_differentiable(margin):
    embedding, weight, label = inputs(B=3, C=4, D=2)
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


WIDE = [
    (4, 0, 0),
    (2, 0.5, 0),
    (3, 1, 0.1),
    (1.35, 0, 0),
    (1, 2, 0),
    (0.9, 0.4, 0.15),
    (1.0001, 0.3, 0),
    (2.5, 3, 0),
    (7, 0, 0),
    (0.5, math.pi / 2, 0),
]


@pytest.mark.parametrize("three", WIDE, ids=str)
def test_combined_goes_on_past_pi_without_a_jump_and_with_a_slope_that_rises(three):
    m1, m2, m3 = three
    cos = torch.linspace(-1, 1 - 2e-6, 200_001, dtype=torch.float64).requires_grad_()
    lowered = Combined(*three)(cos, None)
    slope = torch.autograd.grad(lowered.sum(), cos)[0]
    assert (slope >= 0).all()
    assert (slope > 0).double().mean() > 0.9999
    assert (slope[cos < -0.999] >= 0.99).all() if m1 * math.pi + m2 > math.pi + 0.1 else True
    assert (lowered.diff() <= 1e-5 * slope[:-1].maximum(slope[1:]).clamp_min(1) * 1.5).all()  # no jump
    angle = m1 * cos.acos() + m2
    within = angle < math.pi - 1e-6
    torch.testing.assert_close(lowered[within], torch.cos(angle[within]) - m3, rtol=0, atol=1e-9)
    assert (lowered <= cos + 1e-9).all()  # a margin never helps


@pytest.mark.parametrize("three", WIDE, ids=str)
def test_combined_is_twice_differentiable_on_both_sides_of_pi(three):
    turn = math.cos(max(0.0, min(math.pi, (math.pi - three[1]) / three[0])))
    cos = torch.tensor(
        [c for c in (-0.97, -0.6, -0.2, 0.3, 0.7, 0.95) if abs(c - turn) > 1e-3],
        dtype=torch.float64,
        requires_grad=True,
    )
    norm, margin = torch.ones_like(cos), Combined(*three)
    assert gradcheck(lambda c: margin(c, norm), cos)
    assert gradgradcheck(lambda c: margin(c, norm), cos)


def test_combined_with_m1_one_is_arcface_to_the_bit():
    cos = torch.linspace(-1, 1, 2001)
    assert torch.equal(Combined(1, 0.5, 0)(cos, None), ArcFace(0.5)(cos, None))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: ArcFace(28.6), r"as radians in \[0, pi\), got 28.6, which looks like degrees: in radians it is 0.499"),
        (lambda: ArcFace(-0.1), r"ArcFace wants m as radians in \[0, pi\), got -0.1$"),
        (lambda: ArcFace(math.nan), "got nan"),
        (lambda: Combined(1, 17, 0.2), "Combined wants m2 .* degrees: in radians it is 0.297"),
        (lambda: Combined(0.3), r"m1 of at least 1, .* got m1 0.3 and m2 0.3, .* CosFace is \(1, 0, m\)"),
        (lambda: Combined(math.inf), "Combined wants m1"),
        (lambda: Combined(-2, 0, 0), "Combined wants m1"),
        (lambda: Combined(1, 0, -0.2), r"Combined wants m3 as a number in \[0, 2\), got -0.2"),
        (lambda: CosFace(-0.35), r"CosFace wants m as a number in \[0, 2\), got -0.35"),
        (lambda: CosFace(35), "got 35"),
        (lambda: MagFace(110, 10), "lengths 0 < low < high .* low 110, high 10"),
        (lambda: MagFace(0, 10), "lengths 0 < low < high"),
        (lambda: MagFace(least=0.8, most=0.4), "least <= most"),
        (lambda: MagFace(most=45), "MagFace wants most .* looks like degrees: in radians it is 0.785"),
        (lambda: MagFace(weight=-1), "MagFace wants weight"),
        (lambda: AdaFace(m=-0.4), "AdaFace wants m"),
        (lambda: AdaFace(h=math.nan), "AdaFace wants h"),
        (lambda: AdaFace(momentum=1.5), "AdaFace wants momentum"),
    ],
)
def test_a_margin_out_of_its_range_is_refused_with_a_sentence(make, said):
    with pytest.raises(ValueError, match=said):
        make()


@pytest.mark.parametrize("margin", [ArcFace(0.5, straight_through=True), Combined(0.9, 0.4, 0.15, True)], ids=str)
def test_straight_through_is_the_margins_value_with_the_gradient_of_the_cosine(margin):
    """InsightFace's trainer hides acos and cos from autograd, so the margin is added but not differentiated."""
    embedding, weight, label = inputs()
    loss = margin_softmax(embedding, weight, label, margin=margin, scale=8.0)
    torch.testing.assert_close(loss, textbook(embedding, weight, label, margin, 8.0))
    cos = (F.normalize(embedding) @ F.normalize(weight).T).clamp(-1, 1)
    true = F.one_hot(label, 9).bool()
    with torch.no_grad():
        m1, m2, m3 = (getattr(margin, name, otherwise) for name, otherwise in (("m1", 1.0), ("m2", 0.5), ("m3", 0.0)))
        lowered = torch.cos(m1 * cos.acos() + m2) - m3
    hidden = F.cross_entropy(8.0 * (cos + torch.where(true, lowered - cos, 0.0).detach()), label, reduction="none")
    for mine, theirs in zip(
        *(torch.autograd.grad(value.sum(), (embedding, weight)) for value in (loss, hidden)), strict=True
    ):
        torch.testing.assert_close(mine, theirs)


def test_magface_asks_more_of_long_embeddings_and_pulls_them_to_its_range():
    margin, cos, norm = MagFace(10, 110, 0.45, 0.8), torch.tensor([0.6, 0.6, 0.6]), torch.tensor([5.0, 60.0, 200.0])
    for lowered, m in zip(margin(cos, norm), (0.45, 0.625, 0.8), strict=True):
        assert lowered.item() == pytest.approx(math.cos(math.acos(0.6) + m), abs=1e-6)
    assert margin.penalty(norm).tolist() == pytest.approx(
        [35 * (10 / 110**2 + 1 / 10), 35 * (60 / 110**2 + 1 / 60), 35 * (110 / 110**2 + 1 / 110)]
    )
    embedding, weight, label = inputs()
    label[1] = -1
    loss = margin_softmax(20 * embedding, weight, label, margin=margin)
    without = margin_softmax(20 * embedding, weight, label, margin=margin.__call__)
    torch.testing.assert_close(loss - without, margin.penalty(20 * embedding.norm(dim=1)).masked_fill(label < 0, 0))


def test_adaface_asks_less_of_the_angle_and_more_of_the_cosine_where_quality_is_high():
    margin = AdaFace(m=0.4, h=0.333, momentum=1.0).double()
    norm = torch.tensor([2.0, 5.0, 8.0], dtype=torch.float64)
    lowered = margin(torch.full((3,), 0.5, dtype=torch.float64), norm)
    quality = (0.333 * (norm - 5) / (3 + 1e-3)).tolist()
    for value, q in zip(lowered.tolist(), quality, strict=True):
        assert value == pytest.approx(math.cos(math.acos(0.5) - 0.4 * q) - 0.4 * (1 + q))
    kept = margin.eval().mean.clone()
    margin(torch.full((3,), 0.5), 3 * norm)
    assert margin.mean == kept


def test_weights_multiply_the_loss_of_rows_and_of_identities():
    embedding, weight, label = inputs()
    label[0] = -1
    row, identity = torch.rand(6, dtype=torch.float64), torch.rand(9, dtype=torch.float64)
    plain = margin_softmax(embedding, weight, label, margin=CosFace())
    both = margin_softmax(
        embedding, weight, label.int(), margin=CosFace(), sample_weight_B=row, class_weight_C=identity
    )
    torch.testing.assert_close(both, plain * row * identity[label])


def test_autocast_takes_products_in_its_own_dtype():
    embedding, weight, label = inputs(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        loss = margin_softmax(embedding, weight, label, margin=CosFace())
    exact = margin_softmax(embedding.double(), weight.double(), label, margin=CosFace())
    assert loss.dtype == torch.float32
    assert 1e-4 < (loss - exact).abs().max() < 1
    assert torch.autograd.grad(loss.sum(), weight)[0].dtype == torch.float32


def test_torch_compile_keeps_it_in_one_graph():
    embedding, weight, label = inputs(dtype=torch.float32)
    step = lambda embedding, weight: margin_softmax(embedding, weight, label, margin=ArcFace()).mean()  # noqa: E731
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    for mine, theirs in zip(
        *(torch.autograd.grad(one(embedding, weight), (embedding, weight)) for one in (compiled, step)), strict=True
    ):
        torch.testing.assert_close(mine, theirs)


def test_logits_without_room_are_never_materialised(monkeypatch):
    """All tensors that are born while loss and gradients are computed: none is as large as the logits."""
    monkeypatch.setattr(chunked, "_LOGITS", 64)
    monkeypatch.setattr(operator, "_memory", lambda tensor: 64 * 4 * 16 * 399)  # one identity too few
    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            result = function(*args, **(kwargs or {}))
            sizes = [
                value.numel()
                for value in (result if isinstance(result, tuple) else (result,))
                if isinstance(value, torch.Tensor)
            ]
            largest = max([largest, *sizes])
            return result

    embedding, weight, label = inputs(B=16, C=400, D=2)
    with Watch():
        loss = margin_softmax(embedding, weight, label, margin=ArcFace())
        first = torch.autograd.grad(loss.sum(), (embedding, weight), create_graph=True)
        torch.autograd.grad(first[0].square().sum() + first[1].square().sum(), (embedding, weight))
    assert 400 * 2 <= largest < 16 * 400 / 4


def test_errors_name_what_was_given():
    embedding, weight, label = inputs()
    with pytest.raises(ValueError, match=r"got \(6, 5\) and \(9, 4\)"):
        margin_softmax(embedding, weight[:, :4], label, margin=CosFace())
    with pytest.raises(ValueError, match="one label for each of 6 rows"):
        margin_softmax(embedding, weight, label[:3], margin=CosFace())
    with pytest.raises(ValueError, match=r"use label.long\(\)"):
        margin_softmax(embedding, weight, label.double(), margin=CosFace())
    with pytest.raises(ValueError, match=r"want labels in \[-1, 9\), got 9"):
        margin_softmax(embedding, weight, label.index_fill(0, torch.tensor(0), 9), margin=CosFace())
    with pytest.raises(ValueError, match="scale > 0"):
        margin_softmax(embedding, weight, label, margin=CosFace(), scale=0)
