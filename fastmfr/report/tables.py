"""The final figures as one sentence and as one table, for the console, for papers and for the page.

Every share is in percent, and every gain in points over the model named base, or over the first model if none is.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fastmfr.results import CHOSEN, MFR, Results, Scores, TargetResult, base_of
from fastmfr.text import printable

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text


@dataclass(frozen=True)
class Column:
    """One share that the table shows: how it is read from the scores of a model, and how it is printed.

    `name` is what `TargetResult.gains` calls the share. `interval` reads the ends of its 95 % interval, None or
    empty if not known. `is_tar` is True for TAR at a FAR.
    """

    title: str
    name: str
    decimals: int
    share: Callable[[Scores], float | None]
    interval: Callable[[Scores], Sequence[float] | None] = lambda scores: None
    is_tar: bool = False
    lower_is_better: bool = False


@dataclass(frozen=True)
class Cell:
    """One figure, in percent, "-" if refused; `gain` in points over the base, `within` its paired interval.

    `better` says whether the gain is good; it is None if the interval spans zero or is not known.
    """

    value: str
    gain: str = ""
    better: bool | None = None
    interval: str = ""
    within: str = ""

    @property
    def text(self) -> str:
        """The figure in one line, with its gain and the gain's interval in brackets."""
        return f"{self.value} ({', '.join(filter(None, [self.gain, self.within]))})" if self.gain else self.value


@dataclass(frozen=True)
class Row:
    """One model on one target; `cells` stand in the order of `columns`."""

    target: str
    unseen: bool
    model: str
    cells: list[Cell]


AFTER_TAR = (
    Column("Rank-1", "rank1", 1, lambda scores: scores.rank1, lambda scores: scores.rank1_interval),
    Column("AUC", "auc", 2, lambda scores: scores.auc, lambda scores: scores.auc_interval),
    Column("EER", "eer", 2, lambda scores: scores.eer, lambda scores: scores.eer_interval, lower_is_better=True),
)


def columns(results: Results) -> list[Column]:
    """Return the columns: TAR at each FAR, the coarsest first, then rank-1, AUC and EER."""
    return [*map(_tar_column, fars(results)), *AFTER_TAR]


def _tar_column(far: str) -> Column:
    title = f"TAR@{short_far(far)}"
    return Column(
        title,
        f"tar_at_far_{far}",
        1,
        lambda scores: scores.rate(far).tar,
        lambda scores: scores.rate(far).interval,
        is_tar=True,
    )


def rows(results: Results) -> Iterator[Row]:
    """Yield every target's models in the order in which they were scored."""
    for name, target in results.scored.items():
        base = target.models[base_of(target.models)]
        for model, scores in target.models.items():
            gains = (target.gains or {}).get(model, {})
            cells = [
                _cell(column, scores, None if scores is base else base, gains.get(column.name))
                for column in columns(results)
            ]
            yield Row(name, target.unseen, model, cells)


def footnotes(results: Results) -> list[str]:
    """Return how to read the table, then why each refused figure was refused."""
    refused: dict[str, list[str]] = {}
    for name, target in results.scored.items():
        for scores in target.models.values():
            for rate in scores.tar_at_far.values():
                if rate.refused and name not in refused.setdefault(rate.refused, []):
                    refused[rate.refused].append(name)
    several = [target.models for target in results.scored.values() if len(target.models) > 1]
    bases = listed(sorted({base_of(models) for models in several}))
    gains = f"; with a figure its gain over {bases}, in points" if several else ""
    if any(target.gains for target in results.scored.values()):
        gains += (
            " and with its 95 % interval over draws of the people, the same for both models; green or red: the "
            "interval does not span zero"
        )
    notes = [f"In percent{gains}. TAR@f: share of genuine pairs accepted at false accept rate f."]
    held_out = [name for name, target in results.scored.items() if not target.unseen]
    if held_out:
        notes.append(f"Trained on, and scored on other people: {listed(held_out)}.")
    return notes + [f'"-" on {listed(names)}: {reason}.' for reason, names in refused.items()]


def headline(results: Results, sources: Sequence[str]) -> str:
    """Return the result in one sentence.

    The sentence is about the unseen targets, or about all targets if none is unseen. Several targets are averaged.

    Args:
        results: The results of a run, with or without scores.
        sources: The names of the domains trained on.
    """
    trained = f"Trained on {listed(sources)}" if sources else "Trained"
    unseen = {name: target for name, target in results.scored.items() if target.unseen}
    shown = unseen or results.scored
    if not shown:
        return f"{trained}; not scored yet."
    seen = "" if not unseen else ", a domain it has never seen" if len(shown) == 1 else ", domains it has never seen"
    scored_on = f"{trained}; scored on {listed(list(shown))}{seen}: "
    for far in fars(results):
        before, after = (_mean_tar(shown.values(), pick, far) for pick in (base_of, main_of))
        if before is not None and after is not None:
            mean = "mean " if len(shown) > 1 else ""
            models = next(iter(shown.values())).models
            return scored_on + _change(f"{mean}TAR at FAR {100 * float(far):g} %", before, after, models)
    return f"{scored_on}too few pairs for any FAR asked for."


def final_table(results: Results) -> "Table":
    """Return the table for the console, gains beyond chance in green and red, its notes as a caption."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, caption="\n".join(footnotes(results)), caption_justify="left", padding=(0, 1, 0, 0))
    table.add_column("Target", no_wrap=True)
    table.add_column("Model", no_wrap=True)
    for column in columns(results):
        table.add_column(column.title, justify="right")
    before = None
    for row in rows(results):
        if before not in (None, row.target):
            table.add_section()
        cells = [_rich_cell(cell) for cell in row.cells]
        table.add_row(Text("" if row.target == before else printable(row.target)), Text(row.model), *cells)
        before = row.target
    return table


def _rich_cell(cell: Cell) -> "Text":
    """The figure, its gain below it, and below that the gain's interval: so five figures fit into 80 columns."""
    from rich.text import Text

    below = f"\n{cell.gain}" * bool(cell.gain) + f"\n({cell.within})" * bool(cell.within)
    return Text(cell.value) + Text(below, _rich_style(cell))


def markdown_table(results: Results) -> str:
    """Return the table as GitHub Markdown, its notes as lines below."""
    titles = [column.title for column in columns(results)]
    lines = [["Target", "Model", *titles], ["---", "---", *["---:"] * len(titles)]]
    for row in rows(results):
        cells = [cell.text for cell in row.cells]
        lines.append([row.target.replace("|", "\\|"), row.model.replace("|", "\\|"), *cells])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n\n" + "  \n".join(footnotes(results)) + "\n"


def fars(results: Results) -> list[str]:
    """Return every FAR that a model was scored at, as the text that names the FAR, the coarsest first."""
    scores = [scores for target in results.scored.values() for scores in target.models.values()]
    return sorted({far for each in scores for far in each.tar_at_far}, key=float, reverse=True)


def main_of(models: Mapping[str, Scores]) -> str:
    """Return the name of the model that the run is about."""
    return next((model for model in (CHOSEN, MFR) if model in models), list(models)[-1])


def short_far(far: str) -> str:
    """Return a FAR in few characters: "0.001" -> "1e-3"."""
    mantissa, exponent = f"{float(far):e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def gain(value: float, base: float, decimals: int) -> str:
    """Return the gain in points between two shares as they are printed: a reader's subtraction agrees with it."""
    return f"{round(100 * value, decimals) - round(100 * base, decimals):+.{decimals}f}"


def listed(names: Sequence[str]) -> str:
    """Return "a", "a and b" or "a, b and c"."""
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))


def _cell(column: Column, scores: Scores, base: Scores | None, within: Sequence[float] | None) -> Cell:
    """A figure, and its gain over `base` with the interval of the gain; only TAR is shown with its own interval."""
    value, before = column.share(scores), base and column.share(base)
    if value is None:
        return Cell("-")
    text = f"{100 * value:.{column.decimals}f}"
    interval = " to ".join(f"{100 * end:.1f}" for end in column.interval(scores) or ()) if column.is_tar else ""
    if before is None:
        return Cell(text, interval=interval)
    points = gain(value, before, column.decimals)
    beyond_chance = bool(within) and bool(float(points)) and min(within) * max(within) > 0
    better = (value < before) == column.lower_is_better if beyond_chance else None
    ends = " to ".join(f"{100 * end:+z.{column.decimals}f}" for end in within or ())
    return Cell(text, points, better, interval, ends)


def _mean_tar(targets: Iterable[TargetResult], pick: Callable[[Mapping[str, Scores]], str], far: str) -> float | None:
    """The mean over targets of the TAR of the model that `pick` names; None if one target lacks it."""
    tars = [target.models[pick(target.models)].rate(far).tar for target in targets]
    measured = [tar for tar in tars if tar is not None]
    return sum(measured) / len(measured) if len(measured) == len(tars) else None


def _change(what: str, before: float, after: float, models: Mapping[str, Scores]) -> str:
    base, main = base_of(models), main_of(models)
    if base == main:
        return f"{what} is {100 * after:.1f} % ({main})."
    points = gain(after, before, 1)
    if not float(points):
        return f"{what} stays at {100 * after:.1f} % ({base} and {main})."
    verb = "rises" if after > before else "falls"
    return f"{what} {verb} from {100 * before:.1f} % ({base}) to {100 * after:.1f} % ({main}), {points} points."


def _rich_style(cell: Cell) -> str:
    return {None: "dim", True: "green", False: "red"}[cell.better]
