"""rows.jsonl: one line a finished arm, and how long those to come will take."""

import json
import statistics
from dataclasses import asdict, dataclass
from pathlib import Path

from fastmfr.atomic import write_text

from .settings import Settings


@dataclass(frozen=True, order=True)
class Task:
    """One line to be: an arm of a seed and a domain left out."""

    seed: int
    left_out: str
    arm: str


class Rows:
    """The lines of a folder. Raises ValueError where they were made with other settings than `settings`, a dict."""

    def __init__(self, folder: Path, settings: dict):
        self._path, kept = folder / "rows.jsonl", folder / "settings.json"
        if kept.is_file() and json.loads(kept.read_text()) != json.loads(json.dumps(settings)):
            raise ValueError(
                f"{folder} holds rows of other settings, said in {kept.name} there, and would mix them "
                "with these; want another --folder, or the settings as they were"
            )
        self._kept, self._settings = kept, settings
        lines = self._path.read_text().splitlines() if self._path.is_file() else []
        self.by_task = {_task(row): row for row in map(json.loads, lines)}

    def add(self, task: Task, row: dict):
        """Adds a line; whoever reads the file sees all of it or none."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        write_text(self._kept, json.dumps(self._settings, indent=1))
        self.by_task[task] = asdict(task) | row
        write_text(self._path, "".join(json.dumps(row) + "\n" for row in self.by_task.values()))

    def seconds(self, task: Task, settings: Settings) -> float:
        """What a task will take: the median of that arm's lines, else the settings' guess."""
        known = [row["seconds"] for other, row in self.by_task.items() if other.arm == task.arm]
        if known:
            return statistics.median(known)
        return settings.base_seconds if task.arm == "base" else settings.arm_seconds

    def left(self, tasks: list[Task], settings: Settings) -> float:
        """Seconds until those of `tasks` that have no line are done."""
        return sum(self.seconds(task, settings) for task in tasks if task not in self.by_task)


def _task(row):
    return Task(row["seed"], row["left_out"], row["arm"])
