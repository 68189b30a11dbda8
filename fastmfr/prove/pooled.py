"""The arms without a meta step: ordinary training on the images that the meta arms see, in as many steps.

Shape suffixes: B = images of a batch, C = identities, N = images of the people of a domain, D = embedding.
"""

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from fastmfr.domains import join
from fastmfr.evaluate import draw_evenly
from fastmfr.freezing import hold_statistics
from fastmfr.head import MarginHead, make_margin
from fastmfr.losses import MfrLosses
from fastmfr.meta import MetaStep, PairBatch
from fastmfr.precision import autocast, matmul_precision
from fastmfr.prove.arms import as_stage_one
from fastmfr.results import META, PRETRAIN
from fastmfr.runtime import to_device
from fastmfr.training import Run
from fastmfr.training.data import Splits, StageData, TrainingImages, images_of_meta
from fastmfr.training.meta import mfr_trainer
from fastmfr.training.optim import set_rate, sgd

IMPRINTED = 10  # images of a person, at most, whose mean embedding begins a row of the classifier


class PooledTrainer:
    """Takes steps as MetaTrainer does, but without a look-ahead: each split's halves are put together."""

    graph = "steps run operation by operation, as ordinary training"

    def __init__(self, run: Run, backbone: nn.Module, optimizer: torch.optim.SGD, head: MarginHead | None = None):
        """`head`: the classifier of more CosFace, whose first labels are those of the run's stage two; None trains on
        hard pairs. With a classifier the run's settings `meta` are those of `as_stage_one`."""
        self._run, self._backbone, self._optimizer, self._head = run, backbone, optimizer, head
        self._splits, self._number = Splits(run.data[META].sources, run.config), 0
        self._multiplier = 1.0 if head is None else run.config.pretrain.backbone_multiplier
        _train(backbone, frozen=run.config.meta.batch_norm == "frozen")

    def step(self, splits: Iterable, *, alpha: float, rate: float, losses: MfrLosses) -> MetaStep:
        """Take one step along the mean gradient of the splits; `alpha` has no part in it."""
        values = []
        self._optimizer.zero_grad()
        for train, test in splits:
            values.append(self._loss(pooled_images(train, test), losses))
            with matmul_precision(self._run.config.meta.precision):
                (values[-1] / self._splits.of_a_step).backward()
            self._number += 1
        gradients = [value.grad for value in self._backbone.parameters() if value.grad is not None]
        set_rate(self._optimizer, self._multiplier * rate)
        self._optimizer.step()
        if self._head is not None:
            meta = self._run.config.meta
            self._head.update(rate, meta.momentum, meta.weight_decay)
        return MetaStep({"total_test": torch.stack(values).detach()}, {}, torch.nn.utils.get_total_norm(gradients))

    def _loss(self, image_B3HW, losses):
        with autocast(self._run.config.meta.precision, image_B3HW.device):
            embedding_BD = self._backbone(image_B3HW)
        if self._head is None:
            return losses(*embedding_BD.float().chunk(2)).hard_pair
        pairs = self._splits.pairs(self._number)
        domain_B, identity_B = (
            np.concatenate([getattr(half, name) for half in pairs]) for name in ("domain", "identity")
        )
        label_B = np.tile(self._run.data[META].sources.label(domain_B, identity_B), 2)
        with autocast(self._run.config.meta.precision, embedding_BD.device):
            return self._head(embedding_BD, to_device(label_B, embedding_BD.device), self._number).mean()


class BesideTrainer:
    """Takes a meta step, and after it a step of stage one's loss on the same images.

    BatchNorm's statistics are frozen in the steps of stage one's loss if they are in either stage of the run: such a
    step must not move what the meta step holds.
    """

    def __init__(self, run: Run, backbone: nn.Module, optimizer: torch.optim.SGD, head: MarginHead):
        """`head` as of PooledTrainer."""
        one = as_stage_one(run.config.meta, run.config)
        self._backbone, self._rate = backbone, one.beta
        self._is_frozen = "frozen" in (one.batch_norm, run.config.meta.batch_norm)
        self._meta = mfr_trainer(run, backbone, optimizer)
        more = replace(run, config=replace(run.config, meta=one))
        self._pooled = PooledTrainer(more, backbone, sgd(backbone.parameters(), one.momentum, one.weight_decay), head)
        backbone.train()

    @property
    def graph(self) -> str:
        """What `MetaTrainer.graph` says of the meta steps."""
        return self._meta.graph

    def step(self, splits: Iterable, *, alpha: float, rate: float, losses: MfrLosses) -> MetaStep:
        """Take both steps; return what is known of the meta step."""
        splits = list(splits)
        result = self._meta.step(splits, alpha=alpha, rate=rate, losses=losses)
        _train(self._backbone, frozen=self._is_frozen)
        self._pooled.step(splits, alpha=0.0, rate=self._rate, losses=losses)
        self._backbone.train()
        return result


def _train(backbone, *, frozen):
    """Puts the backbone into training, its BatchNorms into evaluation if their statistics are frozen."""
    backbone.train()
    if frozen:
        hold_statistics(backbone)


def pooled_images(train: PairBatch, test: PairBatch) -> Tensor:
    """image_B3HW: the galleries of both halves of a split, then their probes."""
    image_B3HW = torch.cat([train.gallery_B3HW, test.gallery_B3HW, train.probe_B3HW, test.probe_B3HW])
    return image_B3HW.contiguous(memory_format=torch.channels_last)


def with_all_people(run: Run) -> Run:
    """The run with everybody of stage two's domains in stage two, also those whom stage one has met."""
    trained, sources = run.people.trained, run.data[META].sources
    everybody = join([trained[domain.name] for domain in sources.domains])
    if run.data[META] is run.data[PRETRAIN] or everybody.identities == sources.identities:
        return run
    drawn = images_of_meta(run.config, everybody)
    images = TrainingImages(everybody, drawn, run.config, run.device, run.decoding, run.logbook)
    return replace(run, data={**run.data, META: StageData(everybody, images)})


def with_all_people_in_stage_one(run: Run) -> Run:
    """The run with everybody of both stages in stage one.

    Stage one takes more steps: everybody is met as often as the people of the base are, and the images of stage two are
    counted in.
    """
    everybody, before = join(list(run.people.trained.values())), run.data[PRETRAIN].sources
    settings = run.config.pretrain
    images = 2 * settings.people
    steps = round(settings.steps * everybody.identities / before.identities)
    steps += round(images_of_meta(run.config, run.data[META].sources) / images)
    config = replace(run.config, pretrain=replace(settings, steps=steps))
    drawn = TrainingImages(everybody, steps * images, config, run.device, run.decoding, run.logbook)
    return replace(run, config=config, data={**run.data, PRETRAIN: StageData(everybody, drawn)})


def grown(head: MarginHead | None, run: Run, backbone: nn.Module) -> MarginHead:
    """The classifier of the base, with a row for each of the run's people in both stages.

    Rows of people whom stage one has met go on as they are. A new person's row begins as the mean of the base's
    embeddings of this person. The rows of stage two's people come first, in the order of their labels.

    Raises:
        ValueError: the base has no classifier.
    """
    if head is None:
        raise ValueError("more of stage one needs the classifier of a base that was trained; want --pretrain.steps > 0")
    before, now = run.data[PRETRAIN].sources, run.data[META].sources
    known = {person: row for row, person in enumerate(before.who())}
    wanted = list(dict.fromkeys([*now.who(), *known]))
    if wanted == list(known):
        nn.init.zeros_(head.get_buffer("momentum_CD"))  # the classifier begins without momentum, as the backbone does
        return head
    settings = run.config.pretrain
    weight_CD = head.weight_CD.detach()
    rows = [weight_CD[known[person]] if person in known else None for person in wanted]
    if any(row is None for row in rows):
        imprinted = _imprinted(run, backbone, now, float(weight_CD.norm(dim=1).mean()))
        rows = [imprinted[label] if row is None else row for label, row in enumerate(rows)]
    larger = MarginHead(
        weight_CD.shape[1],
        len(rows),
        make_margin(settings.margin, settings.margin_values or ()),
        settings.scale,
        sample_rate=settings.sample_rate,
        seed=run.config.seed,
    ).to(weight_CD.device)
    with torch.no_grad():
        larger.weight_CD.copy_(torch.stack([row for row in rows if row is not None]))
    return larger


def _imprinted(run, backbone, sources, length):
    """(C, D) rows of `length`, the means of the backbone's unit embeddings of each person."""
    rows, label_N = [], []
    for number, domain in enumerate(sources.domains):
        image_N = draw_evenly(domain.offsets, IMPRINTED * domain.identities, run.config.seed)
        both_N2D, person_N = run.embed(backbone, domain, image_N)
        rows.append(nn.functional.normalize(both_N2D.chunk(2, dim=1)[0]))  # without the mirror image
        label_N.append(sources.label(np.full(len(person_N), number), person_N))
    embedding_ND = torch.cat(rows)
    mean_CD = embedding_ND.new_zeros(sources.identities, embedding_ND.shape[1])
    mean_CD.index_add_(0, torch.from_numpy(np.concatenate(label_N)).to(mean_CD.device), embedding_ND)
    return length * nn.functional.normalize(mean_CD)
