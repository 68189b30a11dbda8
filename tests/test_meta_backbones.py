"""Backbones that compute again in backward, keep state, or do what few do: beside autograd through the inner step."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

from fastmfr.losses import MfrLosses
from fastmfr.meta import PairBatch, meta_gradient
from fastmfr.rop import NoROperator, Program

ALPHA, GAMMA = 0.2, 0.3
LOSSES = MfrLosses(tau_p=2.0, tau_n=-2.0, scale=3.0)
SETTINGS = {"alpha": ALPHA, "gamma": GAMMA, "losses": LOSSES}


class Net(nn.Module):
    """`call(net, images)`, with submodules by name; `plain` is set where a network is to do nothing unusual."""

    def __init__(self, call, **modules):
        super().__init__()
        self.call, self.plain = call, False
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, image):
        return self.call(self, image)

    def checkpoint(self, function, x, **settings):
        return function(x) if self.plain else checkpoint(function, x, **settings)


def linear():
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 3))


def net(call, middle=nn.Softplus, last=linear):
    """A network of a convolution, whose output is (B, 4, 3, 3), and of what `middle` and `last` make."""
    torch.manual_seed(0)
    return Net(call, first=nn.Conv2d(3, 4, 3, 2), middle=middle(), last=last()).double()


def body():
    return nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Softplus(), nn.Dropout(0.2))


def one_after_the_other(net, image):
    return net.last(F.softplus(net.middle(net.first(image))))


def batches():
    gen = torch.Generator().manual_seed(1)

    def batch(domain_B):
        gallery, probe = (torch.randn(4, 3, 8, 8, generator=gen, dtype=torch.float64) for _ in range(2))
        return PairBatch(gallery, probe, domain_B)

    return batch(torch.arange(4) % 2), batch(torch.full((4,), 2))


def images_of(batch):
    return torch.cat([batch.gallery_B3HW, batch.probe_B3HW])


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


def bias_free():
    return nn.Linear(36, 3, bias=False)


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


@pytest.mark.parametrize("stage", ["first", "later"])
def test_refuses_a_reentrant_checkpoint(stage):
    def call(net, image):
        if stage == "first":
            return net.last(net.checkpoint(lambda x: net.middle(net.first(x)), image, use_reentrant=True))
        return net.last(net.checkpoint(net.middle, net.first(image), use_reentrant=True))

    with pytest.raises(RuntimeError, match="want use_reentrant=False"):
        meta_gradient(net(call), [batches()], order=1, **SETTINGS)


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


def without_grad(net, image):
    with torch.no_grad():
        x = net.first(image)
    return net.last(x)


def half_in_bf16(net, image):
    with torch.autocast("cpu"):
        x = net.first(image)
    return net.last(x)


def by_lot(net, image):
    x = net.first(image)
    return net.last(net.middle(x) if torch.rand(()) < 0.5 else x)


def from_the_second_pass_on(net, image):
    net.passes = getattr(net, "passes", 0) + 1
    x = net.first(image)
    return net.last(net.middle(x) if net.passes > 1 else x)


class Tally(nn.Module):
    """Counts its calls, and nothing else."""

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, x):
        self.calls += 1
        return x


def with_its_own_mode(net, image):
    return net.last(net.middle.eval()(net.first(image)))


def patched():
    mine = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(36, 3)).double()
    mine.forward = lambda image: nn.Sequential.forward(mine, 2 * image)
    return mine


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: net(without_grad), "switches autograd or autocast"),
        (lambda: net(half_in_bf16), "switches autograd or autocast"),
        (lambda: net(by_lot, nn.PReLU), "draws random numbers"),
        (lambda: net(from_the_second_pass_on, nn.PReLU), "changes the attribute passes of Net"),
        (
            lambda: net(lambda net, image: net.last(net.middle(net.first(image))), Tally),
            "changes the buffer calls of Tally",
        ),
        (lambda: net(with_its_own_mode, lambda: nn.BatchNorm2d(4)), "changes the attribute training of BatchNorm2d"),
        (patched, "a forward set on the object"),
    ],
)
def test_the_r_operator_leaves_what_its_reading_would_lose_to_autograd(make, reason):
    mine = make()
    before, random = {name: value.clone() for name, value in mine.named_buffers()}, torch.get_rng_state()
    with pytest.raises(NoROperator, match=reason):
        Program(mine, [name for name, _ in mine.named_parameters()])
    assert torch.equal(torch.get_rng_state(), random)
    assert not hasattr(mine, "passes")
    for name, value in mine.named_buffers():
        assert torch.equal(value, before[name]), name


def test_warns_of_hooks_on_parameters():
    mine = net(one_after_the_other)
    mine.first.weight.register_hook(lambda gradient: 0 * gradient)
    with pytest.warns(UserWarning, match=r"hooks \(first.weight\), which a meta step does not call"):
        meta_gradient(mine, [batches()], **SETTINGS)


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


def kept_in_a_list():
    mine = net(lambda net, image: F.linear(net.first(image).flatten(1), net.kept[0]), last=bias_free)
    mine.kept = [mine.last.weight]
    return mine


def reads_a_cache(net, image):
    """The weight of the first pass, in all passes."""
    net.cache = net.cache if hasattr(net, "cache") else 2 * net.last.weight
    return F.linear(net.first(image).flatten(1), net.cache)


def follows(net, image):
    """A network beside its own slow copy, which it updates in its forward."""
    with torch.no_grad():
        net.middle.weight.lerp_(net.last[1].weight, 0.1)
    return net.last(net.first(image)) + net.middle(net.first(image).flatten(1))


def selective(net, image):
    contexts = partial(create_selective_checkpoint_contexts, [torch.ops.aten.convolution.default])
    return net.last(net.checkpoint(net.middle, net.first(image), use_reentrant=False, context_fn=contexts))


@pytest.mark.parametrize(
    ("make", "kind", "sentence"),
    [
        (kept_in_a_list, RuntimeError, "reads last.weight in another way"),
        (lambda: net(reads_a_cache, last=bias_free), RuntimeError, "reads last.weight in another way"),
        (
            lambda: net(follows, lambda: bias_free().requires_grad_(False)),
            RuntimeError,
            "changes its parameter middle.weight",
        ),
        (lambda: net(selective, body), RuntimeError, "want a checkpoint without context_fn"),
        (lambda: net(lambda net, image: net.last(net.first(image)).detach()), ValueError, "depend on no trained"),
        (
            lambda: net(lambda net, image: (one_after_the_other(net, image), image)),
            ValueError,
            "got a tuple of 2; wrap",
        ),
        (
            lambda: net(lambda net, image: net.first(image)),
            ValueError,
            r"embeddings \(8, D\), got a tensor \(8, 4, 3, 3\)",
        ),
        (
            lambda: net(one_after_the_other, last=lambda: nn.Sequential(nn.Flatten(), nn.LazyLinear(3))),
            ValueError,
            "is lazy",
        ),
        (lambda: torch.jit.script(body()), ValueError, "is TorchScript"),
    ],
    ids=["list", "cache", "follower", "selective", "detached", "tuple", "image", "lazy", "script"],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_refuses_in_a_sentence(make, kind, sentence):
    with pytest.raises(kind, match=sentence):
        meta_gradient(make(), [batches()], **SETTINGS)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("engine", ["rop", "autograd"])
def test_modes_without_gradients_around_the_call_have_no_effect(mode, engine):
    make = lambda: nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.Flatten(), nn.Linear(36, 3)).double()  # noqa: E731
    torch.manual_seed(0)
    mine = make()
    expected = meta_gradient(mine, [batches()], engine=engine, **SETTINGS).grad
    with mode():
        got = meta_gradient(mine, [batches()], engine=engine, **SETTINGS).grad
    for name, value in expected.items():
        assert torch.equal(got[name], value), name


@pytest.mark.parametrize("batch_norm", ["batch", "per_domain"])
@pytest.mark.parametrize(
    ("split", "sentence"),
    [
        (lambda train, test: (train, replace(test, gallery_B3HW=test.gallery_B3HW[:2])), r"got \(2, 3, 8, 8\) of"),
        (lambda train, test: (replace(train, domain_B=train.domain_B[:2]), test), r"\(2,\) of torch.int64"),
        (lambda train, test: (replace(train, domain_B=[0, 1, 0, 1]), test), "list of 4"),
        (lambda train, test: (PairBatch(*(part[:0] for part in vars(train).values())), test), "at least one pair"),
        (lambda train, test: (train, test, test), "got a tuple of 3"),
        (lambda train, test: train, "got a PairBatch"),
        (lambda train, test: (train, test.gallery_B3HW), "got NoneType, NoneType, NoneType"),
    ],
)
def test_refuses_batches_whose_rows_do_not_belong_together(split, sentence, batch_norm):
    with pytest.raises(ValueError, match=sentence):
        meta_gradient(net(one_after_the_other), [split(*batches())], batch_norm=batch_norm, **SETTINGS)


def test_refuses_what_is_no_module():
    with pytest.raises(ValueError, match=r"want a backbone that is a torch\.nn\.Module, got a function"):
        meta_gradient(lambda image: image, [batches()], **SETTINGS)
