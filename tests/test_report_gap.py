"""The pictures and tables of the gap between domains and of the hardest pairs."""

import re

import numpy as np
import pytest
import torch
from pictures import picture, pixels_of

from fastmfr.evaluate import domain_gap
from fastmfr.report import hardest_sheet, write_report
from fastmfr.report.axes import DPI, ORANGE
from fastmfr.report.gap import BAR, gap_plot
from fastmfr.results import HardestPair, HardestPairs, Results, Scores, TarAtFar, TargetResult

TARGETS = {"nir": TargetResult(unseen=True, models={"base": Scores(auc=0.8), "mfr": Scores(auc=0.9)})}


def gap(*shifts, prefix="d"):
    """The gap of domains that lie apart by `shifts` times their own spread, the last one unseen."""
    rng = np.random.default_rng(0)
    rows = {f"{prefix}{place}": rng.normal(size=(40, 8)) + shift * np.eye(8)[0] for place, shift in enumerate(shifts)}
    embeddings = {name: (torch.from_numpy(rows[name]), np.arange(40) // 2) for name in rows}
    return domain_gap(embeddings, unseen=list(rows)[-1:])


def hardest(genuine, impostor):
    """A target with hardest pairs of these cosines, accepted from 0.5 on at FAR 1e-2."""
    genuine, impostor = (
        [HardestPair(cosine=cosine, gallery=0, probe=1) for cosine in cosines] for cosines in (genuine, impostor)
    )
    rates = {"0.01": TarAtFar(tar=0.9, threshold=0.5), "0.001": TarAtFar(refused="too few")}
    return TargetResult(
        unseen=True,
        models={"mfr": Scores(tar_at_far=rates)},
        hardest=HardestPairs(model="mfr", genuine=genuine, impostor=impostor),
    )


def write_results(run, gap_by_model):
    Results(targets=TARGETS, gap=gap_by_model).save(run / "results.json")


def test_the_gap_is_drawn_and_put_into_numbers_for_each_model(tmp_path):
    write_results(tmp_path, {"base": gap(0, 1, 3), "mfr": gap(0, 0, 0)})
    text = write_report(tmp_path).read_text()
    tables = re.findall(r"<tr><td>(base|mfr)</td><td>([\d.]+)</td><td>[\d.]+</td><td>([\d.]+)</td>", text)
    (base, distance, nearest), (mfr, less_distance, less_nearest) = tables
    assert (base, mfr) == ("base", "mfr")
    assert float(less_distance) < 0.5 * float(distance)
    assert float(less_nearest) < float(nearest)
    assert text.index("<h2>ROC") < text.index("<h2>Domain gap") < text.index("Across domains")
    assert (tmp_path / "gap.png").is_file()


def test_many_domains_stand_below_each_other_and_one_model_alone(tmp_path):
    two, many = gap(0, 1), gap(*range(9), prefix="$x_{")
    small = picture(gap_plot({"mfr": two}, tmp_path / "two.png")).shape
    wide = picture(gap_plot({"base": two, "mfr": two}, tmp_path / "both.png")).shape
    tall = picture(gap_plot({"base": many, "mfr": many}, tmp_path / "many.png")).shape
    bar = round(BAR * DPI)
    assert (wide[0], wide[1] - bar) == (small[0], 2 * (small[1] - bar))
    assert tall[0] > 1.5 * tall[1]
    assert gap_plot({"base": None}, tmp_path / "none.png") is None


def test_a_labelled_bar_says_which_colour_is_which_distance_and_stands_where_panels_leave_a_place(
    tmp_path, monkeypatch
):
    figures = []
    monkeypatch.setattr("fastmfr.report.gap.save", lambda figure, path: figures.append(figure))
    wide = gap(0, 1, 3, 5, 6)
    for count in (1, 3):
        gap_plot({str(number): wide for number in range(count)}, tmp_path)
    for count, figure in zip((1, 3), figures, strict=True):
        *panels, bar = figure.axes
        assert len(panels) == count
        assert bar.get_ylabel() == "distance between means"
        assert bar.get_ylim() == pytest.approx((0, np.max(wide.distance)))
        place = bar.get_position()
        assert place.x0 > panels[-1].get_position().x1
        assert place.y0 == pytest.approx(panels[-1].get_position().y0)
    assert figures[1].get_size_inches()[0] == pytest.approx(2 * (figures[0].get_size_inches()[0] - BAR))


def texts_of(monkeypatch, drawn, path):
    """What is written in the sheet of a target's hardest pairs, and in which colour."""
    written = {}
    monkeypatch.setattr(
        "matplotlib.figure.Figure.savefig",
        lambda figure, *_, **__: written.update((text.get_text(), text.get_color()) for text in figure.texts),
    )
    hardest_sheet({"nir": drawn}, {"nir": np.zeros((8, 6, 6, 3), np.uint8)}, path)
    return written


def test_a_row_decided_wrongly_as_a_whole_says_so_instead_of_marking_every_pair(tmp_path, monkeypatch):
    written = texts_of(monkeypatch, hardest([0.1, 0.2], [0.6, 0.4]), tmp_path / "sheet.png")
    assert "2 of 2 decided wrongly: accepted from 0.500 on, at FAR 1e-2" in written
    assert "1 of 2 decided wrongly: accepted from 0.500 on, at FAR 1e-2" in written
    assert [text for text, colour in written.items() if colour == ORANGE] == ["0.600"]


def test_hardest_pairs_are_marked_where_the_model_decides_wrongly(tmp_path):
    grey = np.full((8, 6, 6, 3), 90, np.uint8)
    hardest_sheet({"nir": hardest([0.6, 0.7], [0.4, 0.3])}, {"nir": grey}, tmp_path / "right.png")
    hardest_sheet({"nir": hardest([0.4, 0.7], [0.4, 0.3])}, {"nir": grey}, tmp_path / "one.png")
    hardest_sheet({"nir": hardest([0.4, 0.7], [0.5, 0.3])}, {"nir": grey}, tmp_path / "two.png")
    without = TargetResult(models={"mfr": Scores()})
    hardest_sheet({"nir": hardest([0.4, 0.7], [0.4, 0.3]), "late": without}, {"nir": grey}, tmp_path / "late.png")
    assert (tmp_path / "late.png").read_bytes() == (tmp_path / "one.png").read_bytes()
    none, one, two = (pixels_of(tmp_path / f"{name}.png", ORANGE) for name in ("right", "one", "two"))
    assert none == 0 < one < two
    assert pixels_of(tmp_path / "one.png", "#5a5a5a") > 8 * 150**2


def test_the_page_shows_the_hardest_pairs_where_they_were_drawn(tmp_path):
    hardest_sheet({"$x_": hardest([0.1], [])}, {"$x_": np.zeros((2, 8, 8, 3), np.uint8)}, tmp_path / "hardest.png")
    (tmp_path / "metrics.jsonl").touch()
    assert "Look here for wrong labels" in write_report(tmp_path).read_text()


@pytest.mark.parametrize("gap_by_model", [{}, {"mfr": None}], ids=str)
def test_a_run_without_them_is_reported_without_them(gap_by_model, tmp_path):
    write_results(tmp_path, gap_by_model)
    text = write_report(tmp_path).read_text()
    assert "<h2>ROC" in text
    assert "Domain gap" not in text
    assert "Hardest pairs" not in text
    assert not (tmp_path / "gap.png").exists()


def test_names_of_domains_cannot_reach_the_page_as_markup(tmp_path):
    evil = "<script>$x_"
    write_results(tmp_path, {evil: gap(0, 9, prefix=evil)})
    text = write_report(tmp_path).read_text()
    assert "<script" not in text
    assert text.count("&lt;script&gt;$x_") == 2
