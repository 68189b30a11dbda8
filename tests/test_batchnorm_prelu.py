"""BatchNorm + PReLU: the reference against autograd twice in float64, the kernels and the C++ against the reference."""

from types import SimpleNamespace

import pytest
import torch
import triton_interpreter
from fastmfr.kernels import batchnorm_prelu
from fastmfr.kernels.batchnorm_prelu import fused, native, reference
from helpers import DEVICE, assert_as_accurate
from torch.nn import functional as F

if DEVICE == "cpu":
    triton_interpreter.repair()
pytestmark = pytest.mark.kernel
# 4-d beside 2-d; channels below, at and above one block; pixels that do not fill a tile, or several shares
SHAPES = [(3, 5, 3, 3), (2, 64, 5, 4), (5, 70, 4, 4), (7, 6), (130, 3)]
SLOPES = ["each", "one", "none"]


def inputs(shape, slope, dtype=torch.float32, device=DEVICE):
    gen = torch.Generator().manual_seed(0)
    draw = lambda *size: torch.randn(*size, generator=gen, dtype=torch.float64)  # noqa: E731
    C = shape[1]
    x = 3 * draw(*shape) + 40  # far from zero, as sums of squares do not like it
    layer, moving = ([draw(C), draw(C), {"each": draw(C), "one": draw(1), "none": None}[slope]] for _ in range(2))
    running = [draw(C) + 40, draw(C).square() + 1]
    tensors = [x, *layer, *moving, *running, *(draw(*shape) for _ in range(3))]
    x, *rest = [None if one is None else one.to(device, dtype) for one in tensors]
    x = x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x
    return x, rest[:3], rest[3:6], rest[6:8], rest[8:]


def narrow(arguments, dtype):
    """The same with x, dy, x' and dy' in `dtype`, beside parameters and running statistics as they were."""
    x, *parameters, others = arguments
    return x.to(dtype), *parameters, [one.to(dtype) for one in others]


def doubled(arguments):
    """The same numbers in float64."""
    x, *groups = arguments
    return x.double(), *([None if one is None else one.double() for one in group] for group in groups)


def all_four(module, arguments, batch_statistics, tracked=True):
    """Everything the four functions give, and the running statistics after."""
    x, layer, moving, running, (dy, xd, dyd) = arguments
    ctx, running = SimpleNamespace(), [one.clone() for one in running] if tracked else [None, None]
    y = module.forward(ctx, x, *layer, running=running, batch_statistics=batch_statistics, momentum=0.1, eps=1e-5)
    results = [y, *module.backward(ctx, dy), module.tangent(ctx, xd, *moving), *module.second_backward(ctx, dyd)]
    return [one for one in [*results, *running] if one is not None]


def by_autograd(arguments, batch_statistics):
    x, layer, moving, running, (dy, xd, dyd) = arguments
    running = [one.clone() for one in running]
    values = [one.detach().requires_grad_() for one in (x, *layer) if one is not None]
    dy = dy.detach().requires_grad_()

    def function(x, weight, bias, slope=None):
        z = F.batch_norm(x, *(one.clone() for one in running), weight, bias, batch_statistics, 0.1, 1e-5)
        return z if slope is None else F.prelu(z, slope)

    y = function(*values)
    first = torch.autograd.grad(y, values, dy, create_graph=True)
    directions = [one for one in (xd, *moving) if one is not None]
    # y' by differentiating the gradient's dependence on dy; the derivative of `first` along (x', ...; dy') likewise
    along = sum((g * d).sum() for g, d in zip(first, directions, strict=True))
    y_d, *curved = torch.autograd.grad(along, [dy, *values], retain_graph=True, materialize_grads=True)
    again = torch.autograd.grad(y, values, dyd)
    return [y, *first, y_d, *(h + a for h, a in zip(curved, again, strict=True))]


@pytest.mark.parametrize("batch_statistics", [True, False])
@pytest.mark.parametrize("slope", SLOPES)
@pytest.mark.parametrize("shape", [(3, 5, 3, 3), (7, 6)])
def test_the_reference_is_what_autograd_twice_gives(shape, slope, batch_statistics):
    arguments = inputs(shape, slope, torch.float64, "cpu")
    got = all_four(reference, arguments, batch_statistics, tracked=not batch_statistics)
    for mine, theirs in zip(got, by_autograd(arguments, batch_statistics), strict=False):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("batch_statistics", [True, False])
@pytest.mark.parametrize(
    ("shape", "slope"), [*((shape, "each") for shape in SHAPES), (SHAPES[0], "one"), (SHAPES[0], "none")], ids=str
)
def test_the_kernels_are_as_accurate_as_pytorch(shape, slope, batch_statistics):
    got, ref = (all_four(module, inputs(shape, slope), batch_statistics) for module in (fused, reference))
    truth = all_four(reference, inputs(shape, slope, torch.float64), batch_statistics)
    assert len(got) == len(ref)
    for mine, theirs, exact in zip(got, ref, truth, strict=True):
        assert_as_accurate(mine, theirs, exact, 3e-6 * exact.abs().max().item())


@pytest.mark.parametrize("batch_statistics", [True, False])
@pytest.mark.parametrize(
    ("dtype", "shape", "slope"),
    [(torch.bfloat16, (2, 64, 5, 4), "each"), *((torch.float16, (7, 6), slope) for slope in SLOPES)],
    ids=str,
)
def test_16_bits_are_rounded_once_and_sums_are_float32(dtype, shape, slope, batch_statistics):
    arguments = narrow(inputs(shape, slope), dtype)
    got, ref = (all_four(module, arguments, batch_statistics) for module in (fused, reference))
    truth = all_four(reference, doubled(arguments), batch_statistics)
    for mine, theirs, exact in zip(got, ref, truth, strict=True):
        assert mine.dtype == theirs.dtype == (dtype if exact.shape == shape else torch.float32)
        assert_as_accurate(mine, theirs, exact, 3e-6 * exact.abs().max().item())
        assert_as_accurate(theirs, exact.to(theirs.dtype), exact, 1e-5 * exact.abs().max().item())


def test_kernels_keep_their_inputs_and_repeat_themselves():
    arguments = inputs(SHAPES[-1], "each")  # several shares, whose sums are joined
    first, second = all_four(fused, arguments, True), all_four(fused, arguments, True)
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one, other)
    for kept, fresh in zip(arguments, inputs(SHAPES[-1], "each"), strict=True):
        for one, other in zip(
            [kept] if isinstance(kept, torch.Tensor) else kept,
            [fresh] if isinstance(fresh, torch.Tensor) else fresh,
            strict=True,
        ):
            assert torch.equal(one, other)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("batch_statistics", [True, False])
@pytest.mark.parametrize(
    ("shape", "slope"),
    [*((shape, "each") for shape in SHAPES), *((SHAPES[0], slope) for slope in SLOPES[1:]), ((600, 300), "each")],
    ids=str,
)
def test_the_cpu_is_as_accurate_as_pytorch(shape, slope, batch_statistics, dtype):
    """(600, 300) is cut into several pieces, and its rows are wider than a loop."""
    arguments = inputs(shape, slope, dtype, "cpu")
    for tracked in [True, False] if batch_statistics else [True]:
        got, ref = (all_four(module, arguments, batch_statistics, tracked) for module in (native, reference))
        truth = all_four(reference, doubled(arguments), batch_statistics, tracked)
        share = 3e-6 if dtype == torch.float32 else 1e-13
        for mine, theirs, exact in zip(got, ref, truth, strict=True):
            assert mine.dtype == dtype
            assert mine.stride() == theirs.stride()
            assert_as_accurate(mine, theirs, exact, share * exact.abs().max().item())


@pytest.mark.parametrize("shape", [(5, 70, 4, 4), (900, 70), (3, 16, 40, 40)], ids=str)
def test_the_cpu_gives_the_same_bits_with_any_number_of_threads(shape):
    arguments, threads = inputs(shape, "each", device="cpu"), torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(all_four(native, arguments, True))
    finally:
        torch.set_num_threads(threads)
    for one, *others in zip(*results, strict=True):
        assert all(torch.equal(one, other) for other in others)


def test_the_cpu_takes_what_it_can_read_and_leaves_the_rest_to_pytorch():
    x, (weight, bias, slope), _, running, _ = inputs((3, 5, 3, 3), "each", device="cpu")
    layer = slope, weight, bias, *running
    assert native.takes(x, *layer)
    assert native.takes(x, None, weight, bias, None, None)
    assert native.takes(x.double(), *(one.double() for one in layer))
    assert native.takes(x[:, :, 0, 0].contiguous(), *layer)
    for other in (
        x.contiguous(),
        x.bfloat16(),
        x.flatten(2),
        x[:0],
        x.to("meta"),
        torch.nn.Parameter(x),
        x[:, :, 0, 0],
    ):
        assert not native.takes(other, *layer), other.shape
    assert not native.takes(x, slope, weight, bias, *(one.double() for one in running))
    assert not native.takes(x, slope, torch.stack([weight, weight], 1)[:, 0], bias)
    assert not native.takes(x, slope[:2], weight, bias)
    assert not native.takes(x, slope, weight[:4], bias), "would be read past its end"
    paths = []
    for one in (x, x.contiguous()):
        ctx = SimpleNamespace()
        options = {"running": running, "batch_statistics": True, "momentum": 0.1, "eps": 1e-5}
        batchnorm_prelu.forward(ctx, one, weight, bias, slope, **options)
        paths.append(ctx.path)
    assert paths == [native, reference]


def test_a_gradient_of_another_shape_is_not_read():
    x, layer, _, running, (dy, _, _) = inputs((3, 5, 3, 3), "each", device="cpu")
    ctx = SimpleNamespace()
    native.forward(ctx, x, *layer, running=running, batch_statistics=True, momentum=0.1, eps=1e-5)
    with pytest.raises(ValueError, match=r"shape \(3, 5, 3, 3\), .* got \(2, 5, 3, 3\)"):
        native.backward(ctx, dy[:2])


def test_the_cpu_takes_gradients_in_any_memory_order():
    x, layer, moving, running, others = inputs((3, 5, 4, 2), "each", device="cpu")
    last = [one.contiguous(memory_format=torch.channels_last) for one in others]
    for one, other in zip(
        all_four(native, (x, layer, moving, running, others), True),
        all_four(native, (x, layer, moving, running, last), True),
        strict=True,
    ):
        assert torch.equal(one, other)
