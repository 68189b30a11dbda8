"""Read a run folder, whole or not: a file that cannot be read becomes a sentence in `notes`, never an error."""

import json
import math
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from fastmfr.config import read_yaml
from fastmfr.results import Results
from fastmfr.run_folder import commands_of


@dataclass
class RunFolder:
    """A run as found: `config` and `environment` as text, `metrics` one dict a step, `results` empty if not scored."""

    path: Path
    config: str = ""
    environment: str = ""
    sources: list[str] = field(default_factory=list)
    metrics: list[dict] = field(default_factory=list)
    results: Results = field(default_factory=Results)
    notes: list[str] = field(default_factory=list)


def read(path: Path) -> RunFolder:
    """Read the run in a folder.

    Raises:
        FileNotFoundError: `path` is no folder, or a run wrote nothing in it.
    """
    if not path.is_dir():
        raise FileNotFoundError(f"there is no run folder {path}; give the folder that a training run wrote")
    if not any((path / name).is_file() for name in ("config.yaml", "metrics.jsonl", "results.json")):
        raise FileNotFoundError(
            f"{path} is no run folder: it has no config.yaml, metrics.jsonl or results.json; give the folder that a "
            "training run wrote"
        )
    run = RunFolder(path)
    run.config = _text(run, "config.yaml", "its settings cannot be shown")
    run.environment = _text(run, "environment.json", "the machine and versions it ran on are not known")
    run.metrics = _metrics(run)
    run.results = _results(run)
    run.results.commands = run.results.commands or commands_of(path) or None  # of a run that was stopped half-way
    run.sources = run.results.sources or _configured_sources(run)
    return run


def _text(run: RunFolder, name: str, consequence: str) -> str:
    try:
        return (run.path / name).read_text(encoding="utf-8", errors="replace")
    except OSError:
        _note_missing(run, name, consequence)
        return ""


def _note_missing(run: RunFolder, name: str, consequence: str) -> None:
    run.notes.append(f"{name} is missing, so {consequence}.")


def _configured_sources(run: RunFolder) -> list[str]:
    try:
        config = read_yaml(run.path / "config.yaml")
    except (ValueError, OSError):
        config = None
    match config:
        case {"data": {"sources": dict() | list() as sources}}:
            return [str(name) for name in sources]
    if run.config:
        run.notes.append("config.yaml does not name its source domains under data, sources.")
    return []


def _metrics(run: RunFolder) -> list[dict]:
    """One record for each stage and step, in order; of a step run again after a resume, the later."""
    latest, broken, repeated = {}, [], 0
    lines = _text(run, "metrics.jsonl", "there are no training curves").splitlines()
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
            key = str(record["stage"]), int(record["step"])
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
            broken.append(number)
            continue
        repeated += key in latest
        latest[key] = record
    if broken:
        which = f"Line {broken[0]}" if len(broken) == 1 else f"{len(broken)} lines, the first line {broken[0]},"
        run.notes.append(
            f"{which} of the {len(lines)} in metrics.jsonl cannot be read, as when a run is killed while "
            "it writes; the others are shown."
        )
    if repeated:
        run.notes.append(f"{repeated} steps stand twice in metrics.jsonl, as after a resume; the later ones are shown.")
    records = [latest[key] for key in sorted(latest)]
    _note_not_finite(run, records)
    return records


def _note_not_finite(run: RunFolder, records: list[dict]) -> None:
    bad = [
        (name, record)
        for record in records
        for name, value in record.items()
        if value is None or (isinstance(value, float) and not math.isfinite(value))
    ]  # JSON has no NaN: null
    first = {name: record for name, record in reversed(bad)}
    for name, count in Counter(name for name, _ in bad).items():
        run.notes.append(
            f"{name} is not finite at {count} steps, first at {first[name]['stage']} step {first[name]['step']}."
        )


def _results(run: RunFolder) -> Results:
    try:
        results = Results.load(run.path / "results.json")
    except OSError:
        _note_missing(run, "results.json", "this run has not been scored: it was stopped before its end")
        return Results()
    except ValueError:
        results = Results()
    if not results.scored:
        run.notes.append("results.json is cut or holds no scores, so no figures are shown.")
        return Results()
    return results
