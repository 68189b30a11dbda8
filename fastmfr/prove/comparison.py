"""A whole comparison: every seed, every domain left out, every model; what is missing is made."""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from fastmfr.atomic import write_text
from fastmfr.config import Config
from fastmfr.progress import duration
from fastmfr.prove.arms import Arm, config_of, trained_arm
from fastmfr.prove.cell import Cell, leaving_out
from fastmfr.prove.pace import Pace
from fastmfr.prove.rows import FAILED, Rows, Task
from fastmfr.results import BASE
from fastmfr.runtime import environment
from fastmfr.text import printable
from fastmfr.training import NonFiniteLoss
from fastmfr.training.resuming import Held

MOST_NAMED = 10  # models that a line of the plan names


class Comparison:
    """Models of several seeds and domains left out, in a folder that is found again.

    Args:
        config: the settings; data.sources are left out in turn, data.targets are scored by every model.
        folder: where rows, bases, arms and the page lie.
        arms: all arms by name.
        names: the models, in the order in which they are made.
        seeds: the seeds.
        left_out: the sources to leave out in turn.
        console: what is said goes there.
        keep: whether the weights of arms are kept when all models of a seed and domain left out have a row.
        rows: where rows are read and added; None stands for the folder's own.
        jobs: how many cells are made at a time.

    Attributes:
        trained: the arms that are trained, by name.

    Raises:
        ValueError: the folder holds figures of other settings, or an arm's settings do not go together.
    """

    def __init__(
        self,
        config: Config,
        folder: Path,
        arms: Mapping[str, Arm],
        names: Sequence[str],
        seeds: Sequence[int],
        left_out: Sequence[str],
        console: Console,
        keep: bool = False,
        rows: Rows | None = None,
        jobs: int = 1,
    ):
        self._config, self._folder, self._arms, self._console = config, folder, arms, console
        self._keep, self._jobs = keep, jobs
        needed = list(dict.fromkeys(one for name in names for one in (trained_arm(name), name)))
        self.trained = {name: arms[name] for name in needed if name in arms}
        steps = {name: _relative_steps(name, arm, config) for name, arm in self.trained.items()}
        self._rows = Rows(folder, config, self.trained) if rows is None else rows
        self._tasks = [Task(seed, each, name) for seed in seeds for each in left_out for name in needed]
        self._pace, self._cell, self._open = Pace(steps=steps), None, None

    @property
    def rows(self) -> dict[Task, Mapping[str, Any]]:
        """The rows of the tasks."""
        return {task: self._rows.by_task[task] for task in self._tasks if task in self._rows.by_task}

    @property
    def missing(self) -> list[Task]:
        """The tasks without a row."""
        return [task for task in self._tasks if task not in self._rows.by_task]

    def check_data(self, held: Mapping[str, Held]) -> None:
        """Raise ValueError if domains hold something else than when figures were made."""
        self._rows.check_data(held)

    def say_plan(self) -> None:
        """Say what is to be made and how long it takes; measured by a few steps if there are no figures yet."""
        missing = self.missing
        if not missing:
            self._say(f"all {len(self._tasks)} models are there")
            return
        how = "by the models there are"
        if not all(self._pace.knows(task.name, self._rows.by_task) for task in missing):
            self._say("measuring how long a few steps take ...")
            cell, how = self._cell_of(missing[0]), "by a few steps of each stage"
            self._pace = replace(cell.measure(), opened=self._pace.opened, steps=self._pace.steps)
        for names, cells in self._plan().items():
            seeds, left_out = (", ".join(dict.fromkeys(str(cell[part]) for cell in cells)) for part in (0, 1))
            tasks = [Task(*cells[-1], name) for name in names]
            each = f"about {duration(self._left(tasks))} each" if len(cells) > 1 else duration(self._left(tasks))
            listed = ", ".join(names) if len(names) <= MOST_NAMED else f"{len(names)} models"
            self._say(f"seed {seeds}; {left_out} left out: {each}: {listed}")
        self._say(
            f"{len(missing)} of {len(self._tasks)} models to make, about {duration(self._left(missing))} in all, {how}"
        )

    def _plan(self) -> dict[tuple[str, ...], list[tuple[int, str]]]:
        """The cells (seed, left out) that miss the same models, by these models."""
        names: dict[tuple[int, str], list[str]] = {}
        for task in self.missing:
            names.setdefault((task.seed, task.left_out), []).append(task.name)
        plan: dict[tuple[str, ...], list[tuple[int, str]]] = {}
        for cell, of_cell in names.items():
            plan.setdefault(tuple(of_cell), []).append(cell)
        return plan

    def run(self, minutes: float) -> bool:
        """Make what is missing; return whether all is there.

        No model is begun that would not be ready within `minutes`, but for the first.
        """
        begin = time.monotonic()
        for number, task in enumerate(self.missing):
            left = 60 * minutes - (time.monotonic() - begin)
            if number and self._left([task]) > left:
                self._say(f"{minutes:g} minutes are over; the same command goes on from here")
                return False
            self._make(task)
        return True

    def _make(self, task):
        cell, start = self._cell_of(task), time.monotonic()
        trained = self._rows.by_task.get(replace(task, name=trained_arm(task.name)), {})
        row: dict[str, Any] = {"seconds": 0.0}
        try:
            is_there = trained and cell.has(task.name)
            facts = {} if is_there or FAILED in trained else cell.train(trained_arm(task.name))
            row |= {FAILED: trained[FAILED]} if FAILED in trained else {"scores": cell.score(task.name), **facts}
        except NonFiniteLoss as error:
            if task.name == BASE:  # no arm could go on from it
                raise ValueError(f"the base of seed {task.seed}, {task.left_out} left out: {error}") from None
            row |= {FAILED: str(error)}
        row["seconds"] = round(time.monotonic() - start, 1)
        self.add(task, row)
        if not self._keep and not any(self._open == (other.seed, other.left_out) for other in self.missing):
            cell.tidy()

    def add(self, task: Task, row: Mapping[str, Any]) -> None:
        """Add the row of a task, and say how far the comparison is."""
        self._rows.add(task, row)
        done, left = len(self._tasks) - len(self.missing), self._left(self.missing)
        what = f"failed: {row[FAILED]}" if FAILED in row else f"{row['seconds']:.0f} s"
        more = f" · {duration(left)} left" if left else ""
        self._say(f"[{done}/{len(self._tasks)}] seed {task.seed}, {task.left_out} left out, {task.name}: {what}{more}")

    def _left(self, tasks):
        """Seconds until the tasks have their rows, as if cells made at a time did not hold each other up."""
        at_once = max(1, min(self._jobs, len({(task.seed, task.left_out) for task in tasks})))
        return self._pace.left(tasks, self._rows.by_task, [self._open] if self._open else ()) / at_once

    def _cell_of(self, task) -> Cell:
        """The cell of a task; the cell before is closed, so that its images make room."""
        if self._open != (task.seed, task.left_out) or self._cell is None:
            self.close()
            begin = time.monotonic()
            config = leaving_out(self._config, task.left_out, task.seed)
            folder = self._folder / f"{task.seed}-{task.left_out}"
            self._cell = Cell(config, folder, self._arms, self._console)
            self._pace.opened.append(time.monotonic() - begin)
            self._open = (task.seed, task.left_out)
            write_text(self._folder / "environment.json", json.dumps(environment(), indent=1))
        return self._cell

    def close(self) -> None:
        """Free the images of the cell that is open."""
        if self._cell is not None:
            self._cell.close()
        self._cell = self._open = None

    def _say(self, text):
        self._console.print(printable(text))


def _relative_steps(name, arm, config):
    """How many times the steps of its stage an arm takes, about."""
    if arm.kind == "together":
        return 1 / (1 - config.data.new_people)
    return config_of(name, arm, config).meta.steps / config.meta.steps
