"""The R-operator beside autograd used twice, operation by operation and on whole backbones."""

import copy
import itertools

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

from fastmfr.backbone import IResNet, build
from fastmfr.rop import NoROperator, Program, Tape


class Everything(nn.Module):
    """Every operation there is, a convolution used twice, and forms that the backbones do not have."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(8, affine=False)
        self.prelu1 = nn.PReLU()
        self.conv2 = nn.Conv2d(8, 8, 3, 2, padding=2, dilation=2, groups=4)
        self.relu = nn.ReLU(inplace=True)
        self.prelu2 = nn.PReLU(8)
        self.bn2 = nn.BatchNorm2d(8, momentum=None)
        self.prelu3 = nn.PReLU()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(8, 6)
        self.bn3 = nn.BatchNorm1d(6, track_running_stats=False)
        self.rest = nn.Sequential(nn.Dropout(0.0), nn.Identity(), nn.Linear(6, 5, bias=False))

    def forward(self, image):
        x = self.prelu1(self.bn1(self.conv1(image)))
        y = self.prelu2(self.conv2(x))
        y += self.relu(self.conv2(x))
        y = y + self.pool(y)
        y = F.relu(self.prelu3(self.bn2(y)) + y.mean((-1, -2), keepdim=True))
        y = torch.flatten(F.adaptive_avg_pool2d(y, (1, 1)), 1)
        return self.rest(self.bn3(self.fc(y)))


def everything():
    torch.manual_seed(0)
    return Everything(), 8


def mfr28():
    return build("mfr28", embedding=7, width=0.125), 32


def iresnet18():
    return build("iresnet18", image_size=16), 16


def iresnet():
    return IResNet((1, 1, 1, 1), embedding=32, image_size=16), 16


def first_bn():
    """BatchNorm straight on the image, and an output that keeps its pixels."""
    return nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3), nn.PReLU(4)), 6


def seed_and_set_threads(network, dtype, frozen_bn):
    """Weights, slopes and statistics that no formula could take for the usual ones; one BatchNorm weight is 0."""
    torch.manual_seed(0)
    for module in network.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            if module.running_mean is not None:
                module.running_mean.normal_(std=0.1)
                module.running_var.uniform_(0.5, 1.5)
            if module.weight is not None:
                nn.init.normal_(module.weight)
                nn.init.normal_(module.bias)
                nn.init.zeros_(module.weight[:1].detach())
    return network.train(not frozen_bn).to(dtype, memory_format=torch.channels_last)


def loss_of(embedding):
    target = torch.linspace(-1, 1, embedding.numel(), dtype=embedding.dtype).view_as(embedding)
    return (embedding.sin() * target).sum() + embedding.flatten(1).matmul(embedding.flatten(1).T).tanh().sum()


def direction(parameters):
    gen = torch.Generator().manual_seed(1)
    return {name: torch.randn(value.shape, generator=gen).to(value.dtype) for name, value in parameters.items()}


def by_autograd(network, parameters, image, V):
    """(gradient, H V), each as one vector."""
    loss = loss_of(functional_call(network, parameters, (image,)))
    gradient = torch.autograd.grad(loss, list(parameters.values()), create_graph=True, materialize_grads=True)
    hv = torch.autograd.grad(gradient, list(parameters.values()), list(V.values()), materialize_grads=True)
    return flat(gradient).detach(), flat(hv)


def by_operator(network, parameters, image, V, memory, statistics, dtype=None):
    program = Program(network, list(parameters))
    tape = Tape(program, parameters, dtype)
    leaf = tape.forward(image, statistics).requires_grad_()
    dz = torch.autograd.grad(loss_of(leaf), leaf, create_graph=True)[0]
    gradient = tape.backward(dz.detach(), keep=memory == "kept")
    if memory == "kept":
        hv = tape.second(torch.autograd.grad(dz, leaf, tape.tangent(V))[0])
    else:
        tape = Tape(program, parameters, dtype)
        again, zd = tape.forward_tangent(image, V, statistics)
        assert torch.equal(again, leaf)
        hv = tape.second_streaming(dz.detach(), torch.autograd.grad(dz, leaf, zd)[0])
    assert not any(tape.contexts)  # all state is let go
    return flat(gradient.values()), flat(hv.values())


def flat(tensors):
    return torch.cat([value.flatten() for value in tensors])


def miss(got, expected):
    return ((got - expected).norm() / expected.norm()).item()


def prepared(network, size, dtype, statistics="batch", trained=lambda name: True):
    """(parameters that are trained, images, direction)."""
    seed_and_set_threads(network, dtype, statistics == "running")
    image = torch.randn(6, 3, size, size, dtype=dtype).contiguous(memory_format=torch.channels_last)
    for name, value in network.named_parameters():
        value.requires_grad = value.requires_grad and trained(name)
    parameters = {name: value for name, value in network.named_parameters() if value.requires_grad}
    return parameters, image, direction(parameters)


def compare(network, size, dtype, memory="kept", statistics="batch", trained=lambda name: True):
    """How far gradient and H v lie from autograd's."""
    parameters, image, V = prepared(network, size, dtype, statistics, trained)
    got = by_operator(network, parameters, image, V, memory, statistics)
    return [miss(*pair) for pair in zip(got, by_autograd(network, parameters, image, V), strict=True)]


@pytest.mark.parametrize(
    ("make", "statistics", "memory"),
    [
        *itertools.product([everything, mfr28, first_bn], ["batch", "running"], ["kept", "streaming"]),
        (iresnet, "batch", "streaming"),  # by far the largest; iresnet18 below keeps its values
        (iresnet, "running", "kept"),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_gradient_and_hv_equal_autograd_in_float64(make, statistics, memory):
    gradient, hv = compare(*make(), torch.float64, memory, statistics)
    assert gradient < 1e-11
    assert hv < 1e-10


@pytest.mark.parametrize(
    ("make", "statistics"),
    [*itertools.product([everything, mfr28], ["batch", "running"]), (iresnet, "batch")],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_float32_is_as_accurate_as_autograd(make, statistics):
    """Both round, each in its own order; what they miss is what float64 says of the same numbers."""
    network, size = make()
    parameters, image, V = prepared(network, size, torch.float32, statistics)
    exact = copy.deepcopy(network).double()
    doubled = {name: dict(exact.named_parameters())[name] for name in parameters}
    truth = by_autograd(exact, doubled, image.double(), {name: value.double() for name, value in V.items()})
    ours = by_operator(network, parameters, image, V, "kept", statistics)
    theirs = by_autograd(network, parameters, image, V)
    for mine, other, right in zip(ours, theirs, truth, strict=True):
        assert miss(mine.double(), right) < 3 * miss(other.double(), right) + 1e-6


def test_hv_of_a_whole_iresnet18_equals_autograd():
    assert max(compare(*iresnet18(), torch.float64)) < 1e-10


# The stem alone, all but the stem, no weights of BatchNorm, only those, and one whose input is the image.
@pytest.mark.parametrize(
    "trained",
    [
        lambda name: name.startswith("stem"),
        lambda name: not name.startswith("stem"),
        lambda name: "bn" not in name,
        lambda name: "bn" in name,
        lambda name: name == "stem.0.weight",
    ],
    ids=["stem", "not stem", "not bn", "bn", "first"],
)
@pytest.mark.parametrize("memory", ["kept", "streaming"])
def test_what_is_not_trained_stays_out(trained, memory):
    assert max(compare(*mfr28(), torch.float64, memory, trained=trained)) < 1e-10


def test_a_parameter_the_embedding_does_not_depend_on_has_zeros():
    network = nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten())
    network.register_parameter("idle", nn.Parameter(torch.ones(4)))
    assert max(compare(network, 5, torch.float64)) < 1e-10


def test_running_statistics_move_as_in_the_network_itself():
    ours, theirs = (seed_and_set_threads(everything()[0], torch.float64, False) for _ in range(2))
    image = torch.randn(6, 3, 8, 8, dtype=torch.float64)
    for _ in range(2):  # the second time the average of all, which momentum None asks for, differs from a plain one
        Tape(Program(ours, ()), {}).forward(image, "tracked")
        theirs(image)
    Tape(Program(ours, ()), {}).forward(image, "batch")
    Tape(Program(ours, ()), {}).forward(image, "running")
    for (name, mine), other in zip(ours.named_buffers(), theirs.buffers(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-14, atol=1e-15, msg=name)


def test_channels_last_stays_channels_last():
    network, size = first_bn()
    seed_and_set_threads(network, torch.float32, False)
    parameters = dict(network.named_parameters())
    image = torch.randn(6, 3, size, size).contiguous(memory_format=torch.channels_last)
    tape = Tape(Program(network, list(parameters)), parameters)
    for value in tape.forward_tangent(image, direction(parameters)):
        assert value.is_contiguous(memory_format=torch.channels_last)
        assert not value.is_contiguous()


def test_bytes_are_those_of_the_values_made():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten())
    parameters = dict(network.named_parameters())
    tape = Tape(Program(network, list(parameters)), parameters)
    tape.forward(torch.zeros(2, 3, 5, 5))
    assert tape.bytes == 3 * 2 * 4 * 9 * 4


class Odd(nn.Module):
    """A module that does what its function says."""

    def __init__(self, function, **modules):
        super().__init__()
        self.function = function
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, x):
        return self.function(self, x)


def overwritten(self, x):
    """In the network itself the sum reads what the ReLU has left."""
    y = self.conv(x)
    z = self.act(y)
    return y + z


def overwritten_in_a_view(self, x):
    y = self.conv(x)
    z = torch.relu_(y.flatten(1))
    return z + y.flatten(1)


def branching(self, x):
    return self.conv(x) if x.sum() > 0 else x


@pytest.mark.parametrize(
    ("function", "modules", "sentence"),
    [
        (
            lambda self, x: self.conv(x).erf(),
            {},
            "`erf` at node erf has no R-operator here; autograd takes",
        ),
        (lambda self, x: self.act(self.conv(x)), {"act": nn.ELU()}, "`ELU` at node act"),
        (lambda self, x: self.act(self.conv(x)), {"act": nn.Dropout(0.5)}, "`Dropout` at node act"),
        (lambda self, x: self.act(x), {"act": nn.Conv2d(3, 4, 3, padding_mode="circular", padding=1)}, "`Conv2d`"),
        (lambda self, x: self.conv(x) + 1j, {}, "`add` at node add"),
        (lambda self, x: torch.add(self.conv(x), self.conv(x), alpha=2), {}, "`add` at node add"),
        (lambda self, x: self.conv(x).mean(), {}, "`mean` at node mean"),
        (overwritten, {"act": nn.ReLU(inplace=True)}, "node add reads what was changed in place before"),
        (overwritten, {"act": Odd(lambda self, x: F.relu(x, True))}, "node add reads what was changed in place before"),
        (overwritten, {"act": Odd(lambda self, x: x.add_(x))}, "node add reads what was changed in place before"),
        (overwritten_in_a_view, {}, "node flatten_1 reads what was changed in place before"),
        (branching, {}, r"torch.fx cannot trace this backbone \(symbolically traced variables"),
        (
            lambda self, x: (self.conv(x), x),
            {},
            "returns a tuple; wrap it in a module that returns the embeddings alone",
        ),
        (lambda self, x: x, {}, "something else than the last tensor"),
    ],
)
def test_says_what_it_cannot_take(function, modules, sentence):
    network = Odd(function, **modules)
    with pytest.raises(NoROperator, match=sentence):
        Program(network, [name for name, _ in network.named_parameters()])


def test_refuses_hooks_which_it_would_not_run():
    network, _ = first_bn()
    network[1].register_forward_hook(lambda module, inputs, output: 2 * output)
    with pytest.raises(NoROperator, match="module 1 has hooks"):
        Program(network, ())


def test_refuses_a_second_argument():
    class Two(nn.Module):
        def forward(self, x, y):
            return x + y

    with pytest.raises(NoROperator, match="second argument, y"):
        Program(Two(), ())


def test_second_arguments_have_their_defaults():
    class Optional(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x, mask=None, double=False, factor=1.0):
            x = self.conv(x)
            if mask is not None or double or factor != 1.0:
                x = x * 2
            return x

    assert max(compare(Optional(), 5, torch.float64)) < 1e-10
