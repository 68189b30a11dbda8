"""What is compared, and how each arm goes on from the base it shares with the others, matched in steps and images."""

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from fastmfr.config import Config, narrowed
from fastmfr.evaluate import embed_domain
from fastmfr.head import MarginHead
from fastmfr.losses import MfrLosses
from fastmfr.meta import MetaStep, PairBatch
from fastmfr.progress import new_console
from fastmfr.results import META
from fastmfr.runtime import seed_and_set_threads
from fastmfr.training import Logbook, Run
from fastmfr.training.data import Splits
from fastmfr.training.meta import meta_train, mfr_trainer
from fastmfr.training.optim import set_rate
from fastmfr.training.pretrain import pretrain

from .scores import by_person


@dataclass(frozen=True)
class Arm:
    """`kind`: "base" trains no further; "cosface" and "hard_pair" pool each split; "meta" runs MFR, `meta` changed."""

    title: str
    kind: str = "meta"
    meta: dict = field(default_factory=dict)


ARMS = {
    "base": Arm("Base: CosFace, no more training", "base"),
    "base_agg": Arm("Base-Agg: more CosFace", "cosface"),
    "hard_pair": Arm("hard pairs alone, no meta step", "hard_pair"),
    "no_meta": Arm("all losses, no look-ahead (alpha = 0)", meta={"method": "no_meta"}),
    "mldg": Arm("MLDG: one random split a step", meta={"method": "mldg"}),
    "first_order": Arm("MFR, first order", meta={"method": "first_order"}),
    "mfr": Arm("MFR"),
    "no_hard_pair": Arm("MFR without hard pairs", meta={"hard_pair": 0.0}),
    "no_classification": Arm("MFR without soft classification", meta={"soft_classification": 0.0}),
    "no_alignment": Arm("MFR without domain alignment", meta={"domain_alignment": 0.0}),
    "gamma_0.3": Arm("MFR, gamma 0.3", meta={"gamma": 0.3}),
    "gamma_0.7": Arm("MFR, gamma 0.7", meta={"gamma": 0.7}),
    "threshold": Arm("MFR, mining by the paper's thresholds", meta={"mining": "threshold"}),
    "mfr_batch": Arm("MFR, BatchNorm on batch statistics", meta={"batch_norm": "batch"}),
    "no_meta_batch": Arm("no look-ahead, batch statistics", meta={"batch_norm": "batch", "method": "no_meta"}),
}


@contextmanager
def _logbook(folder) -> Iterator[Logbook]:
    """A logbook with metrics.jsonl in `folder`, and in said.txt what a run would have printed."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "said.txt").open("a") as file, Logbook(folder, new_console(file, width=120)) as logbook:
        yield logbook


@contextmanager
def _beside(cell: Run, name: str, config: Config) -> Iterator[Run]:
    """The cell's run in a folder of its own beside the cell's data: one arm, or the base."""
    with _logbook(cell.folder.parent / name) as logbook:
        yield replace(cell, config=config, folder=logbook.folder, logbook=logbook)


def open_cell(config: Config, folder: Path) -> Run:
    """The run of one seed and one domain left out: its data, opened once for all arms, in folder/data."""
    with _logbook(folder / "data") as logbook:
        cell = Run.open(config, logbook)
        cell.data[META].images.prepare()  # while this logbook is open
        return cell


def base_of(cell: Run) -> tuple[nn.Module, MarginHead]:
    """The pretrained backbone and its classifier; trained at the first call, found in the cell's folder afterwards."""
    seed_and_set_threads(cell.config.seed, cell.config.threads)
    backbone = cell.new_backbone()
    with _beside(cell, "base", cell.config) as run:
        return backbone, pretrain(run, backbone)


def train_arm(cell: Run, name: str, agg_rate: float) -> tuple[nn.Module, dict]:
    """(backbone, facts for the row) of an arm, trained from the cell's base. `agg_rate`: of more CosFace."""
    arm, (backbone, head) = ARMS[name], base_of(cell)
    if arm.kind == "base":
        return backbone, {}

    def pooled(run: Run, backbone: nn.Module, optimizer: torch.optim.SGD) -> PooledTrainer:
        return PooledTrainer(run, backbone, optimizer, head, arm.kind)

    with _beside(cell, name, settings_of(arm, cell.config, agg_rate)) as run:
        meta_train(run, backbone, make_trainer=mfr_trainer if arm.kind == "meta" else pooled)
        return backbone, _facts(run.logbook.path)


def settings_of(arm: Arm, config: Config, agg_rate: float) -> Config:
    """The run's settings as the arm has them. MLDG's one split a step is as large as the others' splits together."""
    meta = replace(config.meta, **arm.meta)
    if meta.method == "mldg":
        meta = replace(meta, batch_identities=meta.batch_identities * len(config.data.sources))
    if arm.kind == "cosface":
        meta = replace(meta, beta=agg_rate)
    return replace(config, meta=meta)


class PooledTrainer:
    """Ordinary training on the splits of the meta arms, the halves of each put together; a step takes the same ones."""

    graph = "steps run operation by operation, as ordinary training"

    def __init__(self, run: Run, backbone: nn.Module, optimizer: torch.optim.SGD, head: MarginHead, kind: str):
        self._run, self._backbone, self._optimizer, self._head, self._kind = run, backbone, optimizer, head, kind
        self._splits, self._number = Splits(run.data[META].sources, run.config), 0
        head.momentum_CD.zero_()  # the classifier begins without momentum, as the backbone does
        backbone.train(kind == "cosface" or run.config.meta.batch_norm != "frozen")  # CosFace goes on as it did before

    def step(self, splits: Iterable, *, alpha: float, rate: float, losses: MfrLosses) -> MetaStep:
        """One meta-batch as MetaTrainer.step takes it, without a look-ahead: `alpha` has no part in it."""
        values = []
        self._optimizer.zero_grad()
        for train, test in splits:
            values.append(self._loss(pooled_images(train, test)))
            (values[-1] / self._splits.of_a_step).backward()
            self._number += 1
        gradients = [value.grad for value in self._backbone.parameters() if value.grad is not None]
        set_rate(self._optimizer, rate)
        self._optimizer.step()
        if self._kind == "cosface":
            meta = self._run.config.meta
            self._head.update(rate, meta.momentum, meta.weight_decay)
        return MetaStep({"total_test": torch.stack(values).detach()}, {}, torch.nn.utils.get_total_norm(gradients))

    def _loss(self, image_B3HW):
        embedding_BD = self._backbone(image_B3HW)
        if self._kind == "cosface":
            pairs = self._splits.pairs(self._number)
            domain_B, identity_B = (
                np.concatenate([getattr(half, name) for half in pairs]) for name in ("domain", "identity")
            )
            label_B = torch.from_numpy(self._run.data[META].sources.label(domain_B, identity_B)).repeat(2)
            return self._head(embedding_BD, label_B.to(embedding_BD.device)).mean()
        return narrowed(self._run.config.meta, MfrLosses)(*embedding_BD.chunk(2)).hard_pair


def pooled_images(train: PairBatch, test: PairBatch) -> torch.Tensor:
    """image_B3HW: the galleries of both halves of a split, then their probes."""
    image_B3HW = torch.cat([train.gallery_B3HW, test.gallery_B3HW, train.probe_B3HW, test.probe_B3HW])
    return image_B3HW.contiguous(memory_format=torch.channels_last)


def _facts(path):
    """What metrics.jsonl says of an arm: its last loss, and alpha |Hv| / |v| on average."""
    records = [json.loads(line) for line in path.read_text().splitlines()]
    ratios = [record["alpha_hv_over_v"] for record in records if record.get("alpha_hv_over_v") is not None]
    facts = {"steps": len(records), "loss": records[-1]["loss"]}
    return facts | ({"alpha_hv_over_v": round(float(np.mean(ratios)), 4)} if any(ratios) else {})


def score_arm(cell: Run, backbone: nn.Module) -> dict[str, dict]:
    """{target name: figures by person}."""
    evaluate, scores = cell.config.evaluate, {}
    for name, target in cell.targets.items():
        embedding_ND, bad = embed_domain(
            backbone,
            target.domain,
            cell.preprocess,
            cell.device,
            batch_images=evaluate.batch_images,
            **cell.decoding,
        )
        people = target.domain.identities
        scores[name] = by_person(embedding_ND, target.pairs.without(bad), people, evaluate.far)
    return scores
