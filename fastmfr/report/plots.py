"""The pictures: ROC curves by target, training curves by quantity, sample images by domain. PNG, drawn off screen.

A model keeps its colour everywhere: base grey, mfr blue. Lines are named in their own colour instead of in a legend.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from .axes import (
    BLUE,
    DPI,
    GREEN,
    GREY,
    INK,
    ORANGE,
    OTHERS,
    draw_roc,
    draw_series,
    grid,
    lowest_far,
    percent,
    save,
    set_roc_axes,
    set_scale,
    write_title,
)
from .tables import base_of, fars, short, targets

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class Line(NamedTuple):
    """One curve of a training panel: the field `name` of the records of `stage`."""

    stage: str
    name: str
    label: str
    colour: str


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


def _both(name: str) -> tuple[Line, Line]:
    return Line("meta", name, "meta-train", GREY), Line("meta", f"{name}_test", "meta-test", BLUE)


PANELS = (
    Panel("Pretraining loss", (Line("pretrain", "loss", "", ORANGE),)),
    Panel("Hard-pair loss", _both("hard_pair")),
    Panel("Soft classification", _both("soft_classification"), scale="log"),
    Panel("Domain alignment loss", (Line("meta", "domain_alignment", "", GREY),)),
    Panel(
        "Hard pairs mined",
        (Line("meta", "positives", "genuine", GREEN), Line("meta", "negatives", "impostor", ORANGE)),
        scale="log",
    ),
    # Far below the band second order changes nothing, far above it destroys: alpha is to be set by this ratio.
    Panel("Second order, alpha |Hv| / |v|", (Line("meta", "alpha_hv_over_v", "", BLUE),), scale="log", band=(0.1, 0.3)),
    Panel("Gradient norm", (Line("meta", "gradient_norm", "", BLUE),), scale="log"),
    Panel(
        "Images a second",
        (Line("pretrain", "images_per_second", "pretrain", ORANGE), Line("meta", "images_per_second", "meta", BLUE)),
        scale="zero",
    ),
    Panel(
        "Time waiting for data",
        (Line("pretrain", "data_wait", "pretrain", ORANGE), Line("meta", "data_wait", "meta", BLUE)),
        scale="zero",
        percent=True,
    ),
)


def roc_plot(results: dict, path: Path) -> Path:
    """One panel a target: TAR over FAR on a log axis, every model's TAR written at the coarsest measured FAR."""
    shown = targets(results)
    width, height = (6.6, 4.6) if len(shown) == 1 else (4.7, 3.7)
    figure, axes = grid(len(shown), columns=2, width=width, height=height)
    lowest = min(lowest_far(found) for scored in shown.values() for found in scored["models"].values())
    for ax, (target, scored) in zip(axes, shown.items(), strict=True):
        set_roc_axes(ax, lowest)
        colours = _colours(scored["models"])
        for model, found in scored["models"].items():
            main = model != base_of(scored["models"])
            draw_roc(ax, found, color=colours[model], lw=2 if main else 1.6, zorder=3 if main else 2)
        write_title(ax, target, "never seen in training" if scored.get("unseen") else "other people of a source domain")
        _write_tars(ax, scored["models"], colours, fars(results))
    for ax in axes[::2]:
        ax.set_ylabel("TAR, genuine pairs accepted")
    return save(figure, path)


def training_plot(metrics: list[dict], path: Path) -> Path | None:
    """A panel for each quantity that `metrics`, the records of metrics.jsonl, holds; None if it holds none."""
    panels = [panel for panel in PANELS if any(len(series(metrics, line)[0]) for line in panel.lines)]
    if not panels:
        return None
    figure, axes = grid(len(panels), columns=3, width=3.3, height=2.3)
    for ax, panel in zip(axes, panels, strict=True):
        _draw_panel(ax, panel, metrics)
    return save(figure, path)


def contact_sheet(images_by_domain: Mapping[str, np.ndarray], path: Path | str) -> None:
    """Write a PNG with one labelled row of images for each domain; its images are uint8 (n, H, W, 3), RGB."""
    from matplotlib.figure import Figure

    for domain, images in images_by_domain.items():
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3 or not len(images):
            raise ValueError(f"want the images of {domain!r} as uint8 (n, H, W, 3), got {images.dtype} {images.shape}")
    if not images_by_domain:
        raise ValueError("want the images of at least one domain, got none")
    most, count = max(map(len, images_by_domain.values())), len(images_by_domain)
    figure = Figure(figsize=(1.3 + 0.95 * most, 0.97 * count), dpi=DPI)
    grid = figure.subplots(
        count,
        most,
        squeeze=False,
        gridspec_kw={
            "left": 1.3 / (1.3 + 0.95 * most),
            "right": 1,
            "bottom": 0,
            "top": 1,
            "wspace": 0.03,
            "hspace": 0.03,
        },
    )
    for row, (domain, images) in zip(grid, images_by_domain.items(), strict=True):
        for ax in row:
            ax.set_axis_off()
        for ax, image in zip(row, images, strict=False):
            ax.imshow(image, interpolation="antialiased")
        row[0].text(
            -0.12,
            0.5,
            domain,
            transform=row[0].transAxes,
            ha="right",
            va="center",
            color=INK,
            fontsize=11,
            parse_math=False,
        )
    figure.savefig(path)


def series(metrics: list[dict], line: Line) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values of `line`, finite numbers only."""
    found = [
        (record["step"], record[line.name])
        for record in metrics
        if record["stage"] == line.stage
        and isinstance(record.get(line.name), int | float)
        and math.isfinite(record[line.name])
    ]
    steps, values = np.array(found, float).reshape(-1, 2).T
    return steps, values


def _draw_panel(ax: "Axes", panel: Panel, metrics: list[dict]) -> None:
    curves = {line: found for line in panel.lines if len((found := series(metrics, line))[0])}
    stages = sorted({line.stage for line in curves})
    for line, (steps, values) in curves.items():
        draw_series(ax, steps / (max(steps[-1], 1) if len(stages) > 1 else 1), values, line.colour)
    set_scale(ax, panel.scale, np.concatenate([*(values for _, values in curves.values()), panel.band]))
    if panel.band:
        ax.axhspan(panel.band[0], panel.band[1], color=GREEN, alpha=0.12, lw=0)
    ax.yaxis.set_major_formatter(percent if panel.percent else "{x:.5g}")
    if len(stages) > 1:  # stages differ in length, so each is drawn from its start to its end
        ax.xaxis.set_major_formatter(percent)
        ax.set_xlabel("part of the stage")
    else:
        ax.locator_params(axis="x", integer=True)
        ax.set_xlabel(f"{stages[0]} step")
    write_title(ax, panel.title, words=[(line.label, line.colour) for line in curves])


def _write_tars(ax: "Axes", models: dict, colours: dict[str, str], names: Iterable[str]) -> None:
    """Mark the coarsest FAR measured and list the models' TAR there, in the empty corner below the curves."""
    far = next(
        (far for far in names if all("tar" in model.get("tar_at_far", {}).get(far, {}) for model in models.values())),
        None,
    )
    if far is not None:
        ax.axvline(float(far), color=INK, lw=0.8, ls=(0, (1, 2)), zorder=1)
    for height, (model, found) in enumerate(reversed(models.items())):
        tar = "" if far is None else f"  {100 * found['tar_at_far'][far]['tar']:.1f} %"
        ax.text(
            0.97,
            0.04 + 0.075 * height,
            model + tar,
            transform=ax.transAxes,
            color=colours[model],
            ha="right",
            fontsize=10,
            fontweight="bold",
            parse_math=False,
            bbox={"color": "white", "pad": 1},
        )
        if far is not None:
            ax.plot(float(far), found["tar_at_far"][far]["tar"], "o", color=colours[model], ms=5, zorder=4)
    if far is not None:
        ax.text(
            0.97,
            0.05 + 0.075 * len(models),
            f"TAR at FAR {short(far)}",
            transform=ax.transAxes,
            color=INK,
            ha="right",
            fontsize=9,
            bbox={"color": "white", "pad": 1},
        )


def _colours(models: dict) -> dict[str, str]:
    others = iter(OTHERS * len(models))
    fixed = {base_of(models): GREY, "mfr": BLUE}
    return {model: fixed.get(model) or next(others) for model in models}
