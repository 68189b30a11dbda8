"""hardest.png: the pairs of each target that the model gets most wrong, side by side, and where it draws the line."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from .axes import DPI, GREY, INK, ORANGE, panel_at
from .tables import short

KINDS = {"genuine": "genuine pairs, least alike", "impostor": "impostor pairs, most alike"}
WIDTH, MARGIN, GUTTER = 10.0, 0.08, 0.12  # inches: the picture, around it, between pairs
TITLE, UNDER = 0.34, 0.24  # inches: above a row and below it


def hardest_sheet(scored: Mapping[str, dict], pixels: Mapping[str, np.ndarray], path: Path | str) -> None:
    """Write a PNG with two rows of pairs a target, the cosine below each; bold where the model decides wrongly.

    `scored`: the targets of results.json with their hardest pairs. `pixels`: by target uint8 (n, H, W, 3), RGB, the
    gallery and the probe image of each pair in turn, the genuine pairs first.
    """
    from matplotlib.figure import Figure

    rows = []
    for name, target in scored.items():
        images = iter(pixels[name])
        for kind in KINDS:
            pairs = target["hardest"][kind]
            rows.append((name, kind, pairs, [(next(images), next(images)) for _ in pairs]))
    most = max(len(pairs) for _, _, pairs, _ in rows)
    side = ((WIDTH - 2 * MARGIN + GUTTER) / max(most, 4) - GUTTER) / 2
    height = TITLE + side + UNDER
    figure = Figure(figsize=(WIDTH, height * len(rows) + 2 * MARGIN), dpi=DPI)
    for number, (name, kind, pairs, images) in enumerate(rows):
        top = MARGIN + height * number
        line = _threshold(scored[name])
        _write(figure, MARGIN, top + TITLE - 0.1, f"{name}: {KINDS[kind]}", color=INK, weight="bold", fontsize=9.5)
        if line and kind == "genuine":
            told = f"accepted from {line[1]:.3f} on, at FAR {short(line[0])}"
            _write(figure, WIDTH - MARGIN, top + TITLE - 0.1, told, color=GREY, fontsize=8.5, ha="right")
        for place, (pair, both) in enumerate(zip(pairs, images, strict=True)):
            left = MARGIN + place * (2 * side + GUTTER)
            for shift, image in zip((0, side), both, strict=True):
                ax = panel_at(figure, left + shift, top + TITLE, side, side)
                ax.set_axis_off()
                ax.imshow(image, interpolation="antialiased")
            wrong = line is not None and (pair["cosine"] >= line[1]) == (kind == "impostor")
            _write(
                figure,
                left + side,
                top + TITLE + side + 0.17,
                f"{pair['cosine']:.3f}",
                ha="center",
                fontsize=9,
                color=ORANGE if wrong else INK,
                weight="bold" if wrong else "normal",
            )
    figure.savefig(path, facecolor="white")


def _threshold(target: dict) -> tuple[str, float] | None:
    """(FAR, threshold) of the model whose pairs are shown, at the finest FAR that its target is large enough for."""
    rates = target["models"][target["hardest"]["model"]].get("tar_at_far", {})
    measured = {far: entry["threshold"] for far, entry in rates.items() if "threshold" in entry}
    return min(measured.items(), key=lambda entry: float(entry[0]), default=None)


def _write(figure, left, top, text, **style) -> None:
    """Text at a place in inches from the upper left corner."""
    width, height = figure.get_size_inches()
    figure.text(left / width, 1 - top / height, text, parse_math=False, **style)
