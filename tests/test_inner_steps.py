"""Several inner steps, the experiment of bench/proof: one step is MetaTrainer's, several are what autograd makes."""

import copy
import sys
from functools import partial
from pathlib import Path

import meta_fakes
import pytest
import torch
from torch.func import functional_call

from fastmfr.backbone import MfrNet
from fastmfr.losses import MfrLosses
from fastmfr.meta import MetaSettings, MetaTrainer
from fastmfr.training.optim import set_rate, sgd

sys.path.append(str(Path(__file__).parent.parent / "bench" / "proof"))

from inner_steps import Ahead, InnerStepsTrainer

LOSSES = MfrLosses(mining="share", share_n=0.2, scale=3.0, domain_alignment=0.1)
RATES = {"alpha": 0.3, "rate": 0.05, "losses": LOSSES}
SETTINGS = MetaSettings(0.3, order=2, batch_norm="frozen")
splits = partial(meta_fakes.splits, size=16)


def network():
    torch.manual_seed(3)
    net = MfrNet(5, 0.0625, blocks=(1, 1, 1, 1)).double()
    with torch.no_grad():  # statistics that frozen layers differ by from those of a batch
        net.train()(torch.randn(8, 3, 16, 16, dtype=torch.float64))
    return net


def optimizer_of(net):
    return sgd(net.parameters(), momentum=0.9, weight_decay=0.01)


def by_autograd(net, batches, steps, length):
    """The mean gradient over splits through all inner steps, with graphs of graphs."""
    net.eval()
    theta = {name: value.detach().requires_grad_() for name, value in net.named_parameters()}

    def loss(parameters, pairs, *domain_B):
        gallery_BD, probe_BD = (
            functional_call(net, parameters, (image,)) for image in (pairs.gallery_B3HW, pairs.probe_B3HW)
        )
        return LOSSES(gallery_BD, probe_BD, *domain_B).total

    total = 0
    for train, test in batches:
        moved = dict(theta)
        for _ in range(steps):
            at_theta = loss(moved, train, train.domain_B)
            gradient = torch.autograd.grad(at_theta, list(moved.values()), create_graph=True)
            moved = {name: value - length * g for (name, value), g in zip(moved.items(), gradient, strict=True)}
        total += SETTINGS.gamma * loss(theta, train, train.domain_B) + (1 - SETTINGS.gamma) * loss(moved, test)
    return torch.autograd.grad(total / len(batches), list(theta.values()))


def assert_alike(mine, theirs):
    for (name, value), other in zip(mine.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(value, other, rtol=1e-10, atol=1e-12, msg=name)


def test_one_inner_step_is_that_of_meta_trainer():
    net = network()
    twin = copy.deepcopy(net)
    mine = InnerStepsTrainer(net, optimizer_of(net), SETTINGS, Ahead(1))
    theirs = MetaTrainer(twin, optimizer_of(twin), SETTINGS)
    for seed in range(2):
        got, expected = mine.step(splits(seed), **RATES), theirs.step(splits(seed), **RATES)
        torch.testing.assert_close(got.gradient_norm, expected.gradient_norm, rtol=1e-10, atol=0)
        for name in ("total", "total_test"):
            torch.testing.assert_close(got.losses[name], expected.losses[name], rtol=1e-10, atol=0)
    assert_alike(net, twin)


@pytest.mark.parametrize("ahead", [Ahead(2), Ahead(3, 2.0)], ids=str)
def test_a_step_follows_the_gradient_through_all_inner_steps(ahead):
    net = network()
    twin = copy.deepcopy(net)
    trainer, theirs = InnerStepsTrainer(net, optimizer_of(net), SETTINGS, ahead), optimizer_of(twin)
    set_rate(theirs, RATES["rate"])
    length = RATES["alpha"] * ahead.total / ahead.steps
    for seed in range(2):
        gradient = by_autograd(twin, splits(seed), ahead.steps, length)
        for parameter, value in zip(twin.parameters(), gradient, strict=True):
            parameter.grad = value
        alone_P = trainer.gradient(splits(seed), ahead, RATES["alpha"], LOSSES)
        got = trainer.step(splits(seed), **RATES)
        norm = torch.cat([value.flatten() for value in gradient]).norm()
        torch.testing.assert_close(alone_P.norm(), norm, rtol=1e-10, atol=0)
        torch.testing.assert_close(got.gradient_norm, norm, rtol=1e-10, atol=0)
        theirs.step()
    assert_alike(net, twin)


def test_two_inner_steps_are_not_one():
    nets = [network() for _ in range(2)]
    for net, steps in zip(nets, (1, 2), strict=True):
        InnerStepsTrainer(net, optimizer_of(net), SETTINGS, Ahead(steps)).step(splits(0), **RATES)
    with pytest.raises(AssertionError):
        assert_alike(*nets)
