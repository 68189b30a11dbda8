"""One run: its settings, folder, device, data and records in one room, which every stage is handed as a whole."""

import json
import os
import platform
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from fastmfr.atomic import write_text
from fastmfr.backbone import build_backbone, check_backbone
from fastmfr.classifier_files import IDENTITIES, open_classifier, write_identities
from fastmfr.config import Config
from fastmfr.decode import ImageStream, Preprocess, checked_decoder, exact_decoder
from fastmfr.distributed import ALONE, Ranks
from fastmfr.domains import Domain
from fastmfr.evaluate import embed, embed_domain, score
from fastmfr.evaluate.embed import bad_of_ranks, stream_of_rank
from fastmfr.freezing import hold_stages
from fastmfr.head import make_margin
from fastmfr.precision import check_precision
from fastmfr.profiling import SCORING, part_of_step
from fastmfr.results import META, PRETRAIN, Scores
from fastmfr.run_folder import note_command, weights_of
from fastmfr.runtime import device_for, environment, seed_and_set_threads, to_channels_last
from fastmfr.training.batch_sizes import check_batches, fit_batches
from fastmfr.training.checkpoint import Checkpoints
from fastmfr.training.data import StageData, choose_decoding, preprocess, stage_data
from fastmfr.training.logbook import Logbook
from fastmfr.training.people import People, Target, open_people
from fastmfr.training.resuming import DECODE, MadeWith, check_steps, choices_of, with_choices
from fastmfr.weights import load_weights, settled

__all__ = ["Run", "make_new_folder"]


def make_new_folder(folder: Path) -> Path:
    """Make `folder`, or, if there is one, the first of folder-2, folder-3, ... that is not there; return its path.

    Two processes that ask for the same folder at the same time get two folders.
    """
    path, number = folder, 1
    while True:
        try:
            path.mkdir(parents=True)
            return path
        except FileExistsError:
            number += 1
            path = folder.with_name(f"{folder.name}-{number}")


@dataclass(frozen=True)
class Run:
    """Everything that the stages of one run share. `Run.open` makes one; `dataclasses.replace` varies it.

    Attributes:
        config: the settings, with the decoder that was chosen.
        folder: where all that the run writes goes.
        device: the CPU, or a CUDA device.
        logbook: says and records what happens, in `folder`.
        people: who is trained on in which stage, and who is scored.
        data: what each stage trains on; one object if both stages have the same people.
        decoding: threads, decoder, vet and verdicts, as ImageStream takes them.
        ranks: the processes of the run; all have the same Run, but for the device.
        seconds: how long each part of the run has taken so far.
        began: when this process opened the run, in seconds since 1970.
    """

    config: Config
    folder: Path
    device: torch.device
    logbook: Logbook
    people: People
    data: Mapping[str, StageData]
    decoding: Mapping[str, Any]
    ranks: Ranks = ALONE
    seconds: dict[str, float] = field(default_factory=dict)
    began: float = field(default_factory=time.time)

    @classmethod
    def open(cls, config: Config, logbook: Logbook, *, new: bool = False, ranks: Ranks = ALONE) -> "Run":
        """Check the settings, open the domains and begin the run in the folder of `logbook`.

        The folder is made after all checks: settings that cannot work leave nothing behind.

        Args:
            config: the settings.
            logbook: says and records what happens.
            new: the folder must not be another run's: if it is there, the logbook gets one with another name.
            ranks: the processes of the run, which all call this function.

        Raises:
            ValueError: a setting, a domain or a batch size that cannot work; or, of a run that is resumed, a setting
                that may not change, source domains that have changed, or a number of steps that it cannot end after.
            OSError: a path that is not there, or a folder that cannot be written to.
        """
        began, wishes = time.time(), choices_of(config)
        with ranks.alike():
            device = device_for(config.device)
            made_with = None if new else MadeWith(logbook.folder)
            config = _check_before_data(config, device, logbook)
            if made_with:
                config = made_with.as_before(config)
                made_with.check_settings(config)
                check_steps(logbook.folder, config)
            seed_and_set_threads(config.seed, config.threads)
        seconds = {}
        with _timed(seconds, "data"):
            people = ranks.in_turn(lambda: open_people(config, logbook))
            with ranks.alike():
                if made_with:
                    made_with.check_data(people.trained)
                config, said = fit_batches(people.sources, config, ranks.world)
                check_batches(people.sources, config, ranks.world)
            for sentence in said:
                logbook.say(sentence)
            scored = [target.domain for target in people.targets.values()]
            domains = [*people.trained.values(), *people.validation.values(), *scored]
            decoder, decoding = choose_decoding(config, domains, device, logbook, ranks)
        # made_with.json keeps the choice: decoders differ by a grey level or two, and a resumed run must have its bits.
        config = with_choices(config, {DECODE: decoder})
        with ranks.alike():
            if ranks.is_first:
                _begin(logbook, made_with, config, wishes, people, new)
                note_command(logbook.folder, began)
        logbook.folder = ranks.of_first(logbook.folder)
        with ranks.alike():
            _check_shared(logbook.folder)
        data = stage_data(people.sources, config, device, decoding, logbook)
        return cls(config, logbook.folder, device, logbook, people, data, decoding, ranks, seconds, began)

    @property
    def preprocess(self) -> Preprocess:
        """What is done to every training image."""
        return preprocess(self.config.data)

    @property
    def targets(self) -> Mapping[str, Target]:
        """The domains to score on, by name."""
        return self.people.targets

    @property
    def domains(self) -> dict[str, Domain]:
        """All domains by name; of one that is trained on and scored, the people held out."""
        return {**self.people.trained, **{name: target.domain for name, target in self.targets.items()}}

    def before_stage(self, stage: str) -> None:
        """Free the decoded images of the stage before, if this stage has other ones."""
        if stage == META and self.data[META] is not self.data[PRETRAIN]:
            self.data[PRETRAIN].images.close()

    def checkpoints(self, stage: str) -> Checkpoints:
        """The states of a stage."""
        return Checkpoints(self.folder / "checkpoints", stage, self.logbook.warn, self.ranks)

    def new_backbone(self) -> nn.Module:
        """A backbone as the settings say, on the run's device, its stages held; fresh weights, or model.weights."""
        backbone = build_backbone(self.config)
        weights = self.config.model.weights
        if weights and (note := load_weights(backbone, weights_of(weights))):
            self.logbook.say(note)
        hold_stages(backbone, self.config.model.freeze)
        return to_channels_last(backbone, self.device)

    def embed(self, backbone: nn.Module, domain: Domain, image_N: np.ndarray) -> tuple[torch.Tensor, np.ndarray]:
        """Embed images of a domain, each rank a part of them.

        Args:
            backbone: maps image_B3HW to embedding_BD.
            domain: the domain.
            image_N: numbers of images, int64 (N,).

        Returns:
            The embeddings of those images that could be decoded, and the person in each.
        """
        ranks = self.ranks
        with self.stream(domain, image_N, ranks) as stream:
            rows = embed(backbone, (batch for _, batch in stream), self.device, group=ranks.group)[: len(image_N)]
            bad = bad_of_ranks(stream, ranks.group)
        whole = np.array([not bad or domain.label_of(image) not in bad for image in image_N.tolist()])
        return rows[torch.from_numpy(whole).to(rows.device)], domain.identity_of(image_N[whole])

    def stream(self, domain: Domain, image_N: np.ndarray, ranks: Ranks = ALONE) -> ImageStream:
        """Open a stream of images (N,) of a domain in their order, unchanged; the last batch is filled up.

        Each of several ranks gets a run of whole batches, as many as the others.
        """
        settings = {"batch_images": self.config.evaluate.batch_images, "group": ranks.group, **self.exact_decoding}
        return stream_of_rank(domain, image_N, self.preprocess, self.device, **settings)

    def score(self, backbone: nn.Module) -> Iterator[tuple[str, Scores, torch.Tensor, dict[int, str]]]:
        """Yield (target, scores, embedding_ND, bad images) for one target after the other.

        All ranks embed; the first one scores, and hands its scores to the others.
        """
        evaluate, ranks = self.config.evaluate, self.ranks
        settings = {"batch_images": evaluate.batch_images, "group": ranks.group, **self.exact_decoding}
        for name, target in self.targets.items():
            embedding_ND, bad = embed_domain(backbone, target.domain, self.preprocess, self.device, **settings)
            scores = ranks.by_first(partial(score, embedding_ND, target.pairs.without(bad), evaluate.far))
            yield name, scores, embedding_ND, bad

    def score_on_the_way(self, stage: str, backbone: nn.Module, steps: int) -> None:
        """Score the targets and record the scores if evaluate.every says so after `steps` steps of a stage."""
        every = self.config.evaluate.every
        if not every or steps % every:
            return
        with part_of_step(SCORING):
            for name, scores, *_ in self.score(backbone):
                self.logbook.record(f"{stage}/{name}", steps - 1, **scores.rates)

    @property
    def exact_decoding(self) -> Mapping[str, Any]:
        """What `decoding` is, for images that a model is judged by."""
        return {**self.decoding, "decoder": exact_decoder(self.decoding.get("decoder", "cpu"))}

    def timed(self, part: str) -> AbstractContextManager[None]:
        """A block whose seconds are added to those of a part of the run."""
        return _timed(self.seconds, part)


@contextmanager
def _timed(seconds, part):
    begin = time.perf_counter()
    try:
        yield
    finally:
        seconds[part] = seconds.get(part, 0.0) + time.perf_counter() - begin


def _begin(logbook, made_with, config, wishes, people, new):
    """Makes the run's folder, and writes what the run is made with; config.yaml has what was wished for."""
    if new:
        logbook.folder = make_new_folder(logbook.folder)
    logbook.folder.mkdir(parents=True, exist_ok=True)
    (made_with or MadeWith(logbook.folder)).write(config, people.trained)
    write_text(logbook.folder / "config.yaml", with_choices(config, wishes).to_yaml())
    write_text(logbook.folder / "environment.json", json.dumps(environment(), indent=1))
    if config.pretrain.steps and not (logbook.folder / IDENTITIES).is_file():
        write_identities(logbook.folder / IDENTITIES, people.sources[PRETRAIN])


def _check_shared(folder):
    """Raises OSError if the run's folder, which the first process has made, is not seen by this one."""
    if not folder.is_dir():
        raise OSError(
            f"process {os.environ.get('RANK', '0')} on {platform.node()} does not see the run folder {folder}; want "
            "--folder in a place that all machines share"
        )


def _check_before_data(config, device, logbook) -> Config:
    """The settings with a backbone that has a name; says which one was read off weights.

    Raises a sentence for a setting that cannot work here: by the device, the margin, the backbone, or weights that do
    not fit.
    """
    for precision in (config.pretrain.precision, config.meta.precision, config.meta.curvature):
        check_precision(precision, device)
    make_margin(config.pretrain.margin, config.pretrain.margin_values)
    if config.data.decode != "auto":
        checked_decoder(config.data.decode, device)
    found = settled(config, weights_of(config.model.weights) if config.model.weights else None)
    if found.model != config.model:
        logbook.say(f"backbone  {found.model.name}, {found.model.embedding} outputs, read off {config.model.weights}")
    check_backbone(found, device)
    if found.pretrain.classifier:
        open_classifier(found.pretrain.classifier, found.model.embedding or _own_embedding(found))
    return found


def _own_embedding(config) -> Any:
    """The length of embeddings of a backbone of which the settings name none; no random state changes."""
    with torch.random.fork_rng([]):
        return build_backbone(config).embedding
