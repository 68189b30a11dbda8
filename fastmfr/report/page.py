"""One HTML page, self-contained: style and pictures inside, nothing fetched, all text from files escaped."""

import base64
from collections.abc import Mapping
from html import escape
from pathlib import Path

from .folder import RunFolder
from .tables import Cell, columns, footnotes, headline, rows

STYLE = """
body { margin: 0; background: #fff; color: #23262d; font: 16px/1.55 system-ui, "Segoe UI", Roboto, sans-serif; }
main { max-width: 60rem; margin: 0 auto; padding: 3rem 1.5rem 5rem; }
.run { color: #6b717c; font-size: .9rem; margin: 0 0 .4rem; }
h1 { font-size: 1.65rem; line-height: 1.32; font-weight: 650; margin: 0 0 1.2rem; text-wrap: balance; }
h2 { font-size: 1.1rem; margin: 2.8rem 0 .8rem; }
.time { color: #6b717c; }
.notes { border-left: 4px solid #d9930d; background: #fdf7ea; padding: .7rem 1rem; margin: 1.4rem 0; }
.notes p { margin: .2rem 0; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th { text-align: right; font-weight: 600; font-size: .85rem; color: #6b717c; border-bottom: 1px solid #c9cdd4; }
td { text-align: right; vertical-align: top; white-space: nowrap; }
th, td { padding: .4rem 0 .4rem .3rem; }
th:nth-child(-n+2), td:nth-child(-n+2) { text-align: left; padding: .4rem .9rem .4rem 0; }
tbody tr:first-child td { border-top: 1px solid #c9cdd4; }
td small { display: block; color: #6b717c; font-size: .75rem; line-height: 1.2; }
.gain { display: inline-block; width: 3rem; text-align: left; padding-left: .35rem; font-size: .85rem; color: #6b717c; }
th.figure { padding-right: 3.35rem; } td.figure { padding-right: 0; } td.figure small { margin-right: 3.35rem; }
.better { color: #1d7a4f; } .worse { color: #b3413b; }
.main td { font-weight: 600; } .main .target, .main small { font-weight: 400; }
.foot { color: #6b717c; font-size: .85rem; margin: .25rem 0; }
img { display: block; max-width: 100%; height: auto; margin: 0 auto; }
details { border-top: 1px solid #e6e8ec; padding: .7rem 0; }
summary { cursor: pointer; font-weight: 600; }
pre { background: #f6f7f9; padding: 1rem; overflow-x: auto; font-size: .82rem; line-height: 1.45; }
"""
CAPTIONS = {
    "roc": ("ROC", "Share of genuine pairs accepted over share of impostor pairs accepted; higher and further left is "
                   "better. Every gallery x probe pair of the target is scored."),
    "training": ("Training", "Pale: every step; strong: running mean. The shaded band marks where the second-order "
                             "term is strong enough to matter and weak enough to be stable."),
    "domains": ("Domains", "Images as the model receives them, one row a domain."),
}


def page(run: RunFolder, pictures: Mapping[str, Path]) -> str:
    """The report as HTML text; `pictures` names PNG files as roc, training and domains, those that there are."""
    title = escape(run.path.resolve().name)
    parts = [f'<p class="run">fastmfr run {title}</p>', f"<h1>{escape(headline(run.results, run.sources))}</h1>"]
    parts += [f"<p>{escape(str(line))}</p>" for line in run.results.get("summary", [])]
    parts += [_time(run.results.get("seconds", {})), _notes(run.notes)]
    if run.results:
        parts += ["<h2>Scores</h2>", _table(run.results)]
        parts += [f'<p class="foot">{escape(note)}</p>' for note in [*footnotes(run.results), *_about_intervals(run)]]
    for name, (heading, caption) in CAPTIONS.items():
        if name in pictures:
            parts.append(f'<h2>{heading}</h2><img alt="{heading}" src="{_embedded(pictures[name])}">'
                         f'<p class="foot">{caption}</p>')
    parts += ["<h2>How it was run</h2>", _folded("Settings", run.config), _folded("Environment", run.environment)]
    bad = [f"{key}: {reason}" for key, reason in run.results.get("bad_images", {}).items()]
    parts.append(_folded(f"Images replaced ({len(bad)})", "\n".join(bad)))
    return ('<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<title>fastmfr: {title}</title><style>{STYLE}</style></head>\n<body><main>\n"
            + "\n".join(filter(None, parts)) + "\n</main></body></html>\n")


def _table(results: dict) -> str:
    head = "<th>Target</th><th>Model</th>" + "".join(f'<th class="figure">{title}</th>' for title in columns(results))
    bodies: dict[str, list[str]] = {}
    for row in rows(results):
        lines = bodies.setdefault(row.target, [])
        target = "" if lines else escape(row.target) + ("<small>never seen</small>" if row.unseen else "")
        cells = "".join(f'<td class="figure">{_cell(cell)}</td>' for cell in row.cells)
        lines.append(f'<tr{" class=main" if row.model == "mfr" else ""}><td class="target">{target}</td>'
                     f"<td>{escape(row.model)}</td>{cells}</tr>")
    body = "".join(f"<tbody>{''.join(lines)}</tbody>" for lines in bodies.values())
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead>{body}</table></div>'


def _about_intervals(run: RunFolder) -> list[str]:
    shown = any(cell.interval for row in rows(run.results) for cell in row.cells)
    return ["Small: the 95 % interval when the people scored are drawn anew. What another training run would give "
            "is not in it."] if shown else []


def _cell(cell: Cell) -> str:
    colour = {None: "gain", True: "gain better", False: "gain worse"}[cell.better]
    interval = f"<small>{cell.interval}</small>" if cell.interval else ""
    return f'{cell.value}<span class="{colour}">{cell.gain}</span>{interval}'


def _time(seconds: dict) -> str:
    spent = [f"{escape(stage)} {_duration(taken)}" for stage, taken in seconds.items()]
    return f'<p class="time">Time: {", ".join(spent)}.</p>' if spent else ""


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def _notes(notes: list[str]) -> str:
    lines = "".join(f"<p>{escape(note)}</p>" for note in notes)
    return f'<div class="notes">{lines}</div>' if lines else ""


def _folded(title: str, text: str) -> str:
    return f"<details><summary>{title}</summary><pre>{escape(text)}</pre></details>" if text else ""


def _embedded(path: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"
