"""Passes with 16 bits beside autocast and float64, and one Program for a whole run."""

import pytest
import torch
from test_rop import by_autograd, by_operator, direction, everything, flat, loss_of, mfr28, miss, seed_and_set_threads
from torch import nn
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode

from fastmfr.rop import NoROperator, Program, Tape

BF16, FP16 = torch.bfloat16, torch.float16
# What the gradient and H V may miss float64 by: rounding of 2**-9 and 2**-12, through 28 layers and their BatchNorms.
ALLOWED = {BF16: (0.06, 0.12), FP16: (0.0075, 0.015)}


def smooth(dtype=torch.float32):
    """mfr28 with PReLUs of slope 1 that are not trained: at others, what rounds across 0 decides; and its images."""
    torch.manual_seed(0)
    network = mfr28()[0]
    for module in network.modules():
        if isinstance(module, nn.PReLU):
            module.weight.requires_grad_(False).fill_(1)
    return network.to(dtype, memory_format=torch.channels_last), torch.randn(8, 3, 32, 32).to(dtype)


def trained(network):
    return {name: value for name, value in network.named_parameters() if value.requires_grad}


class Record(TorchDispatchMode):
    """(shape, new dtype) of the tensors whose dtype is changed."""

    def __init__(self):
        super().__init__()
        self.cast = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._to_copy.default:
            self.cast.append((args[0].shape, (kwargs or {})["dtype"]))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("memory", ["kept", "streaming"])
@pytest.mark.parametrize("dtype", ALLOWED, ids=str)
def test_16_bits_miss_float64_by_a_few_percent(dtype, memory):
    network, image = smooth()
    parameters = trained(network)
    got = by_operator(network, parameters, image, direction(parameters), memory, "batch", dtype)
    network, image = smooth(torch.float64)
    parameters = trained(network)
    truth = by_autograd(network, parameters, image, direction(parameters))
    for mine, exact, allowed in zip(got, truth, ALLOWED[dtype], strict=True):
        assert miss(mine, exact) < allowed


def test_bfloat16_is_as_accurate_as_autocast():
    network, image = smooth()
    parameters = trained(network)
    mine, _ = by_operator(network, parameters, image, direction(parameters), "kept", "batch", BF16)
    with torch.autocast("cpu", BF16):
        embedding = functional_call(network, parameters, (image,))
    theirs = flat(torch.autograd.grad(loss_of(embedding.float()), list(parameters.values())))
    network, image = smooth(torch.float64)
    embedding = network(image)
    exact = flat(torch.autograd.grad(loss_of(embedding), list(trained(network).values())))
    assert miss(mine, exact) < 1.25 * miss(theirs, exact)


def passes(tape, image, V, statistics="batch"):
    """The embedding, the gradient, the embedding's tangent and H V, of a loss whose gradient is cos(embedding)."""
    z = tape.forward(image, statistics)
    gradient = tape.backward(z.cos(), keep=True)
    zd = tape.tangent(V)
    hv = tape.second(-z.sin() * zd)
    return z, gradient, zd, hv


def small(wide=torch.float32):
    """(network, what is trained, a direction, images), of the network with every operation."""
    network, size = everything()
    seed_and_set_threads(network, wide, False)
    return network, trained(network), direction(trained(network)), torch.randn(16, 3, size, size, dtype=wide)


@pytest.mark.parametrize("wide", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("statistics", ["batch", "running"])
@pytest.mark.parametrize("dtype", ALLOWED, ids=str)
def test_every_operation_takes_16_bits_and_gradients_are_as_wide_as_parameters(dtype, statistics, wide):
    network, parameters, V, image = small(wide)
    program = Program(network, list(parameters))
    tape, exact = Tape(program, parameters, dtype), Tape(program, parameters)
    for mine, full in zip(passes(tape, image, V, statistics), passes(exact, image, V, statistics), strict=True):
        if isinstance(mine, dict):
            assert {value.dtype for value in mine.values()} == {wide}
            mine, full = flat(mine.values()), flat(full.values())
        else:
            assert mine.dtype == torch.float32
        assert miss(mine, full) < 32 * torch.finfo(dtype).eps
    assert exact.bytes / tape.bytes == torch.finfo(wide).bits / 16


def test_16_bit_weights_are_made_once_a_tape():
    network, image = smooth()
    parameters = trained(network)
    program = Program(network, list(parameters))
    with Record() as made:
        tape = Tape(program, parameters, BF16)
    with Record() as passed:
        tape.backward(tape.forward(image), keep=False)
    weights = [(value.shape, BF16) for name, value in parameters.items() if value.ndim > 1 or name == "fc.bias"]
    assert sorted(made.cast, key=str) == sorted(weights, key=str)
    assert set(passed.cast).isdisjoint(weights)


def test_without_a_dtype_nothing_is_cast():
    network, parameters, V, image = small()
    with Record() as record:
        passes(Tape(Program(network, list(parameters)), parameters), image, V)
    assert not record.cast


@pytest.mark.parametrize("dtype", [torch.float32, torch.int8])
def test_refuses_another_dtype(dtype):
    network, parameters, _, _ = small()
    with pytest.raises(ValueError, match=f"torch.bfloat16, torch.float16 or, given None.*; got {dtype}"):
        Tape(Program(network, list(parameters)), parameters, dtype)


@pytest.mark.parametrize("statistics", ["batch", "running"])
def test_a_program_serves_on_after_values_have_moved(statistics):
    network, parameters, V, image = small()
    del parameters["fc.weight"], parameters["fc.bias"]
    program = Program(network, list(parameters))
    buffer = flat(network.parameters()).detach() * 1.5
    for value, part in zip(
        network.parameters(), buffer.split([value.numel() for value in network.parameters()]), strict=True
    ):
        value.data = part.view_as(value)
    network.fc.bias = nn.Parameter(torch.ones(6))
    network.eval().bn2.running_mean.add_(1)
    mine, fresh = (
        passes(Tape(one, parameters), image, V, statistics) for one in (program, Program(network, list(parameters)))
    )
    for value, other in zip(mine, fresh, strict=True):
        assert torch.equal(*(flat(one.values()) if isinstance(one, dict) else one for one in (value, other)))
    assert miss(mine[0], network.train(statistics == "batch")(image)) < 1e-5


def test_refuses_dropout_that_was_switched_on_after_the_network_was_read():
    network = nn.Sequential(nn.Conv2d(3, 2, 3), nn.Dropout(0.5)).eval()
    program = Program(network, ())
    network.train()
    with pytest.raises(NoROperator, match="dropout is on in 1, and was off when this network was read"):
        Tape(program, {})
