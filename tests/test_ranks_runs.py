"""Runs of several processes: all of them end where one ends, one that hangs is named, a stopped run goes on."""

import json
import os
import re
import signal
import time
from contextlib import redirect_stderr, redirect_stdout

import pytest
from helpers import command, free_port, joined, on_ranks
from small_runs import arguments, main, records
from torch import distributed as dist

from fastmfr.distributed import OnAllRanks, Ranks, common_store, joined_ranks
from fastmfr.run_folder import begun_before, note_begun
from fastmfr.training import Logbook
from fastmfr.watch import Watch


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
