"""What the picture of the training shows: a panel a quantity, its curves as they are read from metrics.jsonl."""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from fastmfr.results import META, PRETRAIN

from .axes import BLUE, GREEN, GREY, ORANGE
from .tables import short_far


class Line(NamedTuple):
    """One curve of a training panel: the field `name` of the records of `stage`, or of STAGE/TARGET."""

    stage: str
    name: str
    label: str
    colour: str

    @property
    def of_stage(self) -> str:
        """The stage that made the records, without the target that was scored on the way."""
        return stage_of(self.stage)


@dataclass(frozen=True)
class Panel:
    """A quantity that training watches, and the `band` it should lie in.

    `scale`: "near" shows the values' own range, "zero" starts the axis at 0, "log" is logarithmic beyond a decade.
    """

    title: str
    lines: tuple[Line, ...]
    scale: str = "near"
    band: tuple[float, ...] = ()
    percent: bool = False


def _halves(name: str) -> tuple[Line, Line]:
    return Line(META, name, "meta-train", GREY), Line(META, f"{name}_test", "meta-test", BLUE)


def _stages(name: str, of: str = "") -> tuple[Line, Line]:
    return Line(PRETRAIN + of, name, PRETRAIN, ORANGE), Line(META + of, name, META, BLUE)


PANELS = (
    Panel("Pretraining loss", (Line(PRETRAIN, "loss", "", ORANGE),), scale="zero"),
    Panel("Hard-pair loss", _halves("hard_pair")),
    Panel("Soft classification", _halves("soft_classification"), scale="log"),
    Panel("Domain alignment loss", (Line(META, "domain_alignment", "", GREY),), scale="zero"),
    Panel(
        "Hard pairs mined",
        (Line(META, "positives", "genuine", GREEN), Line(META, "negatives", "impostor", ORANGE)),
        scale="log",
    ),
    # Far below the band second order changes nothing, far above it destroys: alpha is to be set by this ratio.
    Panel("Second order, alpha |Hv| / |v|", (Line(META, "alpha_hv_over_v", "", BLUE),), scale="log", band=(0.1, 0.3)),
    Panel("Learning rate", _stages("learning_rate"), scale="log"),
    Panel("Gradient norm", (Line(META, "gradient_norm", "", BLUE),), scale="log"),
    Panel("Images a second", _stages("images_per_second"), scale="zero"),
    Panel("Time waiting for data", _stages("data_wait"), scale="zero", percent=True),
)


def panels_of(metrics: Iterable[Mapping]) -> list[Panel]:
    """Return the panels for the records of metrics.jsonl: a panel for each set scored on the way, then PANELS.

    The people kept for validation are shown by their score, a target by its TAR at the coarsest FAR.
    """
    names_by_set: dict[str, dict[str, None]] = {}
    for record in metrics:
        _, is_scored, scored = record["stage"].partition("/")
        if is_scored:
            names_by_set.setdefault(scored, {}).update(dict.fromkeys(record))
    return [*(_score_panel(scored, names) for scored, names in names_by_set.items()), *PANELS]


def _score_panel(scored, names) -> Panel:
    if "score" in names:
        return Panel("Score in validation", _stages("score", f"/{scored}"), scale="zero", percent=True)
    far_by_name = {name: found[1] for name in names if (found := re.fullmatch(r"tar_at_far_(\d\S*\d)", name))}
    name = max(far_by_name, key=lambda name: float(far_by_name[name]), default="auc")
    figure = f"TAR@{short_far(far_by_name[name])}" if far_by_name else "AUC"
    return Panel(f"{figure} on {scored}", _stages(name, f"/{scored}"), scale="zero", percent=True)


def stage_of(recorded: str) -> str:
    """Return the stage of records: themselves, or the part before the slash of STAGE/TARGET."""
    return recorded.partition("/")[0]


def series(metrics: Iterable[Mapping], line: Line) -> tuple[np.ndarray, np.ndarray]:
    """Return steps and values of `line` in the records of metrics.jsonl, finite numbers only."""
    found = [
        (record["step"], record[line.name])
        for record in metrics
        if record["stage"] == line.stage
        and isinstance(record.get(line.name), int | float)
        and math.isfinite(record[line.name])
    ]
    steps, values = np.array(found, float).reshape(-1, 2).T
    return steps, values
