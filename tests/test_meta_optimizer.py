"""The optimizer of a MetaTrainer: steps are those that torch takes along the same gradient; the rest is refused."""

import copy

import pytest
import torch
from meta_fakes import splits
from torch import nn

from fastmfr.losses import MfrLosses
from fastmfr.meta import MetaSettings, MetaTrainer, meta_gradient
from fastmfr.meta.optimizer import FlatOptimizer
from fastmfr.training.optim import set_rate, sgd


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
    flat = FlatOptimizer(twin, twins)
    assert flat.numbers == [(1, 0.9, 0.01)]
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


LOSSES = MfrLosses(tau_p=2.0, tau_n=-2.0, scale=3.0)
RATES = {"alpha": 0.1, "rate": 0.05, "losses": LOSSES}


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.BatchNorm2d(4), nn.PReLU(4), nn.Flatten(), nn.Linear(36, 3)).double()


def two_groups(**rates):
    """As many recipes have it: no weight decay on what is one number a channel, and here another rate too."""
    return lambda net: torch.optim.SGD(
        [
            {"params": [value for value in net.parameters() if value.ndim > 1], "weight_decay": 0.1},
            {"params": [value for value in net.parameters() if value.ndim == 1], "weight_decay": 0.0, **rates},
        ],
        lr=0.05,
        momentum=0.9,
    )


def with_hook(net):
    """SGD that forgets half of every bias after a step."""
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9, weight_decay=0.1)
    optimizer.register_step_post_hook(lambda *_: net[4].bias.data.mul_(0.5))
    return optimizer


def step_by_torch(net, optimizer, seed):
    """What a MetaTrainer's step stands for: torch's step along meta_gradient's gradient."""
    given = {id(value) for group in optimizer.param_groups for value in group["params"]}
    frozen = [value for value in net.parameters() if value.requires_grad and id(value) not in given]
    for value in frozen:
        value.requires_grad_(False)
    gradient = meta_gradient(net, splits(seed), alpha=RATES["alpha"], gamma=0.3, losses=LOSSES).grad
    for name, value in net.named_parameters():
        value.grad = gradient.get(name)
    optimizer.step()
    for value in frozen:
        value.requires_grad_(True)


def assert_equal_networks(mine, other):
    for (name, value), expected in zip(mine.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(value, expected, msg=name, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    "make",
    [
        two_groups(),
        two_groups(lr=0.02),
        with_hook,
        lambda net: torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9, weight_decay=0.1, nesterov=True),
        lambda net: torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9, dampening=0.5),
        lambda net: torch.optim.SGD(net.parameters(), lr=0.05, maximize=True, weight_decay=0.1),
        lambda net: torch.optim.SGD(net[4].parameters(), lr=0.05, momentum=0.9),
        lambda net: torch.optim.AdamW(net.parameters(), lr=0.05, weight_decay=0.1),
    ],
    ids=["decay by group", "rate by group", "hook", "nesterov", "dampening", "maximize", "part", "AdamW"],
)
def test_steps_are_those_of_the_optimizer_that_was_given(make):
    net = network()
    twin = copy.deepcopy(net)
    optimizer, theirs = make(net), make(twin)
    trainer = MetaTrainer(net, optimizer, MetaSettings(0.3))
    for seed in range(3):
        trainer.step(splits(seed), **RATES)
        step_by_torch(twin, theirs, seed)
        assert_equal_networks(net, twin)
    assert not any(value.grad is not None for value in net.parameters())


def test_the_rate_of_a_step_is_that_of_the_first_group_and_others_follow():
    net = network()
    before = copy.deepcopy(net)
    optimizer = two_groups(lr=0.0)(net)
    MetaTrainer(net, optimizer, MetaSettings(0.3)).step(splits(0), **RATES)
    assert torch.equal(net[4].bias, before[4].bias)
    assert not torch.equal(net[4].weight, before[4].weight)
    assert [group["lr"] for group in optimizer.param_groups] == [0.05, 0.0]


def test_what_is_loaded_or_set_between_steps_counts():
    net = network()
    twin = copy.deepcopy(net)
    optimizers = [torch.optim.SGD(one.parameters(), lr=0.05, momentum=0.9) for one in (net, twin)]
    trainer = MetaTrainer(net, optimizers[0], MetaSettings(0.3))
    for seed in range(3):
        trainer.step(splits(seed), **RATES)
        step_by_torch(twin, optimizers[1], seed)
        if seed == 1:  # a state in which nothing is where the trainer put it
            momenta = copy.deepcopy(optimizers[1].state_dict())
            for state in momenta["state"].values():
                state["momentum_buffer"] *= 2
            for one, optimizer in zip((net, twin), optimizers, strict=True):
                for value in one.parameters():
                    value.data = value.data * 1.5
                optimizer.load_state_dict(copy.deepcopy(momenta))
                optimizer.param_groups[0]["weight_decay"] = 0.1
    assert_equal_networks(net, twin)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_modes_without_gradients_have_no_effect(mode):
    net = network()
    twin = copy.deepcopy(net)
    for one, surrounding in ((net, mode), (twin, torch.enable_grad)):
        with surrounding():
            trainer = MetaTrainer(one, sgd(one.parameters(), 0.9, 0.1), MetaSettings(0.3))
            trainer.step(splits(0), **RATES)
        trainer.step(splits(1), **RATES)
    for mine, other in zip(net.parameters(), twin.parameters(), strict=True):
        assert torch.equal(mine, other)


def test_says_that_only_plain_sgd_is_recorded():
    net = network()
    trainer = MetaTrainer(net, torch.optim.AdamW(net.parameters()), MetaSettings(0.3))
    assert "only plain SGD with momentum and weight decay is recorded" in trainer.graph


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (
            lambda net: sgd([*net.parameters(), nn.Parameter(torch.ones(2, 5))], 0.9, 0.0),
            r"first one of shape \(2, 5\)",
        ),
        (lambda net: torch.optim.SGD([net[4].bias.requires_grad_(False)]), "got one that has none of them"),
        (lambda net: torch.optim.SparseAdam(net.parameters()), "SparseAdam wants sparse gradients"),
        (lambda net: torch.optim.Adam(net.parameters(), differentiable=True), "Adam wants .* a meta step has neither"),
        (lambda net: torch.optim.LBFGS(net.parameters()), "LBFGS computes the loss again during a step"),
        (
            lambda net: torch.optim.SGD([{"params": net[0].parameters(), "lr": 0.0}, {"params": net[4].parameters()}]),
            r"in proportion to the first one's, which is 0 of \[0.0, 0.001\]",
        ),
    ],
)
def test_refuses_an_optimizer_that_a_meta_step_cannot_serve(make, sentence):
    net = network()
    with pytest.raises(ValueError, match=sentence):
        MetaTrainer(net, make(net), MetaSettings(0.3))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda net, _: net[0].requires_grad_(False), "were added, replaced, frozen or unfrozen since"),
        (lambda net, _: setattr(net[4], "bias", nn.Parameter(torch.ones(3))), "were added, replaced"),
        (lambda _, optimizer: optimizer.add_param_group({"params": [nn.Parameter(torch.ones(1))]}), "were added"),
        (lambda net, _: net.float(), "parameters were torch.float64 on cpu when .* and are torch.float32 on cpu now"),
    ],
)
def test_refuses_a_step_after_a_change_that_it_would_not_see(change, sentence):
    net = network()
    optimizer = sgd(net.parameters(), 0.9, 0.0)
    trainer = MetaTrainer(net, optimizer, MetaSettings(0.3))
    change(net, optimizer)
    with pytest.raises(ValueError, match=sentence):
        trainer.step(splits(0), **RATES)


def test_refuses_a_rate_that_would_climb():
    net = network()
    with pytest.raises(ValueError, match=r"want rate >= 0, got -0\.1"):
        MetaTrainer(net, sgd(net.parameters(), 0.9, 0.0), MetaSettings(0.3)).step(splits(0), **RATES | {"rate": -0.1})
