"""One HTML page, self-contained: style and pictures inside, nothing fetched, all text from files escaped."""

from collections.abc import Mapping
from html import escape
from pathlib import Path

from fastmfr.results import DomainGap, Results

from .choice import choice_parts
from .folder import RunFolder
from .gap import COLUMNS, READING, gap_rows
from .markup import document, folded, footnote, picture, warnings
from .tables import Cell, columns, footnotes, headline, main_of, rows

CAPTIONS = {
    "roc": (
        "ROC",
        "Share of genuine pairs accepted over share of impostor pairs accepted; higher and further left is "
        "better. Every gallery x probe pair of the target is scored. Shaded, and as upright bars at the table's rates: "
        "95 % intervals of TAR over draws of the people.",
    ),
    "gap": (
        "Domain gap",
        "Distance between the mean unit embeddings of two domains; by chance: between two draws, each of as many "
        "people of one domain. Star: a domain never seen in training. Of a domain trained on and scored, the people "
        "held out are shown.",
    ),
    "hardest": (
        "Hardest pairs",
        "Gallery x probe pairs with their cosine, a person at most once a row; orange and "
        "bold: decided wrongly at the threshold named, where the row's other pairs are decided rightly. Look here for "
        "wrong labels: a genuine pair that shows two people, an impostor pair that shows one. The images' names are "
        "in results.json.",
    ),
    "training": (
        "Training",
        "Pale: every step; strong: running mean. Scores on the way are of the weights after that many steps. The "
        "shaded band marks where the second-order term is strong enough to matter and weak enough to be stable.",
    ),
    "domains": ("Domains", "Images as the model receives them, one row a domain."),
}


def page(run: RunFolder, pictures: Mapping[str, Path]) -> str:
    """Return the report as HTML text; `pictures` are the PNG files that exist, by their names in CAPTIONS."""
    name = run.path.resolve().name
    parts = [f'<p class="run">fastmfr run {escape(name)}</p>', f"<h1>{escape(headline(run.results, run.sources))}</h1>"]
    parts += [f"<p>{escape(str(line))}</p>" for line in run.results.summary or []]
    parts += [_time(run.results), warnings(run.notes)]
    if run.results.scored:
        parts += ["<h2>Scores</h2>", _table(run.results)]
        parts += map(footnote, [*footnotes(run.results), *_about_intervals(run)])
    parts += choice_parts(run.results.choice)
    for kind, (heading, caption) in CAPTIONS.items():
        if kind in pictures:
            parts.append(picture(heading, pictures[kind], caption))
        if kind == "gap":
            parts.append(_gap(run.results.gap))
    lines = [f"{command.began}  {command.line}" for command in run.results.commands or []]
    parts += [
        "<h2>How it was run</h2>",
        folded("Command", "\n".join(lines)),
        folded("Settings", run.config),
        folded("Environment", run.environment),
    ]
    bad = [f"{key}: {reason}" for key, reason in run.results.bad_images.items()]
    parts.append(folded(f"Images replaced ({len(bad)})", "\n".join(bad)))
    return document(name, parts)


def _table(results: Results) -> str:
    titles = "".join(f'<th class="figure">{column.title}</th>' for column in columns(results))
    head = f"<th>Target</th><th>Model</th>{titles}"
    bodies: dict[str, list[str]] = {}
    for row in rows(results):
        lines = bodies.setdefault(row.target, [])
        target = "" if lines else escape(row.target) + ("<small>never seen</small>" if row.unseen else "")
        cells = "".join(f'<td class="figure">{_cell(cell)}</td>' for cell in row.cells)
        main = main_of(results.targets[row.target].models)
        lines.append(
            f'<tr{" class=main" if row.model == main else ""}><td class="target">{target}</td>'
            f"<td>{escape(row.model)}</td>{cells}</tr>"
        )
    body = "".join(f"<tbody>{''.join(lines)}</tbody>" for lines in bodies.values())
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead>{body}</table></div>'


def _gap(gap_by_model: Mapping[str, DomainGap | None]) -> str:
    cells_by_model = gap_rows(gap_by_model)
    if not cells_by_model:
        return ""
    lines = [
        f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in [model, *cells])}</tr>"
        for model, cells in cells_by_model.items()
    ]
    head = "".join(f"<th>{title}</th>" for title in ("Model", *COLUMNS))
    table = f'<div class="scroll"><table class="gap"><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody>'
    return table + "</table></div>" + "".join(map(footnote, READING))


def _about_intervals(run: RunFolder) -> list[str]:
    if not any(cell.interval for row in rows(run.results) for cell in row.cells):
        return []
    return [
        "Small: the 95 % interval over draws of the people scored. What another training run would show is not in it."
    ]


def _cell(cell: Cell) -> str:
    colour = {None: "gain", True: "gain better", False: "gain worse"}[cell.better]
    interval = f"<small>{cell.interval}</small>" if cell.interval else ""
    within = f'<small class="{colour[5:]}">gain {cell.within}</small>' if cell.within else ""
    return f'{cell.value}<span class="{colour}">{cell.gain}</span>{interval}{within}'


def _time(results: Results) -> str:
    """When the run began, how long its parts took, and the last process in all."""
    spent = [f"{escape(stage)} {_duration(taken)}" for stage, taken in results.seconds.items()]
    spent += [] if results.wall_seconds is None else [f"in all {_duration(results.wall_seconds)}"]
    said = [f"Time: {', '.join(spent)}."] if spent else []
    said += [f"Begun {escape(command.began)}." for command in (results.commands or [])[:1]]
    return f'<p class="time">{" ".join(said)}</p>' if said else ""


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"
