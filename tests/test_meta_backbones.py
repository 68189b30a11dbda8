"""Backbones that compute again in backward, keep state, or do what few do: beside autograd through the inner step."""

import pytest
import torch
from meta_fakes import ALPHA, GAMMA, LOSSES, SETTINGS, batches, bias_free, body, images_of, net, one_after_the_other
from torch import nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from fastmfr.meta import meta_gradient


def unrolled(net, order=2):
    """{name: gradient} through the inner step by plain autograd, at the weights that the network's modules get."""
    train, test = batches()
    theta = dict(net.named_parameters())
    loss_S = LOSSES(*net(images_of(train)).chunk(2), train.domain_B).total
    g = torch.autograd.grad(loss_S, list(theta.values()), create_graph=order == 2)
    inner = {id(value): value - ALPHA * step for value, step in zip(theta.values(), g, strict=True)}
    for module in net.modules():
        module._parameters.update(
            {name: inner[id(value)] for name, value in module._parameters.items() if value is not None}
        )
    loss_T = LOSSES(*net(images_of(test)).chunk(2)).total
    total = GAMMA * loss_S + (1 - GAMMA) * loss_T
    if order == 2:
        return dict(zip(theta, torch.autograd.grad(total, list(theta.values())), strict=True))
    v = torch.autograd.grad(loss_T, list(inner.values()))
    return {name: GAMMA * a + (1 - GAMMA) * b for name, a, b in zip(theta, g, v, strict=True)}


def assert_exact(make, order=2):
    mine, twin = make(), make()
    torch.manual_seed(7)
    got = meta_gradient(mine, [batches()], order=order, **SETTINGS)
    twin.plain = True
    torch.manual_seed(7)
    with sdpa_kernel(SDPBackend.MATH):
        expected = unrolled(twin, order)
    for name, value in expected.items():
        torch.testing.assert_close(got.grad[name], value, msg=name, rtol=1e-9, atol=1e-12)


class ReadsInBackward(torch.autograd.Function):
    """x W^T, whose backward takes W from the module."""

    @staticmethod
    def forward(ctx, x, weight, module):
        ctx.save_for_backward(x)
        ctx.module = module
        return x @ weight.T

    @staticmethod
    def backward(ctx, dy):
        (x,) = ctx.saved_tensors
        return dy @ ctx.module.weight, dy.T @ x, None


def linear_that_reads(net, image):
    x = F.softplus(net.first(image)).flatten(1)
    return net.last(x) if net.plain else ReadsInBackward.apply(x, net.last.weight, net.last)


def linear_without_saved_weight(net, image):
    x = F.softplus(net.first(image)).flatten(1)
    shapes = {
        tuple(net.last.weight.shape): lambda: net.last.weight,
        tuple(net.last.weight.T.shape): lambda: net.last.weight.T,
    }
    hooks = (lambda saved: shapes.get(tuple(saved.shape), saved), lambda kept: kept() if callable(kept) else kept)
    if net.plain:
        return net.last(x)
    with torch.autograd.graph.saved_tensors_hooks(*hooks):
        return net.last(x)


def checkpointed(net, image):
    return net.last(net.checkpoint(net.middle, net.first(image), use_reentrant=False))


def checkpointed_twice(net, image):
    inner = lambda x: net.checkpoint(net.middle, net.first(x), use_reentrant=False)  # noqa: E731
    return net.last(net.checkpoint(inner, image, use_reentrant=False))


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize(
    "make",
    [
        lambda: net(checkpointed, body),
        lambda: net(checkpointed_twice, body),
        lambda: net(linear_that_reads, last=bias_free),
        lambda: net(linear_without_saved_weight, last=bias_free),
    ],
    ids=["checkpoint", "nested", "function", "hooks"],
)
def test_what_backward_computes_again_is_computed_at_the_parameters_of_its_pass(make, order):
    assert_exact(make, order)


def tokens(net, image):
    return net.first(image).flatten(2).transpose(1, 2)


def attention(net, image):
    return net.last(
        F.scaled_dot_product_attention(*net.middle(tokens(net, image)).unsqueeze(1).chunk(3, -1)).flatten(1)
    )


def multi_head(net, image):
    x = tokens(net, image)
    return net.last(net.middle(x, x, x, need_weights=False)[0])


def checkpointed_attention(net, image):
    return net.last(net.checkpoint(net.middle, tokens(net, image), use_reentrant=False))


@pytest.mark.parametrize(
    "make",
    [
        lambda: net(attention, lambda: nn.Linear(4, 12)),
        lambda: net(multi_head, lambda: nn.MultiheadAttention(4, 2, batch_first=True)),
        lambda: net(checkpointed_attention, lambda: nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)),
    ],
    ids=["function", "multi-head", "encoder layer"],
)
def test_attention_is_exact(make):
    assert_exact(make)


class Counts(nn.Module):
    """State of all kinds: a number in place, a mean that is replaced, an attribute, and one buffer by two names."""

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.register_buffer("same", self.calls)
        self.register_buffer("mean", torch.ones(4, 1, 1))
        self.passes = 0

    def forward(self, x):
        self.calls += 1
        self.passes += 1
        self.mean = 0.9 * self.mean + 0.1 * x.detach().mean((0, 2, 3)).view(4, 1, 1)
        return x * self.mean + self.same


class Centered(nn.Module):
    """A normalisation layer that torch does not know."""

    def __init__(self):
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(4))
        self.register_buffer("running_var", torch.ones(4))

    def forward(self, x):
        if self.training:
            mean = x.mean((0, 2, 3))
            self.running_mean.lerp_(mean.detach(), 0.1)
        else:
            mean = self.running_mean
        return x - mean.view(4, 1, 1)


def instance_norm():
    return nn.InstanceNorm2d(4, affine=True, track_running_stats=True)


def spectral():
    return nn.utils.parametrizations.spectral_norm(nn.Conv2d(4, 4, 3, padding=1))


@pytest.mark.parametrize("middle", [instance_norm, Counts, spectral])
def test_buffers_are_changed_by_the_pass_at_theta_alone(middle):
    mine, once = (net(one_after_the_other, middle) for _ in range(2))
    storage = {name: value.data_ptr() for name, value in mine.named_buffers()}
    meta_gradient(mine, [batches()], **SETTINGS)
    once(images_of(batches()[0]))
    for (name, value), expected in zip(mine.named_buffers(), once.buffers(), strict=True):
        assert torch.equal(value, expected), name
        assert value.data_ptr() == storage[name], name  # what holds the buffer, such as a recorded step, sees it
    assert getattr(mine.middle, "passes", 1) == 1
    assert_exact(lambda: net(one_after_the_other, middle))


@pytest.mark.parametrize("middle", [instance_norm, Centered, Counts])
def test_frozen_statistics_are_used_and_kept(middle):
    mine, twin = (net(one_after_the_other, middle) for _ in range(2))
    for one in (mine, twin):
        if middle is not Counts:
            one.middle.running_mean.copy_(torch.linspace(-1, 1, 4))
            one.middle.running_var.copy_(torch.linspace(1, 2, 4))
    before = {name: value.clone() for name, value in mine.named_buffers()}
    got = meta_gradient(mine, [batches()], batch_norm="frozen", **SETTINGS).grad
    for name, value in mine.named_buffers():
        assert torch.equal(value, before[name]), name
    assert mine.middle.training
    if middle is not Counts:
        for name, value in unrolled(twin.eval()).items():
            torch.testing.assert_close(got[name], value, msg=name, rtol=1e-9, atol=1e-12)


def test_a_hessian_of_passes_of_its_own_sees_the_dropout_and_the_buffers_of_the_gradient():
    """Precision and curvature that differ in name only: float64 is not touched by either."""

    def gradient(**settings):
        mine = net(one_after_the_other, lambda: nn.Sequential(spectral(), nn.Dropout(0.5)))
        torch.manual_seed(7)
        return meta_gradient(mine, [batches()], **SETTINGS, **settings).grad, torch.rand(1)

    (one, after_one), (two, after_two) = gradient(), gradient(curvature="fp32")
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, msg=name, rtol=1e-9, atol=1e-12)
    assert torch.equal(after_one, after_two)


class OnceDifferentiable(torch.autograd.Function):
    """x, as a compiled backward would have it."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dy):
        return dy


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # torch.compile's own
def test_compiled_parts_run_uncompiled_at_the_second_order():
    mine, twin = (net(one_after_the_other, nn.Tanh) for _ in range(2))
    backend = lambda graph, _: lambda *inputs: [OnceDifferentiable.apply(made) for made in graph(*inputs)]  # noqa: E731
    mine.middle = torch.compile(mine.middle, backend=backend)
    got, expected = (meta_gradient(one, [batches()], **SETTINGS).grad for one in (mine, twin))
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value, msg=name, rtol=1e-9, atol=1e-12)
