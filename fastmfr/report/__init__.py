"""What a run leaves to read: report.html with its pictures, tables for the console and for papers.

folder.py reads the run, tables.py, plots.py and gap.py make its parts, page.py joins them; compare/ does the same for
several runs, and axes.py and markup.py hold what both draw and write with. hardest.py draws what only the run itself
can draw, for it has the images. A run that was stopped half-way is reported as far as it came, and the page says what
is missing. command.py is python -m fastmfr report.
"""

from pathlib import Path

from .folder import read
from .gap import gap_plot
from .hardest import hardest_sheet
from .page import page
from .plots import contact_sheet, roc_plot, training_plot
from .tables import final_table, headline, markdown_table

__all__ = ["contact_sheet", "final_table", "hardest_sheet", "headline", "markdown_table", "write_report"]


def write_report(run: Path | str) -> Path:
    """Write report.html, roc.png, gap.png and training.png into the folder `run` and return the page's path.

    Reads config.yaml, environment.json, metrics.jsonl, results.json, domains.png and hardest.png; whatever is
    missing or cut is named on the page. Raises FileNotFoundError if there is no such folder.
    """
    found = read(Path(run))
    pictures = {
        "roc": roc_plot(found.results, found.path / "roc.png") if found.results else None,
        "gap": gap_plot(found.results.get("gap", {}), found.path / "gap.png"),
        "hardest": found.path / "hardest.png",
        "training": training_plot(found.metrics, found.path / "training.png"),
        "domains": found.path / "domains.png",
    }
    written = found.path / "report.html"
    written.write_text(
        page(found, {name: path for name, path in pictures.items() if path and path.is_file()}), encoding="utf-8"
    )
    return written
