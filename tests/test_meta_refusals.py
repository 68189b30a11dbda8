"""What a meta step refuses, or leaves to autograd, because the gradient would be wrong without a word."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from meta_fakes import SETTINGS, batches, bias_free, body, net, one_after_the_other
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import create_selective_checkpoint_contexts

from fastmfr.meta import PairBatch, meta_gradient
from fastmfr.rop import NoROperator, Program


@pytest.mark.parametrize("stage", ["first", "later"])
def test_refuses_a_reentrant_checkpoint(stage):
    def call(net, image):
        if stage == "first":
            return net.last(net.checkpoint(lambda x: net.middle(net.first(x)), image, use_reentrant=True))
        return net.last(net.checkpoint(net.middle, net.first(image), use_reentrant=True))

    with pytest.raises(RuntimeError, match="want use_reentrant=False"):
        meta_gradient(net(call), [batches()], order=1, **SETTINGS)


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
    ids=["cache", "follower", "selective", "detached", "tuple", "image", "lazy", "script"],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_refuses_in_a_sentence(make, kind, sentence):
    with pytest.raises(kind, match=sentence):
        meta_gradient(make(), [batches()], **SETTINGS)


def test_a_parameter_kept_in_a_list_is_read_by_the_r_operator_and_refused_by_autograd():
    got = meta_gradient(kept_in_a_list(), [batches()], engine="rop", **SETTINGS).grad
    plain = net(lambda net, image: net.last(net.first(image).flatten(1)), last=bias_free)
    expected = meta_gradient(plain, [batches()], **SETTINGS).grad
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value, msg=name)
    with pytest.raises(RuntimeError, match=r"reads last.weight in another way"):
        meta_gradient(kept_in_a_list(), [batches()], engine="autograd", **SETTINGS)


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
