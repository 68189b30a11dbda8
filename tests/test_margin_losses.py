"""The losses that own their classifier, beside pytorch-metric-learning's of the same names, and margins by name."""

import math

import pytest
import torch
from fastmfr.kernels import AdaFace, ArcFace, Combined, CosFace, margin_softmax
from torch import nn

from fastmfr.head import MarginHead
from fastmfr.margin_losses import ArcFaceLoss, CosFaceLoss, MarginSoftmaxLoss

B, C, D = 12, 20, 8


def batch(dtype=torch.float64):
    gen = torch.Generator().manual_seed(1)
    embedding = torch.randn(B, D, generator=gen, dtype=dtype).requires_grad_()
    return embedding, torch.randint(C, (B,), generator=gen)


@pytest.mark.parametrize(("ours", "margin"), [(CosFaceLoss, 0.35), (ArcFaceLoss, math.degrees(0.5))])
def test_values_and_gradients_are_those_of_pytorch_metric_learning(ours, margin):
    reason = "pytorch-metric-learning is not installed; pip install '.[bench]' brings it"
    theirs_of = pytest.importorskip("pytorch_metric_learning.losses", reason=reason)
    torch.manual_seed(0)
    own = ours(C, D).double()
    theirs = getattr(theirs_of, ours.__name__)(C, D, margin=margin, scale=64).double()
    theirs.W = nn.Parameter(own.weight_CD.detach().T.clone())
    embedding, label = batch()
    losses = own(embedding, label), theirs(embedding, label)
    torch.testing.assert_close(*losses, rtol=1e-9, atol=1e-9)
    got, wanted = (
        torch.autograd.grad(loss, [embedding, weight])
        for loss, weight in zip(losses, (own.weight_CD, theirs.W), strict=True)
    )
    torch.testing.assert_close(got[0], wanted[0], rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(got[1], wanted[1].T, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("margin", ["combined", "magface", "arcface_insightface", ArcFace(0.3), AdaFace()], ids=str)
def test_it_is_margin_softmax_with_weights_of_its_own(margin):
    loss, (embedding, label) = MarginSoftmaxLoss(C, D, margin, scale=16.0).double(), batch()
    loss.eval()  # AdaFace's statistics stay
    loss_B = margin_softmax(embedding, loss.weight_CD, label, margin=loss.margin, scale=16.0)
    torch.testing.assert_close(loss(embedding, label), loss_B.mean())


def test_rows_without_a_label_do_not_count():
    loss, (embedding, label) = CosFaceLoss(C, D), batch(torch.float32)
    label[3:6] = -1
    known = label >= 0
    torch.testing.assert_close(loss(embedding, label), loss(embedding[known], label[known]))
    assert loss(embedding[~known], label[~known]).item() == 0
    loss.reduction = "none"
    assert loss(embedding, label).shape == (B,)
    assert loss(embedding, label)[3:6].tolist() == [0, 0, 0]
    whole = loss(embedding, label).sum()
    loss.reduction = "sum"
    torch.testing.assert_close(loss(embedding, label), whole)


def test_any_optimizer_trains_it_and_its_state_is_that_of_a_head():
    torch.manual_seed(0)
    loss, (embedding, label) = ArcFaceLoss(C, D, scale=16.0), batch(torch.float32)
    optimizer = torch.optim.AdamW(loss.parameters(), lr=0.05)
    before = loss(embedding, label).item()
    for _ in range(10):
        optimizer.zero_grad()
        loss(embedding, label).backward()
        optimizer.step()
    after = loss(embedding, label)
    assert after.item() < 0.8 * before
    head = MarginHead(D, C, "arcface", 16.0)
    head.load_state_dict(loss.state_dict(), strict=False)
    torch.testing.assert_close(head(embedding, label).mean(), after)


def test_a_margin_with_statistics_keeps_them_with_the_loss():
    loss, (embedding, label) = MarginSoftmaxLoss(C, D, "adaface"), batch(torch.float32)
    loss(embedding, label)
    assert loss.state_dict()["margin.mean"] != 20.0
    assert loss.margin.training
    assert "adaface" not in repr(loss).lower().partition("(margin)")[0]


def test_it_prints_its_settings():
    said = "CosFaceLoss(num_classes=20, embedding_size=8, margin=CosFace(m=0.35), scale=64, reduction='mean')"
    assert repr(CosFaceLoss(C, D)) == said


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"num_classes": 1}, "want num_classes of at least 2, got 1"),
        ({"embedding_size": 0}, "want embedding_size of at least 1, got 0"),
        ({"scale": 0.0}, "want scale above 0, got 0.0"),
        ({"reduction": "avg"}, "want reduction out of 'mean', 'sum', 'none', got 'avg'"),
        ({"margin": 28.6}, r"ArcFace wants m as radians in \[0, pi\), got 28.6, which looks like degrees"),
    ],
)
def test_what_is_out_of_range_is_refused(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        ArcFaceLoss(**{"num_classes": C, "embedding_size": D} | arguments)


# A call, a head and a loss take margins in the same words.
TAKERS = {
    "margin_softmax": lambda margin: margin_softmax(batch()[0], torch.ones(C, D).double(), batch()[1], margin=margin),
    "MarginHead": lambda margin: MarginHead(D, C, margin),
    "MarginSoftmaxLoss": lambda margin: MarginSoftmaxLoss(C, D, margin),
}
NOT_MARGINS = [
    (0.35, r"want a margin, such as CosFace\(0.35\) .*, got the number 0.35, .*; write margin=CosFace\(0.35\)"),
    (1, r"got the number 1, .*; write margin=CosFace\(1\)"),
    (torch.tensor(0.4), "got a Tensor"),
    (None, "or a name out of cosface, arcface, .*, got a NoneType"),
    (CosFace, "got the class CosFace"),
    ("cosine", "want a margin out of cosface, arcface, .*, got 'cosine'"),
]


@pytest.mark.parametrize(("margin", "sentence"), NOT_MARGINS, ids=[str(margin) for margin, _ in NOT_MARGINS])
@pytest.mark.parametrize("taker", TAKERS)
def test_what_is_no_margin_is_refused_in_a_sentence(taker, margin, sentence):
    with pytest.raises(ValueError, match=sentence):
        TAKERS[taker](margin)


@pytest.mark.parametrize(
    ("name", "margin"),
    [("cosface", CosFace()), ("combined", Combined()), ("arcface_insightface", ArcFace(0.5, straight_through=True))],
)
def test_a_name_is_the_margin_with_its_own_numbers(name, margin):
    embedding, label = batch()
    weight = torch.randn(C, D, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    losses = [margin_softmax(embedding, weight, label, margin=one) for one in (name, margin)]
    assert torch.equal(*losses)


def test_a_margin_with_statistics_has_no_name_in_a_single_call():
    with pytest.raises(ValueError, match=r"'adaface' keeps statistics .*; make one, adaface = AdaFace\(\)"):
        TAKERS["margin_softmax"]("adaface")
    assert isinstance(MarginHead(D, C, "adaface").margin, AdaFace)
