"""Several processes share out the images of a batch, and the rows of a classifier in a state."""

import numpy as np
import pytest
import torch
from helpers import joined, on_ranks
from torch import distributed as dist

from fastmfr.decode import Preprocess, open_stream
from fastmfr.distributed import ALONE, Ranks
from fastmfr.domains import open_domain
from fastmfr.head import MarginHead, make_margin
from fastmfr.sampler import Pairs
from fastmfr.training.checkpoint import Checkpoints
from fastmfr.training.data import images_of, share_of, slots_of
from fastmfr.training.optim import sgd


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
