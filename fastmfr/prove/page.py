"""The page of a comparison: the verdict, the picture, the tables, and what to do next; self-contained."""

from collections.abc import Sequence
from html import escape
from pathlib import Path

from fastmfr.prove.tables import Part, Table
from fastmfr.prove.verdict import Verdict
from fastmfr.report.markup import document, folded, footnote, picture, warnings

CAPTION = (
    "Each model's gain over the base that it goes on from. A line is 95 % of what other seeds and other people of the "
    "same domains would give; green lies above the base, orange below, blue cannot be told from the base."
)


def page(
    name: str,
    verdict: Verdict,
    parts: Sequence[Part],
    png: Path | None,
    next_step: str,
    notes: list[str],
    settings: str,
) -> str:
    """Return the page as HTML text.

    Args:
        name: of the folder.
        verdict: the answer.
        parts: the tables.
        png: the picture of the gains, if there is one.
        next_step: a command that makes the model to take, or that goes on.
        notes: what is missing or odd.
        settings: the settings as a recipe.
    """
    body = [
        f'<p class="run">fastmfr prove {escape(name)}</p>',
        f"<h1>{escape(verdict.headline)}</h1>",
        warnings(notes),
        *(f"<p>{escape(sentence)}</p>" for sentence in verdict.sentences),
        f"<h2>What to do next</h2><pre>{escape(next_step)}</pre>" if next_step else "",
        picture("Gains", png, CAPTION) if png else "",
        *(_part(part) for part in parts),
        "<h2>How it was run</h2>",
        folded("Settings", settings),
    ]
    return document(f"prove {name}", body)


def _part(part: Part) -> str:
    first, *rest = part.tables
    more = "".join(_table(table) for table in rest)
    folded_away = f"<details><summary>Gains over the controls</summary>{more}</details>" if more else ""
    return f"<h2>{escape(part.title)}</h2>{_table(first)}{folded_away}"


def _table(table: Table) -> str:
    head = "".join(f"<th>{escape(title)}</th>" for title in table.head)
    lines = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in line)}</tr>" for line in table.lines)
    return (
        f'<div class="scroll"><table class="gap"><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table></div>'
        f"{footnote(table.caption)}"
    )
