"""hardest.png: the pairs of each target that the model gets most wrong, side by side, and where it draws the line."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fastmfr.results import HardestPair, HardestPairs, TargetResult

from .axes import DPI, GREY, INK, ORANGE, panel_at
from .tables import short_far

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTH, MARGIN, GUTTER = 10.0, 0.08, 0.12  # inches: the picture, around it, between pairs
TITLE, UNDER = 0.34, 0.24  # inches: above a row and below it


class _Row(NamedTuple):
    """The pairs of one kind of one target, the two images of each, and (FAR as text, threshold) to judge them by."""

    title: str
    impostor: bool
    pairs: list[HardestPair]
    images: list[tuple[np.ndarray, np.ndarray]]
    line: tuple[str, float] | None


def hardest_sheet(targets: Mapping[str, TargetResult], pixels: Mapping[str, np.ndarray], path: Path | str) -> None:
    """Write a PNG with two rows of pairs a target, the cosine below each pair; bold if the model decides wrongly.

    In a row whose pairs are all decided wrongly no cosine stands out: the row says so above.

    Args:
        targets: The results by target; targets without hardest pairs are left out.
        pixels: By target uint8 (n, H, W, 3), RGB: the gallery and the probe image of each pair in turn, the genuine
            pairs first.
        path: Where the PNG is written.
    """
    from matplotlib.figure import Figure

    rows = [row for name, target in targets.items() for row in _rows(name, target, pixels)]
    most = max(len(row.pairs) for row in rows)
    side = ((WIDTH - 2 * MARGIN + GUTTER) / max(most, 4) - GUTTER) / 2
    height = TITLE + side + UNDER
    figure = Figure(figsize=(WIDTH, height * len(rows) + 2 * MARGIN), dpi=DPI)
    for number, row in enumerate(rows):
        _draw_row(figure, row, MARGIN + height * number, side)
    figure.savefig(path, facecolor="white")


def _rows(name: str, target: TargetResult, pixels: Mapping[str, np.ndarray]) -> Iterator[_Row]:
    if target.hardest is None:
        return
    images, line = iter(pixels[name]), _threshold(target, target.hardest)
    for impostor, kind, pairs in (
        (False, "genuine pairs, least alike", target.hardest.genuine),
        (True, "impostor pairs, most alike", target.hardest.impostor),
    ):
        yield _Row(f"{name}: {kind}", impostor, pairs, [(next(images), next(images)) for _ in pairs], line)


def _threshold(target: TargetResult, hardest: HardestPairs) -> tuple[str, float] | None:
    """(FAR, threshold) of the model whose pairs are shown, at the finest FAR that its target is large enough for."""
    rates = target.models[hardest.model].tar_at_far
    measured = {far: rate.threshold for far, rate in rates.items() if rate.threshold is not None}
    return min(measured.items(), key=lambda entry: float(entry[0]), default=None)


def _draw_row(figure: "Figure", row: _Row, top: float, side: float) -> None:
    """Draw a row `top` inches from the figure's upper edge, each image `side` inches wide."""
    _write(figure, MARGIN, top + TITLE - 0.1, row.title, color=INK, weight="bold", fontsize=9.5)
    wrong = [row.line is not None and (pair.cosine >= row.line[1]) == row.impostor for pair in row.pairs]
    if row.line:
        far, threshold = row.line
        said = (
            f"{sum(wrong)} of {len(wrong)} decided wrongly: accepted from {threshold:.3f} on, at FAR {short_far(far)}"
        )
        _write(figure, WIDTH - MARGIN, top + TITLE - 0.1, said, color=GREY, fontsize=8.5, ha="right")
    for place, (pair, both) in enumerate(zip(row.pairs, row.images, strict=True)):
        left = MARGIN + place * (2 * side + GUTTER)
        for shift, image in zip((0, side), both, strict=True):
            ax = panel_at(figure, left + shift, top + TITLE, side, side)
            ax.set_axis_off()
            ax.imshow(image, interpolation="antialiased")
        is_marked = wrong[place] and not all(wrong)
        style = {"color": ORANGE, "weight": "bold"} if is_marked else {"color": INK, "weight": "normal"}
        _write(figure, left + side, top + TITLE + side + 0.17, f"{pair.cosine:.3f}", ha="center", fontsize=9, **style)


def _write(figure: "Figure", left: float, top: float, text: str, **style: Any) -> None:
    """Text at a place in inches from the upper left corner."""
    width, height = figure.get_size_inches()
    figure.text(left / width, 1 - top / height, text, parse_math=False, **style)
