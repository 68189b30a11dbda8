"""People of several domains, and domains drawn by weight: what the grouped sampler then draws, and how often."""

from itertools import combinations

import numpy as np
import pytest
from test_sampler import csr, drawn, same, some_domains

from fastmfr.reference_sampler import ReferenceSampler, keep_apart
from fastmfr.sampler import GroupedDomainSampler, Pairs, turns_of

SEED = 0xFEDCBA9876543210


def overlapping(*ranges):
    """The people of domains, by the first and the last of a range."""
    return [np.arange(*ends) for ends in ranges]


def held(batch, people):
    """The person of each identity of a batch."""
    return [int(people[d][k]) for d, k in zip(batch.domain, batch.identity, strict=True)]


# The same people in both; some in two and some in all three; a domain whose people are all in another one; two labels
# of one person within a domain. Batches up to the largest that these people allow.
CASES = {
    "the same people": ((20, 20), overlapping((0, 20), (0, 20)), 20),
    "chains": ((10, 10, 10), overlapping((0, 10), (4, 14), (8, 18)), 18),
    "within a larger one": ((8, 6), overlapping((0, 8), (2, 8)), 8),
    "two labels in a domain": ((9, 9), [np.arange(9) // 2, np.arange(20, 29)], 10),
}


@pytest.mark.parametrize("options", [{}, {"per_domain": True}, {"rank": 1, "world": 2}, {"single": "augment"}])
@pytest.mark.parametrize("case", CASES)
def test_people_of_several_domains_are_drawn_as_the_numpy_reference_draws_them(case, options):
    sizes, people, most = CASES[case]
    share = most // 2 // options.get("world", 1) // (2 if "per_domain" in options else 1)
    domains = some_domains(*sizes)
    sampler, reference = (
        make(domains, share, SEED, people=people, **options) for make in (GroupedDomainSampler, ReferenceSampler)
    )
    for step in (*range(8), 1000, 2**40):
        assert same(sampler.batch(step), reference.batch(step))
        for meta_test in range(len(sizes)):
            assert all(map(same, sampler.split(step, meta_test), reference.split(step, meta_test)))


@pytest.mark.parametrize("case", CASES)
def test_no_batch_holds_a_person_twice_up_to_the_largest_that_fits(case):
    sizes, people, most = CASES[case]
    sampler = GroupedDomainSampler(some_domains(*sizes), most, seed=3, people=people)
    for step in range(200):
        batch = sampler.batch(step)
        assert len(set(held(batch, people))) == most
        assert np.ptp(np.bincount(batch.domain, minlength=len(sizes))) <= 1
    with pytest.raises(ValueError, match=r"some people are in several domains, and a batch takes up to .*lower batch"):
        GroupedDomainSampler(some_domains(*sizes), most + len(sizes), seed=3, people=people)


def test_no_half_of_a_split_holds_a_person_twice_and_the_splits_that_would_are_refused():
    people = overlapping((0, 20), (0, 20), (30, 60))
    sampler = GroupedDomainSampler(some_domains(20, 20, 30), 20, seed=3, people=people)
    for step in range(100):
        for meta_test in range(3):
            for half in sampler.split(step, meta_test):
                assert len(set(held(half, people))) == 20
    more = GroupedDomainSampler(some_domains(20, 22, 30), 22, seed=3, people=overlapping((0, 20), (0, 22), (30, 60)))
    with pytest.raises(ValueError, match="takes up to 11 of 'domain0', 11 of 'domain1'"):
        GroupedDomainSampler(some_domains(20, 20, 30), 22, seed=3, people=people).split(7, 2)
    more.split(7, 2)


def test_ranks_together_hold_no_person_twice():
    people = overlapping((0, 20), (0, 20))
    domains = some_domains(20, 20)
    alone = GroupedDomainSampler(domains, 12, seed=2, people=people)
    ranks = [GroupedDomainSampler(domains, 4, seed=2, rank=rank, world=3, people=people) for rank in range(3)]
    for step in range(40):
        parts = [rank.batch(step) for rank in ranks]
        joined = Pairs(*(np.concatenate([getattr(part, name) for part in parts]) for name in Pairs.__slots__))
        assert same(joined, alone.batch(step))
        assert len(set(held(joined, people))) == 12


def test_people_of_several_domains_come_as_often_in_each_and_nearly_as_often_as_others():
    people = overlapping((0, 30), (20, 50))  # ten of fifty are in both
    sampler = GroupedDomainSampler(some_domains(30, 30), 16, seed=5, people=people)
    batches = [sampler.batch(step) for step in range(3000)]
    counts = [np.bincount(drawn(batches, domain), minlength=30) for domain in range(2)]
    both = [counts[0][20:].mean(), counts[1][:10].mean()]
    alone = [counts[0][:20].mean(), counts[1][10:].mean()]
    assert abs(both[0] - both[1]) < 30  # of some 800: neither domain is preferred
    assert 0.85 < np.mean(both) / np.mean(alone) < 1


def test_people_who_are_all_different_change_no_draw():
    domains = some_domains(20, 30)
    plain, numbered = (
        GroupedDomainSampler(domains, 8, seed=2, people=people)
        for people in (None, [np.arange(20) + 7, np.arange(100, 130)])
    )
    assert all(same(plain.batch(step), numbered.batch(step)) for step in range(50))


def test_picks_are_found_wherever_there_are_any():
    rng = np.random.default_rng(0)
    for _ in range(300):
        groups = int(rng.integers(1, 4))
        people = [rng.integers(0, 8, int(rng.integers(1, 7))).tolist() for _ in range(groups)]
        group = rng.integers(0, groups, int(rng.integers(1, 8))).tolist()
        orders = [rng.permutation(len(own)) for own in people]
        pick = np.array([int(rng.integers(len(people[g]))) for g in group])
        before = pick.copy()
        found = keep_apart(orders, people, group, int(rng.integers(len(group))), pick)
        chosen = [people[g][k] for g, k in zip(group, pick, strict=True)]
        # Hall: any slots together can take at least as many people as they are
        fits = all(
            len(set().union(*(people[group[slot]] for slot in some))) >= len(some)
            for many in range(1, len(group) + 1)
            for some in combinations(range(len(group)), many)
        )
        assert found == fits
        assert (len(set(chosen)) == len(group)) == fits
        if len({people[g][k] for g, k in zip(group, before, strict=True)}) == len(group):
            assert (pick == before).all()


@pytest.mark.parametrize(
    ("people", "sentence"),
    [
        ([np.arange(9)], r"want people as one whole number for each of the 9, 9 identities .* got int64 \(9,\)"),
        ([np.arange(9), np.arange(8)], r"got int64 \(9,\), int64 \(8,\)"),
        ([np.arange(9), np.arange(9.0)], r"got int64 \(9,\), float64 \(9,\)"),
    ],
)
def test_refuses_people_that_are_not_those_of_the_domains(people, sentence):
    with pytest.raises(ValueError, match=sentence):
        GroupedDomainSampler([csr([2] * 9)] * 2, 2, seed=0, people=people)


# A round of turns that batches divide and do not; passes joined at every step; too small to join; more ranks than one.
@pytest.mark.parametrize("options", [{}, {"rank": 1, "world": 2}, {"people": overlapping((0, 40), (30, 130), (5, 62))}])
@pytest.mark.parametrize("weights", [(1, 2, 3), (5, 1, 1), (0.001, 1, 1)])
@pytest.mark.parametrize("sizes", [(40, 100, 57)])
def test_domains_by_weight_are_drawn_as_the_numpy_reference_draws_them(sizes, weights, options):
    domains = some_domains(*sizes, images=(1, 8))
    sampler, reference = (
        make(domains, 6, SEED, weights=weights, **options) for make in (GroupedDomainSampler, ReferenceSampler)
    )
    for step in (*range(60), 1000, 2**40):
        assert same(sampler.batch(step), reference.batch(step))
    assert all(map(same, sampler.split(3, 1), reference.split(3, 1)))


def test_domains_come_in_proportion_to_their_weights_and_their_people_once_a_pass():
    sampler = GroupedDomainSampler(some_domains(40, 50, 60), 8, seed=0, weights=[1, 2, 5])
    batches = [sampler.batch(step) for step in range(512)]
    counts = np.bincount(np.concatenate([batch.domain for batch in batches]), minlength=3)
    assert counts.tolist() == [512, 1024, 2560]
    for batch in batches:
        assert abs(np.bincount(batch.domain, minlength=3) - [1, 2, 5]).max() <= 1
        assert len(set(zip(batch.domain, batch.identity, strict=True))) == 8
    for domain, size in enumerate((40, 50, 60)):
        identities = drawn(batches, domain)
        passes = identities[: len(identities) // size * size].reshape(-1, size)
        assert (np.sort(passes, axis=1) == np.arange(size)).all()


def test_equal_weights_change_no_draw_and_splits_know_no_weights():
    domains = some_domains(20, 30, 40)
    plain, equal, uneven = (
        GroupedDomainSampler(domains, 6, seed=2, weights=weights) for weights in (None, [2, 2, 2], [1, 2, 3])
    )
    for step in range(30):
        assert same(plain.batch(step), equal.batch(step))
        assert not same(plain.batch(step), uneven.batch(step))
        assert all(map(same, plain.split(step, 1), uneven.split(step, 1)))


def test_a_domain_that_is_too_small_for_its_weight_is_named():
    domains = {"small": csr([2] * 9), "large": csr([2] * 90)}
    GroupedDomainSampler(domains, 16, seed=0)
    with pytest.raises(
        ValueError, match=r"domain 'small' has 9 identities .* but a batch takes up to 12 different ones"
    ):
        GroupedDomainSampler(domains, 16, seed=0, weights=[3, 1])


def test_turns_give_every_domain_a_place_and_spread_the_places():
    turns = turns_of(["a", "b", "c"], [1, 1e-9, 3])
    assert np.bincount(turns).tolist() == [256, 1, 768]
    apart = np.diff(np.flatnonzero(turns == 0))
    assert (apart.min(), apart.max()) == (4, 5)  # 1025 slots: 4 on average
    assert np.bincount(turns_of([str(d) for d in range(100)], range(1, 101))).min() > 0


@pytest.mark.parametrize("weights", [[1], [1, 0], [1, -1], [1, np.inf], [1, np.nan], [1, 2, 3]])
def test_refuses_weights_that_are_none(weights):
    with pytest.raises(ValueError, match="want a weight above 0 for each of the domains a, b, got "):
        GroupedDomainSampler({"a": csr([2] * 9), "b": csr([2] * 9)}, 2, seed=0, weights=weights)
