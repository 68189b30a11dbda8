"""The three losses against the paper's formulas written a second way, in float64 and with plain loops."""

import math

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.func import grad, jvp
from torch.nn import functional as F

from fastmfr.losses import (
    LOSSES,
    MfrLosses,
    domain_alignment,
    hard_pair,
    mine_by_share,
    mine_by_threshold,
    soft_classification,
    unit_pairs,
)
from fastmfr.meta.pair_batches import loss_gradients

B, D = 7, 5
FORWARD_MODE = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")  # torch's own


def pairs(seed=0, dtype=torch.float64):
    gen = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(B, D, generator=gen, dtype=dtype).requires_grad_() for _ in range(2))


def unit(row):
    return [x / math.sqrt(sum(y * y for y in row)) for x in row]


def squared_distance(a, b):
    return sum((x - y) ** 2 for x, y in zip(a, b, strict=True))


def test_hard_pair_is_the_printed_sum_over_hard_pairs():
    gallery, probe = pairs()
    G, P = [unit(row) for row in gallery.tolist()], [unit(row) for row in probe.tolist()]
    dot = [[sum(x * y for x, y in zip(g, p, strict=True)) for p in P] for g in G]
    tau_p, tau_n = 0.1, 0.2
    positive = [i for i in range(B) if dot[i][i] < tau_p]
    negative = [(i, j) for i in range(B) for j in range(B) if i != j and dot[i][j] > tau_n]
    assert positive
    assert negative
    pull = sum(squared_distance(G[i], P[i]) for i in positive) / (2 * len(positive))
    push = sum(squared_distance(G[i], P[j]) for i, j in negative) / (2 * len(negative))
    assert hard_pair(gallery, probe, tau_p, tau_n).item() == pytest.approx(pull - push, abs=1e-12)


@pytest.mark.parametrize(("tau_p", "tau_n", "empty"), [(-2, 0.0, "P"), (2, 1.1, "N"), (-2, 1.1, "both")])
def test_an_empty_set_of_hard_pairs_gives_a_zero_that_hangs_on_the_graph(tau_p, tau_n, empty):
    gallery, probe = pairs()
    loss = hard_pair(gallery, probe, tau_p, tau_n)
    gradient = torch.autograd.grad(loss, gallery)[0]
    assert torch.isfinite(gradient).all()
    if empty == "both":
        assert loss == 0
        assert not gradient.any()
    else:
        assert gradient.any()


def test_soft_classification_is_cross_entropy_against_the_pairs_own_means():
    gallery, probe = pairs()
    G, P = [unit(row) for row in gallery.tolist()], [unit(row) for row in probe.tolist()]
    W = [unit([(x + y) / 2 for x, y in zip(g, p, strict=True)]) for g, p in zip(G, P, strict=True)]
    total = 0.0
    for rows in (G, P):
        for i, row in enumerate(rows):
            z = [64 * sum(x * y for x, y in zip(row, w, strict=True)) for w in W]
            total += math.log(sum(math.exp(value - max(z)) for value in z)) + max(z) - z[i]
    assert soft_classification(gallery, probe).item() == pytest.approx(total / (2 * B), rel=1e-12)


def test_detached_prototypes_change_the_gradient_and_not_the_value():
    gallery, probe = pairs()
    losses = [soft_classification(gallery, probe, 8.0, detach_prototypes=detach) for detach in (False, True)]
    assert losses[0].item() == losses[1].item()
    first, second = (torch.autograd.grad(loss, gallery)[0] for loss in losses)
    assert not torch.allclose(first, second)


def test_domain_alignment_is_the_spread_of_the_domains_means():
    gallery, probe = pairs()
    domain = [4, 9, 4, 4, 2, 9, 4]
    mid = [
        [(x + y) / 2 for x, y in zip(unit(g), unit(p), strict=True)]
        for g, p in zip(gallery.tolist(), probe.tolist(), strict=True)
    ]
    means = []
    for wanted in sorted(set(domain)):
        rows = [row for row, d in zip(mid, domain, strict=True) if d == wanted]
        means.append([sum(column) / len(rows) for column in zip(*rows, strict=True)])
    centre = [sum(column) / len(means) for column in zip(*means, strict=True)]
    expected = sum(64**2 * squared_distance(mean, centre) for mean in means) / len(means)
    assert domain_alignment(gallery, probe, torch.tensor(domain)).item() == pytest.approx(expected, rel=1e-12)


def test_domain_alignment_of_one_domain_is_nothing():
    gallery, probe = pairs()
    loss = domain_alignment(gallery, probe, torch.full((B,), 3))
    assert loss == 0
    assert not torch.autograd.grad(loss, gallery)[0].any()


@pytest.mark.parametrize(
    "loss",
    [
        lambda g, p: hard_pair(g, p, 0.3, 0.04),
        lambda g, p: soft_classification(g, p, 4.0),
        lambda g, p: domain_alignment(g, p, torch.tensor([0, 1, 1, 0, 2, 2, 2]), 2.0),
    ],
    ids=["hard_pair", "soft_classification", "domain_alignment"],
)
def test_every_loss_is_twice_differentiable(loss):
    assert gradcheck(loss, pairs())
    assert gradgradcheck(loss, pairs())


@FORWARD_MODE
def test_unit_rows_and_their_lengths_are_twice_differentiable():
    assert gradcheck(unit_pairs, pairs())
    assert gradgradcheck(unit_pairs, pairs())
    assert gradcheck(unit_pairs, pairs(), check_forward_ad=True, check_backward_ad=False)


def test_a_row_of_zeros_stays_one_and_a_short_row_becomes_a_unit_row():
    gallery, probe = torch.zeros(2, 3), torch.tensor([[0.0, 0.0, 0.0], [3e-9, 0.0, 4e-9]])
    unit, inverse = unit_pairs(gallery, probe)
    assert torch.isfinite(inverse).all()
    torch.testing.assert_close(unit, F.normalize(torch.cat([gallery, probe])))
    torch.testing.assert_close(unit[3], torch.tensor([0.6, 0.0, 0.8]))


@FORWARD_MODE
def test_a_hessian_vector_product_by_torch_func_is_that_by_autograd():
    gallery, probe = pairs()
    losses, domain = MfrLosses(scale=4.0), torch.arange(B) % 3
    direction = torch.linspace(-1, 1, B * D, dtype=torch.float64).view(B, D)
    (first,) = torch.autograd.grad(losses(gallery, probe, domain).total, gallery, create_graph=True)
    (expected,) = torch.autograd.grad(first, gallery, direction)

    def gradient(at):
        return grad(lambda rows: losses(rows, probe.detach(), domain).total)(at)

    got = jvp(gradient, (gallery.detach(),), (direction,))[1]
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("domain", [torch.arange(B) % 3, None], ids=["aligned", "no domains"])
def test_loss_gradients_are_what_autograd_gives_loss_by_loss(domain):
    gallery, probe = pairs()
    losses = MfrLosses(scale=4.0, hard_pair=2.0, domain_alignment=0.5)
    terms, norms, gradient = loss_gradients(losses, (gallery, probe), domain, create_graph=True)
    expected = torch.autograd.grad(terms.total, (gallery, probe), create_graph=True)
    torch.testing.assert_close(gradient, expected)
    for name, norm in zip(LOSSES, norms, strict=True):
        loss = getattr(losses, name) * getattr(terms, name)
        parts = torch.autograd.grad(loss, (gallery, probe), retain_graph=True) if loss.requires_grad else [0 * gallery]
        torch.testing.assert_close(norm, torch.cat(parts).norm())
    direction = [torch.ones_like(gallery), torch.linspace(0, 1, B * D, dtype=torch.float64).view(B, D)]
    hvp, again = (
        torch.autograd.grad(dz, (gallery, probe), direction, retain_graph=True) for dz in (gradient, expected)
    )
    torch.testing.assert_close(hvp, again)


def test_loss_gradients_hang_on_nothing_where_no_second_derivative_is_wanted():
    _, norms, gradient = loss_gradients(MfrLosses(), pairs(), torch.arange(B) % 3, create_graph=False)
    assert not any(value.requires_grad for value in (norms, *gradient))


def test_length_of_an_embedding_does_not_matter():
    gallery, probe = pairs()
    losses = MfrLosses(scale=8.0)
    domain = torch.arange(B) % 3
    stretch = torch.linspace(0.1, 10, B, dtype=torch.float64).unsqueeze(1)
    torch.testing.assert_close(losses(gallery, probe, domain).total, losses(gallery * stretch, probe, domain).total)


def test_mining_by_threshold_takes_what_lies_beyond_it_and_never_the_diagonal_as_impostor():
    cos = torch.tensor([[0.2, 0.5, 0.0], [0.1, 0.9, 0.3], [0.6, 0.0, 0.4]])
    positive, negative = mine_by_threshold(cos, 0.3, 0.25)
    assert positive.tolist() == [True, False, False]
    assert negative.nonzero().tolist() == [[0, 1], [1, 2], [2, 0]]


def test_mining_by_share_takes_the_hardest():
    gallery, probe = pairs()
    cos = (gallery @ probe.T).detach()
    positive, negative = mine_by_share(cos, 0.4, 0.1)
    assert positive.sum() == round(0.4 * B)
    assert negative.sum() == round(0.1 * B * (B - 1))
    assert cos.diagonal()[positive].max() <= cos.diagonal()[~positive].min()
    off = ~torch.eye(B, dtype=torch.bool)
    assert not negative.diagonal().any()
    assert cos[negative].min() >= cos[off & ~negative].max()


def test_total_weighs_the_three():
    gallery, probe = pairs()
    domain = torch.arange(B) % 2
    terms = MfrLosses(hard_pair=2.0, soft_classification=3.0, domain_alignment=0.5)(gallery, probe, domain)
    expected = 2 * terms.hard_pair + 3 * terms.soft_classification + 0.5 * terms.domain_alignment
    torch.testing.assert_close(terms.total, expected)
    torch.testing.assert_close(terms.hard_pair, hard_pair(gallery, probe, 0.3, 0.04))
    assert MfrLosses()(gallery, probe).domain_alignment == 0


def test_refuses_embeddings_that_do_not_pair_up():
    gallery, probe = pairs()
    with pytest.raises(ValueError, match=r"got \(7, 5\) and \(6, 5\)"):
        hard_pair(gallery, probe[:6], 0.3, 0.04)
    with pytest.raises(ValueError, match="one domain for each of 7 pairs"):
        domain_alignment(gallery, probe, torch.zeros(3))
