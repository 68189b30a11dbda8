"""Tables over the seeds of several runs of `fastmfr prove`: `python bench/proof/over_seeds.py ROWS.jsonl ...`.

ROWS.jsonl are rows as `prove` writes them, a value for each person, or with means over the people in percent, as some
files of bench/results have them; where people are not kept one by one, only what other seeds would give can be said. A
figure is the mean over seeds of the mean over the domains left out; in brackets 95 % by Student's t over the seeds.
Prints Markdown.
"""

import argparse
import json
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fastmfr.prove.gains import student
from fastmfr.prove.tables import Table

METRICS = {"tar_0.01": "TAR@1e-2", "auc": "AUC", "eer": "EER"}
BASE, MFR = "base", "mfr"
CONTROLS = (BASE, "cosface", "hard_pair", "no_meta", "first_order")  # what MFR is compared with, domain by domain
Cells = Mapping[tuple[int, str, str], Mapping[str, Mapping[str, float]]]  # (seed, left out, arm): set: metric: percent


def read(paths: Sequence[Path]) -> Cells:
    """Read the rows of all files; a row that two files have is an error."""
    cells = {}
    for path in paths:
        for row in map(json.loads, path.read_text().splitlines()):
            if "seed" not in row:
                continue  # the note
            key = row["seed"], row["left_out"], row["name"]
            if key in cells:
                raise SystemExit(f"{path}: seed {key[0]}, {key[1]} left out, {key[2]} was in a file before")
            cells[key] = {name: in_percent(score) for name, score in row["scores"].items()}
    return cells


def in_percent(score: Mapping[str, Any]) -> Mapping[str, float]:
    """Return the means over the people, weighted by their probes; a score that has them is returned as it is."""
    probes = score.get("probes")
    if not isinstance(probes, list):
        return score
    return {metric: 100 * float(np.average(score[metric], weights=probes)) for metric in METRICS}


def gains(cells: Cells, arm: str, over: str, score: Callable[[Mapping, str], float]) -> dict[tuple[int, str], float]:
    """Return what an arm gains over another in each (seed, domain left out) that has both."""
    return {
        (seed, domain): score(found, domain) - score(cells[seed, domain, over], domain)
        for (seed, domain, name), found in cells.items()
        if name == arm and (seed, domain, over) in cells
    }


def figure(of_cells: Mapping[tuple[int, str], float]) -> str:
    """Write the mean over seeds with its interval; nothing where there is no cell."""
    if not of_cells:
        return ""
    seeds = sorted({seed for seed, _ in of_cells})
    means = [statistics.mean(value for (seed, _), value in of_cells.items() if seed == one) for one in seeds]
    mean = statistics.mean(means)
    if len(means) < 2:
        return f"{mean:+.1f}"
    half = student(len(means) - 1) * statistics.stdev(means) / math.sqrt(len(means))
    return f"{mean:+.1f} ({mean - half:.1f} to {mean + half:.1f})"


def on_left_out(metric: str) -> Callable[[Mapping, str], float]:
    """Return what reads a metric on the domain left out."""
    return lambda scores, domain: scores[domain][metric]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", metavar="ROWS.jsonl", type=Path, nargs="+")
    parser.add_argument("--set", metavar="NAME", help="a domain that no arm trains on, scored by all")
    options = parser.parse_args()
    cells = read(options.rows)
    arms = list(dict.fromkeys(name for *_, name in cells))
    scores = [on_left_out(metric) for metric in METRICS]
    head = ["arm", "models", *METRICS.values()]
    if options.set:
        scores.append(lambda found, domain: found[options.set]["tar_0.01"])
        head.append(f"{options.set}, TAR@1e-2")
    compared = [(arm, [gains(cells, arm, BASE, score) for score in scores]) for arm in arms if arm != BASE]
    lines = [[arm, str(len(found[0])), *map(figure, found)] for arm, found in compared]
    print(Table("Every arm over its base", head, lines).markdown(), end="\n\n")
    domains = sorted({domain for _, domain, _ in cells})
    for over in CONTROLS:
        found = [gains(cells, MFR, over, on_left_out(metric)) for metric in METRICS]
        if not found[0]:
            continue
        lines = [[one, *(figure(only(part, one)) for part in found)] for one in domains]
        lines.append(["all", *map(figure, found)])
        print(Table(f"{MFR} over {over}", ["left out", *METRICS.values()], lines).markdown(), end="\n\n")


def only(of_cells: Mapping[tuple[int, str], float], domain: str) -> dict[tuple[int, str], float]:
    """Return the values of one domain left out."""
    return {key: value for key, value in of_cells.items() if key[1] == domain}


if __name__ == "__main__":
    main()
