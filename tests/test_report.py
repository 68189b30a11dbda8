import io
import json
import re
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from pictures import picture, pixels_of
from PIL import Image
from rich.console import Console

from fastmfr.evaluate.roc import exact_roc, score_curve
from fastmfr.report import contact_sheet, final_table, headline, markdown_table, write_report
from fastmfr.report.folder import read
from fastmfr.report.panels import PANELS, Line, series
from fastmfr.report.plots import BLUE, GREY, roc_plot, training_plot
from fastmfr.report.tables import listed, short_far
from fastmfr.results import Results, RocBand, Scores, TarAtFar, TargetResult

CONFIG = "data:\n  sources: {studio: 'synthetic:studio', street: 'synthetic:street'}\n"


@cache
def scored(distance, far=(1e-2, 1e-3)):
    """A model whose genuine pairs score `distance` standard deviations above its impostor pairs."""
    rng = np.random.default_rng(0)
    is_mate = np.arange(5200) < 200
    return replace(score_curve(exact_roc(rng.normal(size=5200) + distance * is_mate, is_mate), far), rank1=0.5)


def target(unseen=True, **tars):
    """A target by hand: TAR at FAR 1e-2 of each model."""
    models = {model: Scores(tar_at_far={"0.01": TarAtFar(tar=tar)}) for model, tar in tars.items()}
    return TargetResult(unseen=unseen, models=models)


@pytest.fixture(scope="module")
def results():
    return Results(
        targets={
            "studio": TargetResult(unseen=False, models={"base": scored(2), "mfr": scored(2.2)}),
            "nir": TargetResult(unseen=True, models={"base": scored(1), "mfr": scored(1.5, (1e-2, 1e-5))}),
        },
        sources=["studio", "street"],
        seconds={"pretrain": 95.2, "meta": 7300},
        bad_images={"nir 7/3.jpg": "cut after 12 bytes"},
    )


def record(stage, step, **fields):
    return {"stage": stage, "step": step, "images_per_second": 500.0} | fields


@pytest.fixture
def run(tmp_path, results):
    """A whole run folder."""
    lines = [record("pretrain", step, loss=9 - step / 20, data_wait=0.01) for step in range(1, 71)]
    lines += [record("meta", step, hard_pair=-0.1, gradient_norm=10.0**step) for step in range(1, 5)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    results.save(tmp_path / "results.json")
    (tmp_path / "config.yaml").write_text(CONFIG)
    (tmp_path / "environment.json").write_text('{"torch": "2.13.0"}')
    Image.new("RGB", (16, 8)).save(tmp_path / "domains.png")
    return tmp_path


@pytest.mark.usefixtures("undrawn")
def test_a_whole_run_gives_one_self_contained_page(run):
    page = write_report(run)
    text = page.read_text()
    assert page == run / "report.html"
    assert text.count("data:image/png;base64,") == 3
    assert not re.search(r"https?:|<script|<link|url\(", text)
    assert 'class="notes"' not in text
    for shown in (
        "Trained on studio and street; scored on nir",
        "synthetic:street",
        "2.13.0",
        "never seen",
        "pretrain 95 s, meta 2 h 2 min",
        "Images replaced (1)",
        "nir 7/3.jpg: cut after 12 bytes",
    ):
        assert shown in text
    assert text.index("<h1>") < text.index("<table>") < text.index("<img") < text.index("<details>")


def test_the_pictures_hold_a_curve_for_each_model_and_stage(run, results):
    write_report(run)
    assert pixels_of(run / "roc.png", BLUE) > 2000
    assert pixels_of(run / "roc.png", GREY) > 2000
    base = results.targets["nir"].models["base"]
    alone = Results(targets={"nir": TargetResult(unseen=True, models={"base": base})})
    assert pixels_of(roc_plot(alone, run / "alone.png"), BLUE) == 0
    assert pixels_of(run / "training.png", BLUE) > 200


@pytest.mark.usefixtures("undrawn")
def test_a_run_killed_half_way_is_reported_as_far_as_it_came(run):
    with (run / "metrics.jsonl").open("a") as metrics:
        metrics.write('{"stage": "meta", "step": 5, "hard_p')
    for name in ("results.json", "environment.json", "domains.png"):
        (run / name).unlink()
    text = write_report(run).read_text()
    assert "Line 75 of the 75 in metrics.jsonl cannot be read" in text
    assert "results.json is missing, so this run has not been scored" in text
    assert "environment.json is missing" in text
    assert "Trained on studio and street; not scored yet." in text
    assert text.count("data:image/png;base64,") == 1
    assert len(read(run).metrics) == 74


@pytest.mark.parametrize(
    "broken",
    [
        "",
        '{"targets": {"nir": {"mod',
        "[]",
        '{"targets": {"nir": {"models": {}}}}',
        '{"targets": {"nir": {"models": {"base": {"auc": "high"}}}}}',
        "null",
    ],
)
def test_scores_that_were_cut_are_named_and_the_rest_is_shown(run, broken):
    (run / "results.json").write_text(broken)
    found = read(run)
    assert found.results == Results()
    assert found.notes == ["results.json is cut or holds no scores, so no figures are shown."]


def test_a_folder_without_most_of_a_run_gives_a_page_that_names_what_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"is no run folder: it has no config\.yaml, metrics\.jsonl or"):
        write_report(tmp_path)
    assert not list(tmp_path.iterdir())
    (tmp_path / "config.yaml").write_text(CONFIG)
    text = write_report(tmp_path).read_text()
    for name in ("environment.json", "metrics.jsonl", "results.json"):
        assert f"{name} is missing" in text
    assert "<img" not in text
    assert not (tmp_path / "roc.png").exists()


def test_refuses_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no run folder"):
        write_report(tmp_path / "run")


def test_of_a_step_run_twice_the_later_counts(tmp_path):
    lines = [record("meta", step, loss=loss) for step, loss in [(1, 1.0), (2, 2.0), (3, 3.0), (2, 20.0), (3, 30.0)]]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\nnull\n7\n{}\n")
    found = read(tmp_path)
    steps, losses = series(found.metrics, Line("meta", "loss", "", BLUE))
    assert (steps.tolist(), losses.tolist()) == ([1, 2, 3], [1, 20, 30])
    assert any("2 steps stand twice" in note for note in found.notes)
    assert any("3 lines, the first line 6, of the 8" in note for note in found.notes)


def test_a_loss_that_is_not_finite_is_named_and_left_out_of_the_curve(tmp_path):
    lines = [
        record("pretrain", 1, loss=3.0),
        record("pretrain", 2, loss=float("nan")),
        record("pretrain", 3, loss=None),
        record("pretrain", 4, loss="high"),
    ]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    found = read(tmp_path)
    assert "loss is not finite at 2 steps, first at pretrain step 2." in found.notes
    assert series(found.metrics, Line("pretrain", "loss", "", BLUE))[1].tolist() == [3]
    write_report(tmp_path)


def test_text_from_files_cannot_reach_the_page_as_markup(run, results):
    evil = "<script>alert(1)</script>$x_"
    targets = {evil: TargetResult(unseen=True, models={"base": scored(1), evil: scored(2)})}
    results = Results(targets=targets, summary=[evil], seconds={evil: 1}, bad_images={evil: evil})
    results.save(run / "results.json")
    (run / "config.yaml").write_text(json.dumps({"data": {"sources": {evil: "a", "b": "c"}}}))
    (run / "environment.json").write_text(f"</pre>{evil}")
    text = write_report(run).read_text()
    assert "<script" not in text
    assert "&lt;/pre&gt;&lt;script" in text
    assert text.count("&lt;script&gt;alert(1)&lt;/script&gt;$x_") >= 8


# one point, no positive value for a log axis, several decades
@pytest.mark.parametrize("values", [[0.0], [-1.0, 0.0, -1e-9], [1e-6, 1.0, 1e6]])
def test_draws_whatever_values_a_field_takes(tmp_path, values):
    metrics = [
        {"stage": line.stage, "step": step, line.name: value}
        for panel in PANELS
        for line in panel.lines
        for step, value in enumerate(values)
    ]
    assert training_plot(metrics, tmp_path / "training.png").is_file()


def test_three_targets_stand_beside_each_other_with_their_intervals(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr("fastmfr.report.plots.save", lambda figure, path: figures.append(figure))
    rates = {"0.01": TarAtFar(tar=0.5, interval=[0.4, 0.7])}
    models = {"base": replace(scored(1), tar_at_far=rates), "mfr": scored(2)}
    roc_plot(Results(targets={name: TargetResult(models=models) for name in "abc"}), tmp_path)
    (figure,) = figures
    assert figure.axes[0].get_gridspec().get_geometry() == (1, 3)
    bars = [line.get_xydata().tolist() for line in figure.axes[0].lines if line.get_alpha() == 0.3]
    assert bars == [[[0.01, 0.4], [0.01, 0.7]]]


def test_the_band_of_the_curve_is_shaded_and_the_legend_stands_where_curves_leave_room(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr("fastmfr.report.plots.save", lambda figure, path: figures.append(figure))
    low, high = scored(0.1), scored(4)
    band = RocBand(far=[0.01, 0.1, 1.0], low=[0.0, 0.1, 1.0], high=[0.1, 0.3, 1.0])
    shaded = replace(low, roc=replace(low.roc, band=band))
    roc_plot(
        Results(targets={"a": TargetResult(models={"x": shaded}), "b": TargetResult(models={"x": high})}), tmp_path
    )
    poor, good = figures[0].axes
    (shade,) = poor.collections
    assert shade.get_paths()[0].get_extents().bounds == pytest.approx((0.01, 0.0, 0.99, 1.0))
    assert not good.collections
    names = [next(text for text in ax.texts if text.get_text().startswith("x ")) for ax in (poor, good)]
    assert [text.get_horizontalalignment() for text in names] == ["left", "right"]


def drawn_panels(metrics, tmp_path, monkeypatch):
    """The panels of the picture of the training by their titles."""
    drawn = {}
    monkeypatch.setattr(
        "fastmfr.report.plots.save",
        lambda figure, path: drawn.update((ax.texts[0].get_text(), ax) for ax in figure.axes),
    )
    training_plot(metrics, tmp_path)
    return drawn


def test_scores_on_the_way_are_drawn_over_both_stages(tmp_path, monkeypatch):
    metrics = [record("pretrain", step, loss=1.0) for step in range(100)] + [record("meta", step) for step in range(11)]
    metrics += [
        {"stage": "pretrain/nir", "step": 33, "rank1": 0.9, "tar_at_far_0.001": 0.1, "tar_at_far_0.01": 0.2},
        {"stage": "pretrain/nir", "step": 66, "rank1": 0.9, "tar_at_far_0.001": 0.1, "tar_at_far_0.01": 0.3},
        {"stage": "meta/nir", "step": 5, "rank1": 0.9, "tar_at_far_0.001": 0.1, "tar_at_far_0.01": 0.4},
        {"stage": "pretrain/few", "step": 33, "auc": 0.7},
        {"stage": "meta/validation", "step": 10, "score": 0.6, "nir": 0.1},
    ]
    drawn = drawn_panels(metrics, tmp_path, monkeypatch)
    before, after = (line.get_xydata().tolist() for line in drawn["TAR@1e-2 on nir"].lines)
    assert np.array(before) == pytest.approx(np.array([[33 / 99, 0.2], [66 / 99, 0.3]]))
    assert after == [[0.5, 0.4]]
    assert drawn["AUC on few"].get_xlabel() == "pretrain step"
    assert drawn["AUC on few"].lines[0].get_xydata().tolist() == [[33, 0.7]]
    assert drawn["Score in validation"].lines[0].get_xydata().tolist() == [[10, 0.6]]


def test_no_axis_cuts_a_curve_that_is_zero_or_below(tmp_path, monkeypatch):
    lines = [
        record("meta", step, domain_alignment=0.0, gradient_norm=norm, negatives=-1.0)
        for step, norm in enumerate([0.0, 1.0, 1000.0])
    ]
    drawn = drawn_panels(lines, tmp_path, monkeypatch)
    for title, lowest in (("Domain alignment loss", 0), ("Hard pairs mined", -1), ("Gradient norm", 0)):
        low, high = drawn[title].get_ylim()
        assert low < lowest < high
    assert drawn["Gradient norm"].get_yscale() == "symlog"
    assert drawn["Domain alignment loss"].get_ylim()[1] > 1  # 0 everywhere: no ticks of 1e-13


def test_the_learning_rate_is_drawn_and_losses_begin_at_zero(tmp_path, monkeypatch):
    lines = [record("pretrain", step, loss=9.0 - step, learning_rate=0.1 * step) for step in (1, 2, 3)]
    drawn = drawn_panels(lines, tmp_path, monkeypatch)
    assert drawn["Pretraining loss"].get_ylim()[0] == 0
    assert drawn["Learning rate"].lines[0].get_ydata().tolist() == pytest.approx([0.1, 0.2, 0.3])


def test_draws_only_the_fields_there_are(tmp_path):
    assert training_plot([record("meta", 1, images_per_second=None)], tmp_path / "none.png") is None
    one, all_of_them = (
        {"stage": "meta", "step": 1} | {name: 1.0 for name in names}
        for names in (["hard_pair"], [line.name for panel in PANELS for line in panel.lines])
    )
    few = picture(training_plot([one], tmp_path / "few.png")).shape
    many = picture(training_plot([all_of_them], tmp_path / "many.png")).shape
    assert many[0] > 2 * few[0]
    assert many[1] > 2 * few[1]


def test_the_markdown_table_shows_gains_and_refused_rates(results):
    lines = markdown_table(results).splitlines()
    assert lines[0] == "| Target | Model | TAR@1e-2 | TAR@1e-3 | TAR@1e-5 | Rank-1 | AUC | EER |"
    assert len(lines[2:6]) == 4
    assert {line.count("|") for line in lines[:6]} == {9}
    base, mfr = (line.split(" | ") for line in lines[4:6])
    assert mfr[0] == "| nir"
    before, after, gain = map(float, re.fullmatch(r"(\S+) (\S+) \(\+(\S+)\)", f"{base[2]} {mfr[2]}").groups())
    assert round(after - before, 1) == gain > 0
    assert (base[3][:1].isdigit(), base[4], mfr[4], mfr[5]) == (True, "-", "-", "50.0 (+0.0)")
    assert re.search(r"\(-\d", mfr[7])
    assert '"-" on nir: FAR 1e-05 needs at least 100000 impostor pairs, there are 5000.' in lines
    assert any("Trained on, and scored on other people: studio." in line for line in lines)


@pytest.mark.usefixtures("undrawn")
def test_a_lower_error_rate_is_shown_as_a_gain(run, results):
    gains = {"mfr": {"eer": [-0.3, -0.01], "auc": [0.01, 0.3]}}
    targets = {name: replace(target, gains=gains) for name, target in results.targets.items()}
    replace(results, targets=targets).save(run / "results.json")
    text = write_report(run).read_text()
    assert re.search(r'<span class="gain better">-\d', text)
    assert not re.search(r'class="gain worse"', text)


def test_the_console_table_shows_every_figure_in_80_columns(results):
    named = Results(targets={"[red]nir": results.targets["nir"]})
    console = Console(file=io.StringIO(), width=80)
    console.print(final_table(named))
    text = console.file.getvalue()
    assert "[red]nir" in text
    assert "…" not in text
    for figure in re.findall(r"\d+\.\d+|[+-]\d+\.\d+", "".join(markdown_table(named).splitlines()[2:4])):
        assert figure in text


@pytest.mark.parametrize(
    ("targets", "want"),
    [
        (
            {"nir": target(base=0.412, mfr=0.469)},
            "on nir, a domain it has never seen: TAR at FAR 1 % rises from 41.2 % (base) to 46.9 % (mfr), +5.7 points.",
        ),
        (
            {"nir": target(base=0.5, mfr=0.48)},
            "falls from 50.0 % (base) to 48.0 % (mfr), -2",
        ),
        (
            {"nir": target(base=0.5, mfr=0.5)},
            "TAR at FAR 1 % stays at 50.0 % (base and mfr).",
        ),
        ({"nir": target(base=0.5)}, "TAR at FAR 1 % is 50.0 % (base)."),
        (
            {
                "a": target(base=0.4, agg=0.9, mfr=0.5),
                "b": target(base=0.6, agg=0.9, mfr=0.9),
                "c": target(unseen=False, base=0, mfr=0),
            },
            "on a and b, domains it has never seen: mean TAR at FAR 1 % rises from 50.0 % (base) to 70.0 % (mfr), "
            "+20.0",
        ),
        (
            {"c": target(unseen=False, base=0.1, mfr=0.2)},
            "scored on c: TAR at FAR 1 % rises from 10.0 %",
        ),
        (
            {"c": TargetResult(models={"mfr": Scores(tar_at_far={"0.01": TarAtFar(refused="too few")})})},
            "too few pairs for any FAR",
        ),
    ],
)
def test_the_headline_says_what_was_found(targets, want):
    assert want in headline(Results(targets=targets), ["studio", "street", "tungsten"])


@pytest.mark.usefixtures("undrawn")
def test_a_target_that_was_not_scored_is_left_out(run, results):
    unscored = {"late": TargetResult(unseen=True)}
    late = replace(results, targets=unscored | results.targets)
    late.save(run / "results.json")
    assert "late" not in write_report(run).read_text()
    assert final_table(late).row_count == 4
    assert final_table(Results(targets=unscored)).row_count == 0


def test_headline_starts_with_the_sources():
    assert headline(Results(), ["a", "b", "c"]) == "Trained on a, b and c; not scored yet."
    assert (listed([]), listed(["a"])) == ("", "a")


@pytest.mark.parametrize(("far", "want"), [("0.01", "1e-2"), ("0.001", "1e-3"), ("1e-05", "1e-5"), ("0.025", "2.5e-2")])
def test_a_far_is_written_short(far, want):
    assert short_far(far) == want


def test_the_contact_sheet_has_a_row_for_each_domain(tmp_path):
    sheet = {"red": np.full((3, 8, 8, 3), (255, 0, 0), np.uint8), "blue": np.full((5, 9, 7, 3), (0, 0, 255), np.uint8)}
    contact_sheet(sheet, tmp_path / "domains.png")
    upper, lower = np.array_split(picture(tmp_path / "domains.png"), 2)
    is_red, is_blue = ((half == colour).all(2).sum() for half, colour in [(upper, (255, 0, 0)), (lower, (0, 0, 255))])
    assert is_red > 3 * 100**2
    assert is_blue > 5 * 100**2
    assert not (upper == (0, 0, 255)).all(2).any()


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ({}, "at least one domain"),
        ({"nir": np.zeros((2, 8, 8, 3))}, "float64"),
        ({"nir": np.zeros((2, 3, 8, 8), np.uint8)}, r"\(2, 3, 8, 8\)"),
        ({"nir": np.zeros((0, 8, 8, 3), np.uint8)}, "nir"),
    ],
)
def test_the_contact_sheet_refuses_what_is_no_image(tmp_path, images, message):
    with pytest.raises(ValueError, match=message):
        contact_sheet(images, tmp_path / "domains.png")
