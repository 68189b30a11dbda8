import numpy as np
import pytest

from fastmfr.evaluate import accuracies, score_pairs, verification
from fastmfr.evaluate.accuracy import folded_decisions, folds_of
from fastmfr.protocols import PairList


def lfw_like(folds=10, each=20, noise=1.6, D=8):
    """Embeddings (2 N, D) of the pairs' images, in folds of `each` genuine and `each` impostor pairs; the flags."""
    rng = np.random.default_rng(0)
    same = np.tile(np.arange(2 * each) < each, folds)
    first = rng.normal(size=(len(same), D))
    second = np.where(same[:, None], first + noise * rng.normal(size=first.shape), rng.normal(size=first.shape))
    return np.stack([first, second], 1).reshape(-1, D), same


def insightface_accuracies(embedding, same, step):
    """Each fold's accuracy, by trying one threshold after the other on squared distances of unit embeddings."""
    unit = embedding / np.linalg.norm(embedding, axis=1, keepdims=True)
    distance = ((unit[0::2] - unit[1::2]) ** 2).sum(1)
    found = []
    from sklearn.model_selection import KFold  # here, for its import takes seconds in every process

    for train, test in KFold(10).split(same):
        tried = np.arange(0, 4, step)
        right = [((distance[train] < threshold) == same[train]).mean() for threshold in tried]
        found.append(((distance[test] < tried[np.argmax(right)]) == same[test]).mean())
    return np.array(found)


@pytest.mark.parametrize(("name", "step"), [("grid_0.01", 0.01), ("grid_0.001", 0.001)])
@pytest.mark.parametrize("pairs", [400, 397])  # folds of one size, and folds that differ by a pair
def test_equals_insightface_threshold_by_threshold(name, step, pairs):
    embedding, same = lfw_like()
    embedding, same = embedding[: 2 * pairs], same[:pairs]
    want = insightface_accuracies(embedding, same, step)
    found = score_pairs(embedding, PairList(np.arange(0, 2 * pairs, 2), np.arange(1, 2 * pairs, 2), same))
    assert 0.6 < want.mean() < 0.95
    assert found.accuracy[name].mean == pytest.approx(want.mean())
    assert found.accuracy[name].std == pytest.approx(want.std())
    low, high = found.accuracy[name].interval
    assert low < want.mean() < high


def test_the_exact_variant_tries_every_threshold():
    rng = np.random.default_rng(2)
    scores, same = rng.normal(size=60).round(1), rng.random(60) < 0.5
    fold = np.arange(60) % 3
    decided = folded_decisions(scores, same, fold)
    for number in range(3):
        train, test = fold != number, fold == number
        best = max(((scores[train] >= t) == same[train]).sum() for t in [*np.unique(scores), np.inf])
        threshold = scores[test][decided[test]].min(initial=np.inf)
        assert (scores[test] >= threshold).tolist() == decided[test].tolist()
        assert any(
            ((scores[train] >= t) == same[train]).sum() == best and ((scores[test] >= t) == decided[test]).all()
            for t in [*np.unique(scores), np.inf]
        )


def test_a_grid_too_coarse_for_the_scores_is_seen_beside_the_exact_variant():
    same = np.tile([True, False], 100)
    found = accuracies(np.where(same, 0.9010, 0.9008), same)  # squared distances 0.1980 and 0.1984
    assert found["exact"].mean == 1
    assert found["grid_0.01"].mean == 0.5
    assert found["exact"].interval == [1, 1]


def test_folds_are_successive_pairs_unless_the_list_is_sorted_by_kind():
    same = np.tile(np.arange(20) < 10, 10)
    assert folds_of(same).tolist() == np.repeat(np.arange(10), 20).tolist()
    ordered = np.arange(200) < 100
    fold = folds_of(ordered)
    assert np.array_equal(np.bincount(fold), np.full(10, 20))
    assert np.array_equal(np.bincount(fold[ordered]), np.full(10, 10))
    with pytest.raises(ValueError, match="at least 10 genuine and 10 impostor pairs, got 100 and 5"):
        folds_of(ordered[:105])


def test_one_fold_has_no_others_to_find_its_threshold_on():
    with pytest.raises(ValueError, match="at least two folds"):
        accuracies(np.zeros(4), np.array([True, True, False, False]), np.zeros(4, int))


def test_scores_a_list_of_pairs_with_and_without_people():
    embedding, same = lfw_like()
    unit = embedding / np.linalg.norm(embedding, axis=1, keepdims=True)
    first, second = np.arange(0, 800, 2), np.arange(1, 800, 2)
    people = np.stack([np.arange(400) // 8, np.where(same, np.arange(400) // 8, 50)])
    want = verification((unit[first] * unit[second]).sum(1), same, (0.1,))
    for who in (None, people):
        found = score_pairs(embedding, PairList(first, second, same, people=who), (0.1, 1e-3))
        assert found.tar_at_far["0.1"].tar == want["tar_at_far"][0.1]["tar"]
        low, high = found.tar_at_far["0.1"].interval
        assert low < want["tar_at_far"][0.1]["tar"] < high
        assert found.tar_at_far["0.001"].refused.startswith("FAR 0.001 needs at least 1000 impostor pairs")
        assert found.auc == want["auc"]


def test_few_pairs_have_no_accuracy_by_folds():
    embedding, same = lfw_like(folds=1, each=5)
    assert score_pairs(embedding, PairList(np.arange(0, 20, 2), np.arange(1, 20, 2), same), (0.5,)).accuracy is None
