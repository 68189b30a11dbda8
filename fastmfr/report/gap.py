"""The gap between domains: gap.png, the distances between their means before and after, and a table of its figures."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .axes import DPI, INK, panel_at, save, write_title

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLUMNS = ("Mean distance", "By chance", "Domain told", "Across domains", "Of all pairs", "Most within")
READING = (
    "Mean distance: between the mean unit embeddings of two domains, from 0 to 2, over all pairs of domains; by chance "
    "is what two draws of so many people of one domain would give. Domain told: percentage of images nearest to the "
    "mean of their own domain, which by chance is 100 over the number of domains.",
    "Across domains: percentage of the false accepts that are of two domains, at FAR 1e-3 (or the finest there is) of "
    "the impostor pairs of all domains together. Far less than of all pairs: the model finds strangers alike for their "
    "domain, and one threshold does not serve every domain. Most within: the domain that holds most of them.",
)
CELL, LETTER, MARGIN = 0.82, 0.08, 0.35  # inches: a cell, a letter of a domain's name, room at each side
FITTING = 10  # letters as wide as a cell; longer names are written aslant below
WIDEST = 10.5  # inches: panels that would be wider together stand below each other, so that letters stay readable


def gap_rows(gap: dict) -> dict[str, list[str]]:
    """By model its figures as text in the order of COLUMNS; `gap` as in results.json, {} in older ones."""
    return {model: _figures(found) for model, found in gap.items() if found}


def gap_plot(gap: dict, path: Path) -> Path | None:
    """One panel a model: the distance between the means of each two domains; None where there is none."""
    from matplotlib.figure import Figure

    gap = {model: found for model, found in gap.items() if found}
    if not gap:
        return None
    names = [name for found in gap.values() for name in _names(found)]
    letters = max(map(len, names))
    side = CELL * (max(len(found["domains"]) for found in gap.values()) - 1)
    left = MARGIN / 2 + LETTER * letters
    width, height = left + side + MARGIN, side + 2 * MARGIN + (0.6 * LETTER * letters if letters > FITTING else 0)
    columns = max(1, min(len(gap), int(WIDEST / width)))
    lines = -(-len(gap) // columns)
    figure = Figure(figsize=(width * columns, height * lines), dpi=DPI)
    highest = max(np.max(found["distance"]) for found in gap.values())
    for number, (model, found) in enumerate(gap.items()):
        line, column = divmod(number, columns)
        ax = panel_at(figure, column * width + left, line * height + MARGIN, side, side)
        _draw(ax, found, max(highest, 1e-6), aslant=letters > FITTING)
        write_title(ax, model)
    return save(figure, path)


def _names(found: dict) -> list[str]:
    return [name + (" *" if unseen else "") for name, unseen in zip(found["domains"], found["unseen"], strict=True)]


def _draw(ax: "Axes", found: dict, highest: float, aslant: bool) -> None:
    """The lower half of the matrix, without its diagonal of zeros."""
    distance_NN, by_chance_NN = (np.array(found[name]) for name in ("distance", "distance_by_chance"))
    names = _names(found)
    count = len(names) - 1
    shown = np.ma.masked_array(distance_NN[1:, :-1], np.triu(np.ones((count, count), bool), 1))
    ax.imshow(shown, cmap="Blues", vmin=0, vmax=1.8 * highest)  # pale enough for dark letters
    for row, column in zip(*(places.tolist() for places in np.tril_indices(count)), strict=True):
        ax.text(column, row - 0.07, f"{distance_NN[row + 1, column]:.2f}", ha="center", color=INK, fontsize=11)
        ax.text(column, row + 0.27, f"chance {by_chance_NN[row + 1, column]:.2f}", ha="center", color=INK, fontsize=7.5)
    for axis, labels in ((ax.xaxis, names[:-1]), (ax.yaxis, names[1:])):
        axis.set_ticks(range(count), labels)
        for text in axis.get_ticklabels():
            text.set(parse_math=False, color=INK, fontsize=9)
    if aslant:
        for text in ax.get_xticklabels():
            text.set(rotation=35, ha="right", rotation_mode="anchor")
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)


def _figures(found: dict) -> list[str]:
    lower = np.tril_indices(len(found["domains"]), -1)
    distance, by_chance = (np.array(found[name])[lower].mean() for name in ("distance", "distance_by_chance"))
    within = np.diag(found["false_accepts_of"]) / found["false_accepts"]
    most = int(within.argmax())
    shares = (found["told"], found["across"], found["across_of_all"], within[most])
    told, across, of_all, of_most = (f"{100 * share:.1f}" for share in shares)
    return [f"{distance:.2f}", f"{by_chance:.2f}", told, across, of_all, f"{of_most} ({found['domains'][most]})"]
