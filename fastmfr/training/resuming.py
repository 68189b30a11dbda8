"""What a run was made with, written when it begins, and what may be different when it is resumed."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fastmfr.atomic import write_text
from fastmfr.config.choices import AUTO
from fastmfr.config.sections import Config
from fastmfr.domains import Domain
from fastmfr.results import BASE, META, MFR, PRETRAIN, from_json, to_json
from fastmfr.run_folder import steps_of_weights
from fastmfr.training.checkpoint import Checkpoints

RECORD = "made_with.json"
DECODE, COMPILE = "data.decode", "pretrain.compile"
CHOSEN = (DECODE, COMPILE)  # settings of which "auto" is chosen once; a resumed run takes what the run has chosen
FREE = (  # settings that a resumed run may change: they do not decide on the weights, or say when training ends
    *("recipe", "folder", "device", "threads", "save_every", "pretrain.steps", "meta.steps"),
    *("pretrain.cuda_graph", "meta.cuda_graph", "data.threads", "data.vet", "data.cache", "data.synthetic.folder"),
)
FREE_SECTIONS = ("evaluate.", "profile.")


def settings_kept(config: Config) -> dict[str, Any]:
    """Return the settings that a resumed run keeps, by dotted name, as JSON has them.

    Of the domains these are the names, for a folder may move: what is in it is compared by its fingerprint. A target
    may be added if no people of a source are held out for it.
    """
    flat = config.by_dotted_name()
    for side in ("sources", "pretrain"):
        flat[f"data.{side}"] = list(getattr(config.data, side))
    learned_from = (*config.data.sources, *config.data.pretrain)
    del flat["data.landmarks"]  # where the files are; the fingerprints know what they hold
    flat["data.targets"] = [name for name in config.data.targets if name in learned_from]
    return {name: value for name, value in flat.items() if name not in FREE and not name.startswith(FREE_SECTIONS)}


def choices_of(config: Config) -> dict[str, Any]:
    """Return the settings of CHOSEN, by dotted name."""
    flat = config.by_dotted_name()
    return {name: flat[name] for name in CHOSEN}


def with_choices(config: Config, choices: Mapping[str, Any]) -> Config:
    """Return the settings with other values of some, by dotted name."""
    for name, value in choices.items():
        section, key = name.split(".")
        config = replace(config, **{section: replace(getattr(config, section), **{key: value})})
    return config


@dataclass(frozen=True)
class Held:
    """What a source domain holds: how many people and images, and `Domain.fingerprint`."""

    people: int = 0
    images: int = 0
    fingerprint: str = ""

    def __str__(self):
        return f"{self.people:,} people and {self.images:,} images"


def change(before: Held, now: Held) -> str:
    """Return how a domain that has changed differs, in a part of a sentence."""
    return f"{before} then, {now} now" if str(before) != str(now) else f"{before}, but not the same"


def data_of(trained: Mapping[str, Domain]) -> dict[str, Held]:
    """Return what each domain that is trained on holds, by name."""
    return {name: Held(domain.identities, domain.images, domain.fingerprint()) for name, domain in trained.items()}


class MadeWith:
    """The record of a run folder."""

    def __init__(self, folder: Path):
        self._path = folder / RECORD
        self._record: Any = None
        if self._path.is_file():
            try:
                self._record = json.loads(self._path.read_text())
                self._settings = dict(self._record["settings"])
                self._data = {name: from_json(Held, held, name) for name, held in self._record["data"].items()}
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
                raise ValueError(
                    f"{self._path} is damaged ({error}): whether {folder} can go on is not known"
                ) from None

    def as_before(self, config: Config) -> Config:
        """Return the settings with what the run has chosen for those of CHOSEN that are "auto"."""
        if self._record is None:
            return config
        open_ones = [name for name, wish in choices_of(config).items() if wish == AUTO]
        return with_choices(config, {name: self._settings.get(name, AUTO) for name in open_ones})

    def check_settings(self, config: Config) -> None:
        """Check that the settings are those the run was made with, but for the ones that may change.

        A setting that the record does not know, of a later version, may have any value.

        Raises:
            ValueError: another value of a setting; the sentence has both values.
        """
        if self._record is None:
            return
        wanted = settings_kept(config)
        different = [name for name in wanted if name in self._settings and wanted[name] != self._settings[name]]
        if different:
            values = "; ".join(f"{name} was {self._settings[name]!r}, now {wanted[name]!r}" for name in different[:4])
            more = f" and {len(different) - 4} more" if len(different) > 4 else ""
            raise ValueError(
                f"{self._path.parent} was made with other settings: {values}{more}. A resumed run may change "
                f"{', '.join(FREE[3:7])} and {FREE_SECTIONS[0]}*; for anything else start a new run"
            )

    def check_data(self, trained: Mapping[str, Domain]) -> None:
        """Check that the source domains hold what they held when the run began.

        Raises:
            ValueError: images were added, removed or exchanged; the sentence says in which domain.
        """
        if self._record is None:
            return
        for name, now in data_of(trained).items():
            before = self._data.get(name, Held())
            if before == now:
                continue
            raise ValueError(
                f"the source domain {name} has changed since {self._path.parent} began: {change(before, now)}. A "
                "resumed run needs the same images; put them back, or start a new run with --model.weights to go on "
                "from these weights"
            )

    def write(self, config: Config, trained: Mapping[str, Domain]) -> None:
        """Write the record, if the folder has none yet."""
        if self._record is None:
            self._record = {"settings": settings_kept(config), "data": to_json(data_of(trained))}
            self._write()

    def keep_choice(self, name: str, choice: str) -> None:
        """Record what was chosen for a setting that is "auto", if the folder has a record."""
        if self._record is not None:
            self._record["settings"][name] = choice
            self._write()

    def _write(self):
        write_text(self._path, json.dumps(self._record, indent=1))


def check_steps(folder: Path, config: Config) -> None:
    """Check that each stage of a run folder can end after the steps that are wanted now.

    A finished stage goes on from its last state if more steps are wanted. Pretraining does not once meta-training has
    begun, for meta-training began from its weights.

    Raises:
        ValueError: more steps were taken than are wanted, or a stage cannot go on.
    """
    has_begun = {}
    for stage, model, steps in ((META, MFR, config.meta.steps), (PRETRAIN, BASE, config.pretrain.steps)):
        weights, newest = folder / f"{model}.safetensors", Checkpoints(folder / "checkpoints", stage).newest
        has_begun[stage] = weights.is_file() or newest > 0
        taken = steps_of_weights(weights) if weights.is_file() else newest
        if taken is None or not has_begun[stage] or taken == steps:
            continue
        option = f"--{stage}.steps"
        if taken > steps:
            raise ValueError(
                f"{folder} has taken {taken} steps of {stage}; want {option} of at least {taken}, got {steps}"
            )
        if weights.is_file() and newest != taken:
            raise ValueError(
                f"{stage} of {folder} ended after {taken} steps, and checkpoints/ has no state of that step to go on "
                f"from; want {option}={taken}, or a new run with --model.weights={weights}"
            )
        if stage == PRETRAIN and weights.is_file() and has_begun[META]:
            raise ValueError(
                f"{folder} has begun meta-training from the weights of {taken} pretraining steps; want "
                f"{option}={taken}, or a new run"
            )
