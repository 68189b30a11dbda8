"""The classifier: alone, over ranks, with a share of its identities, and its update."""

import math

import pytest
import torch
from fastmfr.kernels import AdaFace, ArcFace, Combined, CosFace, MagFace, margin_softmax
from helpers import on_ranks
from torch import distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode

from fastmfr.head import MarginHead, make_margin

SGD = {"momentum": 0.9, "weight_decay": 5e-4}


def batch(B=12, D=8, identities=23):
    gen = torch.Generator().manual_seed(1)
    label = torch.randint(identities, (B,), generator=gen)
    label[3] = -1
    return torch.randn(B, D, generator=gen).requires_grad_(), label


def head(**options):
    torch.manual_seed(0)
    return MarginHead(8, 23, ArcFace(0.4), scale=16.0, **options)


def test_a_margin_by_name():
    assert make_margin("arcface", [0.4]) == ArcFace(0.4)
    assert make_margin("arcface_insightface", [0.4]) == ArcFace(0.4, straight_through=True)
    assert make_margin("combined") == Combined()
    assert make_margin("magface", [5, 50]) == MagFace(5, 50)
    assert isinstance(make_margin("adaface"), AdaFace)
    with pytest.raises(ValueError, match=r"cosface, arcface, .*, got 'sphere'"):
        make_margin("sphere")
    with pytest.raises(ValueError, match=r"takes at most \(m\), got 2 numbers"):
        make_margin("arcface", [0.1, 0.2])


def test_it_starts_at_chance():
    torch.manual_seed(0)
    chance = MarginHead(16, 50, CosFace(0.0), scale=1.0)
    loss = chance(torch.randn(64, 16), torch.arange(64) % 50).mean()
    assert loss.item() == pytest.approx(math.log(50), rel=0.05)


def test_its_updates_are_those_of_torchs_sgd():
    ours, weight = head(), torch.nn.Parameter(head().weight_CD.detach().clone())
    theirs = torch.optim.SGD([weight], lr=0.5, **SGD)
    embedding, label = batch()
    for _ in range(3):
        ours(embedding, label).mean().backward()
        ours.update(0.5, **SGD)
        theirs.zero_grad()
        margin_softmax(embedding, weight, label, margin=ArcFace(0.4), scale=16.0).mean().backward()
        theirs.step()
    assert torch.equal(ours.weight_CD, weight)
    assert ours.weight_CD.grad is None
    torch.testing.assert_close(ours.inverse_norm_C, 1 / weight.norm(dim=1))


def test_weights_changed_by_others_are_noticed():
    changed, (embedding, label) = head(), batch()
    changed(embedding, label)
    with torch.no_grad():
        changed.weight_CD.mul_(3)  # another length, the same directions
    torch.testing.assert_close(changed(embedding, label), head()(embedding, label))
    changed.load_state_dict(head().state_dict())
    torch.testing.assert_close(changed(embedding, label), head()(embedding, label))


def test_adaface_keeps_its_statistics_with_the_head():
    torch.manual_seed(0)
    own = MarginHead(8, 23, AdaFace(momentum=0.5))
    embedding, label = batch()
    own(embedding, label)
    norm = embedding.norm(dim=1)
    assert own.state_dict()["margin.mean"].item() == pytest.approx((20 + norm.mean().item()) / 2)
    assert own.margin.deviation.item() == pytest.approx((100 + norm.std().item()) / 2)


def test_a_share_of_the_identities():
    sampled, (embedding, label) = head(sample_rate=0.6), batch()
    loss = sampled(embedding, label, draw=5)
    row, drawn = sampled._drawn
    assert 8 < len(row) < 23
    assert set(label[label >= 0].tolist()) <= set(row.tolist())
    named = torch.searchsorted(row, label.clamp_min(0)).masked_fill(label < 0, -1)
    torch.testing.assert_close(loss, margin_softmax(embedding, drawn, named, margin=ArcFace(0.4), scale=16.0))
    loss.mean().backward()
    before = sampled.weight_CD.detach().clone()
    sampled.update(0.5, **SGD)
    moved = (sampled.weight_CD != before).any(1).nonzero().squeeze(1)
    assert torch.equal(moved, row)
    again = head(sample_rate=0.6)
    again(embedding, label, draw=5)
    assert torch.equal(again._drawn[0], row)
    again(embedding, label, draw=6)
    assert not torch.equal(again._drawn[0], row)


class Largest(TorchDispatchMode):
    """A block in which the elements of the largest tensor made are noted."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        if isinstance(made, torch.Tensor):
            self.elements = max(self.elements, made.numel())
        return made


def test_a_rank_draws_its_rows_and_never_holds_those_of_all(monkeypatch):
    monkeypatch.setattr("fastmfr.head._DRAWN_AT_ONCE", 16)
    torch.manual_seed(0)
    whole = MarginHead(8, 403, CosFace())
    monkeypatch.setattr("fastmfr.head.rank_and_world", lambda group: (1, 4))
    torch.manual_seed(0)
    with Largest() as largest:
        own = MarginHead(8, 403, CosFace())
    assert own.rows == (100, 201)
    assert torch.equal(own.weight_CD, whole.weight_CD[100:201])
    assert largest.elements == 101 * 8


def _one_of_the_ranks(rank, world, folder, sample_rate):
    """Half of the batch, half of the identities; what it has in the end goes into a file."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world)
    shared = head(group=dist.group.WORLD, sample_rate=sample_rate)
    embedding, label = (whole.detach().chunk(world)[rank] for whole in batch())
    embedding.requires_grad_()
    loss = shared(embedding, label)
    first = torch.autograd.grad(loss.mean(), embedding, create_graph=True)[0]
    second = torch.autograd.grad(first.square().sum(), embedding, retain_graph=True)[0]
    loss.mean().backward()
    shared.update(0.5, **SGD)
    torch.save(
        [loss.detach(), first.detach() / world, second / world**2, shared.weight_CD.detach()], f"{folder}/{rank}.pt"
    )
    dist.destroy_process_group()


def test_two_ranks_are_one_classifier(tmp_path):
    """Loss, its two derivatives and the updated weights; a rank's own loss is the mean over half of the rows."""
    on_ranks(_one_of_the_ranks, 2, tmp_path, 1.0)
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    alone, (embedding, label) = head(), batch()
    loss = alone(embedding, label)
    first = torch.autograd.grad(loss.mean(), embedding, create_graph=True)[0]
    second = torch.autograd.grad(first.square().sum(), embedding, retain_graph=True)[0]
    loss.mean().backward()
    alone.update(0.5, **SGD)
    for got, want in zip(zip(*ranks, strict=True), (loss, first, second, alone.weight_CD), strict=True):
        torch.testing.assert_close(torch.cat(got), want.detach(), rtol=1e-4, atol=1e-4)


def test_a_batch_of_pairs_takes_part_though_it_has_more_rows_than_identities_are_drawn():
    embedding, label = batch(B=24)
    label = label.remainder(8)
    sampled = head(sample_rate=0.001)
    sampled(embedding, label).mean().backward()
    sampled.update(0.1, **SGD)
    whole = head()
    drawn = (sampled.weight_CD != whole.weight_CD).any(1)
    assert torch.equal(drawn.nonzero().squeeze(1), label.unique())


def test_errors_name_what_was_given():
    with pytest.raises(ValueError, match="at least 2 identities, got 1"):
        MarginHead(16, 1, CosFace())
    with pytest.raises(ValueError, match="want sample_rate above 0 and at most 1, got 0"):
        head(sample_rate=0)
    with pytest.raises(RuntimeError, match=r"call backward\(\) on its loss before update\(\)"):
        head().update(0.1, **SGD)
