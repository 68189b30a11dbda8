"""The table of all runs by target: what is best, and whether its lead is more than the choice of people scored."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from fastmfr.results import Scores

from ..gap import COLUMNS, READING
from ..gap import gap_rows as gap_rows_of_run
from ..tables import Column, columns, footnotes, listed
from .runs import Comparison, Entry


class Figure(NamedTuple):
    """One share, None if not measured, and the ends of its 95 % interval, () if not known."""

    value: float | None
    interval: tuple[float, ...] = ()


@dataclass(frozen=True)
class Cell:
    """One figure, in percent, "-" if not measured; `best` if its interval lies apart from the next best's."""

    value: str
    interval: str = ""
    best: bool = False


@dataclass(frozen=True)
class Row:
    """One entry on one target; `cells` stand in the order of `tables.columns`."""

    target: str
    entry: Entry
    cells: list[Cell]


def rows(compared: Comparison) -> Iterator[Row]:
    """Yield every entry on every target, also if the entry was not scored there."""
    shown = columns(compared.results())
    for target in compared.unseen:
        scores_by_entry = [entry.scores.get(target, Scores()) for entry in compared.entries]
        cells_by_column = [_column_cells(column, scores_by_entry) for column in shown]
        for entry, *cells in zip(compared.entries, *cells_by_column, strict=True):
            yield Row(target, entry, cells)


def _column_cells(column: Column, scores_by_entry: Sequence[Scores]) -> list[Cell]:
    figures = [Figure(column.share(scores), tuple(column.interval(scores) or ())) for scores in scores_by_entry]
    best = _best(figures, column.lower_is_better)
    return [_cell(figure, column.decimals, place == best) for place, figure in enumerate(figures)]


def gap_rows(compared: Comparison) -> list[list[str]]:
    """Return runs, model, and figures in the order of `gap.COLUMNS`; runs with the same figures share a row."""
    owners: dict[tuple[str, ...], list[str]] = {}
    for name, run in compared.runs.items():
        for model, cells in gap_rows_of_run(run.results.gap).items():
            owners.setdefault((model, *cells), []).append(name)
    return [["every run" if len(names) == len(compared.runs) else listed(names), *row] for row, names in owners.items()]


def markdown_table(compared: Comparison) -> str:
    """Return the tables as GitHub Markdown; the runs' folders and the notes are lines below."""
    lines = []
    for row in rows(compared):
        cells = [cell.value + (f" ({cell.interval})" if cell.interval else "") for cell in row.cells]
        lines.append(
            [
                row.target,
                compared.owners(row.entry),
                row.entry.model or "-",
                *(f"**{text}**" if cell.best else text for text, cell in zip(cells, row.cells, strict=True)),
            ]
        )
    tables = [_markdown(["Target", "Run", "Model"], [column.title for column in columns(compared.results())], lines)]
    below = reading(compared) + [f"{name}: in {folder}." for name, folder in other_names(compared).items()]
    if gaps := gap_rows(compared):
        tables.append(_markdown(["Run", "Model"], COLUMNS, gaps))
        below += READING
    return "\n".join(tables) + "\n" + "  \n".join(below + compared.notes) + "\n"


def _markdown(names: Sequence[str], figures: Sequence[str], lines: list[list[str]]) -> str:
    rule = [*["---"] * len(names), *["---:"] * len(figures)]
    escaped = [[text.replace("|", "\\|") for text in line] for line in lines]
    return "".join(f"| {' | '.join(line)} |\n" for line in [[*names, *figures], rule, *escaped])


def reading(compared: Comparison) -> list[str]:
    """Return how to read the table, as sentences."""
    return [
        "In percent. TAR@f: share of genuine pairs accepted at false accept rate f. In brackets or small: the 95 % "
        "interval over draws of the people scored; what another training run would show is not in it.",
        "Each interval is of one run. No interval of the difference of two runs is known, for run folders keep no "
        "scores of pairs: intervals that overlap do not show that two runs are alike.",
        "Bold: the best on its target, if its interval lies apart from that of the next best.",
        *footnotes(compared.results())[1:],
    ]


def other_names(compared: Comparison) -> dict[str, str]:
    """Return the folder of each run that is not called by its folder."""
    return {name: folder for name, folder in compared.folders.items() if name != folder}


def _best(column: Sequence[Figure], lower: bool) -> int | None:
    """The place of the best figure if its interval does not meet the next best's; None if that is not known."""
    sign = -1 if lower else 1
    order = sorted(
        (place for place, figure in enumerate(column) if figure.value is not None),
        key=lambda place: -sign * (column[place].value or 0),
    )
    if len(order) < 2:
        return None
    first, second = (column[place].interval for place in order[:2])
    if not first or not second:
        return None
    apart = max(first) < min(second) if lower else min(first) > max(second)
    return order[0] if apart else None


def _cell(figure: Figure, decimals: int, best: bool) -> Cell:
    if figure.value is None:
        return Cell("-")
    return Cell(f"{100 * figure.value:.{decimals}f}", " to ".join(f"{100 * end:.1f}" for end in figure.interval), best)
