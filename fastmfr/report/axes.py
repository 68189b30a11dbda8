"""What all pictures share: colours, panels with their titles, a series with its running mean, the axes of a ROC."""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fastmfr.results import Scores

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, GREY, ORANGE, GREEN = "#1f49c7", "#8b9099", "#d9730d", "#2f8f6b"
OTHERS = (ORANGE, GREEN, "#8a4fa8", "#b3413b", "#5b7f95")
INK, FAINT = "#23262d", "#e6e8ec"
DPI = 160
SMOOTH_FROM = 60  # points; shorter series are drawn as they are


def grid(count: int, columns: int, width: float, height: float) -> tuple["Figure", list["Axes"]]:
    """Return a figure of `count` panels with thin grids, each `width` x `height` inches, at most `columns` in a row."""
    from matplotlib.figure import Figure

    columns = min(count, columns)
    lines = math.ceil(count / columns)
    figure = Figure(figsize=(width * columns, height * lines), dpi=DPI, layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False).ravel().tolist()
    for ax in axes[count:]:
        ax.remove()
    for ax in axes[:count]:
        ax.grid(color=FAINT, lw=0.7)
        ax.set_axisbelow(True)
        ax.spines[["top", "right"]].set_visible(False)
        ax.spines[["left", "bottom"]].set_color(GREY)
        ax.tick_params(which="both", color=GREY, labelcolor=INK, labelsize=8.5)
        ax.xaxis.label.set(color=INK, size=9)
        ax.yaxis.label.set(color=INK, size=9)
    return figure, axes[:count]


def in_a_row(panels: int) -> int:
    """Return how many large panels stand side by side: three all in one row, else two, so that few leave a hole."""
    return 3 if panels == 3 else 2


def panel_at(figure: "Figure", left: float, top: float, width: float, height: float) -> "Axes":
    """Add a panel, placed and sized in inches, `left` and `top` from the figure's upper left corner."""
    whole_width, whole_height = figure.get_size_inches()
    return figure.add_axes(
        (left / whole_width, 1 - (top + height) / whole_height, width / whole_width, height / whole_height)
    )


def write_title(ax: "Axes", title: str, subtitle: str = "", words: Iterable[tuple[str, str]] = ()) -> None:
    """Write the title above a panel's left, and above its right a subtitle or `words`, (word, colour) of its lines."""
    ax.annotate(
        title,
        (0, 1),
        (0, 6),
        xycoords="axes fraction",
        textcoords="offset points",
        color=INK,
        fontsize=9.5,
        fontweight="bold",
        parse_math=False,
    )
    right, before = [*words, (subtitle, GREY)], None
    for word, colour in reversed([(word, colour) for word, colour in right if word]):
        place, shift = (("axes fraction", "axes fraction"), 0) if before is None else ((before, "axes fraction"), -7)
        before = ax.annotate(
            word,
            (before is None, 1),
            (shift, 6),
            xycoords=place,
            textcoords="offset points",
            color=colour,
            fontsize=8.3,
            ha="right",
            parse_math=False,
        )


def draw_series(ax: "Axes", steps: np.ndarray, values: np.ndarray, colour: str, width: float = 1.8) -> None:
    """Draw a curve over steps, `width` points wide; draw a long curve pale, with its running mean."""
    if len(steps) < SMOOTH_FROM:
        ax.plot(steps, values, color=colour, lw=width, marker="o", ms=2.6)
        return
    ax.plot(steps, values, color=colour, lw=0.7, alpha=0.3)
    window = len(values) // 30 | 1
    smooth = np.convolve(np.pad(values, window // 2, mode="edge"), np.ones(window) / window, mode="valid")
    ax.plot(steps, smooth, color=colour, lw=width)


def set_scale(ax: "Axes", scale: str, values: np.ndarray) -> None:
    """Set the y axis for `values` by a `scale` of `plots.Panel`."""
    positive = values[values > 0]  # the band is among them, so that it is in sight
    if scale == "log" and len(positive) and positive.max() > 10 * positive.min():
        if len(positive) == len(values):
            ax.set_yscale("log")
        else:  # a log axis has no place for 0
            ax.set_yscale("symlog", linthresh=positive.min())
        ax.yaxis.set_minor_formatter("")
    elif scale != "near":
        low, high = min(0, values.min()), max(0, values.max())
        high = 1 if low == high else high  # a curve that is 0 everywhere
        room = 0.04 * (high - low) if values.min() <= 0 else 0  # the edge would cut a curve that lies on it in half
        ax.set_ylim(low - room, 1.1 * high)


def draw_roc(ax: "Axes", scores: Scores, **style: Any) -> None:
    """Draw the curve of one scored model in a matplotlib line style; an empty line if its scores hold no curve."""
    far, tar = (np.array(scores.roc.far), np.array(scores.roc.tar)) if scores.roc else (np.array([]), np.array([]))
    ax.plot(far[far > 0], tar[far > 0], drawstyle="steps-post", **style)


def set_roc_axes(ax: "Axes", lowest: float) -> None:
    """Set FAR from `lowest` to 1 on a log axis and TAR from 0 to 1; call it before anything is drawn."""
    ax.set(xscale="log", xlim=(lowest, 1), ylim=(0, 1.005), xlabel="FAR, impostor pairs accepted")
    ax.yaxis.set_major_formatter(percent)


def percent(share: float, _position: float) -> str:
    """Return the label of a tick, as matplotlib's formatters do."""
    return f"{100 * share:.3g} %"


def lowest_far(scores: Scores) -> float:
    """Return the start of a scored model's FAR axis: the FAR of one impostor pair, within 1e-6 and 0.1."""
    return max(min([0.1, *(far for far in (scores.roc.far if scores.roc else []) if far > 0)]), 1e-6)


def save(figure: "Figure", path: Path) -> Path:
    """Write the PNG and return its path."""
    figure.savefig(path, facecolor="white")
    return path
