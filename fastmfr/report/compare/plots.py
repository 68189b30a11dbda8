"""ROC and training curves of several runs laid over each other.

A run keeps its colour in all panels. In the ROC, the model that a run is about is drawn solid, its other models dashed,
and a model that every run holds grey. Earlier runs are drawn wider, so that they show below equal curves of later runs.
"""

from itertools import cycle, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fastmfr.results import Scores

from ..axes import (
    BLUE,
    GREEN,
    GREY,
    INK,
    OTHERS,
    draw_roc,
    draw_series,
    grid,
    in_a_row,
    lowest_far,
    percent,
    save,
    set_roc_axes,
    set_scale,
    write_title,
)
from ..panels import Line, Panel, panels_of, series
from ..tables import fars
from .runs import Comparison, Entry

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = (BLUE, *OTHERS, "#c2588f", "#2aa3b8", "#8a7a1f", "#5a3e2b", "#9ab32f", INK)  # repeated beyond twelve runs
KEY_WIDTH, KEY_LINE = 6.5, 0.2  # inches: at least as wide as long names, and the height of one
NOTED = 4  # models not scored that a panel names


def roc_plot(compared: Comparison, path: Path) -> Path | None:
    """Draw one panel a target, TAR over FAR on a log axis, a dot at each FAR measured; None if nothing was scored."""
    shown = compared.results().scored
    if not shown:
        return None
    columns = in_a_row(len(shown))
    figure, axes = grid(len(shown), columns, width=4.9, height=3.8)
    lowest = min(lowest_far(scores) for target in shown.values() for scores in target.models.values())
    styles = {entry: _style(compared, entry) for entry in compared.entries if entry.model}
    for ax, (name, target) in zip(axes, shown.items(), strict=True):
        set_roc_axes(ax, lowest)
        for entry, style in styles.items():
            _draw_scores(ax, entry.scores.get(name, Scores()), style)
        for far in fars(compared.results()):
            ax.axvline(float(far), color=INK, lw=0.8, ls=(0, (1, 2)), zorder=1)
        write_title(ax, name, "never seen in training" if target.unseen else "other people of a source domain")
        _write_missing(ax, [compared.full_name(entry) for entry in styles if name not in entry.scores])
    for ax in axes[::columns]:
        ax.set_ylabel("TAR, genuine pairs accepted")
    _write_key(figure, [(compared.full_name(entry), style) for entry, style in styles.items()])
    return save(figure, path)


def _draw_scores(ax: "Axes", scores: Scores, style: dict[str, Any]) -> None:
    """The curve of one model, and a dot at each FAR measured."""
    draw_roc(ax, scores, **style)
    measured = [(float(far), rate.tar) for far, rate in scores.tar_at_far.items() if rate.tar is not None]
    ax.plot(*np.array(measured).reshape(-1, 2).T, "o", color=style["color"], ms=4, zorder=style["zorder"])


def _write_missing(ax: "Axes", names: list[str]) -> None:
    """In the lower right corner, the models that were not scored on the panel's target."""
    if names:
        more = [f"and {len(names) - NOTED} more"] if len(names) > NOTED else []
        text = "\n".join(["not scored here:", *names[:NOTED], *more])
        style = {"color": GREY, "ha": "right", "fontsize": 8, "parse_math": False}
        ax.text(0.97, 0.04, text, transform=ax.transAxes, **style)


def training_plot(compared: Comparison, path: Path) -> Path | None:
    """Draw a panel for each curve that any run's metrics hold, all runs in it; None if there is no curve."""
    found = {
        (panel, line): {name: series(run.metrics, line) for name, run in compared.runs.items()}
        for panel in panels_of(record for run in compared.runs.values() for record in run.metrics)
        for line in panel.lines
    }
    shown = {curve: {name: drawn for name, drawn in by_run.items() if len(drawn[0])} for curve, by_run in found.items()}
    shown = {curve: by_run for curve, by_run in shown.items() if by_run}
    if not shown:
        return None
    colours, widths = _colours(compared), _widths(compared)
    figure, axes = grid(len(shown), columns=3, width=3.5, height=2.3)
    for ax, ((panel, line), by_run) in zip(axes, shown.items(), strict=True):
        for name, (steps, values) in by_run.items():
            draw_series(ax, steps, values, colours[name], widths[name])
        _set_training_axes(ax, panel, line, np.concatenate([values for _, values in by_run.values()]))
    _write_key(figure, [(name, {"color": colour, "lw": 2}) for name, colour in colours.items()])
    return save(figure, path)


def _set_training_axes(ax: "Axes", panel: Panel, line: Line, values: np.ndarray) -> None:
    set_scale(ax, panel.scale, np.concatenate([values, panel.band]))
    if panel.band:
        ax.axhspan(panel.band[0], panel.band[1], color=GREEN, alpha=0.12, lw=0)
    ax.yaxis.set_major_formatter(percent if panel.percent else "{x:.5g}")
    ax.locator_params(axis="x", integer=True)
    ax.set_xlabel(f"{line.of_stage} step")
    write_title(ax, panel.title, line.label if line.label != line.of_stage else "")


def _write_key(figure: "Figure", named: list[tuple[str, dict]]) -> None:
    """The names of the lines and their styles, above all panels, which keep their size."""
    from matplotlib.lines import Line2D

    width, height = figure.get_size_inches()
    figure.set_size_inches(max(width, KEY_WIDTH), height + KEY_LINE * len(named))
    handles = [Line2D([], [], label=name, **style) for name, style in named]
    legend = figure.legend(handles=handles, loc="outside upper left", frameon=False, fontsize=9, labelcolor="linecolor")
    for text in legend.get_texts():
        text.set_parse_math(False)


def _colours(compared: Comparison) -> dict[str, str]:
    return dict(zip(compared.runs, islice(cycle(COLOURS), len(compared.runs)), strict=True))


def _widths(compared: Comparison) -> dict[str, float]:
    count = len(compared.runs)
    return dict(zip(compared.runs, np.linspace(min(0.6 + 0.9 * count, 3.2), 1.5, count).tolist(), strict=True))


def _style(compared: Comparison, entry: Entry) -> dict:
    if entry.main:
        colour, width = _colours(compared)[entry.runs[0]], _widths(compared)[entry.runs[0]]
        return {"color": colour, "lw": width, "ls": "-", "zorder": 2}
    colour = GREY if len(entry.runs) == len(compared.runs) else _colours(compared)[entry.runs[0]]
    return {"color": colour, "lw": 1.4, "ls": "--", "zorder": 3}
