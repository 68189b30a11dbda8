"""rows.jsonl: one line for each model of a seed and a domain left out; and what the lines were made with."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fastmfr.atomic import write_text
from fastmfr.config import Config
from fastmfr.config.sections import plain
from fastmfr.prove.arms import Arm
from fastmfr.training.resuming import Held, change

FREE = (  # settings that decide on no figure
    *("recipe", "folder", "seed", "device", "threads", "save_every", "data.threads", "data.vet", "data.cache"),
    *("profile.steps", "profile.after"),
)
FAILED = "failed"


@dataclass(frozen=True, order=True)
class Task:
    """One line to be: a model of a seed and a domain left out."""

    seed: int
    left_out: str
    name: str


class Rows:
    """The lines of a folder.

    Args:
        folder: the folder; it is made with the first line.
        config: the settings of the lines.
        arms: the arms that are compared now, by name.

    Attributes:
        by_task: the lines.

    Raises:
        ValueError: the folder holds lines of other settings or of another arm of the same name, or is damaged.
    """

    def __init__(self, folder: Path, config: Config, arms: Mapping[str, Arm]):
        self._path, self._kept = folder / "rows.jsonl", folder / "prove.json"
        mine = {name: value for name, value in config.by_dotted_name().items() if name not in FREE}
        own = {name: _settings(arm) for name, arm in arms.items()}
        self._record = json.loads(json.dumps({"settings": mine, "arms": own, "data": {}}))
        if self._kept.is_file():
            try:
                before = json.loads(self._kept.read_text())
                settings, others = dict(before["settings"]), dict(before["arms"])
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                raise ValueError(f"{self._kept} is damaged ({error}); want another --out") from None
            self._check(settings, others)
            self._record |= {"arms": others | self._record["arms"], "data": dict(before.get("data", {}))}
        elif self._path.is_file():
            raise ValueError(
                f"{self._path} lies there without {self._kept.name}, so what its figures were made with is not known; "
                "want another --out"
            )
        self.by_task = self._read()

    def check_data(self, held: Mapping[str, Held]) -> None:
        """Check that domains hold what they held when the lines were made.

        Raises:
            ValueError: people or images were added, removed or exchanged.
        """
        now = {name: plain(asdict(one)) for name, one in held.items()}
        before = self._record["data"]
        if self.by_task and (changed := [name for name in now if name in before and before[name] != now[name]]):
            name = changed[0]
            what = change(Held(**before[name]), held[name])
            raise ValueError(
                f"the domain {name} has changed since the figures in {self._path.parent} were made: {what}. Put the "
                "images back, or want another --out"
            )
        self._record["data"] = before | now

    def _read(self) -> dict[Task, Mapping[str, Any]]:
        lines = self._path.read_text(errors="replace").splitlines() if self._path.is_file() else []
        found = {}
        for number, line in enumerate(lines, 1):
            try:
                row = json.loads(line)
                task = Task(int(row["seed"]), row["left_out"], row["name"])
                found[task] = {**row, "seconds": float(row["seconds"])}
                if FAILED not in row:
                    _check_scores(row["scores"], task.left_out)
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
                raise ValueError(
                    f"line {number} of {self._path} is damaged ({error}); delete the line, and its model is made again"
                ) from None
        return found

    def _check(self, settings, others):
        mine, own = self._record["settings"], self._record["arms"]
        different = [name for name in mine if name in settings and settings[name] != mine[name]]
        values = [f"{name} was {settings[name]!r}, now {mine[name]!r}" for name in different]
        values += [
            f"the arm {name} was {others[name]!r}, now {own[name]!r}"
            for name in own
            if name in others and others[name] != own[name]
        ]
        if values:
            raise ValueError(
                f"{self._path.parent} holds figures of other settings: {'; '.join(values[:4])}. Want another --out, or "
                "the settings as they were; seeds and arms may be added"
            )

    def add(self, task: Task, row: Mapping[str, Any]) -> None:
        """Add a line; whoever reads the file sees all of it or none."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        write_text(self._kept, json.dumps(self._record, indent=1))
        self.by_task[task] = asdict(task) | dict(row)
        write_text(self._path, "".join(json.dumps(row) + "\n" for row in self.by_task.values()))


def _settings(arm: Arm) -> dict[str, Any]:
    """What an arm is, as JSON has it."""
    return plain(dict(arm.meta)) | ({} if arm.kind == "meta" else {"from": arm.kind})


def _check_scores(scores: Mapping[str, Any], left_out: str) -> None:
    """Raises ValueError, TypeError, KeyError or AttributeError if these are not figures by person."""
    if left_out not in scores:
        raise ValueError(f"no scores on {left_out}")
    for of_target in scores.values():
        people = len(of_target["probes"])
        for name, values in of_target.items():
            if name != "impostors" and (len(values) != people or not np.isfinite(np.asarray(values, float)).all()):
                raise ValueError(f"{name} is not a number for each of {people} people")
        int(of_target.get("impostors", 0))
