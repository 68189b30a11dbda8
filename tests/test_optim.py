import pytest
import torch
from torch import nn

from fastmfr.optim import apply_gradient, meta_rates, pretrain_rate, set_rate, sgd

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


def test_applying_a_gradient_is_one_step_of_sgd_with_momentum_and_decay():
    torch.manual_seed(0)
    net = nn.Linear(3, 2)
    start = {name: value.detach().clone() for name, value in net.named_parameters()}
    optimizer = sgd(net.parameters(), momentum=0.9, weight_decay=0.01)
    set_rate(optimizer, 0.5)
    gradient = {name: torch.ones_like(value) for name, value in net.named_parameters()}
    apply_gradient(net, gradient, optimizer)
    for name, value in net.named_parameters():
        torch.testing.assert_close(value.detach(), start[name] - 0.5 * (1 + 0.01 * start[name]))
    once = net.weight.detach().clone()
    apply_gradient(net, gradient, optimizer)
    velocity = 0.9 * (1 + 0.01 * start["weight"]) + 1 + 0.01 * once
    torch.testing.assert_close(net.weight.detach(), once - 0.5 * velocity)
