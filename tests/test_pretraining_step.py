"""Pretraining steps: recorded on a stand-in for CUDA, on a device where there is one, and their losses read late."""

import contextlib
import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from fastmfr import cuda_graph
from fastmfr.backbone import build
from fastmfr.config import parse
from fastmfr.distributed import ALONE
from fastmfr.head import MarginHead, make_margin
from fastmfr.precision import autocast, matmul_precision
from fastmfr.training import pretrain, pretraining_step
from fastmfr.training.errors import NonFiniteLoss
from fastmfr.training.logbook import Logbook
from fastmfr.training.optim import set_rate, sgd
from fastmfr.training.pretraining_step import PretrainingStep

SGD = {"momentum": 0.9, "weight_decay": 0.01}
REPLAYED = "steps are replayed from a CUDA graph"


class Recorder:
    """In the place of CUDA: a replay runs the function again and writes into the tensors of its first run."""

    def __init__(self, monkeypatch):
        self.recorded, self.replayed = 0, 0
        monkeypatch.setattr(pretraining_step, "record", self)
        monkeypatch.setattr(cuda_graph, "obstacle", lambda network: "")

    def __call__(self, function):
        self.recorded += 1
        result = SimpleNamespace()

        def replay():
            self.replayed += 1
            written = function()
            if not vars(result):
                vars(result).update(vars(written))
                return
            result.loss_B.copy_(written.loss_B)
            for mine, its in zip(result.gradients, written.gradients, strict=True):
                mine.copy_(its)

        return replay, result


def make_batch(seed, B, device="cpu"):
    gen = torch.Generator().manual_seed(seed)
    return torch.randn(B, 3, 16, 16, generator=gen).to(device), torch.randint(50, (B,), generator=gen).to(device)


class Trainer:
    """A backbone, a classifier and their steps, as the stage puts them together."""

    def __init__(self, device="cpu", *, margin="cosface", dropout=0.0, sample_rate=1.0, **options):
        torch.manual_seed(3)
        layers = [nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, 2), nn.BatchNorm2d(8), nn.Flatten()]
        self.net = nn.Sequential(*layers, nn.Dropout(dropout), nn.Linear(72, 16)).to(device).train()
        self.net = self.net.to(memory_format=torch.channels_last)
        self.head = MarginHead(16, 50, make_margin(margin), 8.0, sample_rate=sample_rate).to(device)
        self.sgd = sgd(self.net.parameters(), **SGD)
        self.run = PretrainingStep(self.net, self.head, **options)

    def step(self, seed, B=20, rate=0.1, batch=None):
        rate /= 1 + seed  # another at each step
        set_rate(self.sgd, rate)
        loss = self.run(*(batch or make_batch(seed, B)), draw=seed)
        self.sgd.step()
        self.head.update(rate, **SGD)
        return loss.clone()

    def state(self):
        return {
            **self.net.state_dict(prefix="net."),
            **self.head.state_dict(prefix="head."),
            "inverse": self.head.inverse_norms(),
        }


def as_it_was(trainer, seed, B=20, rate=0.1, precision=None):
    """The step written out, operation by operation."""
    image, label = make_batch(seed, B)
    set_rate(trainer.sgd, rate / (1 + seed))
    with autocast(precision, image.device):
        loss = trainer.head(trainer.net(image.contiguous(memory_format=torch.channels_last)), label, draw=seed)
    trainer.sgd.zero_grad()
    with matmul_precision(precision):
        loss.mean().backward()
    trainer.sgd.step()
    trainer.head.update(rate / (1 + seed), **SGD)
    return loss.detach()


def assert_same(mine, other):
    for name, value in other.state().items():
        assert torch.equal(mine.state()[name], value), name


@pytest.mark.parametrize(("margin", "precision"), [("cosface", None), ("adaface", "fp32"), ("arcface", "bf16")])
def test_recorded_steps_are_the_plain_ones_and_recorded_anew_where_shapes_change(monkeypatch, margin, precision):
    recorder, mine, plain = Recorder(monkeypatch), Trainer(margin=margin, precision=precision), Trainer(margin=margin)
    assert "as soon as two have had the same shapes" in mine.run.state
    told = []
    for seed, B in enumerate([20, 20, 20, 20, 12, 20, 20, 20]):
        assert torch.equal(mine.step(seed, B), as_it_was(plain, seed, B, precision=precision))
        assert mine.head.weight_CD.grad is None
        told.append((recorder.recorded, recorder.replayed))
    assert told == [(0, 0), (1, 1), (1, 2), (1, 3), (1, 3), (1, 3), (2, 4), (2, 5)]
    assert mine.run.state == REPLAYED
    assert_same(mine, plain)


def test_a_replay_reads_inverse_norms_where_they_were_also_after_others_have_changed_the_weights(monkeypatch):
    Recorder(monkeypatch)
    mine, plain = Trainer(), Trainer()
    at, replays = mine.head.inverse_norm_C, []

    def record(function, inner=pretraining_step.record):
        replay, result = inner(function)

        def looking():
            assert mine.head._normed == mine.head.weight_CD._version
            replays.append(1)
            replay()

        return looking, result

    monkeypatch.setattr(pretraining_step, "record", record)
    for seed in range(5):
        if seed in (1, 3):  # before the recording, and before a replay
            for one in (mine, plain):
                with torch.no_grad():
                    one.head.weight_CD.mul_(3)
        mine.step(seed)
        as_it_was(plain, seed)
    assert len(replays) == 4
    assert mine.head.inverse_norm_C is at
    assert_same(mine, plain)


def test_what_cannot_be_recorded_runs_as_it_is_and_says_why(monkeypatch):
    def refuse(function):
        raise RuntimeError("operation not permitted\nwhen stream is capturing")

    Recorder(monkeypatch)
    monkeypatch.setattr(pretraining_step, "record", refuse)
    mine, plain = Trainer(), Trainer()
    for seed in range(4):
        assert torch.equal(mine.step(seed), as_it_was(plain, seed))
    assert mine.run.state.endswith("recorded as a CUDA graph: operation not permitted when stream is capturing")
    assert_same(mine, plain)


def test_a_share_of_the_identities_runs_as_it_is(monkeypatch):
    recorder, mine, plain = Recorder(monkeypatch), Trainer(sample_rate=0.6), Trainer(sample_rate=0.6)
    for seed in range(4):
        assert torch.equal(mine.step(seed), as_it_was(plain, seed))
    assert not recorder.recorded
    assert "for sample_rate 0.6 draws identities on the host" in mine.run.state
    assert_same(mine, plain)


def test_says_what_keeps_steps_from_being_recorded(monkeypatch):
    assert Trainer().run.state == "steps run operation by operation, for the device is cpu, which has no CUDA graphs"
    assert Trainer(cuda_graph=False).run.state == "steps run operation by operation, as was asked for"
    monkeypatch.setattr(nn.Parameter, "device", torch.device("cuda"), raising=False)
    net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8, momentum=None))
    head = MarginHead(8, 5, make_margin("cosface"))
    assert "1 counts its batches on the host" in pretraining_step.obstacle(net, head)
    assert pretraining_step.obstacle(net[:1], head) == ""
    head.group = object()
    assert "spread over several ranks" in pretraining_step.obstacle(net[:1], head)


def test_nothing_of_a_step_outlives_it_in_autograd():
    """Else a recording would meet nodes that began on another stream, and could not wait for them."""
    trainer = Trainer(precision="bf16")
    nodes = lambda: [value.expand_as(value).grad_fn.next_functions[0][0] for value in trainer.run._trained]  # noqa: E731
    kept = trainer.run(torch.randn(8, 3, 16, 16), torch.arange(8))
    assert not kept.requires_grad
    for node in nodes():
        node.metadata["seen"] = True
    del node
    assert not any("seen" in node.metadata for node in nodes())


def tiny_run(tmp_path, *argv):
    """(a run of a few steps on random images, its backbone, what it records, its saves as (step, steps recorded))."""
    config = parse(
        ["--pretrain.batch_identities=4", "--pretrain.warmup=1", "--save_every=2", "--pretrain.scale=4", *argv]
    )[0]
    offsets = np.arange(0, 4 * 9, 4)
    domains = [SimpleNamespace(name=name, offsets=offsets) for name in ("studio", "street")]
    sources = SimpleNamespace(domains=domains, identities=16, images=64, people=None)
    sources.label = lambda domain, identity: domain * 8 + identity

    @contextlib.contextmanager
    def open_images(requests, *, slot_B, first, last):
        class Stream:
            wait_seconds = 0.0

            def __iter__(self):
                for step in range(first, last):
                    assert len(requests(step)[0]) == len(slot_B)
                    yield step, torch.randn(len(slot_B), 3, 16, 16, generator=torch.Generator().manual_seed(step))

        yield Stream()

    recorded, saved = [], []
    logbook = Logbook(tmp_path)
    logbook.record = lambda stage, step, **values: recorded.append((step, values["loss"], values["learning_rate"]))
    keep = lambda step, *_, aside=False: saved.append((step, len(recorded)))  # noqa: E731
    checkpoints = SimpleNamespace(resume=lambda *_: 0, save=keep, wait=lambda: None)
    torch.manual_seed(0)
    backbone = build("mfr28", embedding=5, width=0.0625).to(memory_format=torch.channels_last)
    run = SimpleNamespace(
        config=config,
        device=torch.device("cpu"),
        logbook=logbook,
        data={"pretrain": SimpleNamespace(sources=sources, images=SimpleNamespace(open=open_images))},
        checkpoints=lambda stage: checkpoints,
        ranks=ALONE,
        score_on_the_way=lambda stage, backbone, steps: None,
    )
    return run, backbone, recorded, saved


def test_losses_read_late_are_the_same_and_read_before_a_state_is_saved(tmp_path, monkeypatch, capsys):
    ended = []
    for kept_back in (0, 1):
        monkeypatch.setattr(pretrain, "KEPT_BACK", {"cpu": kept_back})
        run, backbone, recorded, saved = tiny_run(tmp_path, "--pretrain.steps=5")
        behind = []
        run.score_on_the_way = lambda stage, backbone, steps: behind.append(steps - len(recorded))  # noqa: B023
        pretrain.pretrain(run, backbone)
        assert behind == [kept_back, 0, kept_back, 0, 0]
        assert saved == [(2, 2), (4, 4), (5, 5)]
        assert all(value.grad is None for value in backbone.parameters())
        ended.append((recorded, copy.deepcopy(backbone.state_dict())))
    assert ended[0][0] == ended[1][0]
    assert [step for step, *_ in recorded] == list(range(5))
    for name, value in ended[0][1].items():
        assert torch.equal(value, ended[1][1][name])
    text = " ".join(capsys.readouterr().out.split())
    assert "pretrain: steps run operation by operation, for the device is cpu, which has no CUDA graphs; peak" in text


def test_a_loss_that_is_not_finite_is_found_late_but_before_a_state_is_saved(tmp_path, monkeypatch):
    monkeypatch.setattr(pretrain, "KEPT_BACK", {"cpu": 1})
    run, backbone, recorded, saved = tiny_run(tmp_path, "--pretrain.steps=8", "--save_every=3")
    inner, calls = PretrainingStep.__call__, []

    def poisoned(self, *batch):
        loss = inner(self, *batch)
        calls.append(1)
        return loss.index_fill(0, torch.tensor([0]), torch.nan) if len(calls) == 6 else loss

    monkeypatch.setattr(PretrainingStep, "__call__", poisoned)
    with pytest.raises(NonFiniteLoss, match=r"not finite at pretraining step 5, on images of (studio|street);"):
        pretrain.pretrain(run, backbone)
    assert (len(calls), len(recorded), saved) == (6, 5, [(3, 3)])


on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="records a CUDA graph")


@on_gpu
@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:Synchronization debug mode")  # a prototype feature, torch says
@pytest.mark.parametrize(
    ("options", "off"),
    [
        ({"precision": "fp32"}, 1e-4),
        ({"margin": "adaface", "precision": "fp32"}, 1e-4),
        ({"precision": "bf16"}, 3e-2),
    ],
    ids=str,
)
def test_replayed_steps_are_the_plain_ones_and_the_host_waits_for_neither(options, off):
    ended = []
    for cuda_graph_wanted in (True, False):
        trainer, losses = Trainer("cuda", cuda_graph=cuda_graph_wanted, **options), []
        for seed, batch in enumerate([make_batch(seed, 64, "cuda") for seed in range(6)]):
            torch.cuda.set_sync_debug_mode("error" if seed > 1 else "default")  # kernels are compiled at first
            try:
                losses.append(pretraining_step.to_host(trainer.step(seed, rate=0.02, batch=batch)))
            finally:
                torch.cuda.set_sync_debug_mode("default")
        assert (trainer.run.state == REPLAYED) == cuda_graph_wanted, trainer.run.state
        ended.append((torch.stack([read() for read in losses]), trainer.state()))
    torch.testing.assert_close(ended[0][0], ended[1][0], rtol=off, atol=off)
    for name, value in ended[1][1].items():
        torch.testing.assert_close(ended[0][1][name], value, rtol=off, atol=off, msg=name)


@on_gpu
@pytest.mark.gpu
def test_dropout_draws_anew_at_each_replay():
    trainer, batch = Trainer("cuda", dropout=0.5), make_batch(0, 64, "cuda")
    losses = [trainer.step(seed, rate=0.0, batch=batch) for seed in range(5)]
    assert trainer.run.state == REPLAYED
    assert len({loss.mean().item() for loss in losses}) == 5


@on_gpu
@pytest.mark.gpu
def test_a_loss_read_late_is_the_one_it_was():
    value = torch.ones(1 << 10, device="cuda")
    read = pretraining_step.to_host(value)
    value.zero_()
    assert read().sum().item() == 1 << 10
