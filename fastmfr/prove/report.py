"""What a comparison leaves to read: report.html, table.md, gains.png, and, if a model is to be taken, take.yaml."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fastmfr.atomic import write_text
from fastmfr.config import Config
from fastmfr.prove.arms import Arm, config_of, title_of, trained_arm
from fastmfr.prove.gains import views
from fastmfr.prove.page import page
from fastmfr.prove.plots import gains_plot
from fastmfr.prove.rows import FAILED, Task
from fastmfr.prove.scores import main_figure, titles
from fastmfr.prove.tables import part_of
from fastmfr.prove.verdict import SEEDS, Verdict, verdict

RECIPE = "take.yaml"


def write_report(
    folder: Path,
    config: Config,
    arms: Mapping[str, Arm],
    names: Sequence[str],
    rows: Mapping[Task, Mapping[str, Any]],
    *,
    missing: int,
    again: str,
) -> tuple[Verdict, list[str], Path]:
    """Write all files.

    Args:
        folder: of the comparison.
        config: the settings.
        arms: all arms by name.
        names: the models.
        rows: what there is.
        missing: how many rows there are not yet.
        again: the command that goes on.

    Returns:
        The verdict, what is missing or odd, and the page.
    """
    failed = {task.name: row[FAILED] for task, row in rows.items() if FAILED in row}
    names = [name for name in names if name not in failed]
    notes = [f"{name} failed in one run or more and is left out: {why}" for name, why in failed.items()]
    if missing:
        notes.append(f"{missing} of {missing + len(rows)} models are missing, so not all runs count yet.")
    if unreadable := _unreadable(folder):
        notes.append(f"{unreadable} images could not be read and were left out: see bad_images.tsv in */data.")
    found, called = views(rows, names), titles(config.evaluate.far)
    named = {name: title_of(name, arms) for name in names}
    scores = [score for view in found for name in names for score in view.scores(name)]
    figure = main_figure(scores, config.evaluate.far)
    answer = verdict(found, named, figure, called[figure])
    parts = [part_of(view, named, called) for view in found]
    png = gains_plot(found, named, figure, called[figure], folder / "gains.png")
    if missing or answer.take is None:
        more = "" if missing else f"# with --seeds {SEEDS}, which keeps what there is\n"
        next_step = f"{more}{again}"
        (folder / RECIPE).unlink(missing_ok=True)
    else:
        next_step = _write_recipe(folder, config, arms, answer.take)
    sentences = [f"# {answer.headline}", *answer.sentences, *notes]
    write_text(folder / "table.md", "\n\n".join([*sentences, *(part.markdown() for part in parts)]) + "\n")
    changes = [f"# arm {name}: {dict(arm.meta)}" for name, arm in arms.items() if name in named and arm.meta]
    settings = "\n".join([*changes, config.to_yaml()])
    path = folder / "report.html"
    write_text(path, page(str(folder), answer, parts, png, next_step, notes, settings))
    return answer, notes, path


def _unreadable(folder):
    """How many images could not be read."""
    lines = [line for file in folder.glob("*/data/bad_images.tsv") for line in file.read_text().splitlines()]
    return len({line.partition("\t")[0] for line in lines})


def _write_recipe(folder, config, arms, take) -> str:
    """Write the recipe that trains the model `take` on all domains; return the command."""
    name = trained_arm(take)
    chosen, note = _as_a_run(name, arms[name], config)
    write_text(folder / RECIPE, replace(chosen, choose=config.choose).to_yaml())
    if ":" in take:
        note += "# the run hands out the best of its weights and their averages, by people of its sources\n"
    return f"# trains it on all domains\n{note}python -m fastmfr.train --config {shlex.quote(str(folder / RECIPE))}"


def _as_a_run(name, arm, config):
    """(settings of a run that trains an arm, or the nearest to it that a run can do; a comment that says so)."""
    mine = config_of(name, arm, config)
    only_stage_one = replace(mine.meta, steps=0)
    if arm.kind == "base":
        return replace(mine, meta=only_stage_one), ""
    nearest = "# the nearest that a run can do: "
    if arm.kind == "hard_pair":
        meta = replace(mine.meta, method="no_meta", soft_classification=0.0, domain_alignment=0.0)
        return replace(mine, meta=meta), f"{nearest}hard pairs, without a look-ahead\n"
    if arm.kind in ("cosface", "together"):
        longer = replace(mine.pretrain, steps=config.pretrain.steps + config.meta.steps)
        everybody = replace(mine.data, new_people=0.0)
        note = f"{nearest}a longer stage one, on everybody\n"
        return replace(mine, data=everybody, pretrain=longer, meta=only_stage_one), note
    return mine, "" if arm.kind == "meta" else f"{nearest}MFR itself, without what this arm adds\n"
