"""rows.jsonl: one line for each model of a seed and a domain left out; and what the lines were made with."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fastmfr.atomic import write_text
from fastmfr.config import Config
from fastmfr.config.sections import flattened, plain
from fastmfr.prove.arms import Arm

FREE = ("recipe", "folder", "seed", "device", "threads", "save_every", "data.threads", "data.vet", "data.cache")
FAILED = "failed"
NOT_OF_META = ("base", "cosface", "together", "hard_pair")  # kinds of arms without settings of their own


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
        mine = {name: value for name, value in flattened(plain(asdict(config))).items() if name not in FREE}
        own = {name: plain(dict(arm.meta)) for name, arm in arms.items() if arm.kind not in NOT_OF_META}
        self._record = json.loads(json.dumps({"settings": mine, "arms": own}))
        if self._kept.is_file():
            try:
                before = json.loads(self._kept.read_text())
                settings, others = dict(before["settings"]), dict(before["arms"])
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                raise ValueError(f"{self._kept} is damaged ({error}); want another --out") from None
            self._check(settings, others)
            self._record["arms"] = others | self._record["arms"]
        self.by_task = self._read()

    def _read(self) -> dict[Task, Mapping[str, Any]]:
        lines = self._path.read_text().splitlines() if self._path.is_file() else []
        found = {}
        for number, line in enumerate(lines, 1):
            try:
                row = json.loads(line)
                task = Task(int(row["seed"]), row["left_out"], row["name"])
                found[task] = {**row, "seconds": float(row["seconds"])}
                if FAILED not in row:
                    dict(row["scores"])
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
