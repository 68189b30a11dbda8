"""Losses of the method's successors, beside plain loops, and differentiable twice."""

import itertools

import pytest
import torch

from fastmfr.losses import MfrLosses
from fastmfr.prove.successors import LOSSES, MARGIN, BalancedLosses, TripletLosses

SETTINGS = {"mining": "share", "share_p": 0.5, "share_n": 0.2, "soft_classification": 0.0, "domain_alignment": 0.0}


@pytest.fixture
def pairs():
    """(gallery_BD, probe_BD, domain_B) of 4, 3 and 1 people."""
    generator = torch.Generator().manual_seed(3)
    gallery_BD = torch.randn(8, 5, generator=generator, dtype=torch.float64)
    probe_BD = gallery_BD + torch.randn(8, 5, generator=generator, dtype=torch.float64)
    return gallery_BD, probe_BD, torch.tensor([2, 0, 2, 0, 2, 2, 7, 0])


def unit(x_BD):
    return torch.nn.functional.normalize(x_BD)


def test_balanced_hard_pairs_count_every_domain_and_every_pair_of_domains_alike(pairs):
    gallery_BD, probe_BD, domain_B = pairs
    cos_BB = (unit(gallery_BD) @ unit(probe_BD).T).tolist()
    people = {domain: [i for i in range(8) if domain_B[i] == domain] for domain in (0, 2, 7)}
    pulls, pushes = [], []
    for mine in people.values():
        genuine = sorted(1 - cos_BB[i][i] for i in mine)[::-1][: max(1, round(0.5 * len(mine)))]
        pulls.append(sum(genuine) / len(genuine))
    for mine, others in itertools.product(people.values(), repeat=2):
        impostors = sorted(1 - cos_BB[i][j] for i in mine for j in others if i != j)
        hardest = impostors[: max(1, round(0.2 * len(impostors)))]
        if hardest:
            pushes.append(sum(hardest) / len(hardest))
    wanted = sum(pulls) / 3 - sum(pushes) / len(pushes)
    found = BalancedLosses(**SETTINGS)(*pairs)
    assert found.hard_pair.item() == pytest.approx(wanted, rel=1e-12)
    assert found.total.item() == pytest.approx(wanted, rel=1e-12)


def square(row, along):
    """The square of a difference in the metric of differences, whose mean eigenvalue is scaled to 1."""
    metric = sum(torch.outer(one, one) for one in along) / len(along)
    return (row @ metric @ row / (metric.trace() / len(row))).item()


def test_triplets_are_measured_by_how_another_domain_differs(pairs):
    gallery_BD, probe_BD, domain_B = (pairs[0][:7], pairs[1][:7], pairs[2][:7])
    gallery, probe = unit(gallery_BD), unit(probe_BD)
    people = {domain: [i for i in range(7) if domain_B[i] == domain] for domain in (0, 2, 7)}
    near = {domain: [gallery[i] - probe[i] for i in mine] for domain, mine in people.items()}
    far = {domain: [gallery[i] - probe[j] for i in mine for j in mine if i != j] for domain, mine in people.items()}
    losses = []
    for domain, other in itertools.permutations((0, 2), 2):  # one person alone makes no triplet
        mine = people[domain]
        hinges = [
            max(0.0, square(gallery[i] - probe[i], near[other]) - square(gallery[i] - probe[j], far[other]) + MARGIN)
            for i in mine
            for j in mine
            if i != j
        ]
        losses.append(sum(hinges) / len(hinges))
    found = TripletLosses(**SETTINGS)(gallery_BD, probe_BD, domain_B)
    assert found.hard_pair.item() == pytest.approx(sum(losses) / 2, rel=1e-10)


def test_without_domains_triplets_have_plain_lengths(pairs):
    gallery, probe = unit(pairs[0]), unit(pairs[1])
    hinges = [
        max(0.0, ((gallery[i] - probe[i]) ** 2).sum().item() - ((gallery[i] - probe[j]) ** 2).sum().item() + MARGIN)
        for i in range(8)
        for j in range(8)
        if i != j
    ]
    assert TripletLosses(**SETTINGS)(*pairs[:2]).hard_pair.item() == pytest.approx(sum(hinges) / 56, rel=1e-12)
    assert BalancedLosses(**SETTINGS)(*pairs[:2]) == pytest.approx(MfrLosses(**SETTINGS)(*pairs[:2]))


@pytest.mark.parametrize("name", LOSSES)
def test_second_derivatives(name, pairs):
    losses = LOSSES[name](**{**SETTINGS, "soft_classification": 1.0, "domain_alignment": 0.01, "scale": 4.0})

    def total(gallery_BD, probe_BD):
        return losses(gallery_BD, probe_BD, pairs[2]).total

    inputs = tuple(x_BD.clone().requires_grad_() for x_BD in pairs[:2])
    assert torch.autograd.gradcheck(total, inputs)
    assert torch.autograd.gradgradcheck(total, inputs, fast_mode=True)  # by random projections: whole, it takes seconds
