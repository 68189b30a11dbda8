"""The pictures: ROC curves by target, training curves by quantity, sample images by domain. PNG, drawn off screen.

A model keeps its colour everywhere: base grey, the model of the meta stage blue. Lines are named in their own colour
instead of in a legend.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fastmfr.results import CHOSEN, Results, Scores, base_of

from .axes import (
    BLUE,
    DPI,
    GREEN,
    GREY,
    INK,
    OTHERS,
    draw_roc,
    draw_series,
    grid,
    in_a_row,
    lowest_far,
    percent,
    save,
    set_roc_axes,
    set_scale,
    write_title,
)
from .panels import Panel, panels_of, series, stage_of
from .tables import fars, short_far

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LABEL = 1.3  # inches: room for the names of domains beside their images
LOW = 0.4  # TAR: below it a curve runs through the lower right corner of its panel


def roc_plot(results: Results, path: Path) -> Path:
    """Draw one panel a target, TAR over FAR on a log axis, with every model's TAR at the coarsest measured FAR."""
    shown = results.scored
    width, height = (6.6, 4.6) if len(shown) == 1 else (4.7, 3.7)
    columns = in_a_row(len(shown))
    figure, axes = grid(len(shown), columns, width=width, height=height)
    lowest = min(lowest_far(scores) for target in shown.values() for scores in target.models.values())
    for ax, (name, target) in zip(axes, shown.items(), strict=True):
        set_roc_axes(ax, lowest)
        colours = _colours(target.models)
        for model, scores in target.models.items():
            main = model != base_of(target.models)
            draw_roc(ax, scores, color=colours[model], lw=2 if main else 1.6, zorder=3 if main else 2)
            _draw_band(ax, scores, colours[model])
            _draw_intervals(ax, scores, colours[model])
        write_title(ax, name, "never seen in training" if target.unseen else "other people of a source domain")
        _write_tars(ax, target.models, colours, fars(results))
    for ax in axes[::columns]:
        ax.set_ylabel("TAR, genuine pairs accepted")
    return save(figure, path)


def training_plot(metrics: list[dict], path: Path) -> Path | None:
    """Draw a panel for each quantity in `metrics`, the records of metrics.jsonl; None if there is none."""
    panels = [panel for panel in panels_of(metrics) if any(len(series(metrics, line)[0]) for line in panel.lines)]
    if not panels:
        return None
    figure, axes = grid(len(panels), columns=3, width=3.3, height=2.3)
    last_step: dict[str, int] = {}
    for record in metrics:
        stage = stage_of(record["stage"])
        last_step[stage] = max(record["step"], last_step.get(stage, 1))
    for ax, panel in zip(axes, panels, strict=True):
        _draw_panel(ax, panel, metrics, last_step)
    return save(figure, path)


def contact_sheet(images_by_domain: Mapping[str, np.ndarray], path: Path | str) -> None:
    """Write a PNG with one labelled row of images for each domain.

    Args:
        images_by_domain: uint8 (n, H, W, 3), RGB, with n of at least 1 and any size of each domain.
        path: Where the PNG is written.

    Raises:
        ValueError: there is no domain, or images are not as above.
    """
    from matplotlib.figure import Figure

    _check_images(images_by_domain)
    most, count = max(map(len, images_by_domain.values())), len(images_by_domain)
    width = LABEL + 0.95 * most
    figure = Figure(figsize=(width, 0.97 * count), dpi=DPI)
    spacing = {"left": LABEL / width, "right": 1, "bottom": 0, "top": 1, "wspace": 0.03, "hspace": 0.03}
    panels = figure.subplots(count, most, squeeze=False, gridspec_kw=spacing)
    for row, (domain, images) in zip(panels, images_by_domain.items(), strict=True):
        for ax in row:
            ax.set_axis_off()
        for ax, image in zip(row, images, strict=False):
            ax.imshow(image, interpolation="antialiased")
        style = {"ha": "right", "va": "center", "color": INK, "fontsize": 11, "parse_math": False}
        row[0].text(-0.12, 0.5, domain, transform=row[0].transAxes, **style)
    figure.savefig(path)


def _check_images(images_by_domain: Mapping[str, np.ndarray]) -> None:
    for domain, images in images_by_domain.items():
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3 or not len(images):
            raise ValueError(f"want the images of {domain!r} as uint8 (n, H, W, 3), got {images.dtype} {images.shape}")
    if not images_by_domain:
        raise ValueError("want the images of at least one domain, got none")


def _draw_panel(ax: "Axes", panel: Panel, metrics: list[dict], last_step: Mapping[str, int]) -> None:
    curves = {line: found for line in panel.lines if len((found := series(metrics, line))[0])}
    stages = sorted({line.of_stage for line in curves})
    for line, (steps, values) in curves.items():
        draw_series(ax, steps / (last_step[line.of_stage] if len(stages) > 1 else 1), values, line.colour)
    set_scale(ax, panel.scale, np.concatenate([*(values for _, values in curves.values()), panel.band]))
    if panel.band:
        ax.axhspan(panel.band[0], panel.band[1], color=GREEN, alpha=0.12, lw=0)
    ax.yaxis.set_major_formatter(percent if panel.percent else "{x:.5g}")
    if len(stages) > 1:  # stages differ in length, so each is drawn from its start to its end
        ax.set_xlim(-0.03, 1.03)
        ax.xaxis.set_major_formatter(percent)
        ax.set_xlabel("part of the stage")
    else:
        ax.locator_params(axis="x", integer=True)
        ax.set_xlabel(f"{stages[0]} step")
    write_title(ax, panel.title, words=[(line.label, line.colour) for line in curves])


def _draw_band(ax: "Axes", scores: Scores, colour: str) -> None:
    """The 95 % interval of TAR along the curve, shaded."""
    if scores.roc and scores.roc.band:
        band = scores.roc.band
        ax.fill_between(band.far, band.low, band.high, color=colour, alpha=0.13, lw=0, zorder=1.4)


def _draw_intervals(ax: "Axes", scores: Scores, colour: str) -> None:
    """The 95 % interval of TAR at each FAR measured, as an upright bar."""
    for far, rate in scores.tar_at_far.items():
        if rate.interval:
            ax.plot([float(far)] * 2, rate.interval, color=colour, lw=5, alpha=0.3, solid_capstyle="butt", zorder=1.5)


def _write_tars(ax: "Axes", models: dict[str, Scores], colours: Mapping[str, str], names: Iterable[str]) -> None:
    """Mark the coarsest FAR measured, and list the models' TAR there in the corner that the curves leave empty."""
    measured = (far for far in names if all(scores.rate(far).tar is not None for scores in models.values()))
    far = next(measured, None)
    if far is not None:
        ax.axvline(float(far), color=INK, lw=0.8, ls=(0, (1, 2)), zorder=1)
    lowest = ax.get_xlim()[0]
    is_low = any(
        np.interp(lowest**0.4, found.far, found.tar) < LOW for found in (s.roc for s in models.values()) if found
    )
    side, bottom = ("left", 0.88 - 0.075 * len(models)) if is_low else ("right", 0.04)
    corner = {"x": 0.03 if is_low else 0.97, "ha": side, "bbox": {"color": "white", "pad": 1}}
    for height, (model, scores) in enumerate(reversed(models.items())):
        tar = None if far is None else scores.rate(far).tar
        text = model if tar is None else f"{model}  {100 * tar:.1f} %"
        style = {"color": colours[model], "fontsize": 10, "fontweight": "bold", "parse_math": False}
        ax.text(y=bottom + 0.075 * height, s=text, transform=ax.transAxes, **style, **corner)
        if far is not None and tar is not None:
            ax.plot(float(far), tar, "o", color=colours[model], ms=5, zorder=4)
    if far is not None:
        text, height = f"TAR at FAR {short_far(far)}", bottom + 0.01 + 0.075 * len(models)
        ax.text(y=height, s=text, transform=ax.transAxes, color=INK, fontsize=9, **corner)


def _colours(models: Mapping[str, Scores]) -> dict[str, str]:
    others = iter(OTHERS * len(models))
    base = base_of(models)
    fixed = dict(zip((model for model in models if model not in (base, CHOSEN)), (BLUE,), strict=False)) | {base: GREY}
    return {model: fixed.get(model) or next(others) for model in models}
