"""More of stage one in a comparison: on everybody, from the rows of those it knows, and with the steps of stage one."""

from copy import deepcopy
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from fastmfr.config import parse
from fastmfr.domains import join
from fastmfr.freezing import hold_statistics
from fastmfr.head import MarginHead, make_margin
from fastmfr.losses import MfrLosses
from fastmfr.meta import PairBatch
from fastmfr.progress import new_console
from fastmfr.prove.arms import ARMS, config_of
from fastmfr.prove.cell import Cell, leaving_out
from fastmfr.prove.pooled import (
    BesideTrainer,
    PooledTrainer,
    grown,
    pooled_images,
    with_all_people,
    with_all_people_in_stage_one,
)
from fastmfr.results import META, PRETRAIN
from fastmfr.training.data import Splits
from fastmfr.training.optim import sgd

SMALL = [
    *("--threads=1", "--data.threads=1", "--data.size=32", "--data.decode=pillow", "--model.width=0.0625"),
    *("--pretrain.steps=4", "--pretrain.batch_identities=6", "--pretrain.warmup=1", "--meta.steps=2"),
    *("--meta.batch_identities=4", "--data.validation=0", "--data.new_people=0.5"),
]
STEPS = 2


@pytest.fixture
def cell(faces, tmp_path):
    """A cell whose stage two has people whom stage one has not."""
    sources = [f"--data.sources.{name}={path}" for name, path in faces.items()]
    config, _ = parse([*sources, *SMALL])
    config = replace(config, data=replace(config.data, targets={}))
    made = Cell(leaving_out(config, "nir", 1), tmp_path, {}, new_console())
    yield made
    made.close()


def test_more_of_stage_one_has_everybody_and_keeps_the_rows_of_those_it_knows(cell):
    run = cell._run
    before = run.data[PRETRAIN].sources
    head = MarginHead(8, before.identities, lambda cos_B, _: cos_B)
    larger_run = with_all_people(run)
    everybody = larger_run.data[META].sources
    assert everybody.identities == join(list(run.people.trained.values())).identities == 2 * before.identities

    def first_pixels(image_B3HW):
        return image_B3HW.flatten(1)[:, :8]

    larger = grown(head, larger_run, torch.nn.Sequential(Lambda(first_pixels)))
    assert larger.weight_CD.shape == (everybody.identities, 8)
    names = [
        [
            (domain.name, domain.identity_name(person))
            for domain in sources.domains
            for person in range(domain.identities)
        ]
        for sources in (before, everybody)
    ]
    length = head.weight_CD.norm(dim=1).mean()
    for label, person in enumerate(names[1]):
        row = larger.weight_CD[label]
        if person in names[0]:
            assert torch.equal(row, head.weight_CD[names[0].index(person)])
        else:
            assert row.norm().item() == pytest.approx(length.item(), rel=1e-5)


@pytest.mark.parametrize("kind", ["cosface", "beside"])
@pytest.mark.parametrize("batch_norm", ["batch", "frozen"])
def test_more_of_stage_one_takes_the_steps_that_stage_one_takes(cell, kind, batch_norm):
    """Of a batch by hand: the backbone at its own rate, BatchNorm, momentum and weight decay as of the run's stage one;
    settings of stage two that differ have no part in it."""
    changed = {"backbone_multiplier": 0.25, "batch_norm": batch_norm, "momentum": 0.5, "weight_decay": 0.01}
    config = replace(cell._run.config, pretrain=replace(cell._run.config.pretrain, **changed))
    if kind == "cosface":
        config = replace(config, meta=replace(config.meta, batch_norm="frozen", weight_decay=0.3))
    run = replace(cell._run, config=config_of(kind, ARMS[kind], config))
    rate, sources = config.pretrain.learning_rate / 10, run.data[META].sources
    torch.manual_seed(0)
    backbone = run.new_backbone()
    head = MarginHead(backbone.embedding, sources.identities, make_margin("cosface"))
    splits, pairs = Splits(sources, run.config), []
    for i in range(splits.of_a_step):
        halves = [(torch.randn(2, len(half.domain), 3, 32, 32), half) for half in splits.pairs(i)]
        pairs.append([PairBatch(*image_2B3HW, torch.from_numpy(half.domain)) for image_2B3HW, half in halves])
    want, want_head = deepcopy(backbone).train(), deepcopy(head)
    if batch_norm == "frozen":
        hold_statistics(want)
    for i, halves in enumerate(pairs):
        label_B = torch.cat([torch.from_numpy(sources.label(p.domain, p.identity)) for p in splits.pairs(i)]).repeat(2)
        (want_head(want(pooled_images(*halves)), label_B, i).mean() / splits.of_a_step).backward()
    for value in (value for value in want.parameters() if value.requires_grad):
        value.data -= 0.25 * rate * (value.grad + 0.01 * value.data)
    want_head.update(rate, 0.5, 0.01)

    if kind == "cosface":
        trainer = PooledTrainer(run, backbone, sgd(backbone.parameters(), 0.5, run.config.meta.weight_decay), head)
        assert run.config.meta.beta == pytest.approx(rate)
    else:
        trainer = BesideTrainer(run, backbone, sgd(backbone.parameters(), 0.9, 0.0), head)
        trainer._meta = SimpleNamespace(step=lambda *_, **__: None)
    trainer.step(pairs, alpha=0.0, rate=run.config.meta.beta, losses=MfrLosses())
    for name, value in want.state_dict().items():
        torch.testing.assert_close(backbone.state_dict()[name], value, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(head.weight_CD, want_head.weight_CD)


def test_stage_one_on_everybody_meets_each_as_often_and_takes_the_images_of_stage_two_too(cell):
    run, larger = cell._run, with_all_people_in_stage_one(cell._run)
    before, everybody = run.data[PRETRAIN].sources, larger.data[PRETRAIN].sources
    assert everybody.identities == 2 * before.identities
    assert larger.data[META] is run.data[META]
    of_stage_two = STEPS * 2 * 4 * 4 / (2 * 6)  # steps, splits, people in a half, images of each; images of a batch
    assert larger.config.pretrain.steps == 2 * run.config.pretrain.steps + round(of_stage_two)


class Lambda(torch.nn.Module):
    def __init__(self, function):
        super().__init__()
        self.forward = function
