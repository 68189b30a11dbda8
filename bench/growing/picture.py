"""The picture of growth: seconds over size, a panel for each curve, with the slope that is expected at most."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.ticker import LogLocator

from fastmfr.report.axes import BLUE, GREEN, GREY, INK, ORANGE, OTHERS, grid, save, write_title

from .curves import Curve

COLOURS = (BLUE, ORANGE, GREEN, OTHERS[2])
Figures = dict[str, list[dict]]  # of one curve: the figures of each line, by size


def slope(figures: Sequence[dict]) -> float:
    """The slope of log seconds over log size, of the larger half of the sizes: at small ones constant costs count."""
    upper = figures[-(len(figures) // 2 + 1) :]
    size, seconds = ([figure[name] for figure in upper] for name in ("size", "median_seconds"))
    return float(np.polyfit(np.log(size), np.log(seconds), 1)[0])


def draw(found: Sequence[tuple[Curve, Figures]], path: Path) -> Path:
    """Draw all curves; dashed lines have the expected slope and pass through the last point of each line."""
    figure, axes = grid(len(found), columns=3, width=4.6, height=3.9)
    for ax, (curve, lines) in zip(axes, found, strict=True):
        ax.set(xscale="log", yscale="log", xlabel=curve.axis, ylabel="seconds")
        for colour, (name, figures) in zip(COLOURS, lines.items(), strict=False):
            _draw_line(ax, curve, name, figures, colour)
        ax.plot([], [], color=GREY, lw=0.9, ls="--", label=f"slope {curve.slope:g}, expected at most")
        write_title(ax, curve.title)
        shown = sorted({one["size"] for figures in lines.values() for one in figures})
        ax.set_xticks(shown, [_short(size) for size in shown])
        ax.minorticks_off()
        low, high = ax.get_ylim()
        ax.set_ylim(low, high * (high / low) ** (0.09 * (len(lines) + 1)))  # room for the names of the lines
        if high < 1000 * low:
            ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.yaxis.set_major_formatter(lambda seconds, _: f"{seconds:g}")
        ax.legend(loc="upper left", frameon=False, fontsize=7.5, labelcolor=INK)
    return save(figure, path)


def _draw_line(ax, curve, name, figures, colour):
    size, seconds = (np.array([one[key] for one in figures], float) for key in ("size", "median_seconds"))
    low, high = np.array([one["p20_p80_seconds"] for one in figures]).T
    fit = f"slope {slope(figures):.2f}" if len(figures) > 1 else "one size"
    ax.fill_between(size, low, high, color=colour, alpha=0.2, lw=0)
    ax.plot(size, seconds, color=colour, lw=1.8, marker="o", ms=3.5, label=f"{name}: {fit}")
    ax.plot(size, seconds[-1] * (size / size[-1]) ** curve.slope, color=GREY, lw=0.9, ls="--", zorder=1)


def _short(size):
    """10000 as 10k, 3000000 as 3M."""
    for unit, letter in ((10**6, "M"), (10**3, "k")):
        if size >= unit:
            return f"{size / unit:g}{letter}"
    return str(size)
