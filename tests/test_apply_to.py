"""MetaGradient.apply_to: .grad as a backward pass leaves it, for any optimizer, and refusals of other modules."""

import copy

import pytest
import torch
from meta_fakes import ALPHA, GAMMA, LOSSES, SETTINGS, batches
from torch import nn

from fastmfr.config.meta_settings import MetaSettings
from fastmfr.meta import MetaTrainer, meta_gradient


def network():
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 4, 3, 2), nn.BatchNorm2d(4), nn.Softplus(), nn.Flatten(), nn.Linear(36, 3)]
    return nn.Sequential(*layers).double()


def gradient_of(net):
    return meta_gradient(net, [batches()], **SETTINGS)


def test_any_optimizer_steps_along_it_as_a_meta_trainer_does():
    ours, theirs = network(), network()
    trainer = MetaTrainer(ours, torch.optim.Adam(ours.parameters(), lr=0.1), MetaSettings(GAMMA))
    optimizer = torch.optim.Adam(theirs.parameters(), lr=0.1)
    for _ in range(3):
        trainer.step([batches()], alpha=ALPHA, rate=0.1, losses=LOSSES)
        optimizer.zero_grad()
        gradient_of(theirs).apply_to(theirs)
        optimizer.step()
    for name, value in ours.state_dict().items():
        torch.testing.assert_close(theirs.state_dict()[name], value, rtol=1e-10, atol=1e-12)


def test_it_adds_to_what_a_backward_pass_left():
    net = network()
    found = gradient_of(net)
    net[0].weight.square().sum().backward()
    found.apply_to(net)
    found.apply_to(net)
    torch.testing.assert_close(net[0].weight.grad, 2 * net[0].weight.detach() + 2 * found.grad["0.weight"])
    torch.testing.assert_close(net[4].bias.grad, 2 * found.grad["4.bias"])


def test_what_is_done_to_grad_leaves_the_gradient_as_it_was():
    net = network()
    found = gradient_of(net)
    before = copy.deepcopy(found.grad)
    found.apply_to(net)
    nn.utils.clip_grad_norm_(net.parameters(), 1e-3)
    found.apply_to(net)
    for name, value in found.grad.items():
        assert torch.equal(value, before[name])


def test_memory_order_and_frozen_parameters_stay():
    net = network().to(memory_format=torch.channels_last)
    net[4].requires_grad_(False)
    gradient_of(net).apply_to(net)
    assert net[0].weight.grad.stride() == net[0].weight.stride()
    assert net[4].weight.grad is None


def test_no_graph_hangs_on_grad():
    net = network()
    found = gradient_of(net)
    for _ in range(2):
        found.apply_to(net)
        assert not net[0].weight.grad.requires_grad


class Wrapped(nn.Module):
    """A network within another module, as in a LightningModule or in DistributedDataParallel."""

    def __init__(self):
        super().__init__()
        self.backbone, self.head = network(), nn.Linear(3, 2)


def longer(net):
    return nn.Sequential(*net, nn.Linear(3, 3)).double()


def wider(net):
    return nn.Sequential(*list(net)[:4], nn.Linear(36, 5)).double()


@pytest.mark.parametrize(
    ("other", "sentence"),
    [
        (lambda net: Wrapped(), r"6 of 6 gradients have no trained parameter .* is of 0.weight; .*, here .backbone$"),
        (
            lambda net: net[:2],
            r"2 of 6 gradients have no trained parameter .* 4.weight; want the module .* computed of$",
        ),
        (
            longer,
            r"2 of 8 trained parameters have no gradient here, the first one is 5.weight; .* or freeze the others",
        ),
        (wider, r"want a gradient of 4.weight of torch.float64, shape \(5, 36\), on cpu, .* got one of .*\(3, 36\)"),
        (lambda net: net.float(), "want a gradient of 0.weight of torch.float32, .* got one of torch.float64"),
    ],
)
def test_another_module_is_refused_and_left_alone(other, sentence):
    net = network()
    found = gradient_of(net)
    module = other(net)
    with pytest.raises(ValueError, match=sentence):
        found.apply_to(module)
    assert all(value.grad is None for value in module.parameters())


def test_what_is_no_module_is_refused():
    net = network()
    with pytest.raises(ValueError, match=r"want a torch.nn.Module to apply the gradient to, got a OrderedDict"):
        gradient_of(net).apply_to(net.state_dict())
