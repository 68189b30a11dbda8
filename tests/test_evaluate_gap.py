"""The gap between domains, on embeddings whose gap is known."""

import json

import numpy as np
import pytest
import torch

from fastmfr.evaluate import domain_gap, draw_evenly
from fastmfr.evaluate import gap as gap_module
from fastmfr.results import DomainGap, from_json, to_json


def domain(shift=0.0, people=30, images=4, within=0.3, seed=0):
    """(embeddings, people): everyone a direction of their own in 32 dimensions, moved by `shift` along the last one."""
    rng = np.random.default_rng(seed)
    person = np.repeat(np.arange(people), images)
    rows = rng.normal(size=(people, 32))[person] + within * rng.normal(size=(len(person), 32))
    rows[:, -1] += shift
    return torch.from_numpy(rows).float(), person


def by_hand(embeddings, far):
    """(share of pairs across domains among the false accepts, among all impostor pairs), pair by pair."""
    rows = torch.cat([torch.nn.functional.normalize(rows) for rows, _ in embeddings.values()]).double()
    who = [(name, int(person)) for name, (_, people) in embeddings.items() for person in people]
    pairs = sorted(
        (-float(rows[i] @ rows[j]), who[i][0] != who[j][0])
        for i in range(len(who))
        for j in range(i)
        if who[i] != who[j]
    )
    accepted = pairs[: int(far * len(pairs))]
    return np.mean([across for _, across in accepted]), np.mean([across for _, across in pairs])


def test_domains_that_are_the_same_are_not_told_apart():
    found = domain_gap({name: domain(seed=seed, people=100) for seed, name in enumerate("abc")}, far=1e-2)
    assert abs(found.told - 1 / 3) < 0.08
    assert found.told_by_chance == pytest.approx(1 / 3)
    assert found.across == pytest.approx(found.across_of_all, abs=0.1)
    for line, by_chance in zip(found.distance, found.distance_by_chance, strict=True):
        assert all(0.7 * chance <= distance <= 1.3 * chance for distance, chance in zip(line, by_chance, strict=True))


def test_a_domain_that_lies_apart_is_told_and_keeps_its_false_accepts():
    embeddings = {"a": domain(), "b": domain(seed=1), "far": domain(shift=20, seed=2)}
    found = domain_gap(embeddings, far=1e-2, unseen=["far", "elsewhere"])
    assert found.unseen == [False, False, True]
    (a_b, a_far), b_far = found.distance[0][1:], found.distance[1][2]
    assert a_b < 0.35 < 0.9 < min(a_far, b_far) <= 2
    assert found.distance_by_chance[0][2] < 0.3
    assert found.told > 0.6
    assert found.across == 0
    assert found.across_of_all > 0.6
    assert found.false_accepts_of[2][2] == found.false_accepts


@pytest.mark.parametrize("block", [2**22, 500, 1])
def test_false_accepts_are_those_of_all_pairs_counted_one_by_one(block, monkeypatch):
    monkeypatch.setattr(gap_module, "BLOCK", block)
    embeddings = {"a": domain(people=12), "b": domain(1.5, people=8, images=3, seed=1)}
    across, across_of_all = by_hand(embeddings, 0.05)
    found = domain_gap(embeddings, far=0.05)
    pairs = 72 * 71 // 2 - 12 * 6 - 8 * 3
    assert (found.impostors, found.false_accepts) == (pairs, int(0.05 * pairs))
    assert (found.across, found.across_of_all) == pytest.approx((across, across_of_all))
    assert found.far == pytest.approx(0.05, abs=1e-3)
    assert sum(map(sum, found.false_accepts_of)) == found.false_accepts


def test_everyone_weighs_the_same_in_a_mean_and_lengths_do_not_count():
    rows = torch.eye(4)[[0, 0, 0, 1, 2, 3]] * torch.tensor([1.0, 5, 2, 3, 9, 4])[:, None]
    found = domain_gap({"a": (rows[:4], np.array([7, 7, 7, 3])), "b": (rows[4:], np.array([0, 1]))})
    assert found.distance[0][1] == pytest.approx(1)  # (1/2, 1/2, 0, 0) to (0, 0, 1/2, 1/2)
    assert (found.people, found.images) == ([2, 2], [4, 2])


@pytest.mark.parametrize("far", [1e-9, 1e-3])
def test_a_rate_finer_than_the_data_gives_the_finest_there_is(far):
    found = domain_gap({"a": domain(people=2, images=1), "b": domain(people=2, images=1, seed=1)}, far)
    assert (found.impostors, found.false_accepts) == (6, 1)
    assert found.far == pytest.approx(1 / 6)


def test_a_collapsed_model_has_no_gap_and_still_gives_figures():
    found = domain_gap({name: (torch.ones(20, 8), np.arange(20) // 2) for name in "ab"})
    assert found.distance[0][1] == found.distance_by_chance[0][1] == 0
    assert found.far == 1
    assert found.across == found.across_of_all


def test_it_equals_itself_after_json():
    found = domain_gap({"a": domain(), "b": domain(1)})
    assert from_json(DomainGap, json.loads(json.dumps(to_json(found)))) == found


def test_refuses_what_has_no_gap():
    one = torch.ones(3, 4), np.zeros(3, int)
    with pytest.raises(ValueError, match="want two domains or more to find a gap between, got a"):
        domain_gap({"a": domain()})
    with pytest.raises(ValueError, match="want images of two people or more of 'b', got 1; leave the domain out"):
        domain_gap({"a": domain(), "b": one})
    with pytest.raises(ValueError, match="want the person of every image of 'b', got 3 rows and 2"):
        domain_gap({"a": domain(), "b": (torch.ones(3, 4), np.arange(2))})


def test_images_are_drawn_evenly_over_people():
    offsets = np.array([0, 50, 51, 54, 60])  # 50, 1, 3 and 6 images
    drawn = draw_evenly(offsets, most=10, seed=3)
    assert len(set(drawn.tolist())) == 10
    assert (np.diff(drawn) > 0).all()
    assert np.bincount(np.searchsorted(offsets, drawn, side="right") - 1).tolist() == [3, 1, 3, 3]
    assert np.array_equal(drawn, draw_evenly(offsets, most=10, seed=3))
    assert not np.array_equal(drawn, draw_evenly(offsets, most=10, seed=4))
    assert np.array_equal(draw_evenly(offsets, most=100), np.arange(60))


def test_with_more_people_than_images_wanted_each_gives_one():
    drawn = draw_evenly(np.arange(0, 301, 3), most=40, seed=1)
    assert len(drawn) == len(set((drawn // 3).tolist())) == 40
