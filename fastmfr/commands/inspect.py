"""python -m fastmfr inspect DOMAIN...: what is in the domains, what is broken, and what they share."""

import argparse
from itertools import chain, count
from pathlib import Path
from typing import get_args

from fastmfr.config.choices import Fit
from fastmfr.domains import open_domain
from fastmfr.inspect.overlap import overlap
from fastmfr.inspect.sheet import draw_sheet
from fastmfr.inspect.survey import survey
from fastmfr.inspect.text import lists, of_domain, of_overlap, table
from fastmfr.progress import new_console, progress_of
from fastmfr.text import printable


def main(arguments: list[str]) -> int:
    """Run the command line: print what is in the domains, and write lists and contact sheets if asked for.

    Raises:
        ValueError, OSError, ImportError: what went wrong, in a sentence.
    """
    options = _parser().parse_args(arguments)
    console = new_console()
    surveys = _surveys(options, console)
    shared = overlap(surveys)
    console.print(table(surveys, shared), soft_wrap=False)
    for line in (*(line for found in surveys for line in of_domain(found, options.fit)), *of_overlap(surveys, shared)):
        console.print(line)
    if options.out:
        _write(surveys, shared, Path(options.out), console)
    return 0


def _parser():
    parser = argparse.ArgumentParser(
        prog="python -m fastmfr inspect", description="Say what is in domains, what is broken, and what they share."
    )
    parser.add_argument("domains", metavar="DOMAIN", nargs="+", help="a class folder or a RecordIO folder")
    parser.add_argument("--images", type=int, metavar="N", help="read a sample of N images of each (default: all)")
    parser.add_argument("--out", metavar="FOLDER", help="write contact sheets and whole lists of what was found there")
    parser.add_argument(
        "--fit", choices=get_args(Fit), default="crop", help="say what data.fit would do to images that are not square"
    )
    parser.add_argument("--workers", type=int, metavar="N", help="threads (default: one a core)")
    return parser


def _surveys(options, console):
    """A survey of each domain, all opened before the first is read; no two of the same name."""
    domains, names = [], set()
    for path in options.domains:
        plain = Path(path).resolve().name
        name = next(name for name in chain([plain], (f"{plain}-{k}" for k in count(2))) if name not in names)
        names.add(name)
        domains.append(open_domain(path, name))
    surveys = []
    for domain in domains:
        with progress_of(printable(domain.name), console) as progress:
            surveys.append(survey(domain, options.images, options.workers, progress))
    return surveys


def _write(surveys, shared, out, console):
    """The lists and the contact sheets, into the folder `out`."""
    out.mkdir(parents=True, exist_ok=True)
    for name, lines in lists(surveys, shared).items():
        (out / name).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8", errors="backslashreplace")
    for found in surveys:
        if not draw_sheet(found, out / f"{found.domain.name}.png"):
            console.print(
                f"{printable(found.domain.name)}: no image of those picked decodes, so there is no contact sheet"
            )
    console.print(printable(f"written to {out}: {', '.join(sorted(path.name for path in out.iterdir()))}"))
