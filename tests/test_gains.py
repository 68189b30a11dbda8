"""Gains over the base, with intervals over draws of the same people for both models."""

import io
import re

import numpy as np
import pytest
from rich.console import Console

from fastmfr.evaluate import paired_gains, score
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
    assert set(gains) == {"tar_at_far_0.1", "tar_at_far_0.01", "rank1"}
    for figure, (low, high) in gains.items():
        assert low <= mfr.rates[figure] - base.rates[figure] <= high
    low, high = gains["tar_at_far_0.1"]
    alone = base.rate("0.1").interval
    assert high - low < 0.7 * (alone[1] - alone[0])


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
