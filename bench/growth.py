"""How cost grows with the work: `python bench/growth.py --out FOLDER` times head, meta step and opening at many sizes.

Identities from ten thousand, domains from 3 to 16, images from a thousand. FOLDER/growth.jsonl has a line for each
figure, the machine in its first line and the slopes at its end; FOLDER/growth.png shows them beside the slopes that are
expected. `--large` has the sizes of real runs, and takes many times as long.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from card import lines
from growing.curves import HEAD, META, OPENING, Curve, curves
from growing.picture import draw, slope

from fastmfr.commands.frame import status_of
from fastmfr.runtime import environment, keep_freed_memory

LEAST, MOST = 3, 100  # times that a call is timed


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; the exit status is 1 with a sentence on what went wrong."""
    options = _parser().parse_args(argv)
    return status_of(lambda: _measure(options))


def _parser():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--out", metavar="FOLDER", type=Path, required=True, help="where growth.jsonl and growth.png are written")
    add("--large", action="store_true", help="the sizes of real runs; 10M identities where there is a GPU")
    add("--only", nargs="+", choices=(HEAD, META, OPENING), help="some of the curves; by default all")
    add("--most", type=int, metavar="SIZE", help="leave out sizes above this one")
    add("--seconds", type=float, default=1.5, help="of each figure, or little more; by default 1.5")
    return parser


def _measure(options):
    wanted = [curve for curve in curves(options.large) if not options.only or curve.name in options.only]
    sizes = {curve.name: [size for size in curve.sizes if not options.most or size <= options.most] for curve in wanted}
    if none := [name for name, left in sizes.items() if not left]:
        raise ValueError(
            f"no size of {', '.join(none)} is as small as --most {options.most}; want --only or a larger one"
        )
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "growth.jsonl"
    path.unlink(missing_ok=True)
    os.environ[lines.FILE] = str(path)
    keep_freed_memory()
    lines.write("machine", **environment())
    found = [(curve, _figures(curve, sizes[curve.name], options)) for curve in wanted]
    for curve, by_line in found:
        for name, figures in by_line.items():
            if len(figures) > 1:
                lines.write("slope", curve=curve.name, line=name, slope=slope(figures), expected_at_most=curve.slope)
    print(f"wrote {path} and {draw(found, options.out / 'growth.png')}")
    return 0


def _figures(curve: Curve, sizes: Sequence[int], options) -> dict[str, list[dict]]:
    """{line: its figures by size} of one curve. A size is made, timed and dropped before the next one."""
    found: dict[str, list[dict]] = {}
    for size in sizes:
        files = tempfile.TemporaryDirectory(prefix="growth-", dir=options.out)
        with files as folder, curve.made(size, Path(folder)) as calls:
            for name, call in calls.items():
                figure = {"size": size, **timed(call, options.seconds)}
                found.setdefault(name, []).append(figure)
                lines.write("growth", curve=curve.name, line=name, **figure, **curve.facts)
    return found


def timed(call, seconds: float) -> dict:
    """Median and 20th to 80th percentile of the seconds of a call, after one that is not timed."""
    spent: list[float] = []
    _seconds_of(call)
    while len(spent) < LEAST or (sum(spent) < seconds and len(spent) < MOST):
        spent.append(_seconds_of(call))
    deciles = statistics.quantiles(spent, n=10, method="inclusive")
    return {
        "median_seconds": statistics.median(spent),
        "p20_p80_seconds": [deciles[1], deciles[7]],
        "rounds": len(spent),
    }


def _seconds_of(call):
    _wait()
    begin = time.perf_counter()
    kept = call()  # freed when the clock has stopped
    _wait()
    spent = time.perf_counter() - begin
    del kept
    return spent


def _wait():
    if torch.cuda.is_available():
        torch.cuda.synchronize()


if __name__ == "__main__":
    raise SystemExit(main())
