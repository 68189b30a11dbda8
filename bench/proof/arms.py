"""What is compared, and how each arm goes on from the base it shares with the others, matched in steps and images."""

import json
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from torch import nn

from fastmfr.backbone import build_backbone
from fastmfr.config import Config
from fastmfr.decode import Verdicts, choose_decoder
from fastmfr.domains import Joint
from fastmfr.evaluate import embed_domain
from fastmfr.head import MarginHead, make_margin
from fastmfr.losses import MfrLosses
from fastmfr.protocols import Protocol
from fastmfr.runtime import device_for, seed_and_set_threads, to_channels_last
from fastmfr.sampler import Pairs
from fastmfr.train import open_protocol
from fastmfr.training.checkpoint import Checkpoints
from fastmfr.training.logbook import Logbook
from fastmfr.training.optim import set_rate, sgd
from fastmfr.training.stages import Splits, check_batches, image_opener, meta_train, preprocess, pretrain

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


@dataclass(frozen=True)
class Cell:
    """One seed and one domain left out: its data, opened once for all arms, and the folder of its base."""

    config: Config
    folder: Path
    sources: Joint
    targets: dict
    device: torch.device
    decoding: dict
    open_images: partial


@contextmanager
def _logbook(folder):
    """A logbook with metrics.jsonl in `folder`, and in said.txt what a run would have printed."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "said.txt").open("a") as file:
        console = Console(file=file, highlight=False, width=120)
        with Logbook(folder, console) as logbook:
            yield logbook


def open_cell(config: Config, folder: Path) -> Cell:
    """Makes faces where they are missing, opens the domains and decodes the images to train on."""
    device = device_for(config.device)
    seed_and_set_threads(config.seed, config.threads)
    with _logbook(folder / "data") as logbook:
        sources, targets = open_protocol(Protocol(config.data.sources, config.data.targets), config, logbook)
        check_batches(sources, config)
        domains = [*sources.domains, *(target.domain for target in targets.values())]
        data = config.data
        decoder, sentence = choose_decoder(data.decode, domains, preprocess(data), device, data.threads)
        logbook.say(sentence)
        decoding = {"decoder": decoder, "threads": data.threads, "vet": data.vet, "verdicts": Verdicts()}
        open_images = image_opener(sources, config, device, decoding, logbook)
    return Cell(config, folder, sources, targets, device, decoding, open_images)


def base_of(cell: Cell) -> tuple[nn.Module, MarginHead]:
    """The pretrained backbone and its classifier; trained at the first call, found in the cell's folder afterwards."""
    config, settings = cell.config, cell.config.pretrain
    margin = make_margin(settings.margin, settings.margin_values)
    states = Checkpoints(cell.folder / "base", "pretrain")
    seed_and_set_threads(config.seed, config.threads)
    backbone = to_channels_last(build_backbone(config), cell.device)
    head = MarginHead(backbone.embedding, cell.sources.identities, margin, settings.scale).to(cell.device)
    both = nn.ModuleDict({"backbone": backbone, "head": head})
    optimizer = sgd(backbone.parameters(), settings.momentum, settings.weight_decay)
    if not states.resume(both, optimizer):
        with _logbook(cell.folder / "base") as logbook:
            pretrain(backbone, cell.sources, config, cell.open_images, cell.device, logbook, states)
        states.resume(both, optimizer)  # the classifier, which pretraining made for itself
    return backbone, head


def train_arm(cell: Cell, name: str, agg_rate: float) -> tuple[nn.Module, dict]:
    """(backbone, facts for the row) of an arm, trained from the cell's base. `agg_rate`: of more CosFace."""
    arm, (backbone, head) = ARMS[name], base_of(cell)
    if arm.kind == "base":
        return backbone, {}
    with _logbook(cell.folder / name) as logbook:
        if arm.kind == "meta":
            _meta(cell, settings_of(arm, cell.config), backbone, logbook)
        else:
            _pooled(cell, arm.kind, backbone, head, agg_rate, logbook)
    return backbone, _facts(cell.folder / name / "metrics.jsonl")


def settings_of(arm: Arm, config: Config) -> Config:
    """The run's settings as the arm has them. MLDG's one split a step is as large as the others' splits together."""
    meta = replace(config.meta, **arm.meta)
    if meta.method == "mldg":
        meta = replace(meta, batch_identities=meta.batch_identities * len(config.data.sources))
    return replace(config, meta=meta)


def _meta(cell, config, backbone, logbook):
    with tempfile.TemporaryDirectory() as nowhere:  # an arm is short: interrupted, it starts again from the base
        states = Checkpoints(Path(nowhere), "meta")
        meta_train(backbone, cell.sources, config, cell.open_images, cell.device, logbook, states)


def _pooled(cell, kind, backbone, head, agg_rate, logbook):
    """Ordinary training on the splits of the meta arms, the halves of each put together; a step takes the same ones."""
    settings, splits = cell.config.meta, Splits(cell.sources, cell.config)
    rate = agg_rate if kind == "cosface" else settings.beta
    optimizer = sgd(backbone.parameters(), settings.momentum, settings.weight_decay)
    head.momentum_CD.zero_()  # the classifier starts anew as the backbone does
    backbone.train(kind == "cosface" or settings.batch_norm != "frozen")  # CosFace goes on as it did before
    set_rate(optimizer, rate)
    logbook.rewind("meta", 0)
    images = 4 * settings.batch_identities
    numbers = {"batch_images": images, "last": settings.steps * splits.of_a_step}
    with cell.open_images(lambda i: images_of(splits.pairs(i)), **numbers) as stream:
        for i, image_B3HW in stream:
            step, place = divmod(i, splits.of_a_step)
            if not place:
                optimizer.zero_grad()
            loss = _loss(kind, backbone, head, cell, splits.pairs(i), image_B3HW)
            (loss / splits.of_a_step).backward()
            if place + 1 < splits.of_a_step:
                continue
            optimizer.step()
            if kind == "cosface":
                head.update(rate, settings.momentum, settings.weight_decay)
            logbook.record("meta", step, loss=loss.item(), learning_rate=rate)


def images_of(pairs: tuple[Pairs, Pairs]) -> tuple[np.ndarray, np.ndarray]:
    """(domain_B, image_B) of the galleries of both halves of a split, then of their probes."""
    domain_B, image_B = (
        np.concatenate([getattr(half, name) for name in names for half in pairs])
        for names in (("domain", "domain"), ("gallery", "probe"))
    )
    return domain_B, image_B


def _loss(kind, backbone, head, cell, pairs, image_B3HW):
    settings = cell.config.meta
    embedding_BD = backbone(image_B3HW.contiguous(memory_format=torch.channels_last))
    if kind == "cosface":
        domain_B, identity_B = (
            np.concatenate([getattr(half, name) for half in pairs]) for name in ("domain", "identity")
        )
        label_B = torch.from_numpy(cell.sources.label(domain_B, identity_B)).repeat(2).to(cell.device)
        return head(embedding_BD, label_B).mean()
    shared = {name: getattr(settings, name) for name in ("tau_p", "tau_n", "mining", "share_p", "share_n")}
    return MfrLosses(**shared)(*embedding_BD.chunk(2)).hard_pair


def _facts(path):
    """What metrics.jsonl says of an arm: its last loss, and alpha |Hv| / |v| on average."""
    records = [json.loads(line) for line in path.read_text().splitlines()]
    ratios = [record["alpha_hv_over_v"] for record in records if record.get("alpha_hv_over_v") is not None]
    facts = {"steps": len(records), "loss": records[-1]["loss"]}
    return facts | ({"alpha_hv_over_v": round(float(np.mean(ratios)), 4)} if any(ratios) else {})


def score_arm(cell: Cell, backbone: nn.Module) -> dict[str, dict]:
    """{target name: figures by person}."""
    evaluate, scores = cell.config.evaluate, {}
    for name, target in cell.targets.items():
        embedding_ND, bad = embed_domain(
            backbone,
            target.domain,
            preprocess(cell.config.data),
            cell.device,
            batch_images=evaluate.batch_images,
            **cell.decoding,
        )
        people = target.domain.identities
        scores[name] = by_person(embedding_ND, target.pairs.without(bad), people, evaluate.far)
    return scores
