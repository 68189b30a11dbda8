import copy

import pytest
import torch
from torch import nn

from fastmfr.flat import FlatSgd
from fastmfr.training.optim import meta_rates, pretrain_rate, set_rate, sgd

PAPER = {"alpha": 4e-4, "beta": 4e-4, "tau_p": 0.3, "tau_n": 0.04, "decay_every": 1000}


def test_the_papers_schedule():
    assert meta_rates(999, **PAPER) == meta_rates(0, **PAPER)
    later = meta_rates(2500, **PAPER)
    assert (later.alpha, later.beta) == (1e-4, 1e-4)
    assert later.tau_p == pytest.approx(0.5)
    assert later.tau_n == pytest.approx(0.16)
    assert meta_rates(4999, **PAPER).tau_n < 1 < meta_rates(5000, **PAPER).tau_n


def test_pretraining_warms_up_and_ends_at_nothing():
    rates = [pretrain_rate(step, 100, 0.1, 10) for step in range(100)]
    assert rates[0] == pytest.approx(0.01)
    assert max(rates) == pytest.approx(0.1)
    assert rates[:10] == sorted(rates[:10])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] < 1e-4


def test_flat_buffers_are_the_parameters_and_their_momentum():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Linear(3, 2)).to(memory_format=torch.channels_last)
    net[1].bias.requires_grad_(False)
    optimizer = sgd(net.parameters(), momentum=0.9, weight_decay=0.01)
    set_rate(optimizer, 0.5)

    def step(network, optimizer):
        optimizer.zero_grad()
        (network[0].weight.square().sum() + network[1].weight.exp().sum() + network[0].bias.sum()).backward()
        optimizer.step()

    step(net, optimizer)
    twin = copy.deepcopy(net)
    twins = sgd(twin.parameters(), momentum=0.9, weight_decay=0.01)
    twins.load_state_dict(optimizer.state_dict())
    flat = FlatSgd(twin, twins)
    assert (flat.momentum, flat.weight_decay) == (0.9, 0.01)
    assert flat.theta_P.norm() == pytest.approx(
        torch.cat([p.flatten() for p in net.parameters() if p.requires_grad]).norm().item()
    )
    for _ in range(2):
        step(net, optimizer)
        step(twin, twins)
    for mine, other in zip(twin.parameters(), net.parameters(), strict=True):
        assert torch.equal(mine, other)
    for name, value in flat.flat.by_name(flat.theta_P).items():
        assert torch.equal(value, dict(net.named_parameters())[name])
    assert flat.flat.by_name(flat.momentum_P)["1.weight"].equal(optimizer.state[net[1].weight]["momentum_buffer"])
