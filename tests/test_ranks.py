"""Training over several processes: each has its share of every batch, and all of them end where one process ends."""

import json
import os
import re
import signal
import time
from contextlib import redirect_stderr, redirect_stdout

import numpy as np
import pytest
import torch
from helpers import command, free_port, on_ranks
from small_runs import arguments, main, records
from torch import distributed as dist

from fastmfr.backbone import build
from fastmfr.decode import Preprocess, open_stream
from fastmfr.distributed import ALONE, OnAllRanks, Ranks, common_store, joined_ranks, over_ranks
from fastmfr.domains import open_domain
from fastmfr.fused import fused, has_batch_norm
from fastmfr.head import MarginHead, make_margin
from fastmfr.losses import MfrLosses
from fastmfr.meta import MetaSettings, MetaTrainer, PairBatch
from fastmfr.run_folder import begun_before, note_begun
from fastmfr.sampler import Pairs
from fastmfr.training import Logbook
from fastmfr.training.checkpoint import Checkpoints
from fastmfr.training.data import images_of, share_of, slots_of
from fastmfr.training.optim import set_rate, sgd
from fastmfr.training.pretraining_step import PretrainingStep
from fastmfr.watch import Watch

META_CASES = {
    "frozen": {"batch_norm": "frozen"},
    "kept": {"batch_norm": "batch", "memory": "kept"},
    "streaming": {"batch_norm": "batch", "memory": "streaming"},
    "autograd": {"batch_norm": "frozen", "engine": "autograd"},
    "first order": {"order": 1},
    "shared": {"batch_norm": "per_domain", "sharing": "per_domain"},
}
SAMPLE_RATES = (1.0, 0.3)
EMBEDDING = 5


def small_network():
    """All that ranks share in a backbone: statistics of images and of rows, with a PReLU behind them and without."""
    torch.manual_seed(0)
    return torch.nn.Sequential(
        *(torch.nn.Conv2d(3, 6, 3, 2, 1, bias=False), torch.nn.BatchNorm2d(6), torch.nn.PReLU(6)),
        *(torch.nn.Conv2d(6, 8, 3, 2, 1), torch.nn.BatchNorm2d(8)),
        *(torch.nn.Flatten(), torch.nn.Linear(8 * 9, EMBEDDING), torch.nn.BatchNorm1d(EMBEDDING)),
    ).double()


def joined(rank, world, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world)
    return dist.group.WORLD


def meta_steps(ranks, *, steps=2, pairs=8, **settings):
    """(weights, losses and norms) after some steps in float64, of batches that all ranks draw."""
    network = small_network()
    chosen = MetaSettings(**({"order": 2} | settings))
    trainer = MetaTrainer(network, sgd(network.parameters(), 0.9, 5e-4), chosen, group=ranks.group)
    losses = MfrLosses(mining="share", scale=8.0, domain_alignment=float(chosen.sharing == "none"))
    lot, own = torch.Generator().manual_seed(1), ranks.share(pairs)

    def half():
        gallery, probe = (torch.randn(pairs, 3, 12, 12, generator=lot, dtype=torch.float64) for _ in range(2))
        return PairBatch(gallery[own], probe[own], torch.arange(pairs)[own] % 2)

    measured = {}
    for _ in range(steps):
        step = trainer.step([(half(), half()) for _ in range(2)], alpha=0.05, rate=0.02, losses=losses)
        measured = {**step.losses, **step.norms}
    return network.state_dict(), measured


def pretraining_steps(ranks, sample_rate, *, steps=4, images=16):
    """The same of pretraining: (weights of the backbone, rows of the classifier of all ranks, last loss)."""
    backbone = small_network()
    margin = make_margin("cosface", (0.3,))
    head = MarginHead(EMBEDDING, 41, margin, 16.0, sample_rate=sample_rate, group=ranks.group).double()
    optimizer, network = sgd(backbone.parameters(), 0.9, 5e-4), backbone
    if ranks.group:
        network = over_ranks(fused(backbone, ranks.group)[0], ranks.group, same_buffers=False)
    step_of, own, lot = PretrainingStep(network, head), ranks.share(images), torch.Generator().manual_seed(1)
    loss = torch.zeros(())
    for step in range(steps):
        image_B3HW = torch.randn(images, 3, 12, 12, generator=lot, dtype=torch.float64)
        label_B = torch.randint(41, (images,), generator=lot)
        loss = ranks.sum_(step_of(image_B3HW[own], label_B[own], step).sum()) / images
        set_rate(optimizer, 0.02)
        optimizer.step()
        row_N, weight_ND = head._drawn or (torch.arange(len(head.weight_CD)), head.weight_CD)
        with torch.no_grad():  # the update's kernel is of float32
            head.weight_CD[row_N] -= 0.02 * weight_ND.grad / ranks.world
        head._drawn = None
    return backbone.state_dict(), torch.cat(ranks.gather(head.weight_CD.detach())), loss


def _steps_of_one_rank(rank, world, folder):
    ranks = Ranks(joined(rank, world, folder))
    found = {name: meta_steps(ranks, **settings) for name, settings in META_CASES.items()}
    found |= {rate: pretraining_steps(ranks, rate) for rate in SAMPLE_RATES}
    torch.save(found, folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def of_two(tmp_path_factory):
    """What each of two ranks has after the steps of all cases."""
    folder = tmp_path_factory.mktemp("steps")
    on_ranks(_steps_of_one_rank, 2, folder)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("case", META_CASES)
def test_two_ranks_take_the_meta_steps_of_one(of_two, case):
    weights, measured = meta_steps(ALONE, **META_CASES[case])
    tolerance = {"rtol": 1e-9, "atol": 1e-9}
    for found, figures in (of_rank[case] for of_rank in of_two):
        torch.testing.assert_close(found, weights, **tolerance)
        torch.testing.assert_close(figures, measured, **tolerance)
    for name, value in of_two[0][case][0].items():  # the ranks must not go apart by a bit, or they go apart for good
        assert torch.equal(value, of_two[1][case][0][name]), name


@pytest.mark.parametrize("sample_rate", SAMPLE_RATES)
def test_two_ranks_take_the_pretraining_steps_of_one(of_two, sample_rate):
    backbone, rows, loss = pretraining_steps(ALONE, sample_rate)
    for found, of_ranks, last in (of_rank[sample_rate] for of_rank in of_two):
        torch.testing.assert_close(found, backbone, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(of_ranks, rows, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(last, loss, rtol=1e-9, atol=1e-9)


def test_what_ranks_cannot_do_is_said():
    class Stranger(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.inner = torch.nn.BatchNorm2d(3), build("mfr28", width=0.0625)

        def forward(self, image_B3HW):
            return self.inner(self.norm(image_B3HW).erf())

    def trainer(backbone, **settings):
        return MetaTrainer(backbone, sgd(backbone.parameters(), 0.9, 0), MetaSettings(**settings), group=object())

    with pytest.raises(ValueError, match=r"autograd computes the meta step .* want meta\.batch_norm frozen"):
        trainer(Stranger())
    assert trainer(Stranger(), batch_norm="frozen").engine == "autograd"
    with pytest.raises(ValueError, match="per_domain wants all images of a domain in one process"):
        trainer(build("mfr28", width=0.0625), batch_norm="per_domain")
    assert has_batch_norm(Stranger())
    assert not has_batch_norm(fused(Stranger())[0])


class Rank(Ranks):
    """One of several ranks that never meet."""

    def __init__(self, number, world):
        super().__init__()
        self.number, self.world = number, world


def test_ranks_share_the_slots_of_a_batch_and_their_changes(faces):
    """The images of three ranks, put where their slots are, are the batch of one process, to the bit."""
    domain = open_domain(faces["studio"], "studio")
    look = Preprocess(size=32, flip=0.5, translate=2, contrast=0.2, low_resolution=0.5)
    six, twelve = (Pairs(*np.arange(4 * n).reshape(4, n) % [[1], [24], [96], [96]]) for n in (6, 12))
    requests = lambda _: images_of(six, twelve)  # noqa: E731

    def batch(ranks, cache):
        slot_B = slots_of(ranks, six, twelve)
        own = lambda i: tuple(part[slot_B] for part in requests(i))  # noqa: E731
        options = {"batch_images": len(slot_B), "first": 3, "last": 4, "cache": cache, "decoder": "pillow"}
        with open_stream([domain], own, look, slot_B=slot_B, **options) as stream:
            return slot_B, next(iter(stream))[1]

    slots, whole = batch(ALONE, "none")
    assert np.array_equal(slots, np.arange(36))
    for cache in ("none", "host"):
        found = torch.zeros_like(whole)
        for number in range(3):
            slot_B, own = batch(Rank(number, 3), cache)
            found[slot_B] = own
            assert np.array_equal(requests(3)[1][slot_B[:2]], share_of(Rank(number, 3), six).gallery)
        assert torch.equal(found, whole)


def test_a_batch_that_the_ranks_cannot_share_equally_is_refused():
    with pytest.raises(ValueError, match="3 ranks can share equally, got 8"):
        Rank(0, 3).share(8)


def networks_of(ranks):
    """A classifier as it is after a step, its rows shared out, beside a backbone."""
    torch.manual_seed(0)
    head = MarginHead(8, 13, make_margin("cosface", (0.3,)), 16.0, group=ranks.group)
    with torch.no_grad():
        head.momentum_CD.copy_(2 * head.weight_CD)
    return torch.nn.ModuleDict({"backbone": torch.nn.Linear(3, 8), "head": head})


def _save_and_resume(rank, world, folder, place, first_rank_saves):
    """A state of 13 rows: saved by these ranks, or read by these ranks and compared."""
    ranks = Ranks(joined(rank, world, folder))
    networks = networks_of(ranks)
    optimizer = sgd(networks["backbone"].parameters(), 0.9, 0)
    states = Checkpoints(place, "pretrain", ranks=ranks)
    if first_rank_saves:
        states.save(5, networks, optimizer)
    else:
        wanted = [value.clone() for value in networks.state_dict().values()]
        for value in networks.state_dict().values():
            value.zero_()
        assert states.resume(networks, optimizer) == 5
        assert all(map(torch.equal, networks.state_dict().values(), wanted))
    dist.destroy_process_group()


def test_a_state_of_two_ranks_is_read_by_three_and_by_one(tmp_path):
    states = tmp_path / "states"
    for name, world, saves in (("a", 2, True), ("b", 3, False)):
        (tmp_path / name).mkdir()
        on_ranks(_save_and_resume, world, tmp_path / name, states, saves, world=world)
    files = sorted(path.name for path in (states / "pretrain-00000005").iterdir())
    assert files == ["rows-0-6.safetensors", "rows-6-13.safetensors", "state.json", "state.safetensors"]
    alone, wanted = networks_of(ALONE), networks_of(ALONE).state_dict()
    for value in alone.state_dict().values():
        value.zero_()
    said = []
    optimizer = sgd(alone["backbone"].parameters(), 0.9, 0)
    assert Checkpoints(states, "pretrain", said.append).resume(alone, optimizer) == 5
    assert all(torch.equal(value, wanted[name]) for name, value in alone.state_dict().items())
    (states / "pretrain-00000005/rows-6-13.safetensors").unlink()
    assert Checkpoints(states, "pretrain", said.append).resume(alone, optimizer) == 0
    assert "rows-6-13.safetensors is missing" in said[0]


def _fail_alone(rank, world, folder):
    """The second rank alone fails, in a block that all leave alike."""
    ranks = Ranks(joined(rank, world, folder))

    def fail_on(number):
        if rank == number:
            raise OSError(f"process {number} found no file")

    with pytest.raises(OnAllRanks, match="process 1 found no file"), ranks.alike():
        fail_on(1)
    with pytest.raises(OnAllRanks, match="process 0 found no file"):
        ranks.by_first(lambda: fail_on(0))
    order = folder / "order"
    ranks.in_turn(lambda: order.open("a").write(f"{rank}"))
    assert order.read_text()[0] == "0"
    assert sorted(order.read_text()) == [str(number) for number in range(world)]
    assert ranks.any(rank == 1)
    assert not ranks.any(False)
    assert ranks.of_first(rank) == 0
    dist.destroy_process_group()


def test_an_error_of_one_rank_is_raised_by_all(tmp_path):
    on_ranks(_fail_alone, 3, tmp_path, world=3)


def _hang_until_named(rank, world, folder, port):
    """The second rank stands still, until the first one, which waits for it, has said so."""
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=port, RANK=str(rank), WORLD_SIZE=str(world))
    dist.init_process_group("gloo", store=common_store(), rank=rank, world_size=world)
    ranks, named = Ranks(dist.group.WORLD), folder / "named.txt"
    with Watch(ranks, named.write_text, patience=0.3, every=0.1):
        while rank == 1 and not named.exists():
            time.sleep(0.05)
        ranks.gather(None)
    dist.destroy_process_group()


def test_a_process_that_hangs_is_named(tmp_path):
    on_ranks(_hang_until_named, 2, tmp_path, free_port())
    said = (tmp_path / "named.txt").read_text()
    assert "1 of 2 wait for others: process 1, " in said
    assert re.search(r"on \S+, pid \d+$", said)


def _start(rank, world, port, restart):
    os.environ.update(TORCHELASTIC_RUN_ID="test", TORCHELASTIC_USE_AGENT_STORE="True", MASTER_ADDR="127.0.0.1")
    os.environ.update(MASTER_PORT=port, TORCHELASTIC_RESTART_COUNT=restart, RANK=str(rank), WORLD_SIZE=str(world))
    with joined_ranks() as group:
        assert Ranks(group).gather(rank) == [0, 1]


def test_processes_that_are_started_again_do_not_look_for_those_before():
    """torchrun may keep its store, in which the addresses of the processes before still are."""
    port = free_port()
    store = dist.TCPStore("127.0.0.1", int(port), is_master=True, wait_for_workers=False)
    for restart in ("0", "1"):
        on_ranks(_start, 2, port, restart)
    assert store.num_keys() > 2


def test_processes_that_torchrun_starts_again_find_their_run(tmp_path, monkeypatch):
    run = tmp_path / "quickstart-1"
    run.mkdir()
    note_begun(run)
    assert not list(tmp_path.glob(".begun*"))  # torchrun did not start this process
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "job/7")
    note_begun(run)
    assert begun_before(tmp_path) is None
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert begun_before(tmp_path) == run
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    assert begun_before(tmp_path) is None


def _train_as_a_rank(rank, world, argv, folder, port, stop_at):
    """Train as torchrun would start it, and leave in `folder` what it printed and its exit status."""
    launcher = {"TORCHELASTIC_RUN_ID": "test", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update(launcher, WORLD_SIZE=str(world), LOCAL_WORLD_SIZE=str(world), RANK=str(rank))
    os.environ["LOCAL_RANK"] = str(rank)
    with pytest.MonkeyPatch.context() as patch:
        arguments({name: "" for name in ("studio", "street", "nir")}, folder, patch)  # for what it does not draw
        if rank == world - 1:
            note = Logbook.record

            def stopping(self, stage, step, **values):
                note(self, stage, step, **values)
                if (stage, step) == stop_at:
                    os.kill(os.getpid(), signal.SIGTERM)

            patch.setattr(Logbook, "record", stopping)
        with (folder / f"{rank}.txt").open("w") as said, redirect_stdout(said), redirect_stderr(said):
            status = command("train")(argv)
    (folder / f"{rank}.status").write_text(str(status))


def train_on_ranks(argv, place, world=2, stop_at=None):
    """(exit statuses, what each rank printed)."""
    place.mkdir()
    on_ranks(_train_as_a_rank, world, argv, place, free_port(), stop_at, world=world)
    return [
        [read((place / f"{rank}.{kind}").read_text()) for rank in range(world)]
        for kind, read in (("status", int), ("txt", str))
    ]


CALM = ("--pretrain.learning_rate=0.002", "--meta.batch_norm=frozen", "--meta.beta=0.002", "--meta.alpha=0.01")


@pytest.mark.slow
def test_a_run_of_two_processes_is_stopped_resumed_by_one_and_ends_as_a_run_of_one(small, tmp_path):
    small = [*small, *CALM, "--data.validation=0.2", "--pretrain.batch_identities=12", "--meta.batch_identities=8"]
    whole = tmp_path / "whole"
    assert main([*small, f"--folder={whole}"]) == 0
    (one,) = whole.iterdir()
    statuses, said = train_on_ranks(small, tmp_path / "two", stop_at=("meta", 1))  # the second one gets SIGTERM
    assert statuses == [143, 143], said
    (two,) = (tmp_path / "runs").glob("quickstart-*")
    assert {path.name for path in (two / "checkpoints").glob("*/*")} >= {"rows-0-19.safetensors", "state.safetensors"}
    assert "the run stops after this step" not in said[0]  # it was the other rank that got the signal
    assert main(["--resume", str(two)]) == 0
    for stage in ("pretrain", "meta"):
        losses = [[line["loss"] for line in records(run, stage)] for run in (one, two)]
        assert len(losses[1]) == len(losses[0])
    losses = [[line["loss"] for line in records(run, "pretrain")][:3] for run in (one, two)]
    # Later, rounding has grown, as with another number of threads.
    assert losses[1] == pytest.approx(losses[0], abs=1e-3)
    results = [json.loads((run / "results.json").read_text()) for run in (one, two)]
    assert results[1]["targets"]["nir"]["models"].keys() == results[0]["targets"]["nir"]["models"].keys()
    assert results[1]["choice"]["people"] == results[0]["choice"]["people"] == 10


@pytest.mark.slow
def test_mistakes_end_all_processes_with_one_sentence(small, tmp_path):
    statuses, said = train_on_ranks([*small, "--meta.batch_identities=7"], tmp_path / "odd")
    assert statuses == [1, 1]
    assert "".join(said).count("2 processes share the people of a batch equally; want meta.batch_identities as") == 1
    assert not (tmp_path / "runs").exists()
