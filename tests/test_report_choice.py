"""The page shows which model is handed out, beside those it could have been."""

from pathlib import Path

from fastmfr.report.choice import choice_parts, shown
from fastmfr.report.folder import RunFolder
from fastmfr.report.page import page
from fastmfr.results import META, PRETRAIN, Candidate, Choice, Results


def candidate(stage, steps, weights, score, **within):
    return Candidate(of_stage=stage, steps=steps, weights=weights, score=score, together=score, within=within)


CANDIDATES = [
    candidate(PRETRAIN, 10, "last", 0.5, a=0.25),
    candidate(PRETRAIN, 20, "last", 0.6, a=0.5),
    candidate(PRETRAIN, 20, "ema", 0.7, a=0.625),
    candidate(META, 3, "last", 0.9, a=0.125),
    candidate(META, 6, "last", 0.8, a=0.75),
]


def test_shows_the_ends_of_stages_their_averages_and_the_best():
    assert [found.key[:2] for found in shown(Choice(candidates=CANDIDATES))] == [
        (PRETRAIN, 20),
        (PRETRAIN, 20),
        (META, 3),
        (META, 6),
    ]


def test_the_one_handed_out_is_marked_and_names_are_text():
    table = "".join(choice_parts(Choice(candidates=[candidate(META, 6, "mean", 0.5, **{"<b>": 0.25})])))
    assert "<tr class=main><td>mean of the weights of mfr after 6 steps</td>" in table
    assert table.count("<td>50.0</td><td>50.0</td><td>25.0</td>") == 1
    assert "&lt;b&gt;" in table
    assert "<b>" not in table


def test_a_page_without_a_choice_has_no_such_part():
    run = RunFolder(Path("run"), results=Results(choice=Choice(candidates=CANDIDATES, why="why <it> is")))
    assert "Model handed out" in page(run, {})
    assert "why &lt;it&gt; is." in page(run, {})
    for results in (Results(), Results(choice=Choice())):
        assert "Model handed out" not in page(RunFolder(Path("run"), results=results), {})
