"""The gains over the base as a picture: a panel for each target, a line for each model."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from fastmfr.prove.gains import View
from fastmfr.report.axes import BLUE, GREEN, GREY, INK, ORANGE, grid, save, write_title
from fastmfr.results import BASE

LINE = 0.28  # inches a model


def gains_plot(views: Sequence[View], titles: Mapping[str, str], figure: str, called: str, path: Path) -> Path | None:
    """Draw the gain of every model over its base, with its interval; None if there is nothing to draw.

    Args:
        views: as `gains.views` returns them.
        titles: what each model is called.
        figure: the figure.
        called: what the figure is called.
        path: the PNG.
    """
    names = [name for name in views[0].rows if name != BASE] if views else []
    if not names:
        return None
    picture, axes = grid(len(views), columns=2, width=6.0, height=1.2 + LINE * len(names))
    for ax, view in zip(axes, views, strict=True):
        ax.axvline(0, color=INK, lw=1)
        for line, name in enumerate(names):
            gain = view.gain(name, BASE, figure)
            if gain is None:
                continue
            colour = GREEN if gain.is_above else ORANGE if gain.is_below else BLUE if gain.low is not None else GREY
            if gain.low is not None and gain.high is not None:
                ax.plot([100 * gain.low, 100 * gain.high], [line, line], color=colour, lw=2.2, solid_capstyle="round")
            ax.plot([100 * gain.mean], [line], "o", color=colour, ms=5)
        ax.set_yticks(range(len(names)), [_wrapped(titles[name]) for name in names], parse_math=False)
        ax.set_ylim(len(names) - 0.5, -0.5)
        ax.set_xlabel(f"{called}, points over the base")
        ax.grid(axis="y", visible=False)
        write_title(ax, view.title, f"runs: {len(view.cells)}")
    return save(picture, path)


def _wrapped(title):
    """A title that leaves room for its panel."""
    return title if len(title) <= 34 else f"{title[:33]}…"
