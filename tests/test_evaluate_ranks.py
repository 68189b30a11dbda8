"""Embedding on several ranks: the same rows as on one, to the bit, and the same errors on all."""

import os

import pytest
import torch
from evaluation_fakes import face
from helpers import on_ranks
from torch import distributed as dist
from torch import nn

from fastmfr.decode import Preprocess
from fastmfr.distributed import all_gather_object, joined_ranks, raise_on_all_ranks, rank_and_world
from fastmfr.evaluate import embed, embed_domain
from fastmfr.protocols.images import EncodedImages
from fastmfr.runtime import device_for, seed_and_set_threads

# batches of 4, two ranks: one image, fewer batches than ranks, as many for each, one short, the last batch ragged
COUNTS = (1, 3, 8, 11, 20, 23)
WORLD = 2
BAD = {2: b"no picture", 17: face(0, 0)[:-200], 22: b"no picture either"}  # of 23 images, the second rank has 12 to 22


def faces(count, bad=()):
    return EncodedImages("faces", [BAD[image] if image in bad else face(image, 0) for image in range(count)])


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.PReLU(), nn.Flatten(), nn.Linear(392, 6)).train()


def embedded(domain, **options):
    return embed_domain(network(), domain, Preprocess(size=16), "cpu", batch_images=4, **options)


def _images(rank):
    """As if the second rank's file could not be read."""
    yield torch.ones(4, 3, 16, 16)
    if rank == 1:
        raise OSError("the disk of rank 1 is gone")


def _sentence(call):
    with pytest.raises(ValueError) as error:  # noqa: PT011 the test compares what all ranks say
        call()
    return str(error.value)


def _sentences(rank, group):
    """What goes wrong on one rank alone, and is said on all."""
    nan_from = torch.ones(4, 3, 16, 16).index_fill_(0, torch.tensor([2, 3]), float("nan"))
    shares = [[torch.ones(4, 3, 16, 16)], [nan_from]]

    def inner():
        with raise_on_all_ranks(group), raise_on_all_ranks(group):
            if rank == 1:
                raise ValueError("no rank goes on")

    return [
        _sentence(inner),
        _sentence(lambda: embed(network(), _images(rank), "cpu", group=group)),
        _sentence(lambda: embed(network(), [torch.ones(3 + rank, 3, 16, 16)], "cpu", group=group)),
        _sentence(lambda: embed(network(), shares[rank], "cpu", group=group)),
    ]


def _one_of_the_ranks(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=WORLD)
    group, told = dist.group.WORLD, []
    found = {"told": told, "shared": all_gather_object(f"rank {rank}", group), "place": rank_and_world(group)}
    found["whole"] = [embedded(faces(count), group=group) for count in COUNTS]
    found["bad"] = embedded(faces(23, BAD), group=group, progress=lambda *done: told.append(done))
    found["said"] = _sentences(rank, group)
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What each of two ranks found."""
    folder = tmp_path_factory.mktemp("ranks")
    on_ranks(_one_of_the_ranks, folder, world=WORLD)
    return [torch.load(folder / f"{rank}.pt") for rank in range(WORLD)]


@pytest.mark.parametrize("number", range(len(COUNTS)), ids=[f"{count}_images" for count in COUNTS])
def test_all_ranks_get_the_rows_that_one_process_gets(ranks, number):
    want, _ = embedded(faces(COUNTS[number]))
    assert len(want) == COUNTS[number]
    for found in ranks:
        got, bad = found["whole"][number]
        assert torch.equal(got, want)
        assert bad == {}


def test_images_that_one_rank_cannot_decode_are_known_to_all(ranks):
    want, bad = embedded(faces(23, BAD))
    assert sorted(bad) == sorted(BAD)
    for found in ranks:
        assert found["bad"][1] == bad
        assert torch.equal(found["bad"][0], want)


def test_progress_counts_the_images_of_all_ranks(ranks):
    for found in ranks:
        assert found["told"] == [(0, 23), (8, 23), (16, 23), (23, 23)]


def test_what_goes_wrong_on_one_rank_is_said_on_all(ranks):
    first, second = (found["said"] for found in ranks)
    assert first == second
    stopped, unread, unequal, broken = first
    assert stopped == "no rank goes on"
    assert unread == "the disk of rank 1 is gone"
    assert unequal == "want as many images on every rank of the group, got 3, 4"
    assert broken.startswith("the embeddings of 2 of 8 images are not finite, the first that of image 6")


def test_ranks_know_their_place_and_share_in_order(ranks):
    assert [found["place"] for found in ranks] == [(0, 2), (1, 2)]
    assert [found["shared"] for found in ranks] == [["rank 0", "rank 1"]] * 2


def test_one_process_is_a_group_of_none(monkeypatch):
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    with joined_ranks() as group:
        assert group is None
    assert rank_and_world(None) == (0, 1)
    assert all_gather_object("value", None) == ["value"]
    with pytest.raises(FileNotFoundError), raise_on_all_ranks(None):
        raise FileNotFoundError


def test_each_process_of_a_machine_has_a_gpu_of_its_own(monkeypatch):
    chosen = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert device_for("auto") == torch.device("cuda", 1)
    assert chosen == [1]
    monkeypatch.setenv("LOCAL_RANK", "2")
    assert device_for("cpu") == torch.device("cpu")
    with pytest.raises(ValueError, match="torch sees 2 GPUs; start 2 processes with --nproc-per-node 2, or use"):
        device_for("auto")


@pytest.mark.parametrize(("processes", "threads"), [(1, 12), (5, 2), (13, 1)])
def test_the_processes_of_a_machine_share_its_cores(monkeypatch, processes, threads):
    monkeypatch.setattr(os, "cpu_count", lambda: 12)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    set_to = []
    monkeypatch.setattr(torch, "set_num_threads", set_to.append)
    seed_and_set_threads(0, 0)
    seed_and_set_threads(0, 7)
    assert set_to == [threads, 7]
