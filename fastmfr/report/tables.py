"""The final figures as one sentence and as one table, for the console, for papers and for the page.

Every share is given in percent and every gain in points over the model named base, or the first where none is.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

DECIMALS = {"rank1": 1, "auc": 2, "eer": 2}
TITLES = {"rank1": "Rank-1", "auc": "AUC", "eer": "EER"}


@dataclass(frozen=True)
class Cell:
    """One figure, in percent: `gain` in points over base, `better` whether that is good; "-" where refused."""

    value: str
    gain: str = ""
    better: bool | None = None
    interval: str = ""


@dataclass(frozen=True)
class Row:
    """One model on one target; `cells` stand in the order of `columns`."""

    target: str
    unseen: bool
    model: str
    cells: list[Cell]


def columns(results: dict) -> list[str]:
    """Titles of the figures: TAR at each FAR, the coarsest first, then rank-1, AUC and EER."""
    return [f"TAR@{short(far)}" for far in fars(results)] + list(TITLES.values())


def rows(results: dict) -> Iterator[Row]:
    """Every target's models in the order scored."""
    for target, scored in targets(results).items():
        base = scored["models"][base_of(scored["models"])]
        for model, found in scored["models"].items():
            cells = [_far_cell(found, base, far) for far in fars(results)]
            cells += [_cell(found, base, name) for name in DECIMALS]
            yield Row(target, bool(scored.get("unseen")), model, cells)


def footnotes(results: dict) -> list[str]:
    """How to read the table, then why each refused figure was refused."""
    refused: dict[str, list[str]] = {}
    for target, scored in targets(results).items():
        for found in scored["models"].values():
            for entry in found.get("tar_at_far", {}).values():
                if "refused" in entry and target not in refused.setdefault(entry["refused"], []):
                    refused[entry["refused"]].append(target)
    notes = [
        "In percent; beside a figure its gain over base, in points. TAR@f: share of genuine pairs accepted at "
        "false accept rate f."
    ]
    held_out = [target for target, scored in targets(results).items() if not scored.get("unseen")]
    if held_out:
        notes.append(f"Trained on, and scored on other people: {listed(held_out)}.")
    return notes + [f'"-" on {listed(names)}: {reason}.' for reason, names in refused.items()]


def headline(results: dict, sources: list[str]) -> str:
    """The result in one sentence, over the unseen targets where there are any: their mean if there are several."""
    trained = f"Trained on {listed(sources)}" if sources else "Trained"
    unseen = {name: scored for name, scored in targets(results).items() if scored.get("unseen")}
    told = unseen or targets(results)
    if not told:
        return f"{trained}; not scored yet."
    seen = "" if not unseen else ", a domain it has never seen" if len(told) == 1 else ", domains it has never seen"
    scored_on = f"{trained}; scored on {listed(list(told))}{seen}: "
    for far in fars(results):
        before, after = (_mean_tar(told, pick, far) for pick in (base_of, main_of))
        if before is not None and after is not None:
            mean = "mean " if len(told) > 1 else ""
            return scored_on + _change(f"{mean}TAR at FAR {100 * float(far):g} %", before, after, told)
    return f"{scored_on}too few pairs for any FAR asked for."


def final_table(results: dict) -> "Table":
    """The table for the console, gains in green and red, its notes as a caption."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, caption="\n".join(footnotes(results)), caption_justify="left", padding=(0, 1, 0, 0))
    table.add_column("Target", no_wrap=True)
    table.add_column("Model", no_wrap=True)
    for title in columns(results):
        table.add_column(title, justify="right")
    before = None
    for row in rows(results):
        if before not in (None, row.target):
            table.add_section()
        cells = [
            Text(cell.value) + Text(f" ({cell.gain})" if cell.gain else "", _rich_style(cell)) for cell in row.cells
        ]
        table.add_row(Text("" if row.target == before else row.target), Text(row.model), *cells)
        before = row.target
    return table


def markdown_table(results: dict) -> str:
    """The table as GitHub Markdown, its notes as lines below."""
    titles = ["Target", "Model", *columns(results)]
    lines = [titles, ["---", "---", *["---:"] * len(columns(results))]]
    for row in rows(results):
        cells = [f"{cell.value} ({cell.gain})" if cell.gain else cell.value for cell in row.cells]
        lines.append([row.target.replace("|", "\\|"), row.model.replace("|", "\\|"), *cells])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n\n" + "  \n".join(footnotes(results)) + "\n"


def targets(results: dict) -> dict[str, dict]:
    """The targets on which a model was scored."""
    return {name: scored for name, scored in results.get("targets", {}).items() if scored.get("models")}


def fars(results: dict) -> list[str]:
    """Every FAR that a model was scored at, as the text that names it, the coarsest first."""
    found = {
        far
        for scored in targets(results).values()
        for model in scored["models"].values()
        for far in model.get("tar_at_far", {})
    }
    return sorted(found, key=float, reverse=True)


def base_of(models: dict) -> str:
    """The name of the model that gains are counted from."""
    return "base" if "base" in models else next(iter(models))


def main_of(models: dict) -> str:
    """The name of the model that the run is about."""
    return "mfr" if "mfr" in models else list(models)[-1]


def short(far: str) -> str:
    """A FAR in few characters: "0.001" -> "1e-3"."""
    mantissa, exponent = f"{float(far):e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def gain(value: float, base: float, decimals: int) -> str:
    """The gain in points between two shares as they are printed, so that a reader's subtraction agrees with it."""
    return f"{round(100 * value, decimals) - round(100 * base, decimals):+.{decimals}f}"


def listed(names: list[str]) -> str:
    """ "a", "a and b", "a, b and c"."""
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))


def _far_cell(found: dict, base: dict, far: str) -> Cell:
    mine, theirs = (model.get("tar_at_far", {}).get(far, {}) for model in (found, base))
    interval = " to ".join(f"{100 * end:.1f}" for end in mine.get("interval", []))
    return _percent(mine.get("tar"), theirs.get("tar") if found is not base else None, 1, interval=interval)


def _cell(found: dict, base: dict, name: str) -> Cell:
    return _percent(
        found.get(name), base.get(name) if found is not base else None, DECIMALS[name], lower_is_better=name == "eer"
    )


def _percent(value: float | None, base: float | None, decimals: int, lower_is_better=False, interval="") -> Cell:
    if value is None:
        return Cell("-")
    if base is None:
        return Cell(f"{100 * value:.{decimals}f}", interval=interval)
    points = gain(value, base, decimals)
    better = None if not float(points) else (value < base) == lower_is_better
    return Cell(f"{100 * value:.{decimals}f}", points, better, interval)


def _mean_tar(told: dict, pick, far: str) -> float | None:
    models = [scored["models"] for scored in told.values()]
    tars = [model[pick(model)].get("tar_at_far", {}).get(far, {}).get("tar") for model in models]
    return None if None in tars else sum(tars) / len(tars)


def _change(what: str, before: float, after: float, told: dict) -> str:
    models = next(iter(told.values()))["models"]
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
