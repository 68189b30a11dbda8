"""The page that compares runs, self-contained; all text from files escaped."""

from collections.abc import Mapping
from html import escape
from pathlib import Path

from ..gap import COLUMNS, READING
from ..markup import document, folded, footnote, picture, warnings
from ..tables import columns, listed
from .naming import MOST_SETTINGS
from .runs import Comparison, Entry
from .table import Cell, Row, gap_rows, other_names, reading, rows

CAPTIONS = {
    "roc": (
        "ROC",
        "Share of genuine pairs accepted over share of impostor pairs accepted; higher and further left is "
        "better. Solid: what a run is about; dashed: its other models; grey: a model that every run holds. "
        "Dotted: the false accept rates of the table.",
    ),
    "training": (
        "Training",
        "Pale: every step; strong: running mean. The shaded band marks where the second-order "
        "term is strong enough to matter and weak enough to be stable.",
    ),
}


def page(compared: Comparison, pictures: Mapping[str, Path]) -> str:
    """Return the comparison as HTML text; `pictures` are the PNG files that exist, by their names in CAPTIONS."""
    names = listed(list(compared.folders.values()))
    parts = [
        f'<p class="run">fastmfr runs {escape(names)}</p>',
        f"<h1>{escape(headline(compared))}</h1>",
        warnings(compared.notes),
    ]
    if compared.unseen:
        parts += ["<h2>Scores</h2>", _scores(compared), *map(footnote, reading(compared))]
    if gaps := gap_rows(compared):
        parts += ["<h2>Domain gap</h2>", _gaps(gaps), *map(footnote, READING)]
    parts += ["<h2>What differs</h2>", _settings(compared)]
    parts += [
        picture(heading, pictures[name], caption) for name, (heading, caption) in CAPTIONS.items() if name in pictures
    ]
    parts += ["<h2>How they were run</h2>"]
    parts += [folded(f"Settings of {escape(name)}", run.config) for name, run in compared.runs.items()]
    parts += [folded(f"Environment of {escape(name)}", run.environment) for name, run in compared.runs.items()]
    return document(names, parts)


def headline(compared: Comparison) -> str:
    """Return in one line how many runs there are and what sets them apart."""
    names, count = list(compared.differing), len(compared.differing)
    differing = f" that differ in {listed(names) if count <= MOST_SETTINGS else f'{count} settings'}" if count else ""
    return f"{len(compared.runs)} runs{differing}"


def _scores(compared: Comparison) -> str:
    titles = "".join(f"<th>{column.title}</th>" for column in columns(compared.results()))
    bodies: dict[str, list[str]] = {}
    for row in rows(compared):
        lines = bodies.setdefault(row.target, [])
        lines.append(_row(compared, row, first=not lines))
    body = "".join(f"<tbody>{''.join(lines)}</tbody>" for lines in bodies.values())
    return (
        '<div class="scroll"><table class="runs"><thead><tr><th>Target</th><th>Run</th><th>Model</th>'
        f"{titles}</tr></thead>{body}</table></div>"
    )


def _row(compared: Comparison, row: Row, first: bool) -> str:
    seen = "<small>never seen</small>" if compared.unseen[row.target] else ""
    target = escape(row.target) + seen if first else ""
    cells = [target, _owners(compared, row.entry), escape(row.entry.model or "-"), *map(_cell, row.cells)]
    return f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"


def _owners(compared: Comparison, entry: Entry) -> str:
    """The runs that hold a model, one a line."""
    if len(entry.runs) == len(compared.runs):
        return compared.owners(entry)
    return "".join(f"<div>{escape(run)}</div>" for run in entry.runs)


def _cell(cell: Cell) -> str:
    value = f"<b>{cell.value}</b>" if cell.best else cell.value
    return value + (f"<small>{cell.interval}</small>" if cell.interval else "")


def _gaps(gaps: list[list[str]]) -> str:
    head = "".join(f"<th>{title}</th>" for title in ("Run", "Model", *COLUMNS))
    lines = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}</tr>" for cells in gaps)
    return (
        f'<div class="scroll"><table class="gap of-runs"><thead><tr>{head}</tr></thead><tbody>{lines}</tbody>'
        "</table></div>"
    )


def _settings(compared: Comparison) -> str:
    if not compared.differing:
        return footnote("No setting, as far as config.yaml could be read.")
    head = "".join(f"<th>{escape(name)}</th>" for name in compared.runs)
    lines = []
    for name, values in compared.differing.items():
        cells = "".join(f"<td>{escape(values.get(run, '-'))}</td>" for run in compared.runs)
        lines.append(f"<tr><td>{escape(name)}</td>{cells}</tr>")
    if other_names(compared):
        cells = "".join(f"<td>{escape(folder)}</td>" for folder in compared.folders.values())
        lines.append(f"<tr><td>in the folder</td>{cells}</tr>")
    return (
        f'<div class="scroll"><table class="settings"><thead><tr><th>Setting</th>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )
