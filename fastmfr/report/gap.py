"""The gap between domains: gap.png, the distances between their means before and after, and a table of its figures."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fastmfr.results import DomainGap

from .axes import DPI, INK, panel_at, save, write_title

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMNS = ("Mean distance", "By chance", "Own domain nearest", "Across domains", "Of all pairs", "Most within")
READING = (
    "Mean distance: between the mean unit embeddings of two domains, from 0 to 2, over all pairs of domains. By "
    "chance: the same distance between two draws, each of as many people of one domain. Own domain nearest: "
    "percentage of images nearest to the mean of their own domain; by chance it is 100 over the number of domains.",
    "Across domains: percentage of the false accepts that are of two domains, at FAR 1e-3 (or the finest there is) of "
    "the impostor pairs of all domains together. If it is far below that of all pairs, then strangers of one domain "
    "look alike to the model, and one threshold does not serve every domain. Most within: the domain that holds most "
    "of the false accepts.",
)
CELL, LETTER, MARGIN = 0.82, 0.08, 0.35  # inches: a cell, a letter of a domain's name, room at each side
BAR, BAR_WIDTH = 0.75, 0.14  # inches: room for the bar of colours at the right, the bar itself
COLOURS, PALE = "Blues", 1.8  # the darkest colour stands for so many times the largest distance: letters are dark
FITTING = 10  # letters as wide as a cell; longer names are written aslant below
WIDEST = 10.5  # inches: panels that would be wider together stand below each other, so that letters stay readable


def gap_rows(gap_by_model: Mapping[str, DomainGap | None]) -> dict[str, list[str]]:
    """Return each model's figures as text, in the order of COLUMNS."""
    return {model: _figures(gap) for model, gap in gap_by_model.items() if gap}


def gap_plot(gap_by_model: Mapping[str, DomainGap | None], path: Path) -> Path | None:
    """Draw one panel a model, the distance between the means of every two domains; None if no model has a gap."""
    from matplotlib.figure import Figure

    gaps = {model: gap for model, gap in gap_by_model.items() if gap}
    if not gaps:
        return None
    letters = max(len(name) for gap in gaps.values() for name in _names(gap))
    side = CELL * (max(len(gap.domains) for gap in gaps.values()) - 1)
    left = MARGIN / 2 + LETTER * letters
    width, height = left + side + MARGIN, side + 2 * MARGIN + (0.6 * LETTER * letters if letters > FITTING else 0)
    columns = max(1, min(len(gaps), int(WIDEST / width)))
    lines = -(-len(gaps) // columns)
    is_full = len(gaps) == columns * lines
    figure = Figure(figsize=(width * columns + BAR * is_full, height * lines), dpi=DPI)
    highest = max(1e-6, *(np.max(gap.distance) for gap in gaps.values()))
    for number, (model, gap) in enumerate(gaps.items()):
        line, column = divmod(number, columns)
        ax = panel_at(figure, column * width + left, line * height + MARGIN, side, side)
        _draw(ax, gap, highest, aslant=letters > FITTING)
        write_title(ax, model)
    line, column = divmod(len(gaps) - 1, columns)
    at = (column + 1) * width + (0 if is_full else left)  # beside the last panel, in a place left free if there is one
    _draw_bar(panel_at(figure, at, line * height + MARGIN, BAR_WIDTH, side), figure, highest)
    return save(figure, path)


def _names(gap: DomainGap) -> list[str]:
    return [name + (" *" if unseen else "") for name, unseen in zip(gap.domains, gap.unseen, strict=True)]


def _draw_bar(ax: "Axes", figure: "Figure", highest: float) -> None:
    """The bar that says which colour is which distance, up to the largest one shown."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    bar = figure.colorbar(ScalarMappable(Normalize(0, PALE * highest), COLOURS), cax=ax)
    ax.set_ylim(0, highest)
    bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue] the stubs call the outline's class a method
    ax.tick_params(length=0, labelcolor=INK, labelsize=8)
    ax.set_ylabel("distance between means", color=INK, fontsize=8.5)


def _draw(ax: "Axes", gap: DomainGap, highest: float, aslant: bool) -> None:
    """The lower half of the matrix, without its diagonal of zeros."""
    distance_NN, by_chance_NN = np.array(gap.distance), np.array(gap.distance_by_chance)
    names = _names(gap)
    count = len(names) - 1
    shown = np.ma.masked_array(distance_NN[1:, :-1], np.triu(np.ones((count, count), bool), 1))
    ax.imshow(shown, cmap=COLOURS, vmin=0, vmax=PALE * highest)
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


def _figures(gap: DomainGap) -> list[str]:
    lower = np.tril_indices(len(gap.domains), -1)
    distance, by_chance = (np.array(matrix)[lower].mean() for matrix in (gap.distance, gap.distance_by_chance))
    within = np.diag(gap.false_accepts_of) / gap.false_accepts
    most = int(within.argmax())
    shares = (gap.told, gap.across, gap.across_of_all, within[most])
    nearest, across, of_all, of_most = (f"{100 * share:.1f}" for share in shares)
    return [f"{distance:.2f}", f"{by_chance:.2f}", nearest, across, of_all, f"{of_most} ({gap.domains[most]})"]
