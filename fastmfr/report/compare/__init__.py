"""Several runs on one page: what each scored, how each trained, and which of their settings differ.

runs.py reads the runs side by side, naming.py says what they are called, table.py and plots.py make the parts,
page.py joins the parts.
"""

from collections.abc import Sequence
from pathlib import Path

from .page import page
from .plots import roc_plot, training_plot
from .runs import Comparison, compare
from .table import markdown_table

__all__ = ["Comparison", "compare", "markdown_table", "write_comparison"]


def write_comparison(folders: Sequence[Path | str], out: Path | str) -> Path:
    """Write report.html, table.md, roc.png and training.png into the folder `out`, and return the page's path.

    Args:
        folders: The run folders. config.yaml, environment.json, metrics.jsonl and results.json of each are read; the
            page names each file that is missing.
        out: The folder to write to; it is made if need be.

    Raises:
        ValueError: there are fewer than two runs, one is given twice, or `out` is one of them.
        FileNotFoundError: a folder holds no run.
    """
    compared = compare([Path(folder) for folder in folders])
    out = Path(out)
    if out.resolve() in [run.path.resolve() for run in compared.runs.values()]:
        raise ValueError(f"{out} is one of the runs compared, whose own report would be lost; give another folder")
    out.mkdir(parents=True, exist_ok=True)
    pictures = {"roc": roc_plot(compared, out / "roc.png"), "training": training_plot(compared, out / "training.png")}
    (out / "table.md").write_text(markdown_table(compared), encoding="utf-8")
    report = out / "report.html"
    report.write_text(page(compared, {name: path for name, path in pictures.items() if path}), encoding="utf-8")
    return report
