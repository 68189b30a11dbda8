"""Gains over the base, with intervals over draws of the same people for both models."""

import io
import re

import numpy as np
import pytest
from rich.console import Console

from fastmfr.evaluate import paired_gains, score
from fastmfr.evaluate.bootstrap import DRAWS, draw_people, interval_of
from fastmfr.evaluate.roc import area_under, equal_error_rate, exact_roc
from fastmfr.protocols import GalleryProbe
from fastmfr.report import final_table, markdown_table, write_report
from fastmfr.report.tables import rows
from fastmfr.results import Results, Scores, TarAtFar, TargetResult

PEOPLE = 40


def scored(noise, worse_by=0.0):
    """Scores of PEOPLE people, two images each, of which some are hard for every model; noise is the model's own."""
    rng = np.random.default_rng(0)
    centre, hard = rng.normal(size=(PEOPLE, 16)), rng.uniform(0, 2, PEOPLE)[:, None]
    images = [centre + (hard + worse_by) * rng.normal(size=centre.shape) for _ in range(2)]
    own = np.random.default_rng(noise)
    rows_ND = np.concatenate([image + 0.05 * own.normal(size=image.shape) for image in images])
    who = np.arange(PEOPLE)
    pairs = GalleryProbe(gallery=who, probe=who + PEOPLE, gallery_id=who, probe_id=who)
    return score(rows_ND, pairs, (1e-1, 1e-2))


def test_people_who_are_hard_for_both_models_do_not_widen_the_interval():
    base, mfr = scored(1), scored(2)
    gains = paired_gains({"base": base, "mfr": mfr})["mfr"]
    assert set(gains) == {"tar_at_far_0.1", "tar_at_far_0.01", "rank1", "auc", "eer"}
    for figure, (low, high) in gains.items():
        of_mfr, of_base = (scores.rates.get(figure, scores.eer) for scores in (mfr, base))
        assert low <= of_mfr - of_base <= high
    for figure, alone in (("tar_at_far_0.1", base.rate("0.1").interval), ("auc", base.auc_interval)):
        assert np.ptp(gains[figure]) < 0.7 * np.ptp(alone)


def drawn_by_hand(cos_PG, weight):
    """AUC and EER if person p, the p-th of gallery and of probes, counts as often as `weight` says."""
    is_mate_PG = np.eye(len(cos_PG), dtype=bool)
    often_PG = np.where(is_mate_PG, weight, np.outer(weight, weight))
    roc = exact_roc(np.repeat(cos_PG.ravel(), often_PG.ravel()), np.repeat(is_mate_PG.ravel(), often_PG.ravel()))
    return area_under(roc), equal_error_rate(roc)


def test_auc_and_eer_of_every_draw_are_those_of_its_people_counted_as_often_as_they_are_drawn():
    people = 12  # so few pairs that no threshold is left out
    rng = np.random.default_rng(0)
    gallery_PD = rng.normal(size=(people, 4))
    probe_PD = gallery_PD + rng.normal(size=gallery_PD.shape)
    who = np.arange(people)
    found = score(
        np.concatenate([gallery_PD, probe_PD]),
        GalleryProbe(gallery=who, probe=who + people, gallery_id=who, probe_id=who),
        (1e-1,),
    )
    unit_PD, unit_GD = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (probe_PD, gallery_PD))
    by_hand = [drawn_by_hand(unit_PD @ unit_GD.T, weight) for weight in draw_people(people)]
    assert len(by_hand) == DRAWS
    np.testing.assert_allclose(np.transpose([found.draws["auc"], found.draws["eer"]]), by_hand, atol=1e-12)
    assert found.auc_interval == pytest.approx(interval_of([auc for auc, _ in by_hand]))


def test_of_many_pairs_an_even_sample_and_few_thresholds_move_no_interval_of_auc_and_eer(monkeypatch):
    whole = scored(1)
    monkeypatch.setattr("fastmfr.evaluate.sampling.KEPT", 800)  # of 1600 pairs
    monkeypatch.setattr("fastmfr.evaluate.curve_draws.THRESHOLDS", 64)
    coarse = scored(1)
    for name in ("auc_interval", "eer_interval"):
        whole_ends, coarse_ends = getattr(whole, name), getattr(coarse, name)
        assert coarse_ends != whole_ends
        assert coarse_ends == pytest.approx(whole_ends, abs=0.35 * np.ptp(whole_ends))
    assert coarse.auc == whole.auc


def test_the_band_of_the_curve_lies_around_it_where_the_pairs_are_enough():
    found = scored(1)
    band = found.roc.band
    assert min(band.far) * (PEOPLE**2 - PEOPLE) >= 100
    assert max(band.far) == 1
    for far, low, high in zip(band.far, band.low, band.high, strict=True):
        assert low <= np.interp(far, found.roc.far, found.roc.tar) <= high
    assert np.subtract(band.high, band.low).max() > 0.1


def test_two_people_of_whom_a_draw_may_leave_one_have_intervals_of_the_draws_that_hold_both():
    rows_ND = np.array([[1, 0], [0, 1], [1, 0.1], [0.2, 1]])
    who = np.arange(2)
    found = score(rows_ND, GalleryProbe(gallery=who, probe=who + 2, gallery_id=who, probe_id=who), (0.5,))
    assert found.auc_interval == [1, 1]
    assert 0 < len(found.draws["auc"]) < DRAWS


def test_the_interval_is_that_of_the_differences_draw_by_draw():
    drawn = np.linspace(0, 1, 201)
    base = Scores(draws={"rank1": drawn.tolist(), "tar_at_far_0.1": [0.5]})
    other = Scores(draws={"rank1": (drawn + 0.1).tolist(), "tar_at_far_0.1": [0.5, 0.6]})
    gains = paired_gains({"base": base, "mfr": other, "old": Scores()})
    assert gains == {"mfr": {"rank1": pytest.approx([0.1, 0.1])}}


def results(**gains):
    """A model whose figures are all better than the base's, with these intervals of its gains."""
    rates = [{"0.01": TarAtFar(tar=tar, interval=[tar - 0.1, tar + 0.1])} for tar in (0.5, 0.6)]
    models = {
        "base": Scores(tar_at_far=rates[0], rank1=0.5, auc=0.8, eer=0.2),
        "mfr": Scores(tar_at_far=rates[1], rank1=0.6, auc=0.9, eer=0.1),
    }
    return Results(targets={"nir": TargetResult(unseen=True, models=models, gains={"mfr": gains})})


def better(**gains):
    """Whether each of TAR, rank-1, AUC and EER is marked as better (True) or worse (False) than the base's."""
    return [cell.better for cell in list(rows(results(**gains)))[1].cells]


def test_a_gain_is_marked_only_where_its_interval_excludes_zero():
    assert better() == [None] * 4
    assert better(**{"tar_at_far_0.01": [0.01, 0.2], "rank1": [-0.01, 0.2]}) == [True, None, None, None]
    assert better(**{"tar_at_far_0.01": [0.0, 0.2], "eer": [-0.2, -0.01]}) == [None, None, None, True]


@pytest.mark.usefixtures("undrawn")
def test_console_page_and_markdown_show_the_interval_and_colour_only_beyond_chance(tmp_path):
    found = results(**{"tar_at_far_0.01": [0.012, 0.19], "rank1": [-0.014, 0.2]})
    console = Console(file=io.StringIO(), width=80, force_terminal=True, color_system="standard")
    console.print(final_table(found))
    text = console.file.getvalue()
    green = " ".join(" ".join(re.findall(r"\x1b\[32m(.*?)\x1b", text)).split())
    assert green == "+10.0 (+1.2 to +19.0)"
    assert "\x1b[31m" not in text
    assert "…" not in text
    plain = re.sub(r"\x1b\[\d*m", "", text)
    assert re.search(r"\n +\+10\.0 +\+10\.0 +\+10\.00 +.*\n +\(\+1\.2 to \+19\.0\) +\(-1\.4 to \+20\.0\) ", plain)
    assert "| 60.0 (+10.0, +1.2 to +19.0) | 60.0 (+10.0, -1.4 to +20.0) | 90.00 (+10.00) |" in markdown_table(found)
    found.save(tmp_path / "results.json")
    page = write_report(tmp_path).read_text()
    assert '<span class="gain better">+10.0</span>' in page
    assert page.count("gain better") == 1
    assert "gain worse" not in page
    assert '<small class="better">gain +1.2 to +19.0</small>' in page
    assert '<small class="">gain -1.4 to +20.0</small>' in page
