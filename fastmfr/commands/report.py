"""python -m fastmfr report RUN...: write a run's report again, or compare several runs on one page."""

import argparse
from datetime import datetime


def main(arguments: list[str]) -> int:
    """Run the command line and print the page's path.

    Raises:
        ValueError, OSError: what went wrong, in a sentence.
    """
    options = _parser().parse_args(arguments)
    from fastmfr.report import write_report
    from fastmfr.report.compare import write_comparison

    if len(options.runs) == 1 and options.out is None:
        print(write_report(options.runs[0]))
    else:
        print(write_comparison(options.runs, options.out or f"runs/compare-{datetime.now():%Y%m%d-%H%M%S}"))
    return 0


def _parser():
    parser = argparse.ArgumentParser(
        prog="python -m fastmfr report",
        allow_abbrev=False,
        description="Write the report of one run again, or compare several on one page.",
    )
    parser.add_argument("runs", metavar="RUN", nargs="+", help="a folder that a training run wrote")
    parser.add_argument(
        "--out", metavar="FOLDER", help="where the comparison goes (default: runs/compare-..., by date and time)"
    )
    return parser
