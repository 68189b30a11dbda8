"""Differences between models that share their bases, with intervals over runs and people.

A cell is one seed and one domain left out. Shape suffixes: R cells, P people of a target, K draws.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastmfr.prove.rows import FAILED, Task
from fastmfr.prove.scores import is_measured
from fastmfr.results import BASE

DRAWS = 2000
NORMAL = 1.959964  # the 97.5 % point of the normal distribution
STUDENT = (12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281)  # of Student's t, 1 to 10


@dataclass(frozen=True)
class Gain:
    """A mean difference in a figure, as a share; `low` and `high` are None if one seed allows no interval."""

    mean: float
    low: float | None = None
    high: float | None = None

    @property
    def is_above(self) -> bool:
        """Whether all of the interval is above 0."""
        return self.low is not None and self.low > 0

    @property
    def is_below(self) -> bool:
        """Whether all of the interval is below 0."""
        return self.high is not None and self.high < 0


@dataclass(frozen=True)
class View:
    """Rows of the same cells for every model, looked at on one target each.

    Attributes:
        title: what the cells are scored on.
        rows: the rows of each model, (R,), in the order of `cells`.
        cells: (seed, left out) of each cell.
        targets: the target of each cell.
    """

    title: str
    rows: Mapping[str, Sequence[Mapping[str, Any]]]
    cells: Sequence[tuple[int, str]]
    targets: Sequence[str]

    def scores(self, name: str) -> list[Mapping[str, Any]]:
        """The figures by person of a model, (R,)."""
        return [row["scores"][target] for row, target in zip(self.rows[name], self.targets, strict=True)]

    def values(self, name: str, figure: str) -> np.ndarray | None:
        """A figure of a model, (R,); None if a cell lacks it."""
        scores = self.scores(name)
        if not all(figure in score for score in scores):
            return None
        return np.array([np.average(score[figure], weights=score["probes"]) for score in scores])

    def gain(self, name: str, over: str, figure: str) -> Gain | None:
        """The gain of a model over another one; None if a cell lacks the figure or pairs enough for it."""
        mine, theirs = self.values(name, figure), self.values(over, figure)
        if mine is None or theirs is None or not all(is_measured(figure, one) for one in self.scores(name)):
            return None
        return gain(self.scores(name), self.scores(over), self.cells, self.targets, figure)


def gain(
    mine_R: Sequence[Mapping[str, Any]],
    theirs_R: Sequence[Mapping[str, Any]],
    cells: Sequence[tuple[int, str]],
    targets: Sequence[str],
    figure: str,
) -> Gain:
    """The mean difference over cells, with 95 % of what other seeds and other people of the same domains would give.

    The people of a target are drawn once a draw, for all cells that score it: these are the same people. Seeds are
    drawn within each domain left out. Few seeds spread too little when drawn from themselves, so their spread is
    widened by sqrt(n / (n - 1)) and by Student's t.

    Args:
        mine_R: figures by person of one model, by cell.
        theirs_R: those of the other model.
        cells: (seed, left out).
        targets: the target of each cell.
        figure: the figure; its thresholds are kept.
    """
    rng = np.random.default_rng(0)
    weights, difference_KR, mean_R = {}, np.empty((DRAWS, len(targets))), np.empty(len(targets))
    for cell, (mine, theirs, target) in enumerate(zip(mine_R, theirs_R, targets, strict=True)):
        probes_P = np.array(mine["probes"])
        people = len(probes_P)
        if target not in weights:
            weights[target] = rng.multinomial(people, np.full(people, 1 / people), size=DRAWS)
        delta_P = np.array(mine[figure]) - np.array(theirs[figure])
        weight_KP = weights[target] * probes_P
        difference_KR[:, cell] = weight_KP @ delta_P / weight_KP.sum(1)
        mean_R[cell] = probes_P @ delta_P / probes_P.sum()
    groups = [np.array([c for c, (_, left_out) in enumerate(cells) if left_out == each]) for each in _domains(cells)]
    if min(map(len, groups)) < 2:
        return Gain(float(mean_R.mean()))
    widened = student(len(cells) - len(groups)) / NORMAL
    drawn_K = difference_KR.mean(1)
    for group in groups:
        n = len(group)
        share_KR = rng.multinomial(n, np.full(n, 1 / n), size=DRAWS) / n - 1 / n
        deviation_K = (share_KR * difference_KR[:, group]).sum(1)
        drawn_K += widened * math.sqrt(n / (n - 1)) * deviation_K * n / len(cells)
    low, high = np.quantile(drawn_K, [0.025, 0.975])
    return Gain(float(mean_R.mean()), float(low), float(high))


def _domains(cells):
    return dict.fromkeys(left_out for _, left_out in cells)


def student(degrees: int) -> float:
    """Return the 97.5 % point of Student's t.

    Args:
        degrees: Degrees of freedom, at least 1.
    """
    if degrees <= len(STUDENT):
        return STUDENT[degrees - 1]
    return NORMAL + (NORMAL**3 + NORMAL) / (4 * degrees)


def views(rows: Mapping[Task, Mapping[str, Any]], names: Sequence[str]) -> list[View]:
    """All cells that have every model in `names`: the domains left out together, each alone, then every other target.

    Rows of models that failed count as missing. The list is empty if no cell is whole.
    """
    good = {task: row for task, row in rows.items() if FAILED not in row}
    cells = sorted({(task.seed, task.left_out) for task in good}, key=lambda cell: (cell[1], cell[0]))
    whole = [cell for cell in cells if all(Task(*cell, name) in good for name in names)]
    if not whole:
        return []

    def view(title, chosen, targets):
        of = {name: [good[Task(seed, left_out, name)] for seed, left_out in chosen] for name in names}
        return View(title, of, chosen, targets)

    domains = list(_domains(whole))
    found = [view("All domains left out", whole, [left_out for _, left_out in whole])] if len(domains) > 1 else []
    for domain in domains:
        mine = [cell for cell in whole if cell[1] == domain]
        found.append(view(domain, mine, [domain] * len(mine)))
    others = [name for name in good[Task(*whole[0], names[0])]["scores"] if name not in domains]
    for other in others:
        if all(other in good[Task(*cell, name)]["scores"] for cell in whole for name in names):
            found.append(view(other, whole, [other] * len(whole)))
    return found


def followed(view: View, figure: str) -> Gain | None:
    """What it gains to take, for each domain, the model that is best on the other domains left out.

    No domain has a say in the choice for itself, so this is what the choice is worth on a domain that nobody has seen.

    Args:
        view: of all domains left out.
        figure: the figure.

    Returns:
        The gain over the base; None if there is one domain, or if a cell lacks the figure.
    """
    domains, names = list(_domains(view.cells)), list(view.rows)
    values = {name: view.values(name, figure) for name in names}
    if len(domains) < 2 or any(value is None for value in values.values()):
        return None
    left_out = np.array([domain for _, domain in view.cells])
    scores = {name: view.scores(name) for name in names}
    chosen_R = list(scores[BASE])
    for domain in domains:
        elsewhere = [np.flatnonzero(left_out == other) for other in domains if other != domain]
        worth = {
            name: np.mean([value[cells].mean() for cells in elsewhere])
            for name, value in values.items()
            if value is not None
        }
        best = max(worth, key=lambda name: worth[name])
        for cell in np.flatnonzero(left_out == domain):
            chosen_R[cell] = scores[best][cell]
    return gain(chosen_R, scores[BASE], view.cells, view.targets, figure)
