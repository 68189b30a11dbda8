"""How long the missing models take: read off those there are, or measured by a few steps of each stage."""

import shutil
import statistics
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from fastmfr.prove.arms import TOGETHER
from fastmfr.prove.rows import FAILED, Task
from fastmfr.results import BASE, META, PRETRAIN
from fastmfr.runtime import seed_and_set_threads
from fastmfr.training import Run
from fastmfr.training.meta import meta_train
from fastmfr.training.pretrain import pretrain


@dataclass
class Pace:
    """Seconds of each part of the work.

    Attributes:
        base: of a base, where nothing is known yet.
        arm: of an arm that takes as many steps as stage two.
        score: of scoring a model.
        opened: of opening the data of each seed and domain left out so far.
        steps: of what takes more or fewer steps than its stage, by name: this many times as many.
    """

    base: float = 0.0
    arm: float = 0.0
    score: float = 0.0
    opened: list[float] = field(default_factory=list)
    steps: Mapping[str, float] = field(default_factory=dict)

    def of(self, name: str, rows: Mapping[Task, Mapping[str, Any]]) -> float:
        """Seconds of a model: the median of those there are of this name, else of its kind, else as measured."""
        good = {task: row["seconds"] for task, row in rows.items() if FAILED not in row}
        for is_like in (lambda other: other == name, lambda other: _kind(other) == _kind(name)):
            known = [
                seconds * self.steps.get(name, 1.0) / self.steps.get(task.name, 1.0)
                for task, seconds in good.items()
                if is_like(task.name)
            ]
            if known:
                return statistics.median(known)
        training = {"average": 0.0, "stage one": self.base, "arm": self.arm}[_kind(name)]
        return self.score + training * self.steps.get(name, 1.0)

    def knows(self, name: str, rows: Mapping[Task, Mapping[str, Any]]) -> bool:
        """Whether there is a model of the same kind."""
        return any(_kind(task.name) == _kind(name) for task, row in rows.items() if FAILED not in row)

    def left(self, tasks: Iterable[Task], rows: Mapping[Task, Mapping[str, Any]], is_open: Collection = ()) -> float:
        """Seconds until all `tasks` have a row; the data of the cells (seed, left out) in `is_open` are open."""
        missing = [task for task in tasks if task not in rows]
        cells = {(task.seed, task.left_out) for task in missing} - set(is_open)
        opening = statistics.median(self.opened) if self.opened else 0.0
        return sum(self.of(task.name, rows) for task in missing) + opening * len(cells)


def _kind(name: str) -> str:
    """What a model is: the last weights of stage one or of an arm, or an average of weights."""
    return "average" if ":" in name else "stage one" if name in (BASE, TOGETHER) else "arm"


def measure(run: Run, score: Callable[[], object]) -> Pace:
    """Time a few steps of both stages and one scoring; nothing of it is kept.

    Args:
        run: the run of a cell, in a folder of its own.
        score: scores one model on all targets.
    """
    config = run.config
    seed_and_set_threads(config.seed, config.threads)

    def take(stage: str, steps: int) -> float:
        rate = {PRETRAIN: "learning_rate", META: "beta"}[stage]  # 0: fresh weights diverge at a rate for others
        settings = replace(getattr(config, stage), steps=steps, **{rate: 0.0})
        shutil.rmtree(run.folder / "checkpoints", ignore_errors=True)
        few = replace(run, config=replace(config, **{stage: settings}))
        begin = time.perf_counter()
        {PRETRAIN: pretrain, META: meta_train}[stage](few, run.new_backbone())
        return time.perf_counter() - begin

    base = _extrapolated(lambda steps: take(PRETRAIN, steps), config.pretrain.steps, 2, 6)
    arm = _extrapolated(lambda steps: take(META, steps), config.meta.steps, 1, 3)
    begin = time.perf_counter()
    score()
    return Pace(base, arm, time.perf_counter() - begin)


def _extrapolated(seconds_of, steps, few, more):
    """Seconds of `steps` steps by those of a few and of some more."""
    if steps <= more:
        return seconds_of(steps) if steps else 0.0
    first, second = seconds_of(few), seconds_of(more)
    return second + (steps - more) * max(0.0, second - first) / (more - few)
