"""The parts of a page: one HTML file, self-contained, style and pictures inside, nothing fetched."""

import base64
from html import escape
from pathlib import Path

STYLE = """
body { margin: 0; background: #fff; color: #23262d; font: 16px/1.55 system-ui, "Segoe UI", Roboto, sans-serif;
  overflow-wrap: anywhere; }
main { max-width: 60rem; margin: 0 auto; padding: 3rem 1.5rem 5rem; }
.run { color: #6b717c; font-size: .9rem; margin: 0 0 .4rem; }
h1 { font-size: 1.65rem; line-height: 1.32; font-weight: 650; margin: 0 0 1.2rem; text-wrap: balance; }
h2 { font-size: 1.1rem; margin: 2.8rem 0 .8rem; }
.time { color: #6b717c; }
.notes { border-left: 4px solid #d9930d; background: #fdf7ea; padding: .7rem 1rem; margin: 1.4rem 0; }
.notes p { margin: .2rem 0; }
.scroll { overflow-x: auto; overflow-wrap: normal; }
@media (max-width: 40rem) { main { padding: 1.5rem 1rem 3rem; } }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th { text-align: right; font-weight: 600; font-size: .85rem; color: #6b717c; border-bottom: 1px solid #c9cdd4; }
td { text-align: right; vertical-align: top; white-space: nowrap; }
th, td { padding: .4rem 0 .4rem .3rem; }
th:nth-child(-n+2), td:nth-child(-n+2) { text-align: left; padding: .4rem .9rem .4rem 0; }
tbody tr:first-child td { border-top: 1px solid #c9cdd4; }
td small { display: block; color: #6b717c; font-size: .75rem; line-height: 1.2; }
.gain { display: inline-block; width: 3rem; text-align: left; padding-left: .35rem; font-size: .85rem; color: #6b717c; }
th.figure { padding-right: 3.35rem; } td.figure { padding-right: 0; } td.figure small { margin-right: 3.35rem; }
td.figure small[class] { margin-right: 0; }
.better { color: #1d7a4f; } .worse { color: #b3413b; }
.main td { font-weight: 600; } .main .target, .main small { font-weight: 400; }
.runs th, .runs td { padding-left: .9rem; white-space: nowrap; }
.runs th:nth-child(-n+3), .runs td:nth-child(-n+3) { padding-left: 0; }
.runs th:nth-child(3), .runs td:nth-child(3) { text-align: left; padding: .4rem .9rem .4rem 0; }
.gap th, .gap td { text-align: right; padding: .4rem 0 .4rem .9rem; }
.gap th:first-child, .gap td:first-child { text-align: left; padding-left: 0; }
.of-runs th:nth-child(2), .of-runs td:nth-child(2) { text-align: left; }
.settings { width: auto; } .settings th, .settings td { text-align: left; padding-right: 1.6rem; }
.foot { color: #6b717c; font-size: .85rem; margin: .25rem 0; }
img { display: block; max-width: 100%; height: auto; margin: 0 auto; }
details { border-top: 1px solid #e6e8ec; padding: .7rem 0; }
summary { cursor: pointer; font-weight: 600; }
pre { background: #f6f7f9; padding: 1rem; overflow-x: auto; font-size: .82rem; line-height: 1.45; }
"""


def document(name: str, parts: list[str]) -> str:
    """Return a whole page of HTML `parts`, without the empty ones; `name`, plain text, goes into its title."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>fastmfr: {escape(name)}</title><style>{STYLE}</style></head>\n<body><main>\n"
        + "\n".join(filter(None, parts))
        + "\n</main></body></html>\n"
    )


def warnings(notes: list[str]) -> str:
    """Return a marked box of plain sentences that say what is missing or odd."""
    lines = "".join(f"<p>{escape(note)}</p>" for note in notes)
    return f'<div class="notes">{lines}</div>' if lines else ""


def footnote(text: str) -> str:
    """Return a line in small print."""
    return f'<p class="foot">{escape(text)}</p>'


def picture(heading: str, png: Path, caption: str) -> str:
    """Return a PNG file, embedded, below its heading and above its caption."""
    data = base64.b64encode(png.read_bytes()).decode()
    return f'<h2>{heading}</h2><img alt="{heading}" src="data:image/png;base64,{data}">{footnote(caption)}'


def folded(title: str, text: str) -> str:
    """Return a plain text that opens on a click; nothing if the text is empty."""
    return f"<details><summary>{title}</summary><pre>{escape(text)}</pre></details>" if text else ""
