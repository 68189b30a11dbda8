"""Whole meta steps: against meta_gradient and torch's own SGD, recorded and replayed, and in lower precision."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from fastmfr.backbone import MfrNet, build
from fastmfr.losses import MfrLosses
from fastmfr.meta import MetaSettings, MetaTrainer, PairBatch, cuda_graph, meta_gradient
from fastmfr.training.optim import set_rate, sgd

LOSSES = MfrLosses(tau_p=2.0, tau_n=-2.0, scale=3.0, domain_alignment=0.0)
RATES = {"alpha": 0.1, "rate": 0.05, "losses": LOSSES}


def network(dtype=torch.float64):
    torch.manual_seed(3)
    return MfrNet(5, 0.0625, blocks=(1, 1, 1, 1)).to(dtype, memory_format=torch.channels_last)


def meta_batch(seed, dtype=torch.float64, domains=(0, 1, 2), pairs=4, size=16):
    """A (train, test) pair of batches of each domain; as splits, each trains and tests on that one."""
    gen = torch.Generator().manual_seed(seed)

    def batch(domain):
        gallery, probe = (torch.randn(pairs, 3, size, size, generator=gen).to(dtype) for _ in range(2))
        return PairBatch(gallery, probe, torch.full((pairs,), domain))

    return [(batch(domain), batch(domain)) for domain in domains]


def optimizer_of(net):
    return sgd(net.parameters(), momentum=0.9, weight_decay=0.01)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"order": 1},
        {"order": 0},
        {"engine": "autograd"},
        {"memory": "streaming"},
        {"sharing": "per_domain", "batch_norm": "per_domain"},
        {"sharing": "per_domain", "batch_norm": "frozen"},
    ],
    ids=str,
)
def test_steps_are_those_of_sgd_along_the_meta_gradient(settings):
    net, settings = network(), MetaSettings(0.3, **settings)
    twin = copy.deepcopy(net)
    trainer, theirs = MetaTrainer(net, optimizer_of(net), settings), optimizer_of(twin)
    set_rate(theirs, RATES["rate"])
    for seed in range(2):  # the second step is the first one with momentum
        got = trainer.step(meta_batch(seed), **RATES)
        expected = meta_gradient(twin, meta_batch(seed), alpha=RATES["alpha"], losses=LOSSES, **vars(settings))
        for name, parameter in twin.named_parameters():
            parameter.grad = expected.grad[name]
        theirs.step()
        length = torch.cat([value.flatten() for value in expected.grad.values()]).norm()
        torch.testing.assert_close(got.gradient_norm, length)
        for mine, other in ((got.losses, expected.losses), (got.norms, expected.norms)):
            assert mine.keys() == other.keys()
            for name in mine:
                torch.testing.assert_close(mine[name], other[name], msg=name)
    for (name, mine), other in zip(net.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(mine, other, msg=name)
    assert trainer.engine == expected.engine


class Recorder:
    """In the place of CUDA: a replay runs the function again and writes into the tensors that the recording gave."""

    def __init__(self, monkeypatch):
        self.recorded, self.replayed = 0, 0
        monkeypatch.setattr(cuda_graph, "record", self)
        monkeypatch.setattr(cuda_graph, "_obstacle", lambda backbone, settings: "")

    def __call__(self, function):
        self.recorded += 1
        result = {}

        def replay():
            self.replayed += 1
            result.update(vars(function()))

        return replay, result


def test_a_step_is_recorded_the_second_time_and_anew_where_anything_but_the_images_changes(monkeypatch):
    recorder, net = Recorder(monkeypatch), network()
    twin = copy.deepcopy(net)
    trainer = MetaTrainer(net, optimizer_of(net), MetaSettings(0.3))
    plain = MetaTrainer(twin, optimizer_of(twin), MetaSettings(0.3), cuda_graph=False)
    assert "as soon as two have had the same shapes" in trainer.graph
    halved, stricter = RATES | {"alpha": 0.05}, RATES | {"losses": replace(LOSSES, tau_n=0.0)}
    steps = [RATES, RATES, RATES, halved, halved, stricter, halved]
    told = []
    for seed, rates in enumerate(steps):
        for one in (trainer, plain):
            one.step(meta_batch(seed), **rates)
        told.append((recorder.recorded, recorder.replayed))
    assert told == [(0, 0), (1, 1), (1, 2), (1, 2), (2, 3), (2, 3), (2, 3)]
    for seed in (7, 8):
        for one in (trainer, plain):
            one.step(meta_batch(seed, domains=(0, 1)), **halved)
    assert (recorder.recorded, recorder.replayed) == (3, 4)
    assert trainer.graph == "steps are replayed from a CUDA graph"
    for mine, other in zip(net.parameters(), twin.parameters(), strict=True):
        assert torch.equal(mine, other)


def test_what_cannot_be_recorded_runs_as_it_is_and_says_why(monkeypatch):
    def refuse(function):
        raise RuntimeError("operation not permitted\nwhen stream is capturing")

    Recorder(monkeypatch)
    monkeypatch.setattr(cuda_graph, "record", refuse)
    net = network()
    twin = copy.deepcopy(net)
    trainer = MetaTrainer(net, optimizer_of(net), MetaSettings(0.3))
    plain = MetaTrainer(twin, optimizer_of(twin), MetaSettings(0.3), cuda_graph=False)
    for seed in range(3):
        for one in (trainer, plain):
            one.step(meta_batch(seed), **RATES)
    assert trainer.graph.endswith("recorded as a CUDA graph: operation not permitted when stream is capturing")
    assert plain.graph == "steps run operation by operation, as was asked for"
    for mine, other in zip(net.parameters(), twin.parameters(), strict=True):
        assert torch.equal(mine, other)


@pytest.mark.parametrize(
    ("settings", "momentum", "sentence"),
    [
        ({}, 0.1, "the device is meta, which has no CUDA graphs"),
        ({"batch_norm": "per_domain"}, 0.1, "'per_domain' reads the domains of every batch on the host"),
        ({}, None, "1 counts its batches on the host"),
        ({"batch_norm": "per_domain", "sharing": "per_domain"}, 0.1, ""),
        ({"curvature": "fp32"}, 0.1, r"dropout (2) would draw other numbers for H v"),
    ],
)
def test_says_what_keeps_a_step_from_being_recorded(settings, momentum, sentence, monkeypatch):
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, momentum=momentum), nn.Dropout(0.1))
    if "device" in sentence:
        net = net.to("meta")
    else:
        monkeypatch.setattr(nn.Parameter, "device", torch.device("cuda"), raising=False)
    found = cuda_graph._obstacle(net, MetaSettings(0.3, **settings))
    assert sentence in found
    assert bool(found) == bool(sentence)


def relative(got, truth):
    flat = [torch.cat([value.flatten().double() for value in one.grad.values()]) for one in (got, truth)]
    return ((flat[0] - flat[1]).norm() / flat[1].norm()).item()


def shallow(dtype=torch.float32):
    """Not deep, for little batches make deep BatchNorm a magnifying glass; no kinks, which magnify too."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, 2), nn.BatchNorm2d(8), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(72, 5)).to(dtype)


@pytest.mark.parametrize("engine", ["rop", "autograd"])
def test_precision_of_the_gradient_and_of_the_curvature_are_chosen_apart(engine):
    def gradient(net, dtype=torch.float32, **precision):
        return meta_gradient(
            net,
            meta_batch(0, dtype),
            alpha=0.05,
            gamma=0.3,
            losses=LOSSES,
            engine=engine,
            memory="streaming",
            **precision,
        )

    truth = gradient(shallow(torch.float64), torch.float64)
    in_full, both, first = (
        gradient(shallow(), **precision)
        for precision in ({"precision": "fp32"}, {"precision": "bf16"}, {"precision": "bf16", "curvature": "fp32"})
    )
    assert relative(in_full, truth) < 1e-4
    assert relative(in_full, gradient(shallow())) == 0
    for low in (both, first):
        assert 1e-3 < relative(low, truth) < 0.2
    assert relative(both, first) > 1e-4
    assert all(value.dtype == torch.float32 for value in both.grad.values())


def test_refuses_a_precision_that_the_device_or_the_memory_does_not_go_with():
    with pytest.raises(ValueError, match="tf32 is arithmetic of NVIDIA GPUs and the device is cpu; want fp32 or bf16"):
        meta_gradient(network(), meta_batch(0), alpha=0.1, gamma=0.3, precision="tf32")
    with pytest.raises(ValueError, match="out of 'fp32', 'tf32', 'bf16', got 'fp8'"):
        meta_gradient(network(), meta_batch(0), alpha=0.1, gamma=0.3, precision="fp8")
    with pytest.raises(ValueError, match="goes on from passes in bf16, so it cannot compute H v in fp32"):
        MetaSettings(0.3, memory="kept", precision="bf16", curvature="fp32")


def on_gpu(batches):
    def move(pairs):
        images = (
            half.cuda().contiguous(memory_format=torch.channels_last) for half in (pairs.gallery_B3HW, pairs.probe_B3HW)
        )
        return PairBatch(*images, pairs.domain_B.cuda())

    return [tuple(map(move, split)) for split in batches]


def larger(seed):
    """A network that rounding does not throw off its way, on the GPU, and what steps it."""
    torch.manual_seed(seed)
    net = build("mfr28", embedding=16, width=0.25).cuda().to(memory_format=torch.channels_last)
    return net, optimizer_of(net)


def take_state(net, optimizer, other, its_optimizer):
    net.load_state_dict(other.state_dict())
    for mine, its in zip(net.parameters(), other.parameters(), strict=True):
        optimizer.state[mine]["momentum_buffer"].copy_(its_optimizer.state[its]["momentum_buffer"])


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:Synchronization debug mode")  # a prototype feature, torch says
@pytest.mark.skipif(not torch.cuda.is_available(), reason="records a CUDA graph")
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"memory": "streaming"},
        {"engine": "autograd"},
        {"precision": "bf16", "curvature": "tf32"},
        {"sharing": "per_domain", "batch_norm": "per_domain"},
    ],
    ids=str,
)
def test_a_replayed_step_is_the_plain_one_and_the_host_waits_for_neither(settings):
    settings = {"precision": "fp32"} | settings
    pairs = [larger(3) for _ in range(2)]
    recorded, plain = (
        MetaTrainer(*pair, MetaSettings(0.3, **settings), cuda_graph=cuda_graph)
        for pair, cuda_graph in zip(pairs, (True, False), strict=True)
    )
    # A value that is rounded to the other side of PReLU's 0 moves H v by some 2e-3, its length by less.
    tolerance, of_all = (1e-3, 1e-2) if settings["precision"] == "fp32" else (5e-2, 5e-2)
    for seed in range(5):
        take_state(*pairs[1], *pairs[0])  # steps apart grow apart: each is compared from where both stand
        splits = on_gpu(meta_batch(seed, torch.float32, pairs=16, size=48))
        torch.cuda.set_sync_debug_mode("error" if seed > 1 else "default")  # kernels are compiled at first
        try:
            steps = [trainer.step(splits, alpha=1e-3, rate=1e-3, losses=LOSSES) for trainer in (recorded, plain)]
        finally:
            torch.cuda.set_sync_debug_mode("default")
        lengths = [step.gradient_norm for step in steps]
        torch.testing.assert_close(*lengths, rtol=tolerance, atol=0)
        momenta = [optimizer.state[value]["momentum_buffer"] for net, optimizer in pairs for value in net.parameters()]
        half = len(momenta) // 2
        mine, its = (torch.cat([one.flatten() for one in part]) for part in (momenta[:half], momenta[half:]))
        assert (mine - its).norm() <= of_all * its.norm()
    assert recorded.graph == "steps are replayed from a CUDA graph"
    assert plain.graph == "steps run operation by operation, as was asked for"
