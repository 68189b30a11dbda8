"""What a run leaves to read: report.html with its pictures, tables for the console and for papers.

folder.py reads the run; tables.py, plots.py and gap.py make the parts, panels.py says what is shown of the training;
page.py joins the parts. compare/ does the same for several runs, and axes.py and markup.py hold what both draw and
write with. hardest.py draws the images of pairs, which only the run itself has. A run that was stopped half-way is
reported as far as it came, and the page says what is missing.
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
    """Write report.html, roc.png, gap.png and training.png into a run folder, and return the page's path.

    Args:
        run: The folder. config.yaml, environment.json, metrics.jsonl, results.json, domains.png and hardest.png are
            read; the page names each file that is missing or cut.

    Raises:
        FileNotFoundError: there is no such folder.
    """
    folder = read(Path(run))
    pictures = {
        "roc": roc_plot(folder.results, folder.path / "roc.png") if folder.results.scored else None,
        "gap": gap_plot(folder.results.gap, folder.path / "gap.png"),
        "hardest": folder.path / "hardest.png",
        "training": training_plot(folder.metrics, folder.path / "training.png"),
        "domains": folder.path / "domains.png",
    }
    existing = {name: path for name, path in pictures.items() if path and path.is_file()}
    report = folder.path / "report.html"
    report.write_text(page(folder, existing), encoding="utf-8")
    return report
