"""Means, spreads and gains as tables, for Markdown and for the page."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fastmfr.prove.arms import COSFACE, NO_META
from fastmfr.prove.gains import View
from fastmfr.results import BASE

CONTROLS = (BASE, COSFACE, "hard_pair", NO_META)  # what gains are taken over


@dataclass(frozen=True)
class Table:
    """A table: a caption, the heads of the columns, and lines of as many cells."""

    caption: str
    head: Sequence[str]
    lines: Sequence[Sequence[str]]

    def markdown(self) -> str:
        """Return the table as Markdown."""
        bar = "|---" + "|---:" * (len(self.head) - 1) + "|"
        return "\n".join([self.caption, "", _line(self.head), bar, *map(_line, self.lines)])


@dataclass(frozen=True)
class Part:
    """What one target says: a title, and its tables."""

    title: str
    tables: Sequence[Table]

    def markdown(self) -> str:
        """Return the part as Markdown."""
        return "\n\n".join([f"## {self.title}", *(table.markdown() for table in self.tables)])


def part_of(view: View, titles: Mapping[str, str], figures: Mapping[str, str]) -> Part:
    """The tables of a view: figures of every model, and gains over each control.

    Args:
        view: what is looked at.
        titles: what each model is called.
        figures: what each figure is called, in their order.
    """
    tables = [_means(view, titles, figures)]
    for control in CONTROLS:
        others = [name for name in view.rows if name not in (control, BASE)]
        if control in view.rows and others:
            lines = [[titles[name], *(_gain(view, name, control, figure) for figure in figures)] for name in others]
            caption = (
                f"Gain over {titles[control]}, in points; in brackets 95 % of what other seeds and other people of the "
                "same domains would give."
            )
            tables.append(Table(caption, ["model", *figures.values()], lines))
    return Part(view.title, tables)


def _means(view, titles, figures):
    seeds = np.array([seed for seed, _ in view.cells])
    left_out = ", ".join(dict.fromkeys(domain for _, domain in view.cells))
    caption = (
        f"Left out in turn: {left_out}; seeds {', '.join(map(str, sorted(set(seeds.tolist()))))}; runs of each model: "
        f"{len(seeds)}. In percent, mean and standard deviation over the seeds. TAR@f: share of genuine pairs accepted "
        "at false accept rate f; the lower the EER, the better."
    )
    lines = []
    for name in view.rows:
        values = [view.values(name, figure) for figure in figures]
        texts = ["-" if value_R is None else _mean_and_spread(100 * value_R, seeds) for value_R in values]
        ratios = [row["alpha_hv_over_v"] for row in view.rows[name] if "alpha_hv_over_v" in row]
        seconds = np.median([row["seconds"] for row in view.rows[name]])
        lines.append([titles[name], *texts, f"{np.mean(ratios):.3f}" if ratios else "-", f"{seconds:.1f}"])
    return Table(caption, ["model", *figures.values(), "alpha |Hv| / |v|", "seconds"], lines)


def _mean_and_spread(value_R, seeds):
    by_seed = [value_R[seeds == seed].mean() for seed in np.unique(seeds)]
    spread = f" ± {np.std(by_seed, ddof=1):.1f}" if len(by_seed) > 1 else ""
    return f"{value_R.mean():.1f}{spread}"


def _gain(view, name, control, figure):
    gain = view.gain(name, control, figure)
    if gain is None:
        return "-"
    if gain.low is None or gain.high is None:
        return f"{100 * gain.mean:+z.2f}"
    return f"{100 * gain.mean:+z.2f} [{100 * gain.low:+z.2f}, {100 * gain.high:+z.2f}]"


def _line(texts):
    return "| " + " | ".join(text.replace("|", r"\|") for text in texts) + " |"
