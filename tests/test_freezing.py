"""What is held: stages of a backbone in both engines and in pretraining, beside plain loops in float64."""

from functools import cache

import pytest
import torch
from torch import nn
from torch.func import functional_call

from fastmfr.backbone import IResNet, MfrNet
from fastmfr.freezing import HeldBatchNorm, hold_stages, hold_statistics
from fastmfr.fused import fused
from fastmfr.losses import MfrLosses
from fastmfr.meta import MetaSettings, MetaTrainer, PairBatch, meta_gradient
from fastmfr.rop import Program
from fastmfr.training.optim import sgd

ALPHA, GAMMA, RATE = 0.2, 0.3, 0.05
LOSSES = MfrLosses(tau_p=2.0, tau_n=-2.0, scale=3.0)  # every pair is mined, so no mask flips


def network(stages, kind=MfrNet):
    """A small backbone in float64 with running statistics that have moved, and its first stages held."""
    torch.manual_seed(3)
    net = MfrNet(5, 0.0625, blocks=(1, 1, 1, 1)) if kind is MfrNet else IResNet((1, 1, 1, 1), 5, 16)
    net = net.double()
    net(torch.randn(4, 3, 16, 16, dtype=torch.float64))
    hold_stages(net, stages)
    return net


def splits(steps=1):
    gen = torch.Generator().manual_seed(4)

    def batch(domain_B):
        gallery, probe = (torch.randn(len(domain_B), 3, 16, 16, generator=gen).double() for _ in range(2))
        return PairBatch(gallery, probe, domain_B)

    return [[(batch(torch.tensor([2, 0, 2, 0])), batch(torch.full((3,), 1))) for _ in range(2)] for _ in range(steps)]


def tensors(net):
    return {name: value.detach().clone() for name, value in net.state_dict().items()}


def embedded(net, parameters, buffers, pairs):
    images = torch.cat([pairs.gallery_B3HW, pairs.probe_B3HW])
    return functional_call(net, {**parameters, **buffers}, (images,)).chunk(2)


def plain_loop(net, batches, momentum, weight_decay):
    """Algorithm 1 of the paper, written out with autograd, on the parameters that are trained."""
    net.train()
    trained = {name: value for name, value in net.named_parameters() if value.requires_grad}
    velocity = {name: torch.zeros_like(value) for name, value in trained.items()}
    for splits_of_step in batches:
        total = {name: torch.zeros_like(value) for name, value in trained.items()}
        for train, test in splits_of_step:
            buffers = dict(net.named_buffers())  # the pass on the train batch changes them in place
            loss_S = LOSSES(*embedded(net, trained, buffers, train), train.domain_B).total
            g = dict(zip(trained, torch.autograd.grad(loss_S, [*trained.values()], create_graph=True), strict=True))
            ahead = {name: value - ALPHA * g[name] for name, value in trained.items()}
            copies = {name: value.clone() for name, value in buffers.items()}
            loss_T = LOSSES(*embedded(net, ahead, copies, test)).total
            gradients = torch.autograd.grad(GAMMA * loss_S + (1 - GAMMA) * loss_T, [*trained.values()])
            for name, gradient in zip(trained, gradients, strict=True):
                total[name] += gradient / len(splits_of_step)
        with torch.no_grad():
            for name, value in trained.items():
                velocity[name].mul_(momentum).add_(total[name] + weight_decay * value)
                value.sub_(RATE * velocity[name])


@cache
def after_plain_loop(kind, stages):
    """The tensors of such a network after the plain loop, for both engines; nobody changes them."""
    net = network(stages, kind)
    plain_loop(net, splits(steps=2 if kind is MfrNet else 1), momentum=0.9, weight_decay=0.01)
    return tensors(net)


@pytest.mark.parametrize("kind", [MfrNet, IResNet])
@pytest.mark.parametrize("engine", ["autograd", "rop"])
@pytest.mark.parametrize("stages", [1, 4])
def test_meta_steps_of_a_network_with_held_stages_are_those_of_a_plain_loop(kind, engine, stages):
    net, batches = network(stages, kind), splits(steps=2 if kind is MfrNet else 1)
    before = tensors(net)
    plain = after_plain_loop(kind, stages)
    trainer = MetaTrainer(net, sgd(net.parameters(), 0.9, 0.01), MetaSettings(GAMMA, engine))
    assert trainer.engine == engine
    for step in batches:
        trainer.step(step, alpha=ALPHA, rate=RATE, losses=LOSSES)
    held = ("stem", "stages.0", "conv1", "bn1.", "prelu", "layer1.")
    for name, value in tensors(net).items():
        torch.testing.assert_close(value, plain[name], msg=name, rtol=1e-9, atol=1e-11)
        if name.startswith(held):
            assert torch.equal(value, before[name]), name
    assert not torch.equal(net.fc.weight, before["fc.weight"])


@pytest.mark.parametrize("memory", ["kept", "streaming"])
def test_nothing_before_the_first_trained_layer_is_differentiated(memory):
    program = Program(network(2), [name for name, value in network(2).named_parameters() if value.requires_grad])
    varies = [step.output in program.varying for step in program.steps]
    assert varies == sorted(varies)  # a part that is held, and from there on a part that is not
    assert sum(not one for one in varies) > 10
    got = meta_gradient(network(2), splits()[0], alpha=ALPHA, gamma=GAMMA, losses=LOSSES, memory=memory)
    expected = meta_gradient(network(2), splits()[0], alpha=ALPHA, gamma=GAMMA, losses=LOSSES, engine="autograd")
    assert (got.engine, expected.engine) == ("rop", "autograd")
    assert not [name for name in got.grad if name.startswith(("stem", "stages.0", "stages.1"))]
    for name, value in got.grad.items():
        torch.testing.assert_close(value, expected.grad[name], msg=name, rtol=1e-9, atol=1e-11)


def test_held_stages_keep_their_names_and_what_they_compute():
    net = network(0).eval()
    image = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    before, names = net(image), list(net.state_dict())
    assert hold_stages(net, 3) == ["stem", "stages.0", "stages.1", "stages.2"]
    assert list(net.state_dict()) == names
    assert torch.equal(net(image), before)
    held = [module for module in net.modules() if isinstance(module, HeldBatchNorm)]
    assert len(held) == 2 + 3 * 3 + 2  # the stem's, three of each block, and of the shortcuts of two blocks
    fresh = network(0)
    net.train()(image)
    assert all(torch.equal(value, fresh.stem.state_dict()[name]) for name, value in net.stem.state_dict().items())
    assert not torch.equal(net.bn.running_mean, fresh.bn.running_mean)
    assert hold_stages(network(0), 0) == []


def test_statistics_are_held_until_train_is_called_and_the_rest_of_a_batchnorm_trains():
    net = network(0).train()
    hold_statistics(net)
    before = tensors(net)
    runs, _ = fused(net)  # what a GPU runs
    runs(torch.randn(4, 3, 16, 16, dtype=torch.float64)).square().sum().backward()
    assert all(torch.equal(value, before[name]) for name, value in net.named_buffers())
    assert net.bn.weight.grad.abs().sum() > 0
    net.train()
    assert all(module.training for module in net.modules() if isinstance(module, nn.BatchNorm2d))


def test_the_fused_network_of_pretraining_leaves_held_stages_as_they_are():
    net, other = network(2).train(), network(2).train()
    runs, sentence = fused(net)
    assert sentence.startswith("9 BatchNorms run as fused kernels")  # those of two stages, and the last one
    image = torch.randn(4, 3, 16, 16, dtype=torch.float64)
    torch.testing.assert_close(runs(image), other(image))
    runs(image).square().sum().backward()
    assert {name.split(".")[1] for name, value in net.named_parameters() if value.grad is not None} >= {"2", "3"}
    assert not [name for name, value in net.stages[:2].named_parameters() if value.grad is not None]
