"""One seed and one domain left out: the base, and the arms that go on from it."""

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from rich.console import Console
from torch import nn

from fastmfr.config import Config
from fastmfr.evaluate import embed_domain
from fastmfr.head import MarginHead
from fastmfr.progress import Meter, new_console
from fastmfr.protocols import leave_one_out
from fastmfr.prove.arms import Arm, config_of
from fastmfr.prove.pace import Pace, measure
from fastmfr.prove.pooled import BesideTrainer, PooledTrainer, grown, with_all_people, with_all_people_in_stage_one
from fastmfr.prove.scores import by_person
from fastmfr.prove.successors import LOSSES, TrainerWithLosses
from fastmfr.results import BASE, CHOSEN, EMA, LAST, MEAN, META, PRETRAIN
from fastmfr.runtime import seed_and_set_threads
from fastmfr.training import Logbook, Run
from fastmfr.training.choosing import RECORD, Choosing
from fastmfr.training.meta import meta_train, mfr_trainer
from fastmfr.training.pretrain import pretrain
from fastmfr.weights import load_weights, save_weights

_WITH_HEAD = ("cosface", "beside")  # kinds of arms that train the classifier too
_FINISHED = f"{LAST}.safetensors"  # the weights of an arm that was trained to its end


def leaving_out(config: Config, name: str, seed: int) -> Config:
    """The settings of the run with this seed that does not see the source domain `name`, and is scored on it."""
    data = config.data
    protocol = leave_one_out(data.sources, name)
    return replace(
        config,
        seed=seed,
        data=replace(
            data,
            sources=protocol.sources,
            pretrain={other: path for other, path in data.pretrain.items() if other != name},
            targets=protocol.targets | data.targets,
        ),
        evaluate=replace(config.evaluate, every=0),
    )


class CellLogbook(Logbook):
    """Keeps what a run says in said.txt, and shows its progress on `watched`, if there is such a console."""

    def __init__(self, folder: Path, watched: Console | None = None):
        folder.mkdir(parents=True, exist_ok=True)
        self._file = (folder / "said.txt").open("a")
        super().__init__(folder, new_console(self._file, width=120))
        self._watched = watched or self.console

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        self._file.close()

    def progress(self, title: str, first: int, total: int) -> Meter:
        """Return a Meter over the steps first .. total - 1."""
        return Meter(self._watched, f"  {title}", first, total)


class AllKept(Choosing):
    """The candidates of an arm; keeps the weights of both averages. Candidates of the base are the arm's too."""

    def __init__(self, run: Run, base: Path | None = None):
        if base:
            for name in (RECORD, f"{CHOSEN}.safetensors"):
                if (base / name).is_file() and not (run.folder / name).is_file():
                    shutil.copyfile(base / name, run.folder / name)
        super().__init__(run)
        self._scores = super().is_on

    @property
    def is_on(self) -> bool:
        """True: averages are made even if nobody is kept for validation."""
        return True

    def consider(self, network: nn.Module, stage: str, steps: int, weights: str = LAST) -> None:
        """Keep an average, and score the candidate if somebody is kept for validation."""
        if weights in (EMA, MEAN):
            save_weights(network, self._run.folder / f"{weights}.safetensors", steps=steps)
        if self._scores:
            super().consider(network, stage, steps, weights)


class Cell:
    """The runs of one seed and one domain left out, in a folder each; the data are opened once for all of them.

    Args:
        config: the settings, as of `leaving_out`.
        folder: where the folders lie.
        arms: all arms by name.
        watched: where the progress of long tasks is shown.
    """

    def __init__(self, config: Config, folder: Path, arms: Mapping[str, Arm], watched: Console):
        self.folder, self._arms, self._watched = folder, arms, watched
        logbook = CellLogbook(folder / "data", watched)
        try:
            self._run = Run.open(config, logbook)
        except BaseException:
            logbook.__exit__()
            raise

    def close(self) -> None:
        """Free the decoded images and close the log."""
        for data in self._run.data.values():
            data.images.close()
        self._run.logbook.__exit__()

    def measure(self) -> Pace:
        """Time a few steps of both stages, and the scoring of one model."""
        with CellLogbook(self.folder / "pace") as logbook:
            run = replace(self._run, folder=logbook.folder, logbook=logbook)
            pace = measure(run, lambda: self._figures(self._run.new_backbone()))
        shutil.rmtree(self.folder / "pace")
        return pace

    def train(self, name: str) -> dict[str, float]:
        """Train an arm; what was trained before is found.

        Returns:
            Facts for the arm's row: steps, last loss, alpha |Hv| / |v| as a mean over the steps; none of the base.

        Raises:
            NonFiniteLoss: a loss became NaN or infinite.
        """
        arm = self._arms[name]
        if arm.kind == "together":
            return self._train_together(name)
        backbone, head = self._base(with_head=arm.kind in _WITH_HEAD)
        if arm.kind == "base":
            return {}
        self._run.before_stage(META)
        seed_and_set_threads(self._run.config.seed, self._run.config.threads)
        with self._beside(name, config_of(name, arm, self._run.config)) as run:
            make_trainer = {"hard_pair": PooledTrainer}.get(arm.kind, mfr_trainer)
            if arm.kind in _WITH_HEAD and not (run.folder / _FINISHED).is_file():  # no state holds the classifier
                shutil.rmtree(run.folder / "checkpoints", ignore_errors=True)
            if arm.kind == "cosface":
                run = with_all_people(run)
                make_trainer = partial(PooledTrainer, head=grown(head, run, backbone))
            elif arm.kind in LOSSES:
                make_trainer = partial(TrainerWithLosses, losses=arm.kind)
            elif arm.kind == "beside":
                make_trainer = partial(BesideTrainer, head=grown(head, run, backbone))
            meta_train(run, backbone, AllKept(run, self.folder / BASE), make_trainer)
            save_weights(backbone, run.folder / _FINISHED)
            return _facts(run.logbook.path)

    def _train_together(self, name) -> dict[str, float]:
        """Train stage one from fresh weights on the people of both stages."""
        config = self._run.config
        seed_and_set_threads(config.seed, config.threads)
        backbone = self._run.new_backbone()
        with self._beside(name, config) as run:
            larger = with_all_people_in_stage_one(run)
            pretrain(larger, backbone, AllKept(larger))
            larger.data[PRETRAIN].images.close()
            save_weights(backbone, run.folder / _FINISHED)
            return {"steps": larger.config.pretrain.steps}

    def _base(self, with_head: bool) -> tuple[nn.Module, MarginHead | None]:
        """The base, and its classifier if there is one and it is wanted."""
        config = self._run.config
        seed_and_set_threads(config.seed, config.threads)
        backbone, head = self._run.new_backbone(), None
        with self._beside(BASE, config) as run:
            finished = run.folder / _FINISHED
            if finished.is_file() and not with_head:
                load_weights(backbone, finished)
                return backbone, None
            if config.pretrain.steps:
                head = pretrain(run, backbone, AllKept(run))
            else:
                AllKept(run).consider(backbone, PRETRAIN, 0)
            save_weights(backbone, finished)
        return backbone, head

    def has(self, name: str) -> bool:
        """Whether the weights of a model are there."""
        return self._weights(name).is_file()

    def _weights(self, name) -> Path:
        arm, _, model = name.partition(":")
        return self.folder / arm / f"{model or LAST}.safetensors"

    def tidy(self) -> None:
        """Delete the weights and states of all arms, and of the base all states but the last.

        Weights of large networks fill disks. From the base, another arm can still go on.
        """
        for folder in self.folder.iterdir():
            states = sorted((folder / "checkpoints").glob("*"))
            if folder.name == BASE:
                states = states[:-1]
            else:
                for file in (*folder.glob("*.safetensors"), *folder.glob(RECORD)):
                    file.unlink()
            for state in states:
                shutil.rmtree(state)

    def score(self, name: str) -> dict[str, dict]:
        """Score a model of an arm that was trained.

        Returns:
            {target: figures by person}, as of `by_person`.

        Raises:
            ValueError: nobody is kept for validation, so that no model is chosen.
        """
        weights = self._weights(name)
        if not weights.is_file():
            raise ValueError(
                f"no model of {weights.parent.name!r} was chosen, for no source has five people or more to keep; leave "
                f"{name} out of --arms, or raise --data.validation"
            )
        backbone = self._run.new_backbone()
        load_weights(backbone, weights)
        return self._figures(backbone)

    def _figures(self, backbone: nn.Module) -> dict[str, dict]:
        """{target: figures by person}."""
        run, scores = self._run, {}
        evaluate = run.config.evaluate
        for target_name, target in run.targets.items():
            embedding_ND, bad = embed_domain(
                backbone,
                target.domain,
                run.preprocess,
                run.device,
                batch_images=evaluate.batch_images,
                **run.exact_decoding,
            )
            pairs = target.pairs.without(bad)
            scores[target_name] = by_person(embedding_ND, pairs, target.domain.identities, evaluate.far)
        return scores

    @contextmanager
    def _beside(self, name: str, config: Config) -> Iterator[Run]:
        """The cell's run in a folder of an arm beside the cell's data."""
        with CellLogbook(self.folder / name, self._watched) as logbook:
            yield replace(self._run, config=config, folder=logbook.folder, logbook=logbook)


def _facts(path):
    """What metrics.jsonl says of an arm."""
    records = [json.loads(line) for line in path.read_text().splitlines()]
    records = [record for record in records if record["stage"] == META]
    ratios = [record["alpha_hv_over_v"] for record in records if record.get("alpha_hv_over_v") is not None]
    facts = {"steps": len(records), "loss": records[-1]["loss"]}
    return facts | ({"alpha_hv_over_v": round(float(np.mean(ratios)), 4)} if any(ratios) else {})
