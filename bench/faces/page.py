"""What bench/faces.py leaves: a page of Markdown with the figures, and histograms of the cosines as a PNG."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fastmfr.report.axes import BLUE, GREY, INK, grid, save, write_title

from .measure import FAR, SEEN, TAU_N, TAU_P, Measured

FIGURES = ("TAR", "95 %", "against seen", "pixels", "AUC", "genuine hard", "impostors hard", "d'", "gap")
COLUMNS = ("domain", "kind", "people", *FIGURES)
READING = (
    f"TAR at FAR {FAR[0]:g} with its 95 % interval over the people, and AUC, in percent. Against seen: TAR less the "
    "mean TAR of the domains trained on, in points. Pixels: TAR of the images' gray pixels without any model. Hard: "
    f"percentage of genuine pairs with a cosine below {TAU_P:g}, and of impostor pairs above {TAU_N:g}, the paper's "
    "thresholds. d': distance between the mean cosines of genuine and impostor pairs in standard deviations. Gap: "
    "distance between the domain's mean unit embedding and that of the photographs, from 0 to 2."
)
BINS = np.linspace(-0.6, 1, 81)


def seen_tar(rows: Sequence[Measured]) -> float:
    """Return the mean TAR over the domains that were trained on."""
    return float(np.mean([row.tar for row in rows if row.kind == SEEN]))


def page(rows: Sequence[Measured], intro: str, untrained: Sequence[float] = ()) -> str:
    """Return the page: what was measured, the table, how to read it, and the TAR of networks without training."""
    chance = ", ".join(f"{100 * tar:.1f}" for tar in untrained)
    lines = [
        "# Procedural faces beside photographs",
        "",
        intro,
        "",
        f"| {' | '.join(COLUMNS)} |",
        f"|---|---|{'---:|' * (len(COLUMNS) - 2)}",
        *(f"| {' | '.join(_cells(row, seen_tar(rows)))} |" for row in rows),
        "",
        READING,
        *(["", f"Networks that have learned nothing, TAR on the photographs: {chance}."] if untrained else []),
        "",
        "![Cosines of genuine and impostor pairs, by domain](faces.png)",
    ]
    return "\n".join(lines) + "\n"


def _cells(row: Measured, seen: float) -> list[str]:
    low, high = row.scores.rate(str(FAR[0])).interval or (float("nan"),) * 2
    return [
        row.name,
        row.kind,
        f"{row.scores.identities}",
        f"{100 * row.tar:.1f}",
        f"{100 * low:.1f} to {100 * high:.1f}",
        "" if row.kind == SEEN else f"{100 * (row.tar - seen):+.1f}",
        f"{100 * row.pixels:.1f}",
        f"{100 * row.scores.auc:.2f}",
        f"{100 * row.hard_genuine:.1f}",
        f"{100 * row.hard_impostor:.1f}",
        f"{row.d_prime:.2f}",
        "" if row.gap is None else f"{row.gap:.2f}",
    ]


def plot(rows: Sequence[Measured], path: Path) -> Path:
    """Draw one panel a domain: densities of genuine (blue) and impostor (grey) cosines, and the paper's thresholds."""
    figure, axes = grid(len(rows), columns=3, width=3.5, height=2.1)
    for ax, row in zip(axes, rows, strict=True):
        for cosine, colour in ((row.impostor_P, GREY), (row.genuine_G, BLUE)):
            ax.hist(cosine, BINS, density=True, histtype="stepfilled", color=colour, alpha=0.55, lw=0)
        for threshold, colour in ((TAU_N, GREY), (TAU_P, BLUE)):
            ax.axvline(threshold, color=colour, lw=1, ls=(0, (2, 2)))
        ax.set(xlim=(BINS[0], BINS[-1]), yticks=[])
        ax.grid(visible=False, axis="y")
        text = f"TAR {100 * row.tar:.0f} %\nAUC {100 * row.scores.auc:.1f}\nd' {row.d_prime:.2f}"
        ax.text(0.02, 0.95, text, transform=ax.transAxes, va="top", fontsize=8, color=INK, parse_math=False)
        write_title(ax, row.name, row.kind)
    for ax in axes[-3:]:
        ax.set_xlabel("cosine")
    return save(figure, path)
