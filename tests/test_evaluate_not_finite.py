"""NaN and infinity never become a figure: every metric refuses them, for no comparison with NaN holds."""

import numpy as np
import pytest
import torch
from evaluation_fakes import Named

from fastmfr.evaluate import (
    accuracies,
    domain_gap,
    hardest_pairs,
    identification,
    score,
    score_folds,
    score_pairs,
    score_templates,
    tar_at_far,
    verification,
)
from fastmfr.evaluate.bootstrap import pair_sample
from fastmfr.protocols import PairList, TemplateSet, gallery_probe

PEOPLE, IMAGES = 12, 4
PERSON = np.repeat(np.arange(PEOPLE), IMAGES)
LISTS = gallery_probe(np.arange(PEOPLE + 1) * IMAGES)
FIRST, SECOND = (np.ravel(side) for side in np.indices((PEOPLE, PEOPLE)))
PAIRS = PairList(IMAGES * FIRST, IMAGES * SECOND + 1, FIRST == SECOND)
TEMPLATES = TemplateSet(
    np.arange(len(PERSON)), np.arange(len(PERSON)), PERSON, PEOPLE, PairList(FIRST, SECOND, FIRST == SECOND)
)
OF_ROWS = {
    "gallery": lambda rows: identification(rows, PERSON, rows[::2].nan_to_num(0, 0, 0).clamp(-9, 9), PERSON[::2]),
    "probe": lambda rows: identification(rows[::2].nan_to_num(0, 0, 0).clamp(-9, 9), PERSON[::2], rows, PERSON),
    "score": lambda rows: score(rows, LISTS, [0.1]),
    "folds": lambda rows: score_folds(rows, [LISTS, LISTS], [0.1]),
    "hardest": lambda rows: hardest_pairs(rows, LISTS, Named(), "mfr"),
    "gap": lambda rows: domain_gap({"a": (rows, PERSON), "b": (rows.nan_to_num(0, 0, 0).clamp(-9, 9), PERSON)}),
    "pairs": lambda rows: score_pairs(rows, PAIRS, [0.1]),
    "templates": lambda rows: score_templates(rows, TEMPLATES, [0.1]),
}
OF_SCORES = {
    "verification": lambda scores, is_mate: verification(scores, is_mate, [0.1]),
    "tar_at_far": lambda scores, is_mate: tar_at_far(scores, is_mate, 0.1),
    "accuracies": accuracies,
    "intervals": lambda scores, is_mate: pair_sample(scores, is_mate, None),
}


def rows_of_people():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(len(PERSON), 8, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("broken", [float("nan"), float("inf"), -float("inf"), 1e300])
@pytest.mark.parametrize("metric", OF_ROWS)
def test_embeddings_that_are_not_finite_are_refused(monkeypatch, metric, broken, exact):
    if not exact:
        monkeypatch.setattr("fastmfr.evaluate.all_pairs.EXACT", 0)
    OF_ROWS[metric](rows_of_people())
    every = rows_of_people()
    every[:, 3] = broken  # the first row in any list is one of them
    with pytest.raises(ValueError, match=r"want embeddings of finite length, but .* first that of row 0; look at"):
        OF_ROWS[metric](every)


@pytest.mark.parametrize("metric", OF_ROWS)
def test_one_broken_embedding_is_enough(metric):
    for image in LISTS.gallery[2], LISTS.probe[2]:
        rows = rows_of_people()
        rows[image] = torch.nan
        with pytest.raises(ValueError, match=r"but 1 of \d+ .* hold NaN or infinity"):
            OF_ROWS[metric](rows)


@pytest.mark.parametrize("broken", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("metric", OF_SCORES)
@pytest.mark.parametrize("of_mate", [True, False])
def test_scores_that_are_not_finite_are_refused(metric, broken, of_mate):
    scores, is_mate = np.linspace(-1, 1, 60), np.arange(60) % 2 == 0
    OF_SCORES[metric](scores, is_mate)
    scores[int(np.flatnonzero(is_mate == of_mate)[5])] = broken
    with pytest.raises(ValueError, match=r"1 of \d+ scores are not finite"):
        OF_SCORES[metric](scores, is_mate)


def test_a_rank_or_rate_that_is_no_number_is_refused():
    rows = rows_of_people()
    with pytest.raises(ValueError, match="want a rank k of at least 1, got nan"):
        identification(rows, PERSON, rows, PERSON, k=float("nan"))  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="want a false accept rate above 0 and below 1, got nan"):
        domain_gap({"a": (rows, PERSON), "b": (rows, PERSON)}, far=float("nan"))
