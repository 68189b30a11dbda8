"""The table of all runs by target: what is best, and whether its lead is more than the choice of people scored."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ..gap import COLUMNS, READING
from ..gap import gap_rows as of_one_run
from ..tables import DECIMALS, columns, fars, footnotes, listed
from .runs import Comparison, Entry

MOST_SETTINGS = 3  # that are written beside a run's name; more are read in the table of settings


class Figure(NamedTuple):
    """One share as found, None where there is none, and the ends of its 95 % interval, () where not known."""

    value: float | None
    interval: tuple[float, ...] = ()


@dataclass(frozen=True)
class Cell:
    """One figure, in percent, "-" where there is none; `best` if its interval lies apart from the next best's."""

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
    """Every entry on every target, also where it was not scored."""
    rates = fars(compared.results())
    for target in compared.unseen:
        by_entry = [_figures(entry.figures.get(target, {}), rates) for entry in compared.entries]
        decimals = [1] * len(rates) + list(DECIMALS.values())
        best = [
            _best(column, lower=name == "eer")
            for name, column in zip([*rates, *DECIMALS], zip(*by_entry, strict=True), strict=True)
        ]
        for place, (entry, figures) in enumerate(zip(compared.entries, by_entry, strict=True)):
            yield Row(
                target,
                entry,
                [
                    _cell(figure, digits, place == winner)
                    for figure, digits, winner in zip(figures, decimals, best, strict=True)
                ],
            )


def gap_rows(compared: Comparison) -> list[list[str]]:
    """Runs, model and its figures in the order of `gap.COLUMNS`; runs whose model has the same ones share a row."""
    owners: dict[tuple[str, ...], list[str]] = {}
    for name, run in compared.runs.items():
        for model, cells in of_one_run(run.results.get("gap", {})).items():
            owners.setdefault((model, *cells), []).append(name)
    return [["every run" if len(names) == len(compared.runs) else listed(names), *row] for row, names in owners.items()]


def markdown_table(compared: Comparison) -> str:
    """The tables as GitHub Markdown, what differs between the runs and the notes as lines below."""
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
    tables = [_markdown(["Target", "Run", "Model"], columns(compared.results()), lines)]
    below = reading(compared) + [f"{name}: {settings}." for name, settings in told_apart(compared).items()]
    if gaps := gap_rows(compared):
        tables.append(_markdown(["Run", "Model"], COLUMNS, gaps))
        below += READING
    return "\n".join(tables) + "\n" + "  \n".join(below + compared.notes) + "\n"


def _markdown(names: Sequence[str], figures: Sequence[str], lines: list[list[str]]) -> str:
    rule = [*["---"] * len(names), *["---:"] * len(figures)]
    escaped = [[text.replace("|", "\\|") for text in line] for line in lines]
    return "".join(f"| {' | '.join(line)} |\n" for line in [[*names, *figures], rule, *escaped])


def reading(compared: Comparison) -> list[str]:
    """How to read the table, a sentence each."""
    return [
        "In percent. TAR@f: share of genuine pairs accepted at false accept rate f. In brackets or small: the 95 % "
        "interval when the people scored are drawn anew; what another training run would give is not in it.",
        "Bold: the best on its target, where its interval lies apart from that of the next best.",
        *footnotes(compared.results())[1:],
    ]


def told_apart(compared: Comparison) -> dict[str, str]:
    """By run, the settings in which it differs from others; nothing where they are too many to say in a line."""
    if not 0 < len(compared.differing) <= MOST_SETTINGS:
        return {}
    told = {
        run: listed([f"{name} {values[run]}" for name, values in compared.differing.items() if run in values])
        for run in compared.runs
    }
    return {run: settings for run, settings in told.items() if settings}


def _figures(found: dict, rates: list[str]) -> list[Figure]:
    """The figures of one scored model in the order of `tables.columns`; older results lack intervals."""
    entries = [found.get("tar_at_far", {}).get(rate, {}) for rate in rates]
    shares = [Figure(entry.get("tar"), tuple(entry.get("interval") or ())) for entry in entries]
    return shares + [Figure(found.get(name), tuple(found.get(f"{name}_interval") or ())) for name in DECIMALS]


def _best(column: tuple[Figure, ...], lower: bool) -> int | None:
    """The place of the best figure if its interval does not meet the next best's; None where that is not known."""
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
