"""What all pictures share: colours, panels with their titles, a series with its running mean, the axes of a ROC."""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, GREY, ORANGE, GREEN = "#1f49c7", "#8b9099", "#d9730d", "#2f8f6b"
OTHERS = (ORANGE, GREEN, "#8a4fa8", "#b3413b", "#5b7f95")
INK, FAINT = "#23262d", "#e6e8ec"
DPI = 160
SMOOTH_FROM = 60  # points; shorter series are drawn as they are


def grid(count: int, columns: int, width: float, height: float) -> tuple["Figure", list["Axes"]]:
    """`count` panels in rows of at most `columns`, with thin grids; the unused places stay empty."""
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


def panel_at(figure: "Figure", left: float, top: float, width: float, height: float) -> "Axes":
    """A panel at a place in inches from the figure's upper left corner."""
    whole_width, whole_height = figure.get_size_inches()
    return figure.add_axes(
        (left / whole_width, 1 - (top + height) / whole_height, width / whole_width, height / whole_height)
    )


def write_title(ax: "Axes", title: str, subtitle: str = "", words: Iterable[tuple[str, str]] = ()) -> None:
    """The panel's title at its left, the names of its lines in their colours at its right, or a subtitle."""
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
    """A curve over steps, `width` points wide; a long one pale, with its running mean."""
    if len(steps) < SMOOTH_FROM:
        ax.plot(steps, values, color=colour, lw=width, marker="o", ms=2.6)
        return
    ax.plot(steps, values, color=colour, lw=0.7, alpha=0.3)
    window = len(values) // 30 | 1
    smooth = np.convolve(np.pad(values, window // 2, mode="edge"), np.ones(window) / window, mode="valid")
    ax.plot(steps, smooth, color=colour, lw=width)


def set_scale(ax: "Axes", scale: str, values: np.ndarray) -> None:
    """The y axis for `values`: a `scale` of plots.Panel."""
    positive = values[values > 0]  # the band is among them, so that it is in sight
    if scale == "log" and len(positive) and positive.max() > 10 * positive.min():
        ax.set_yscale("log", nonpositive="mask")
        ax.yaxis.set_minor_formatter("")
    elif scale != "near":
        ax.set_ylim(min(0, values.min()), 1.1 * max(values.max(), 1e-12))


def draw_roc(ax: "Axes", found: dict, **style) -> None:
    """The curve of one scored model; nothing where its results hold none."""
    far, tar = (np.array(found.get("roc", {}).get(axis, [])) for axis in ("far", "tar"))
    ax.plot(far[far > 0], tar[far > 0], drawstyle="steps-post", **style)


def set_roc_axes(ax: "Axes", lowest: float) -> None:
    """FAR from `lowest` to 1 on a log axis, TAR from 0 to 1; to be set before anything is drawn."""
    ax.set(xscale="log", xlim=(lowest, 1), ylim=(0, 1.005), xlabel="FAR, impostor pairs accepted")
    ax.yaxis.set_major_formatter(percent)


def percent(share: float, _position: float) -> str:
    """A tick's label, as matplotlib asks for it."""
    return f"{100 * share:.3g} %"


def lowest_far(found: dict) -> float:
    """Where the FAR axis of a scored model starts: at its first impostor pair, from 1e-6 to 0.1."""
    return max(min([0.1, *(far for far in found.get("roc", {}).get("far", []) if far > 0)]), 1e-6)


def save(figure: "Figure", path: Path) -> Path:
    """Write the PNG; returns its path."""
    figure.savefig(path, facecolor="white")
    return path
