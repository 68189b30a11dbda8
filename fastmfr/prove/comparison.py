"""A whole comparison: every seed, every domain left out, every model; what is missing is made, then all is reported."""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from fastmfr.atomic import write_text
from fastmfr.config import Config
from fastmfr.prove.arms import BASE, Arm, config_of, title_of, trained_arm
from fastmfr.prove.cell import Cell, leaving_out
from fastmfr.prove.gains import views
from fastmfr.prove.pace import Pace
from fastmfr.prove.page import page
from fastmfr.prove.plots import gains_plot
from fastmfr.prove.rows import FAILED, Rows, Task
from fastmfr.prove.scores import main_figure, titles
from fastmfr.prove.tables import part_of
from fastmfr.prove.verdict import Verdict, verdict
from fastmfr.runtime import environment
from fastmfr.text import printable
from fastmfr.training import Logbook, NonFiniteLoss
from fastmfr.training.data import check_batches
from fastmfr.training.people import open_people

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
    ):
        self._config, self._folder, self._arms, self._names, self._console = config, folder, arms, names, console
        self._keep = keep
        needed = list(dict.fromkeys(one for name in names for one in (trained_arm(name), name)))
        trained = {name: arms[name] for name in needed if name in arms}
        steps = {name: config_of(name, arm, config).meta.steps / config.meta.steps for name, arm in trained.items()}
        self._rows = Rows(folder, config, trained)
        self._tasks = [Task(seed, each, name) for seed in seeds for each in left_out for name in needed]
        self._pace, self._cell, self._open = Pace(steps=steps), None, None

    @property
    def missing(self) -> list[Task]:
        """The tasks without a row."""
        return [task for task in self._tasks if task not in self._rows.by_task]

    def check_data(self) -> None:
        """Open the domains and draw a batch for every domain left out; make procedural faces.

        Raises:
            ValueError, OSError: what cannot work, in a sentence, before anything is trained.
        """
        logbook = _Warnings(self._folder, self._console)
        for left_out in dict.fromkeys(task.left_out for task in self._tasks):
            config = leaving_out(self._config, left_out, self._tasks[0].seed)
            people = open_people(config, logbook)
            for name in dict.fromkeys(trained_arm(task.name) for task in self._tasks):
                try:
                    check_batches(people.sources, config_of(name, self._arms[name], config))
                except ValueError as error:
                    raise ValueError(f"with {left_out} left out: {error}") from None

    def say_plan(self) -> None:
        """Say what is to be made and how long it takes; measured by a few steps if there are no figures yet."""
        missing = self.missing
        if not missing:
            self._say(f"all {len(self._tasks)} models are there")
            return
        how = "by the models there are"
        if not any(FAILED not in row for row in self._rows.by_task.values()):
            self._say("measuring how long a few steps take ...")
            cell, how = self._cell_of(missing[0]), "by a few steps of each stage"
            self._pace = replace(cell.measure(), opened=self._pace.opened, steps=self._pace.steps)
        cells = list(dict.fromkeys((task.seed, task.left_out) for task in self._tasks))
        for seed, left_out in cells:
            mine = [task for task in missing if (task.seed, task.left_out) == (seed, left_out)]
            if mine:
                names = ", ".join(task.name for task in mine) if len(mine) <= MOST_NAMED else f"{len(mine)} models"
                self._say(f"seed {seed}, {left_out} left out: {_duration(self._left(mine))}: {names}")
        self._say(
            f"{len(missing)} of {len(self._tasks)} models to make, about {_duration(self._left(missing))} in all, {how}"
        )

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
            row |= {FAILED: str(error)}
        row["seconds"] = round(time.monotonic() - start, 1)
        self._rows.add(task, row)
        if not self._keep and not any(self._open == (other.seed, other.left_out) for other in self.missing):
            cell.tidy()
        done, left = len(self._tasks) - len(self.missing), self._left(self.missing)
        what = f"failed: {row[FAILED]}" if FAILED in row else f"{row['seconds']:.0f} s"
        more = f" · {_duration(left)} left" if left else ""
        self._say(f"[{done}/{len(self._tasks)}] seed {task.seed}, {task.left_out} left out, {task.name}: {what}{more}")

    def _left(self, tasks):
        return self._pace.left(tasks, self._rows.by_task, [self._open] if self._open else ())

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

    def report(self, next_step: str) -> tuple[Verdict, Path]:
        """Write report.html, table.md and gains.png, and, if a model can be recommended, take.yaml.

        Args:
            next_step: the command that goes on, if models are missing.

        Returns:
            The verdict, and the page.
        """
        wanted = set(self._tasks)
        rows = {task: row for task, row in self._rows.by_task.items() if task in wanted}
        failed = {task.name: row[FAILED] for task, row in rows.items() if FAILED in row}
        names = [name for name in self._names if name not in failed]
        notes = [f"{name} failed in one run or more and is left out: {why}" for name, why in failed.items()]
        if self.missing:
            notes.append(f"{len(self.missing)} of {len(self._tasks)} models are missing, so not all runs count yet.")
        if unreadable := _unreadable(self._folder):
            notes.append(f"{unreadable} images could not be read and were left out: see bad_images.tsv in */data.")
        found, called = views(rows, names), titles(self._config.evaluate.far)
        named = {name: title_of(name, self._arms) for name in names}
        scores = [score for view in found for name in names for score in view.scores(name)]
        figure = main_figure(scores, self._config.evaluate.far)
        answer = verdict(found, named, figure, called[figure])
        parts = [part_of(view, named, called) for view in found]
        self._folder.mkdir(parents=True, exist_ok=True)
        png = gains_plot(found, named, figure, called[figure], self._folder / "gains.png")
        if not self.missing:
            next_step = self._write_recipe(answer.take)
        sentences = "\n\n".join([f"# {answer.headline}", *answer.sentences])
        text = "\n\n".join([sentences, *(part.markdown() for part in parts)])
        write_text(self._folder / "table.md", text + "\n")
        changes = [f"# arm {name}: {dict(arm.meta)}" for name, arm in self._arms.items() if name in named and arm.meta]
        settings = "\n".join([*changes, self._config.to_yaml()])
        path = self._folder / "report.html"
        write_text(path, page(str(self._folder), answer, parts, png, next_step, notes, settings))
        return answer, path

    def _write_recipe(self, take) -> str:
        """Write take.yaml, which trains the model `take` on all domains; return the command."""
        arm = self._arms[trained_arm(take)]
        config, note = config_of(trained_arm(take), arm, self._config), ""
        if arm.kind == BASE:
            config = replace(config, meta=replace(config.meta, steps=0))
        elif arm.kind == "hard_pair":
            meta = replace(config.meta, method="no_meta", soft_classification=0.0, domain_alignment=0.0)
            config, note = (
                replace(config, meta=meta),
                "# the nearest that a run can do: hard pairs, without a look-ahead\n",
            )
        elif arm.kind == "beside":
            note = "# the nearest that a run can do: MFR without stage one's loss beside it\n"
        elif arm.kind == "cosface":
            steps = self._config.pretrain.steps + self._config.meta.steps
            more = replace(config.pretrain, steps=steps)
            config = replace(config, pretrain=more, meta=replace(config.meta, steps=0))
            note = "# the nearest that a run can do: a longer stage one\n"
        config = replace(config, choose=self._config.choose)
        write_text(self._folder / "take.yaml", config.to_yaml())
        return f"{note}python -m fastmfr.train --config {self._folder / 'take.yaml'}"

    def _say(self, text):
        self._console.print(printable(text))


def _unreadable(folder):
    """How many images could not be read."""
    lines = [line for file in folder.glob("*/data/bad_images.tsv") for line in file.read_text().splitlines()]
    return len({line.partition("\t")[0] for line in lines})


class _Warnings(Logbook):
    """Says warnings, each once, and nothing else."""

    def __init__(self, folder: Path, console: Console):
        super().__init__(folder, console)
        self._said: set[str] = set()

    def say(self, text: str) -> None:
        """Drop a line."""

    def warn(self, text: str) -> None:
        """Print a line that has not been printed."""
        if text not in self._said:
            self._said.add(text)
            super().warn(text)


def _duration(seconds):
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 90 else f"{minutes / 60:.1f} h"
