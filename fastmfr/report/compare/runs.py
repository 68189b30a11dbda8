"""Runs read side by side: names to tell them apart, the models they scored, the settings they differ in."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fastmfr.config import read_yaml
from fastmfr.results import Results, Scores, TargetResult, to_json

from ..folder import RunFolder, read
from ..tables import listed, main_of
from .naming import folder_names, names_by_settings

READ = ("config.yaml", "metrics.jsonl", "results.json")


@dataclass(frozen=True, eq=False)
class Entry:
    """A model and its `scores` by target; `main` if one of `runs` is about the model.

    Runs that hold the same model with the same scores share an entry, as runs trained from one base model do. A run
    that was not scored has an entry without model and scores.
    """

    runs: tuple[str, ...]
    model: str
    main: bool
    scores: Mapping[str, Scores]


@dataclass(frozen=True)
class Comparison:
    """Runs side by side.

    Attributes:
        runs: The runs by name.
        folders: The name of each run's folder.
        entries: The models.
        unseen: By target, whether no run was trained on it.
        differing: By dotted setting its value in each run, of those settings that are not the same in all runs.
        notes: Sentences that say what is missing or odd.
    """

    runs: dict[str, RunFolder]
    folders: dict[str, str]
    entries: list[Entry]
    unseen: dict[str, bool]
    differing: dict[str, dict[str, str]]
    notes: list[str]

    def owners(self, entry: Entry) -> str:
        """Return the names of the runs that hold a model."""
        return "every run" if len(entry.runs) == len(self.runs) else listed(list(entry.runs))

    def full_name(self, entry: Entry) -> str:
        """Return the runs and the model, in one line."""
        return ", ".join(filter(None, [self.owners(entry), entry.model]))

    def results(self) -> Results:
        """Return the scores of all runs as if one run had scored every entry; a model is the place in `entries`."""
        numbered = {str(place): entry.scores for place, entry in enumerate(self.entries)}
        targets = {
            target: {place: scores[target] for place, scores in numbered.items() if target in scores}
            for target in self.unseen
        }
        return Results(
            targets={
                target: TargetResult(unseen=self.unseen[target], models=models) for target, models in targets.items()
            }
        )


def compare(paths: Sequence[Path]) -> Comparison:
    """Read the runs in the folders `paths`, in that order.

    Raises:
        ValueError: there are fewer than two runs, or one is given twice.
        FileNotFoundError: a folder holds no run.
    """
    found = dict(zip(folder_names(paths), map(_read, paths), strict=True))
    settings, unread = _settings(found)
    by_folder = _differing(settings)
    names = names_by_settings(list(found), by_folder)
    runs = {names[folder]: run for folder, run in found.items()}
    differing = {
        setting: {names[folder]: value for folder, value in values.items()} for setting, values in by_folder.items()
    }
    scored = {name: run.results.scored for name, run in runs.items()}
    entries = _entries(scored)
    # a target that one of the runs was trained on is not shown as unseen; a note names the run
    unseen = {
        target: all(other[target].unseen for other in scored.values() if target in other)
        for of_run in scored.values()
        for target in of_run
    }
    notes = [f"{name}: {note}" for name, run in runs.items() for note in run.notes] + unread
    notes += _gaps(entries, unseen) + _unlike(scored, unseen)
    return Comparison(runs, {name: folder for folder, name in names.items()}, entries, unseen, differing, notes)


def _read(path: Path) -> RunFolder:
    if path.is_dir() and not any((path / name).is_file() for name in READ):
        raise FileNotFoundError(
            f"{path} is no run: it holds none of {listed(list(READ))}; give the folder that a training run wrote"
        )
    return read(path)


def _entries(scored: Mapping[str, Mapping[str, TargetResult]]) -> list[Entry]:
    """Every model of every run, in their order; models that are equal in all scores once."""
    found: dict[tuple[str, str], Entry] = {}
    for run, of_run in scored.items():
        main = {main_of(target.models) for target in of_run.values()}
        models = dict.fromkeys(model for target in of_run.values() for model in target.models) or {"": None}
        for model in models:
            scores = {name: target.models[model] for name, target in of_run.items() if model in target.models}
            key = model or run, json.dumps(to_json(scores), sort_keys=True)
            before = found.get(key, Entry((), model, False, scores))
            found[key] = Entry((*before.runs, run), model, before.main or model in main, scores)
    return list(found.values())


def _gaps(entries: list[Entry], unseen: dict[str, bool]) -> list[str]:
    """Which models were not scored on which targets; runs not scored at all are named by their folder's notes."""
    gaps: dict[tuple[str, str], list[str]] = {}
    for entry in entries:
        missing = [target for target in unseen if target not in entry.scores]
        if entry.model and missing:
            gaps.setdefault((listed(list(entry.runs)), listed(missing)), []).append(entry.model)
    return [
        f"{runs}: there are no scores of {listed(models)} on {missing}; there the table stays empty."
        for (runs, missing), models in gaps.items()
    ]


def _unlike(scored: Mapping[str, Mapping[str, TargetResult]], unseen: Mapping[str, bool]) -> list[str]:
    """Targets that are not the same thing in all runs, so that their figures should not be compared."""
    notes = []
    for target in unseen:
        held = {name: of_run[target] for name, of_run in scored.items() if target in of_run}
        seen = [name for name, found in held.items() if not found.unseen]
        if 0 < len(seen) < len(held):
            notes.append(f"{target} was trained on in {listed(seen)} only, on other people; elsewhere it is unseen.")
        pairs = {
            (scores.genuine, scores.impostors)
            for found in held.values()
            for scores in found.models.values()
            if scores.genuine is not None and scores.impostors is not None
        }
        if len(pairs) > 1:
            counts = listed([f"{genuine:,} genuine and {impostors:,} impostor" for genuine, impostors in sorted(pairs)])
            notes.append(f"{target} was not scored on the same pairs in all runs: there are {counts} ones.")
    return notes


def _settings(runs: dict[str, RunFolder]) -> tuple[dict[str, dict[str, str]], list[str]]:
    """Each run's settings by dotted name, and a sentence for each config.yaml that holds none."""
    settings, notes = {}, []
    for name, run in runs.items():
        try:
            found = read_yaml(run.path / "config.yaml")
        except (ValueError, OSError):
            found = None
        if isinstance(found, dict):
            settings[name] = dict(_flat(found))
        elif run.config:
            notes.append(f"{name}: config.yaml cannot be read, so its settings are not compared.")
    return settings, notes


def _flat(tree: dict, above: str = ""):
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value if isinstance(value, str) else json.dumps(value, default=str)


def _differing(settings: dict[str, dict[str, str]]) -> dict[str, dict[str, str]]:
    """The settings that are not the same in all runs, in the order of the recipe."""
    names = dict.fromkeys(name for of_run in settings.values() for name in of_run)
    names.pop("folder", None)  # where runs are put is no setting of the training
    by_name = {name: {run: of_run[name] for run, of_run in settings.items() if name in of_run} for name in names}
    return {
        name: values for name, values in by_name.items() if len(values) < len(settings) or len(set(values.values())) > 1
    }
