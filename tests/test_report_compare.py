import json
import re
from dataclasses import replace

import numpy as np
import pytest
import yaml
from helpers import command
from PIL import Image

from fastmfr.evaluate.roc import exact_roc, score_curve
from fastmfr.report import write_report
from fastmfr.report.compare import compare, write_comparison
from fastmfr.report.compare.plots import COLOURS, roc_plot, training_plot
from fastmfr.report.compare.table import Figure, _best, rows
from fastmfr.results import DomainGap, Results, Scores, TarAtFar, TargetResult

main = command("report")

CONFIG = {"folder": "runs", "seed": 1, "data": {"sources": {"studio": "synthetic:studio"}}, "meta": {"alpha": 0.3}}


def model(tar=0.5, interval=(0.4, 0.6), **more):
    """Scores by hand: TAR at FAR 1e-2 with its interval."""
    rate = TarAtFar(tar=tar, interval=list(interval) or None)
    return replace(Scores(tar_at_far={"0.01": rate}, rank1=0.3, rank1_interval=[0.2, 0.4], auc=0.9, eer=0.1), **more)


def curve(distance):
    """Scores of a model with its ROC, whose genuine pairs lie `distance` standard deviations above the impostors."""
    is_mate = np.arange(1200) < 200
    scores = np.random.default_rng(0).normal(size=1200) + distance * is_mate
    return score_curve(exact_roc(scores, is_mate), (1e-2, 1e-5))


def make_gap(distance, told):
    return DomainGap(
        domains=["a|b", "nir"],
        people=[20, 20],
        images=[40, 40],
        distance=[[0, distance], [distance, 0]],
        distance_by_chance=[[0, 0.1], [0.1, 0]],
        told=told,
        told_by_chance=0.5,
        far=0.001,
        threshold=0.6,
        impostors=3000,
        false_accepts=50,
        across_of_all=0.5,
        across=0.02,
        false_accepts_of=[[40, 1], [0, 9]],
        unseen=[False, True],
    )


@pytest.fixture
def make_run(tmp_path):
    """Writes a run folder from its models by target; a target named with a star was trained on."""

    def make(name, scores, config=CONFIG, steps=3, gap=None):
        folder = tmp_path / name
        folder.mkdir(parents=True)
        targets = {
            target.strip("*"): TargetResult(unseen="*" not in target, models=models)
            for target, models in scores.items()
        }
        if targets:
            Results(targets=targets, gap=gap or {}).save(folder / "results.json")
        lines = [
            {"stage": "meta", "step": step, "hard_pair": -step / 10, "hard_pair_test": 0.5, "alpha_hv_over_v": 0.2}
            for step in range(steps)
        ]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
        (folder / "environment.json").write_text("{}")
        return folder

    return make


def best(*models):
    """For each of the models, one a run, whether its TAR is the one in bold."""
    compared = compare(models)
    return [row.cells[0].best for row in rows(compared)]


def colours_of(path):
    with Image.open(path) as image:
        counted = image.convert("RGB").getcolors(image.width * image.height)
    return {f"#{r:02x}{g:02x}{b:02x}": count for count, (r, g, b) in counted}


def test_two_runs_give_one_self_contained_page_in_a_folder_of_its_own(make_run, tmp_path):
    first = make_run("first", {"nir": {"base": curve(1), "mfr": curve(1.5)}, "studio*": {"mfr": curve(2)}})
    second = make_run(
        "second", {"nir": {"base": curve(1), "mfr": curve(2)}, "studio*": {"mfr": curve(3)}}, CONFIG | {"seed": 2}
    )
    page = write_comparison([first, second], tmp_path / "new" / "out")
    text = page.read_text()
    assert {path.name for path in page.parent.iterdir()} == {"report.html", "roc.png", "training.png", "table.md"}
    assert not (first / "report.html").exists()
    assert text.count("data:image/png;base64,") == 2
    assert not re.search(r"https?:|<script|<link|url\(", text)
    for shown in (
        "2 runs that differ in seed",
        "<td>every run</td><td>base</td>",
        "<div>seed 2</div>",
        "<td>in the folder</td><td>first</td><td>second</td>",
        "never seen",
        "Trained on, and scored on other people: studio.",
        "No interval of the difference of two runs is known, for run folders keep no scores of pairs",
        "FAR 1e-05 needs at least",
    ):
        assert shown in text
    for picture in ("roc.png", "training.png"):
        drawn = colours_of(page.parent / picture)
        assert drawn["#1f49c7"] > 200
        assert drawn["#d9730d"] > 200
        assert drawn.get("#2f8f6b", 0) == 0


@pytest.mark.usefixtures("undrawn")
def test_a_run_without_a_target_has_a_gap_there_and_a_line_that_says_so(make_run, tmp_path):
    whole = make_run("whole", {"nir": {"mfr": model(0.7)}, "glasses": {"mfr": model(0.6)}})
    part = make_run("part", {"nir": {"mfr": model(0.5)}})
    text = write_comparison([whole, part], tmp_path / "out").parent.joinpath("table.md").read_text()
    assert "| glasses | part | mfr | - | - | - | - |" in text
    assert "| glasses | whole | mfr | 60.0 (40.0 to 60.0) | 30.0 (20.0 to 40.0) | 90.00 | 10.00 |" in text
    assert "part: there are no scores of mfr on glasses" in text


def test_a_run_that_was_stopped_before_it_was_scored_is_shown_beside_the_others(make_run, tmp_path):
    whole, stopped = make_run("whole", {"nir": {"mfr": curve(2)}}), make_run("stopped", {})
    page = write_comparison([whole, stopped], tmp_path / "out")
    assert "stopped: results.json is missing, so this run has not been scored" in page.read_text()
    assert "| nir | stopped | - | - | - |" in (page.parent / "table.md").read_text()
    assert colours_of(page.parent / "training.png")["#d9730d"] > 200


def test_three_targets_stand_beside_each_other_and_scores_on_the_way_have_panels(make_run, tmp_path, monkeypatch):
    figures = {}
    monkeypatch.setattr("fastmfr.report.compare.plots.save", lambda figure, path: figures.update({path.stem: figure}))
    runs = [make_run(name, {target: {"mfr": curve(2)} for target in "xyz"}) for name in "ab"]
    for run in runs:
        with (run / "metrics.jsonl").open("a") as file:
            file.write('{"stage": "meta/nir", "step": 1, "tar_at_far_0.01": 0.5}\n')
    compared = compare(runs)
    for plot in (roc_plot, training_plot):
        plot(compared, tmp_path / f"{plot.__name__}.png")
    assert figures["roc_plot"].axes[0].get_gridspec().get_geometry() == (1, 3)
    on_the_way = figures["training_plot"].axes[0]
    assert (on_the_way.texts[0].get_text(), on_the_way.get_xlabel()) == ("TAR@1e-2 on nir", "meta step")
    assert [line.get_xydata().tolist() for line in on_the_way.lines] == [[[1, 0.5]], [[1, 0.5]]]


@pytest.mark.usefixtures("undrawn")
def test_no_table_and_no_long_name_makes_a_page_wider_than_a_phone(make_run, tmp_path):
    gap = {"mfr": make_gap(0.5, 0.5)}
    runs = [make_run(name * 80, {"nir": {"base": curve(1), "mfr": curve(2)}}, gap=gap) for name in "ab"]
    for page in (write_report(runs[0]), write_comparison(runs, tmp_path / "out")):
        text = page.read_text()
        assert text.count('<div class="scroll"><table') == text.count("<table") >= 2
        assert re.search(r"body {[^}]*overflow-wrap: anywhere", text)
        assert re.search(r"\.scroll { overflow-x: auto; overflow-wrap: normal; }", text)
        assert re.search(r"img {[^}]*max-width: 100%", text)
        assert re.search(r"pre {[^}]*overflow-x: auto", text)


def test_a_dozen_runs_have_a_colour_each(make_run, tmp_path):
    runs = []
    for place in range(12):
        runs.append(make_run(f"run{place}", {}))
        line = {"stage": "pretrain", "step": place, "loss": float(place)}  # a dot of its own
        (runs[-1] / "metrics.jsonl").write_text(json.dumps(line))
    drawn = colours_of(write_comparison(runs, tmp_path / "out").parent / "training.png")
    assert len(set(COLOURS)) == 12
    assert min(drawn.get(colour, 0) for colour in COLOURS) > 10


@pytest.mark.usefixtures("undrawn")
def test_runs_of_which_none_was_scored_still_show_their_curves(make_run, tmp_path):
    page = write_comparison([make_run("a", {}), make_run("b", {})], tmp_path / "out")
    assert not (page.parent / "roc.png").exists()
    assert "Scores" not in page.read_text()
    assert page.read_text().count("data:image/png;base64,") == 1


@pytest.mark.parametrize(
    ("scores", "want"),
    [
        ([(0.9, (0.8, 0.95)), (0.5, (0.4, 0.6))], [True, False]),
        ([(0.5, (0.4, 0.6)), (0.9, (0.61, 0.95))], [False, True]),
        ([(0.9, (0.6, 0.95)), (0.5, (0.4, 0.6))], [False, False]),  # they touch
        (
            [(0.9, (0.8, 0.95)), (0.85, (0.7, 0.9)), (0.1, (0.0, 0.2))],
            [False, False, False],
        ),  # the next best is too near
        ([(0.9, ()), (0.5, (0.4, 0.6))], [False, False]),  # older results, without intervals
        ([(0.9, (0.8, 0.95)), (0.5, ())], [False, False]),
    ],
)
def test_only_a_lead_beyond_the_intervals_is_bold(make_run, scores, want):
    runs = [make_run(str(place), {"nir": {"mfr": model(*score)}}) for place, score in enumerate(scores)]
    assert best(*runs) == want


def test_a_lower_error_rate_is_the_better_one():
    low, high = Figure(0.1, (0.09, 0.11)), Figure(0.2, (0.19, 0.21))
    assert _best([low, high], lower=True) == _best([high, low], lower=False) == 0
    assert _best([high, low], lower=True) == 1
    assert _best([low, Figure(0.12, (0.1, 0.14))], lower=True) is None


@pytest.mark.usefixtures("undrawn")
def test_older_results_are_shown_without_what_they_lack(make_run, tmp_path):
    old = Scores(tar_at_far={"0.01": TarAtFar(tar=0.5)}, rank1=0.25)
    page = write_comparison(
        [make_run("old", {"nir": {"mfr": old}}), make_run("new", {"nir": {"mfr": model()}})], tmp_path / "out"
    )
    assert "| nir | old | mfr | 50.0 | 25.0 | - | - |" in (page.parent / "table.md").read_text()


@pytest.mark.usefixtures("undrawn")
def test_the_gap_between_domains_is_compared_where_it_is_known(make_run, tmp_path):
    scores, base = {"nir": {"mfr": model()}}, make_gap(0.9, 0.95)
    runs = [
        make_run("near", scores, gap={"base": base, "mfr": make_gap(0.3, 0.6)}),
        make_run("far", scores, gap={"base": base, "mfr": make_gap(0.8, 0.9)}),
    ]
    page = write_comparison(runs, tmp_path / "out")
    table = (page.parent / "table.md").read_text()
    for row in (
        "every run | base | 0.90 | 0.10 | 95.0 | 2.0 | 50.0 | 80.0 (a\\|b)",
        "near | mfr | 0.30 | 0.10 | 60.0 | 2.0",
        "far | mfr | 0.80 | 0.10 | 90.0 | 2.0",
    ):
        assert table.count(row) == 1
        assert f"<td>{row.split(' | ')[2]}</td>" in page.read_text()
    older = write_comparison([runs[0], make_run("old", scores)], tmp_path / "older")
    assert "<tr><td>near</td><td>base</td><td>0.90</td>" in older.read_text()
    assert "<td>every run</td><td>base</td>" not in older.read_text()


def test_runs_are_named_by_the_settings_in_which_they_differ(make_run):
    other = CONFIG | {"folder": "elsewhere", "meta": {"alpha": 0.1, "order": [1, None]}}
    compared = compare([make_run("a", {}), make_run("b", {}, other), make_run("c", {})])
    first, second, third = compared.folders
    assert first == "meta.alpha 0.3 and no meta.order (a)"
    assert second == "meta.alpha 0.1 and meta.order [1, null]"
    assert third == "meta.alpha 0.3 and no meta.order (c)"
    assert list(compared.folders.values()) == ["a", "b", "c"]
    assert list(compared.runs) == [first, second, third]
    assert compared.differing == {
        "meta.alpha": {first: "0.3", second: "0.1", third: "0.3"},
        "meta.order": {second: "[1, null]"},
    }


def test_of_many_settings_those_name_a_run_that_tell_the_runs_apart(make_run):
    settings = [
        {"same": 1, "half": place // 2, "again": place // 2, "odd": place % 2, "x": "y" * 60 if place else "z"}
        for place in range(4)
    ]
    runs = [make_run(str(place), {}, config) for place, config in enumerate(settings)]
    assert list(compare(runs).runs) == [f"half {n // 2}, odd {n % 2} and 2 more" for n in range(4)]
    assert f"x {'y' * 39}… " in list(compare([runs[0], runs[2]]).runs)[1] + " "


def test_runs_that_differ_in_nothing_are_named_by_their_folders(make_run):
    assert list(compare([make_run("a", {}), make_run("b", {})]).runs) == ["a", "b"]


@pytest.mark.parametrize("text", ["a: [", "[" * 20_000, "a: &a [*a]"], ids=["open", "deep", "endless"])
def test_settings_that_cannot_be_read_are_named_and_not_compared(make_run, text):
    broken, whole = make_run("broken", {}), make_run("whole", {})
    (broken / "config.yaml").write_text(text)
    compared = compare([broken, whole])
    assert "broken: config.yaml cannot be read, so its settings are not compared." in compared.notes
    assert compared.differing == {}


@pytest.mark.usefixtures("undrawn")
def test_many_settings_are_counted_in_the_headline(make_run, tmp_path):
    runs = [make_run(name, {}, {f"s{n}": name for n in range(5)}) for name in "ab"]
    text = write_comparison(runs, tmp_path / "out").read_text()
    assert "<h1>2 runs that differ in 5 settings</h1>" in text
    assert "<th>s0 a and 4 more</th><th>s0 b and 4 more</th>" in text
    assert "<tr><td>s4</td><td>a</td><td>b</td></tr>" in text


def test_targets_that_are_not_the_same_in_all_runs_are_named(make_run):
    few, many = model(genuine=10, impostors=1000), model(genuine=20, impostors=4000)
    notes = compare([make_run("a", {"nir*": {"mfr": few}}), make_run("b", {"nir": {"mfr": many}})]).notes
    assert "nir was trained on in a only, on other people; elsewhere it is unseen." in notes
    assert any("not scored on the same pairs" in note and "20 genuine and 4,000 impostor" in note for note in notes)


def test_runs_of_one_name_are_told_apart_by_the_folders_above(make_run):
    compared = compare([make_run("x/run", {}), make_run("y/run", {})])
    assert list(compared.runs) == ["x/run", "y/run"]


def test_text_from_files_cannot_reach_the_page_as_markup(make_run, tmp_path):
    evil = "<script>$x_"
    runs = [make_run(f"{name}<i>", {evil: {evil: curve(2)}}, {evil: name + evil}) for name in "ab"]
    text = write_comparison(runs, tmp_path / "out").read_text()
    assert "<script" not in text
    assert "<i>" not in text
    assert text.count("&lt;script&gt;$x_") > 5


def test_refuses_what_cannot_be_compared(make_run, tmp_path):
    run, other = make_run("run", {}), make_run("other", {})
    (tmp_path / "photos").mkdir()
    with pytest.raises(ValueError, match="want two runs or more to compare, got 1"):
        write_comparison([run], tmp_path / "out")
    with pytest.raises(ValueError, match=r"want every run once, got .*run several times"):
        write_comparison([run, other, run], tmp_path / "out")
    with pytest.raises(FileNotFoundError, match=r"photos is no run: it holds none of config.yaml, metrics.jsonl and"):
        write_comparison([run, tmp_path / "photos"], tmp_path / "out")
    with pytest.raises(FileNotFoundError, match="there is no run folder"):
        write_comparison([run, tmp_path / "none"], tmp_path / "out")
    with pytest.raises(ValueError, match="is one of the runs compared"):
        write_comparison([run, other], other)
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("undrawn")
def test_the_command_writes_one_run_again_and_compares_several(make_run, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    runs = [str(make_run(name, {"nir": {"mfr": model()}})) for name in ("a", "b")]
    assert main(runs[:1]) == 0
    assert capsys.readouterr().out == f"{runs[0]}/report.html\n"
    assert main([*runs, "--out", "there"]) == 0
    assert capsys.readouterr().out == "there/report.html\n"
    assert main(runs) == 0
    assert re.fullmatch(r"runs/compare-\d{8}-\d{6}/report.html\n", capsys.readouterr().out)
    assert main(["nowhere", runs[0]]) == 1
    assert "error: there is no run folder nowhere" in capsys.readouterr().err
