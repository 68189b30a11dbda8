from dataclasses import replace

import numpy as np
import pytest
import torch

from fastmfr.evaluate import Histogram, identification, score, score_folds, verification
from fastmfr.evaluate.all_pairs import AllPairs
from fastmfr.evaluate.bootstrap import interval_of, share_draws, tar_draws
from fastmfr.evaluate.sampling import samples
from fastmfr.protocols import GalleryProbe, gallery_probe

FAR = (1e-1, 1e-2, 1e-3)


def people(identities=80, images=4, noise=1.2, D=16):
    rng = np.random.default_rng(0)
    centre = np.repeat(rng.normal(size=(identities, D)), images, axis=0)
    return torch.tensor(centre + noise * rng.normal(size=centre.shape)), np.arange(0, identities * images + 1, images)


@pytest.fixture
def streamed(monkeypatch):
    """Call it and every set is large: blocks of 13 probes, scores in bins."""

    def begin():
        monkeypatch.setattr("fastmfr.evaluate.all_pairs.EXACT", 0)
        monkeypatch.setattr("fastmfr.evaluate.all_pairs.BLOCK", 13 * 80)

    return begin


def test_binned_scores_give_the_exact_figures_but_for_the_pairs_of_a_bin(streamed):
    embedding, offsets = people()
    pairs = gallery_probe(offsets)
    exact = score(embedding, pairs, FAR)
    streamed()
    binned = score(embedding, pairs, FAR)
    assert (exact.exact, binned.exact) == (True, False)
    measured = {"tar_at_far": {}, "auc": None, "eer": None, "roc": None, "exact": None}
    measured |= {"auc_interval": None, "eer_interval": None}
    assert replace(binned, **measured) == replace(exact, **measured)
    assert binned.auc == pytest.approx(exact.auc, abs=1e-6)
    assert binned.eer == pytest.approx(exact.eer, abs=1e-3)
    assert binned.auc_interval == pytest.approx(exact.auc_interval, abs=1e-5)
    assert binned.eer_interval == pytest.approx(exact.eer_interval, abs=2e-3)
    for far in FAR:
        found, wanted = binned.tar_at_far[str(far)], exact.tar_at_far[str(far)]
        assert found.far <= far
        assert found.tar == pytest.approx(wanted.tar, abs=1 / 240)
        assert found.threshold == pytest.approx(wanted.threshold, abs=1e-3)
        assert found.interval == pytest.approx(wanted.interval, abs=1e-9)


def test_a_threshold_of_bins_accepts_what_it_says():
    rng = np.random.default_rng(1)
    genuine, impostor = (torch.tensor(rng.uniform(-1, 1, n) ** 3) for n in (300, 5000))
    histogram = Histogram()
    for part in torch.cat([genuine, impostor]).split(1000):
        histogram.add(part, part[torch.isin(part, genuine)])
    roc = histogram.roc()
    assert (roc.genuine, roc.impostors) == (300, 5000)
    for threshold, accepted in zip(roc.threshold_K[1:], roc.impostors_K[1:], strict=True):
        assert (impostor >= threshold).sum() == accepted
    exact = verification(torch.cat([genuine, impostor]), np.arange(5300) < 300, FAR)
    assert np.trapezoid(roc.tar_K, roc.far_K) == pytest.approx(exact["auc"], abs=1e-5)


def test_counts_cosines_that_rounding_lifted_above_one_and_refuses_what_is_no_cosine():
    histogram = Histogram()
    histogram.add(torch.tensor([1 + 1e-6, 1.0, -1 - 1e-6]), torch.tensor([1 + 1e-6]))
    assert histogram.roc().impostors == 2
    with pytest.raises(ValueError, match="1 of 2 scores are not cosines"):
        histogram.add(torch.tensor([0.5, torch.nan]), torch.tensor([0.5]))


def test_a_gallery_in_any_order_with_several_images_of_a_person_gives_the_same(streamed):
    embedding, _ = people()
    image, identity = np.arange(320), np.repeat(np.arange(80), 4)
    gallery = np.random.default_rng(3).permutation(image[image % 4 < 2])
    pairs = GalleryProbe(gallery, identity[gallery], image[image % 4 > 1], identity[image % 4 > 1])
    unit = torch.nn.functional.normalize(embedding)
    score_GP, mate_GP = (unit[pairs.gallery] @ unit[pairs.probe].T).numpy(), pairs.gallery_id[:, None] == pairs.probe_id
    want = verification(score_GP, mate_GP, FAR)
    rank1 = np.mean([mate_GP[score_GP[:, p].argmax(), p] for p in range(len(pairs.probe))])
    for tolerance in (1e-12, 1e-3):
        got = score(embedding, pairs, FAR)
        assert got.rank1 == pytest.approx(rank1)
        assert (got.genuine, got.impostors) == (want["genuine"], want["impostors"])
        assert got.auc == pytest.approx(want["auc"], abs=tolerance)
        streamed()


def test_rank_k_counts_the_strangers_before_the_nearest_mate():
    gallery, angles = torch.eye(4), torch.tensor([[9.0, 8, 7, 6], [6, 7, 8, 9]])
    assert [identification(gallery, range(4), angles, [2, 2], k) for k in (1, 2, 3)] == [0, 0.5, 1]
    with pytest.raises(ValueError, match="rank k of at least 1, got 0"):
        identification(gallery, range(4), angles, [2, 2], 0)


def test_probes_without_a_mate_are_impostors_and_do_not_count_for_rank1(streamed):
    embedding, offsets = people(noise=0.2)
    pairs = gallery_probe(offsets)
    enrolled = pairs.gallery_id < 60
    some = GalleryProbe(pairs.gallery[enrolled], pairs.gallery_id[enrolled], pairs.probe, pairs.probe_id)
    for _ in range(2):
        got = score(embedding, some, FAR)
        assert (got.rank1, got.probes_without_mate) == (1, 60)
        assert (got.genuine, got.impostors) == (180, 60 * 240 - 180)
        streamed()
    with pytest.raises(ValueError, match="none of the 240 probes has a mate among the 60"):
        score(embedding, GalleryProbe(some.gallery, some.gallery_id + 1000, some.probe, some.probe_id))


def test_images_that_could_not_be_decoded_are_left_out():
    pairs = GalleryProbe(np.array([0, 2, 4]), np.arange(3), np.array([1, 3, 5]), np.arange(3))
    left = pairs.without({2: "cut short", 5: "empty"})
    assert (left.gallery.tolist(), left.gallery_id.tolist()) == ([0, 4], [0, 2])
    assert (left.probe.tolist(), left.probe_id.tolist()) == ([1, 3], [0, 1])


def test_the_interval_of_a_mean_over_folds_draws_the_same_people_in_all():
    embedding, offsets = people()
    once = gallery_probe(offsets)
    alone = score(embedding, once, (0.1,))
    twice = score_folds(embedding, [once, once], (0.1,))
    assert twice.tar_at_far["0.1"].interval == alone.tar_at_far["0.1"].interval
    folds = [gallery_probe(offsets, seed=seed) for seed in range(8)]
    low, high = score_folds(embedding, folds, (0.1,)).tar_at_far["0.1"].interval
    assert 0.5 < (high - low) / np.subtract(*alone.tar_at_far["0.1"].interval[::-1]) < 1.1  # not 1 / sqrt(8)


def test_a_share_of_two_people_lies_anywhere_and_that_of_many_alike_nowhere_else():
    assert interval_of(share_draws(np.array([True, True, False]), np.array([7, 7, 9]))) == [0, 1]
    hit = np.arange(4000) % 4 > 0
    person = np.arange(4000) // 4
    assert interval_of(share_draws(hit, person)) == [0.75, 0.75]
    low, high = interval_of(share_draws(hit, np.arange(4000)))  # each try a person: 4 standard errors of 0.0068
    assert (low, high) == pytest.approx((0.7366, 0.7634), abs=0.004)


def test_an_interval_from_an_even_sample_of_the_impostors_is_near_that_from_all(monkeypatch):
    embedding, offsets = people(identities=300)
    pairs = gallery_probe(offsets)
    crossing = AllPairs(embedding[pairs.gallery], pairs.gallery_id, embedding[pairs.probe], pairs.probe_id)
    roc, _ = crossing.roc_and_ranks()
    arguments = crossing, roc, pairs.gallery_id, pairs.probe_id, (0.02,), np.arange(300)
    every = samples(*arguments)[0][0.02]
    monkeypatch.setattr("fastmfr.evaluate.sampling.KEPT", 5000)
    some = samples(*arguments)[0][0.02]
    assert (every.kept, len(every.genuine_N)) == (1, 900)
    assert len(some.impostor_K) == pytest.approx(5000, rel=0.1)
    low, high = interval_of(tar_draws([every], 0.02))
    assert interval_of(tar_draws([some], 0.02)) == pytest.approx([low, high], abs=(high - low) / 4)
