"""The steps of several processes are those of one, in 64 bits; what several processes cannot do is said."""

import pytest
import torch
from helpers import joined, on_ranks
from torch import distributed as dist

from fastmfr.backbone import build
from fastmfr.distributed import ALONE, Ranks, over_ranks
from fastmfr.fused import fused, has_batch_norm
from fastmfr.head import MarginHead, make_margin
from fastmfr.losses import MfrLosses
from fastmfr.meta import MetaSettings, MetaTrainer, PairBatch
from fastmfr.training.optim import set_rate, sgd
from fastmfr.training.pretraining_step import PretrainingStep

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
