"""The meta-gradient by the R-operator beside that by autograd, and shared between splits beside a naive loop."""

import functools
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.func import functional_call

from fastmfr.backbone import MfrNet
from fastmfr.losses import MfrLosses
from fastmfr.meta import PairBatch, meta_gradient
from fastmfr.rop import Tape

ALPHA, GAMMA = 0.2, 0.3
LOSSES = MfrLosses(tau_p=2.0, tau_n=-2.0, scale=3.0)
APART = replace(LOSSES, domain_alignment=0.0)


def flat(gradient):
    return torch.cat([value.flatten() for value in gradient.values()])


def readable(dtype=torch.float64):
    """A backbone that the R-operator can read, with running statistics that have moved."""
    torch.manual_seed(3)
    net = MfrNet(5, 0.0625, blocks=(1, 1, 1, 1)).to(dtype)
    net(torch.randn(8, 3, 16, 16, dtype=dtype))
    return net


def splits(dtype=torch.float64, size=16):
    gen = torch.Generator().manual_seed(4)

    def batch(domain_B):
        gallery, probe = (torch.randn(len(domain_B), 3, size, size, generator=gen).to(dtype) for _ in range(2))
        return PairBatch(gallery, probe, domain_B)

    return [(batch(torch.tensor([2, 0, 2, 0, 0])), batch(torch.full((4,), 1))) for _ in range(2)]


def deviations(got, expected):
    """By name, of every tensor of two results: how far apart they are beside the length of the second."""
    found = {"grad": (flat(got.grad), flat(expected.grad))}
    for part in ("losses", "norms"):
        one, other = getattr(got, part), getattr(expected, part)
        assert one.keys() == other.keys()
        found |= {f"{part} {name}": (one[name].double(), value.double()) for name, value in other.items()}
    return {name: ((a - b).norm() / b.norm().clamp_min(1e-300)).item() for name, (a, b) in found.items()}


def of_engine(engine, order, memory, batch_norm):
    """What an engine gives, and the network after."""
    net = readable()
    settings = {"order": order, "engine": engine, "memory": memory, "batch_norm": batch_norm}
    return meta_gradient(net, splits(), alpha=ALPHA, gamma=GAMMA, losses=LOSSES, **settings), net


@functools.cache
def by_autograd(order, batch_norm):
    return of_engine("autograd", order, "auto", batch_norm)


@pytest.mark.parametrize("batch_norm", ["batch", "frozen", "per_domain"])
@pytest.mark.parametrize(("order", "memory"), [(2, "kept"), (2, "streaming"), (1, "auto"), (0, "auto")])
def test_the_engines_agree_in_all_they_give_and_change(order, memory, batch_norm):
    got, net = of_engine("rop", order, memory, batch_norm)
    expected, other_net = by_autograd(order, batch_norm)
    assert (got.engine, expected.engine) == ("rop", "autograd")
    assert max(deviations(got, expected).values()) < 1e-10
    for (name, mine), other in zip(net.named_buffers(), other_net.buffers(), strict=True):
        torch.testing.assert_close(mine, other, msg=name, rtol=1e-12, atol=1e-14)


def test_the_r_operator_is_as_accurate_as_autograd_in_float32():
    def gradient(engine, dtype):
        settings = {"alpha": ALPHA, "gamma": GAMMA, "losses": LOSSES, "engine": engine}
        return flat(meta_gradient(readable(dtype), splits(dtype), **settings).grad)

    truth = gradient("autograd", torch.float64)
    ours, theirs = ((gradient(engine, torch.float32) - truth).norm() / truth.norm() for engine in ("rop", "autograd"))
    assert ours < 2 * theirs + 1e-5


def test_auto_takes_the_r_operator_where_it_applies_and_says_why_not_elsewhere():
    settings = {"alpha": ALPHA, "gamma": GAMMA, "losses": LOSSES}
    result = meta_gradient(readable(), splits(), **settings)
    assert (result.engine, result.reason) == ("rop", "")
    smooth = nn.Sequential(readable(), nn.Softplus()).double()
    result = meta_gradient(smooth, splits(), **settings)
    assert result.engine == "autograd"
    assert "`Softplus`" in result.reason
    assert meta_gradient(readable(), splits(), engine="autograd", **settings).reason == "autograd was asked for"


@pytest.mark.parametrize(("free", "streams"), [(2**50, 0), (0, 2)])
def test_auto_streams_where_memory_is_short(free, streams, monkeypatch):
    seen, forward_tangent = [], Tape.forward_tangent

    def counted(self, *args):
        seen.append(self)
        return forward_tangent(self, *args)

    monkeypatch.setattr("fastmfr.meta.rop_engine.free_bytes", lambda device: free)
    monkeypatch.setattr(Tape, "forward_tangent", counted)
    meta_gradient(readable(), splits(), alpha=ALPHA, gamma=GAMMA, losses=LOSSES)
    assert len(seen) == streams


def test_autocast_is_left_to_autograd():
    with torch.autocast("cpu"), pytest.raises(ValueError, match="autocast is on"):
        meta_gradient(readable(), splits(), alpha=ALPHA, gamma=GAMMA, engine="rop")


def domains(count, dtype=torch.float64):
    gen = torch.Generator().manual_seed(5)

    def batch(domain, pairs):
        gallery, probe = (torch.randn(pairs, 3, 16, 16, generator=gen).to(dtype) for _ in range(2))
        return PairBatch(gallery, probe, torch.full((pairs,), domain))

    return [(batch(domain, 4), batch(domain, 3)) for domain in range(count)]


@functools.cache
def naive(count, frozen):
    """The mean over leave-one-out splits of the two losses, differentiated through the inner step; nothing shared."""
    net, batches = readable().train(not frozen), domains(count)
    parameters = dict(net.named_parameters())

    def loss(values, batch):
        images = torch.cat([batch.gallery_B3HW, batch.probe_B3HW])
        at = dict(zip(parameters, values, strict=True))
        return APART(*functional_call(net, at, (images,)).chunk(2)).total

    total = 0
    for left_out, (_, test) in enumerate(batches):
        values = list(parameters.values())
        trains = [train for domain, (train, _) in enumerate(batches) if domain != left_out]
        loss_S = sum(loss(values, train) for train in trains) / len(trains)
        gradient = torch.autograd.grad(loss_S, values, create_graph=True)
        inner = [value - ALPHA * g for value, g in zip(values, gradient, strict=True)]
        total = total + GAMMA * loss_S + (1 - GAMMA) * loss(inner, test)
    gradient = torch.autograd.grad(total / len(batches), list(parameters.values()))
    return flat(dict(zip(parameters, gradient, strict=True)))


@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize("batch_norm", ["frozen", "per_domain"])
@pytest.mark.parametrize(("engine", "memory"), [("rop", "kept"), ("rop", "streaming"), ("autograd", "auto")])
def test_sharing_equals_the_naive_loop_over_the_same_batches(engine, memory, batch_norm, count):
    got = meta_gradient(
        readable(),
        domains(count),
        alpha=ALPHA,
        gamma=GAMMA,
        losses=APART,
        sharing="per_domain",
        engine=engine,
        memory=memory,
        batch_norm=batch_norm,
    )
    expected = naive(count, batch_norm == "frozen")
    assert ((flat(got.grad) - expected).norm() / expected.norm()).item() < 1e-12
    assert {len(value) for value in (*got.losses.values(), *got.norms.values())} == {count}


def test_sharing_logs_what_splits_of_their_own_would():
    """With two domains a split trains on one, so the same batches can be given as splits."""
    (train0, test0), (train1, test1) = domains(2)
    settings = {"alpha": ALPHA, "gamma": GAMMA, "losses": APART, "batch_norm": "per_domain"}
    own = meta_gradient(readable(), [(train1, test0), (train0, test1)], **settings)
    together = meta_gradient(readable(), [(train0, test0), (train1, test1)], sharing="per_domain", **settings)
    apart = {name for name, value in deviations(together, own).items() if value > 1e-12}
    assert apart == {"norms alpha_hv_over_v"}  # one figure for all splits, where each has its own
    assert together.norms["alpha_hv_over_v"].unique().numel() == 1


def test_sharing_drops_the_hessian_at_first_order():
    first, none = (
        meta_gradient(
            readable(),
            domains(3),
            alpha=ALPHA,
            gamma=GAMMA,
            order=order,
            losses=APART,
            sharing="per_domain",
            batch_norm="frozen",
        )
        for order in (1, 0)
    )
    assert not first.norms["alpha_hv_over_v"].any()
    assert (flat(first.grad) - flat(none.grad)).norm() > 1e-3 * flat(none.grad).norm()


def test_sharing_refuses_a_single_domain():
    with pytest.raises(ValueError, match="at least two domains to share between splits, got 1"):
        meta_gradient(
            readable(), domains(1), alpha=ALPHA, gamma=GAMMA, losses=APART, sharing="per_domain", batch_norm="frozen"
        )
