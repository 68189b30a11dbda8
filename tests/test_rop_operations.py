"""Every operation of the R-operator alone: gradient and H v beside autograd used twice, and beside central differences.

What may not be taken is refused with its name; what is taken in another order, form or layout is tried here too.
"""

import pytest
import test_rop
import torch
from test_rop import Odd, by_operator, compare, direction, flat, loss_of, miss
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

from fastmfr.rop import NoROperator, Program, Tape

SIZE = 6


@pytest.fixture(autouse=True)
def _hardsigmoid_has_a_double_backward(monkeypatch):
    """PyTorch's has none. The reference, and nothing else here, gets one of operations that have."""

    def by_parts(*arguments):
        with monkeypatch.context() as patched:
            patched.setattr(F, "hardsigmoid", lambda x, inplace=False: F.relu6(x + 3) / 6)
            return autograd_twice(*arguments)

    autograd_twice = test_rop.by_autograd
    monkeypatch.setattr(test_rop, "by_autograd", by_parts)


def after(act):
    """A convolution and what stands behind it, scaled so that values lie on both sides of every kink."""
    return Odd(lambda self, x: self.act(3 * self.conv(x)), act=act)


def calls(function, **modules):
    return Odd(lambda self, x: function(self, self.conv(x)), **modules)


def shuffled(self, x):
    """The channel shuffle of ShuffleNet."""
    images, channels, height, width = x.shape
    x = x.view(images, 2, channels // 2, height, width).transpose(1, 2).contiguous()
    return x.view(images, -1, height, width) * self.conv.bias[None, :, None, None]


def gated(self, x):
    """A squeeze-and-excitation gate."""
    return x * self.expand(F.relu(self.reduce(x.mean((2, 3), keepdim=True)))).sigmoid()


def normalised_last(self, x):
    return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def with_factor(function, shape):
    network = calls(function)
    network.factor = nn.Parameter(torch.linspace(0.5, 2, 4).view(shape))
    return network


def with_buffer():
    network = calls(lambda self, x: x * self.scale + self.scale)
    network.register_buffer("scale", torch.linspace(1, 2, 4).view(1, 4, 1, 1))
    return network


def norm(module):
    """A normalisation whose weights no formula could take for the usual ones."""
    torch.manual_seed(3)
    for value in module.parameters():
        nn.init.normal_(value)
    return module


def functional_norms(self, x):
    x = F.group_norm(x, 2, self.group.weight, self.group.bias, eps=1e-3)
    return F.layer_norm(x, [SIZE, SIZE], self.row.weight, self.row.bias)


def functional_linear(self, x):
    x = F.conv2d(x, self.other.weight, None, 2, padding=1, groups=2)
    return F.linear(F.prelu(x, self.slope.weight).flatten(2), self.fc.weight, self.fc.bias)


OPERATIONS = {
    "sigmoid": lambda: after(nn.Sigmoid()),
    "tanh": lambda: after(nn.Tanh()),
    "silu": lambda: after(nn.SiLU(inplace=True)),
    "gelu": lambda: after(nn.GELU()),
    "gelu tanh": lambda: after(nn.GELU("tanh")),
    "hardswish": lambda: after(nn.Hardswish()),
    "hardsigmoid": lambda: after(nn.Hardsigmoid()),
    "relu6": lambda: after(nn.ReLU6()),
    "hardtanh": lambda: after(nn.Hardtanh(-0.5, 2.0)),
    "leaky relu": lambda: after(nn.LeakyReLU(0.1)),
    "functional silu": lambda: calls(lambda self, x: F.silu(3 * x, inplace=True)),
    "functional gelu": lambda: calls(lambda self, x: F.gelu(3 * x, approximate="tanh") + F.gelu(x)),
    "functional hardswish": lambda: calls(lambda self, x: F.hardswish(4 * x, True) * F.hardsigmoid(4 * x)),
    "functional clamps": lambda: calls(lambda self, x: F.relu6(4 * x) + F.hardtanh(x, -0.5, 0.2) + F.leaky_relu(x)),
    "methods": lambda: calls(lambda self, x: torch.sigmoid(x) + x.sigmoid() + x.tanh() + torch.tanh(x).relu()),
    "max pool": lambda: after(nn.MaxPool2d(3, 2, 1)),
    "max pool dilated": lambda: after(nn.MaxPool2d(2, dilation=2, ceil_mode=True)),
    "functional max pool": lambda: calls(lambda self, x: F.max_pool2d(x, 2)),
    "average pool": lambda: after(nn.AvgPool2d(3, 2, 1, ceil_mode=True, count_include_pad=False)),
    "functional average pool": lambda: calls(lambda self, x: F.avg_pool2d(x, 2, stride=1)),
    "adaptive pool": lambda: after(nn.AdaptiveAvgPool2d((2, 4))),
    "functional adaptive pool": lambda: calls(lambda self, x: F.adaptive_avg_pool2d(x, 4)),
    "depthwise": lambda: after(nn.Conv2d(4, 8, 3, 2, 1, groups=4, bias=False)),
    "grouped": lambda: after(nn.Conv2d(4, 6, 3, groups=2)),
    "layer norm": lambda: calls(normalised_last, norm=norm(nn.LayerNorm(4))),
    "layer norm of two": lambda: after(norm(nn.LayerNorm([SIZE, SIZE], bias=False))),
    "layer norm plain": lambda: after(nn.LayerNorm(SIZE, elementwise_affine=False)),
    "group norm": lambda: after(norm(nn.GroupNorm(2, 4))),
    "group norm plain": lambda: after(nn.GroupNorm(4, 4, affine=False)),
    "functional norms": lambda: calls(functional_norms, group=norm(nn.GroupNorm(2, 4)), row=norm(nn.LayerNorm([6, 6]))),
    "functional linear": lambda: calls(
        functional_linear, other=nn.Conv2d(4, 4, 3, groups=2), slope=nn.PReLU(4), fc=nn.Linear(9, 5)
    ),
    "concatenate": lambda: calls(lambda self, x: torch.cat([x, x.relu(), x[:, :1]], dim=1)),
    "gate": lambda: calls(gated, reduce=nn.Conv2d(4, 2, 1), expand=nn.Conv2d(2, 4, 1)),
    "square": lambda: calls(lambda self, x: x * x),
    "numbers": lambda: calls(lambda self, x: -(((x + 1) * 2 - 0.5) / 4) + sum([x, 2 * x])),
    "parameter": lambda: with_factor(lambda self, x: x.mul(self.factor) + self.factor, (1, 4, 1, 1)),
    "parameter in shape": lambda: with_factor(lambda self, x: x * self.factor.reshape(1, -1, 1, 1), (4,)),
    "buffer": with_buffer,
    "shuffle": lambda: calls(shuffled),
    "flattened by view": lambda: calls(lambda self, x: x.mean((2, 3), keepdim=True).view(x.size(0), -1)),
    "flattened by reshape": lambda: calls(lambda self, x: torch.reshape(x, (x.shape[0], -1))),
    "shape of another": lambda: calls(lambda self, x: x.flatten(1).reshape(x.shape)),
    "dimensions": lambda: calls(lambda self, x: x.mean(3).unsqueeze(-1).squeeze(-1).swapaxes(1, 2)),
    "mean in another order": lambda: calls(lambda self, x: x.mean((-2, -1)) + x.mean((3, 2))),
    "chunks": lambda: calls(lambda self, x: x.chunk(2, 1)[0] * x.chunk(2, dim=1)[-1]),
    "splits": lambda: calls(lambda self, x: x.split([1, 3], dim=1)[1] + torch.split(x, 1, 1)[2]),
    "pad": lambda: calls(lambda self, x: F.pad(self.pad(x), (1, 0, 2, -1)), pad=nn.ZeroPad2d(1)),
}


def network_of(name):
    torch.manual_seed(5)
    return OPERATIONS[name]()


@pytest.mark.parametrize("memory", ["kept", "streaming"])
@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_equals_autograd_in_float64(name, memory):
    gradient, hv = compare(network_of(name), SIZE, torch.float64, memory)
    assert gradient < 1e-12
    assert hv < 1e-11


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_on_what_is_not_trained_equals_autograd(name):
    network = network_of(name)
    rest = {key for key, _ in network.named_parameters() if not key.startswith("conv.")} or {"conv.weight"}
    assert max(compare(network, SIZE, torch.float64, trained=lambda key: key in rest)) < 1e-11


@pytest.mark.parametrize("name", OPERATIONS)
def test_hv_equals_central_differences(name):
    network = network_of(name).double()
    image = torch.randn(6, 3, SIZE, SIZE, dtype=torch.float64)
    parameters = {key: value.detach() for key, value in network.named_parameters()}
    V, step = direction(parameters), 1e-6

    def gradient(sign):
        moved = {key: (value + sign * step * V[key]).requires_grad_() for key, value in parameters.items()}
        loss = loss_of(functional_call(network, moved, (image,)))
        return flat(torch.autograd.grad(loss, list(moved.values()), materialize_grads=True))

    _, hv = by_operator(network, parameters, image, V, "kept", "batch")
    assert miss(hv, (gradient(1) - gradient(-1)) / (2 * step)) < 1e-6


@pytest.mark.parametrize("name", [name for name in OPERATIONS if "max" not in name])  # rounding moves the largest value
def test_16_bits_are_near_float32(name):
    network = network_of(name)
    image = torch.randn(6, 3, SIZE, SIZE)
    parameters = dict(network.named_parameters())
    V = direction(parameters)
    expected = test_rop.by_autograd(network, parameters, image, V)
    for got, wide in zip(
        by_operator(network, parameters, image, V, "streaming", "batch", torch.bfloat16), expected, strict=True
    ):
        assert got.dtype == torch.float32
        assert miss(got, wide) < 0.2


def test_each_case_takes_the_operator():
    for name in OPERATIONS:
        network = network_of(name)
        assert Program(network, [key for key, _ in network.named_parameters()]).steps


@pytest.mark.parametrize(
    ("function", "modules", "named"),
    [
        (lambda self, x: x.softmax(1), {}, "`softmax` at node softmax"),
        (lambda self, x: self.act(x), {"act": nn.Softplus()}, "`Softplus` at node act"),
        (lambda self, x: self.act(x)[0], {"act": nn.MaxPool2d(2, return_indices=True)}, "`MaxPool2d` at node act"),
        (lambda self, x: 1 - x, {}, "`sub` at node sub"),
        (lambda self, x: 1 / x, {}, "`truediv` at node truediv"),
        (lambda self, x: x - x.relu(), {}, "`sub` at node sub"),
        (lambda self, x: x / x, {}, "`truediv` at node truediv"),
        (lambda self, x: F.pad(x, (1, 1), value=1.0), {}, "`pad` at node pad"),
        (lambda self, x: F.pad(x, (1, 1), mode="circular"), {}, "`pad` at node pad"),
        (lambda self, x: F.dropout(x, 0.5), {}, "`dropout` at node dropout"),
        (lambda self, x: x.mean(1, dtype=torch.float64), {}, "`mean` at node mean"),
        (lambda self, x: F.linear(x, self.conv.weight * 2), {}, "`linear` at node linear"),
        (lambda self, x: x[:, : x.shape[1] // 2], {}, "`getitem` at node getitem"),
        (lambda self, x: x.permute(0, 3, 2, 1).squeeze(), {}, "`squeeze` at node squeeze"),
        (lambda self, x: x.mul_(2) + x, {}, "node add reads what was changed in place before"),
        (lambda self, x: F.hardswish(x, True) + x, {}, "node add reads what was changed in place before"),
        (lambda self, x: torch.sigmoid_(x.view(6, -1)) + x.flatten(1), {}, "reads what was changed in place before"),
    ],
)
def test_an_operation_that_is_not_covered_is_named(function, modules, named):
    network = calls(function, **modules)
    with pytest.raises(NoROperator, match=named):
        Program(network, [name for name, _ in network.named_parameters()])


def test_another_batch_and_size_than_the_first_are_taken():
    network = calls(shuffled)
    parameters = dict(network.named_parameters())
    tape = Tape(Program(network, list(parameters)), parameters)
    for images, size in ((2, 6), (3, 8)):
        image = torch.randn(images, 3, size, size)
        torch.testing.assert_close(tape.forward(image), network(image).detach())
