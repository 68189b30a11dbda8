"""Runs read side by side: names to tell them apart, the models they scored, the settings they differ in."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from ..folder import RunFolder, read
from ..tables import listed, main_of, targets

READ = ("config.yaml", "metrics.jsonl", "results.json")


@dataclass(frozen=True, eq=False)
class Entry:
    """A scored model: `figures` by target, `main` if it is what one of `runs` is about.

    Runs that hold the same model with the same figures, as those grown out of one base do, share an entry. A run that
    was not scored has one of no model and no figures.
    """

    runs: tuple[str, ...]
    model: str
    main: bool
    figures: Mapping[str, dict]


@dataclass(frozen=True)
class Comparison:
    """Runs by name; `differing` holds by setting, dotted, its value in each run that has it; `unseen` by target."""

    runs: dict[str, RunFolder]
    entries: list[Entry]
    unseen: dict[str, bool]
    differing: dict[str, dict[str, str]]
    notes: list[str]

    def owners(self, entry: Entry) -> str:
        """The names of the runs that hold a model."""
        return "every run" if len(entry.runs) == len(self.runs) else listed(list(entry.runs))

    def full_name(self, entry: Entry) -> str:
        """The runs and the model, in one line."""
        return ", ".join(filter(None, [self.owners(entry), entry.model]))

    def results(self) -> dict:
        """Scores of all runs as results.json of one run that scored every entry, keyed by its place in `entries`."""
        return {
            "targets": {
                target: {
                    "unseen": unseen,
                    "models": {
                        str(place): entry.figures[target]
                        for place, entry in enumerate(self.entries)
                        if target in entry.figures
                    },
                }
                for target, unseen in self.unseen.items()
            }
        }


def compare(paths: Sequence[Path]) -> Comparison:
    """The runs in the folders `paths`, in that order.

    Raises ValueError for fewer than two runs or one given twice, FileNotFoundError for a folder that holds no run.
    """
    runs = dict(zip(_names(paths), map(_read, paths), strict=True))
    scored = {name: targets(run.results) for name, run in runs.items()}
    entries = _entries(scored)
    # what one of the runs trained on is not shown as unseen; a note says which run that was
    unseen = {
        target: all(other[target].get("unseen") for other in scored.values() if target in other)
        for of_run in scored.values()
        for target in of_run
    }
    settings, unread = _settings(runs)
    notes = [f"{name}: {note}" for name, run in runs.items() for note in run.notes] + unread
    notes += _gaps(entries, unseen) + _unlike(scored, unseen)
    return Comparison(runs, entries, unseen, _differing(settings), notes)


def _names(paths: Sequence[Path]) -> list[str]:
    """The folders' own names, with as many of the folders above as it takes to tell them apart."""
    whole = [path.resolve() for path in paths]
    if len(whole) < 2:
        raise ValueError(f"want two runs or more to compare, got {len(whole)}; give the folders of several runs")
    if twice := [str(path) for path in dict.fromkeys(whole) if whole.count(path) > 1]:
        raise ValueError(f"want every run once, got {listed(twice)} several times; leave the repeated ones out")
    depth = 1
    while len({path.parts[-depth:] for path in whole}) < len(whole):
        depth += 1
    return [os.sep.join(path.parts[-depth:]) for path in whole]


def _read(path: Path) -> RunFolder:
    if path.is_dir() and not any((path / name).is_file() for name in READ):
        raise FileNotFoundError(
            f"{path} is no run: it holds none of {listed(list(READ))}; give the folder that a training run wrote"
        )
    return read(path)


def _entries(scored: dict[str, dict]) -> list[Entry]:
    """Every model of every run, in their order; those that are equal in all figures once."""
    found: dict[tuple[str, str], Entry] = {}
    for run, of_run in scored.items():
        main = {main_of(target["models"]) for target in of_run.values()}
        models = dict.fromkeys(model for target in of_run.values() for model in target["models"]) or {"": None}
        for model in models:
            figures = {name: target["models"][model] for name, target in of_run.items() if model in target["models"]}
            key = model or run, json.dumps(figures, sort_keys=True)
            before = found.get(key, Entry((), model, False, figures))
            found[key] = Entry((*before.runs, run), model, before.main or model in main, figures)
    return list(found.values())


def _gaps(entries: list[Entry], unseen: dict[str, bool]) -> list[str]:
    """Which models were not scored on which targets; runs not scored at all are named by their folder's notes."""
    gaps: dict[tuple[str, str], list[str]] = {}
    for entry in entries:
        missing = [target for target in unseen if target not in entry.figures]
        if entry.model and missing:
            gaps.setdefault((listed(list(entry.runs)), listed(missing)), []).append(entry.model)
    return [
        f"{runs}: there are no scores of {listed(models)} on {missing}; there the table stays empty."
        for (runs, missing), models in gaps.items()
    ]


def _unlike(scored: dict[str, dict], unseen: dict[str, bool]) -> list[str]:
    """Targets that are not the same thing in all runs, so that their figures should not be compared."""
    notes = []
    for target in unseen:
        held = {name: of_run[target] for name, of_run in scored.items() if target in of_run}
        seen = [name for name, found in held.items() if not found.get("unseen")]
        if 0 < len(seen) < len(held):
            notes.append(f"{target} was trained on in {listed(seen)} only, on other people; elsewhere it is unseen.")
        pairs = {
            (found["genuine"], found["impostors"])
            for of_run in held.values()
            for found in of_run["models"].values()
            if "genuine" in found and "impostors" in found
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
            found = yaml.safe_load(run.config)
        except yaml.YAMLError:
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
