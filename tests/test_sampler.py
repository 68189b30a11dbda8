"""The grouped domain sampler: what a batch may hold, how passes join, and that it is a function of (seed, step)."""

import sys
from collections import Counter

import numpy as np
import pytest

import fastmfr
from fastmfr import _native
from fastmfr.reference_sampler import ReferenceSampler, permutation, philox
from fastmfr.sampler import GroupedDomainSampler, Pairs


def csr(counts):
    return np.concatenate([[0], np.cumsum(counts)])


def some_domains(*sizes, images=(2, 6)):
    rng = np.random.default_rng(0)
    return {f"domain{d}": csr(rng.integers(*images, size)) for d, size in enumerate(sizes)}


def same(first, second):
    return all(np.array_equal(getattr(first, name), getattr(second, name)) for name in Pairs.__slots__)


def drawn(batches, domain):
    """The identities of one domain in the order in which the batches hold them."""
    return np.concatenate([batch.identity[batch.domain == domain] for batch in batches])


# Sizes against what a step takes of a domain: many steps a pass, several passes joined, exactly 2 m - 1, and domains
# that do not divide the batch, so that the boundary of a pass falls everywhere within a step.
@pytest.mark.parametrize(
    ("sizes", "share"), [((50, 23), 4), ((7, 9), 8), ((15, 31, 16), 8), ((5,), 3), ((19, 20, 21), 20), ((3, 4), 1)]
)
def test_every_identity_comes_once_a_pass_and_never_twice_in_a_batch(sizes, share):
    sampler = GroupedDomainSampler(some_domains(*sizes), share, seed=5)
    batches = [sampler.batch(step) for step in range(400)]
    for batch in batches:
        assert len(set(zip(batch.domain, batch.identity, strict=True))) == share
    for domain, size in enumerate(sizes):
        identities = drawn(batches, domain)
        passes = identities[: len(identities) // size * size].reshape(-1, size)
        assert (np.sort(passes, axis=1) == np.arange(size)).all()
        assert len(np.unique(passes, axis=0)) > min(len(passes), size) // 2  # and in another order each time


def test_the_parts_of_a_split_keep_to_passes_too():
    sampler = GroupedDomainSampler(some_domains(11, 13, 17), 6, seed=5)
    for part, domain, size in ((0, 0, 11), (0, 2, 17), (1, 1, 13)):
        batches = [sampler.split(step, 1)[part] for step in range(200)]
        assert all(len(set(zip(batch.domain, batch.identity, strict=True))) == 6 for batch in batches)
        identities = drawn(batches, domain)
        passes = identities[: len(identities) // size * size].reshape(-1, size)
        assert (np.sort(passes, axis=1) == np.arange(size)).all()


def test_a_domain_barely_large_enough_still_gives_different_identities():
    sampler = GroupedDomainSampler(some_domains(9, 8), 16, seed=1)  # 8 of each at a step; a join would need 15
    counts = Counter()
    for step in range(300):
        batch = sampler.batch(step)
        assert len(set(zip(batch.domain, batch.identity, strict=True))) == 16
        counts.update(batch.identity[batch.domain == 0].tolist())
    assert set(counts) == set(range(9))
    assert max(counts.values()) - min(counts.values()) < 40  # 267 each on average


def test_domains_come_evenly_and_remainders_rotate():
    sampler = GroupedDomainSampler(some_domains(40, 50, 60), 8, seed=0)
    total = np.zeros(3, int)
    for step in range(50):
        here = np.bincount(sampler.batch(step).domain, minlength=3)
        total += here
        assert np.ptp(here) <= 1
        assert np.ptp(total) <= 1


def test_gallery_and_probe_are_different_images_of_the_identity():
    domains = some_domains(40, 50)
    sampler = GroupedDomainSampler(domains, 10, seed=3)
    for step in range(100):
        for pairs in (sampler.batch(step), *sampler.split(step, step % 2)):
            for d, offsets in enumerate(domains.values()):
                of = pairs.domain == d
                for image in (pairs.gallery[of], pairs.probe[of]):
                    assert (np.searchsorted(offsets, image, side="right") - 1 == pairs.identity[of]).all()
            assert (pairs.gallery != pairs.probe).all()


def test_every_pair_of_images_is_equally_likely():
    sampler = GroupedDomainSampler([csr([4] * 5)], 2, seed=8)
    counts = Counter()
    for step in range(3000):
        batch = sampler.batch(step)
        counts.update(zip((batch.gallery % 4).tolist(), (batch.probe % 4).tolist(), strict=True))
    assert len(counts) == 12  # ordered pairs of 4 images
    assert all(abs(count - 500) < 5 * 500**0.5 for count in counts.values())


def test_a_batch_is_a_function_of_seed_and_step():
    domains = some_domains(30, 40, 50)
    used = GroupedDomainSampler(domains, 7, seed=11)
    for step in (0, 5, 2, 10**9, 5):
        fresh = GroupedDomainSampler(domains, 7, seed=11)
        assert same(used.batch(step), fresh.batch(step))
        assert all(map(same, used.split(step, 2), fresh.split(step, 2)))
    assert not same(used.batch(0), used.batch(1))
    assert not same(used.batch(0), GroupedDomainSampler(domains, 7, seed=12).batch(0))


def test_streams_are_independent_of_each_other():
    sampler = GroupedDomainSampler([csr([2] * 30)] * 3, 10, seed=0)
    train_0, test_0 = sampler.split(0, 0)
    train_1, test_1 = sampler.split(0, 1)
    rows = [(pairs.identity, pairs.gallery % 2) for pairs in (sampler.batch(0), train_0, test_0, train_1, test_1)]
    for column in zip(*rows, strict=True):
        assert len({row.tobytes() for row in column}) == 5


@pytest.mark.parametrize("sizes", [(60, 70, 80), (13, 14, 15)])  # passes joined rarely; at almost every step
def test_ranks_together_draw_what_one_rank_would(sizes):
    domains = some_domains(*sizes)
    alone = GroupedDomainSampler(domains, 4 * 3, seed=2)
    ranks = [GroupedDomainSampler(domains, 4, seed=2, rank=rank, world=3) for rank in range(3)]
    for step in range(40):
        together = [(rank.batch(step), *rank.split(step, "domain1")) for rank in ranks]
        for parts, whole in zip(zip(*together, strict=True), (alone.batch(step), *alone.split(step, 1)), strict=True):
            joined = Pairs(*(np.concatenate([getattr(p, name) for p in parts]) for name in Pairs.__slots__))
            assert same(joined, whole)


def test_a_split_tests_on_one_domain_and_trains_on_the_others():
    sampler = GroupedDomainSampler(some_domains(20, 30, 40), 8, seed=4)
    for meta_test in range(3):
        train, test = sampler.split(7, meta_test)
        assert set(test.domain) == {meta_test}
        assert set(train.domain) == {0, 1, 2} - {meta_test}
        assert np.bincount(train.domain, minlength=3).tolist() == [4 * (d != meta_test) for d in range(3)]
        assert len(train.identity) == len(test.identity) == 8
    assert all(map(same, sampler.split(7, "domain2"), (train, test)))


def test_per_domain_trains_on_a_batch_of_every_meta_train_domain():
    sampler = GroupedDomainSampler(some_domains(20, 30, 40), 8, seed=4, per_domain=True)
    train, test = sampler.split(3, 1)
    assert np.bincount(train.domain).tolist() == [8, 0, 8]
    assert (len(test.identity), len(sampler.batch(3).identity)) == (8, 8)


# Domains joined at every step, seldom, and too small to join; more ranks than domains; identities with one image.
@pytest.mark.parametrize("options", [{}, {"single": "augment"}, {"per_domain": True}, {"rank": 2, "world": 3}])
@pytest.mark.parametrize("sizes", [(40, 100, 57), (26, 30, 400), (33, 34)])
def test_equals_the_numpy_reference_bit_for_bit(sizes, options):
    domains = some_domains(*sizes, images=(1, 8))
    seed = 0xFEDCBA9876543210
    sampler, reference = (make(domains, 6, seed, **options) for make in (GroupedDomainSampler, ReferenceSampler))
    for step in (*range(12), 1000, 10**9, 2**40):
        assert same(sampler.batch(step), reference.batch(step))
        for meta_test in range(len(sizes)):
            assert all(map(same, sampler.split(step, meta_test), reference.split(step, meta_test)))


@pytest.mark.parametrize(
    ("seed", "count", "index", "tag", "words"),
    [  # the known answers published with Random123
        (0, 0, 0, 0, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        (2**64 - 1, 2**64 - 1, 2**32 - 1, 2**32 - 1, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (0x299F31D0A4093822, 0x85A308D3243F6A88, 0x13198A2E, 0x03707344, "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
)
def test_philox_gives_the_published_words(seed, count, index, tag, words):
    assert " ".join(f"{int(word):08x}" for word in philox(seed, count, index, tag)) == words


@pytest.mark.parametrize("size", [1, 2, 3, 5, 16, 17, 1000, 4096, 4097])  # the grid: full, ragged, a single cell
def test_permutations_hold_every_number_once(size):
    assert np.array_equal(np.sort(permutation(size, 1, 2, 3, 4)), np.arange(size))


def test_permutations_place_every_number_everywhere_equally_often():
    orders = np.array([permutation(10, 0, count, 0, 2) for count in range(1000)])
    seen = np.array([np.bincount(orders[:, place], minlength=10) for place in range(10)])
    assert (abs(seen - 100) < 5 * 100**0.5).all()


def test_identities_with_one_image_are_dropped_and_counted():
    domains = {"a": csr([1, 3, 1, 2, 2, 0]), "b": csr([2] * 4)}
    sampler = GroupedDomainSampler(domains, 4, seed=0)
    assert sampler.dropped == {"a": 3, "b": 0}
    assert set(drawn([sampler.batch(step) for step in range(20)], 0)) == {1, 3, 4}


def test_identities_with_one_image_are_paired_with_themselves_on_request():
    sampler = GroupedDomainSampler([csr([1, 3, 1, 2, 0])], 4, seed=0, single="augment")
    assert sampler.dropped == {"0": 1}  # the one without any image
    batch = sampler.batch(0)
    assert sorted(batch.identity) == [0, 1, 2, 3]
    assert ((batch.gallery == batch.probe) == np.isin(batch.identity, [0, 2])).all()


@pytest.mark.parametrize(
    ("counts", "single", "sentence"),
    [
        ([1] * 11, "drop", r"none of the 11 identities of domain 'b' has a second image, .* by single=augment"),
        ([0, 1], "drop", r"none of the 2 identities of domain 'b' has a second image"),
        ([0, 0], "augment", r"none of the 2 identities of domain 'b' has an image; leave the domain out$"),
    ],
)
def test_a_domain_without_any_pair_is_refused_for_that(counts, single, sentence):
    with pytest.raises(ValueError, match=sentence):
        GroupedDomainSampler({"a": csr([2, 2]), "b": csr(counts)}, 2, seed=0, single=single)


def test_a_small_domain_is_named_with_what_was_asked():
    domains = {"european": csr([2] * 50), "asian": csr([2] * 9 + [1]), "african": csr([2] * 50)}
    with pytest.raises(ValueError, match=r"domain 'asian' has 9 identities with two images or more, but .* up to 10"):
        GroupedDomainSampler(domains, 30, seed=0)
    sampler = GroupedDomainSampler(domains, 10, seed=0)
    sampler.split(0, "european")  # takes 5 of them at a time
    with pytest.raises(ValueError, match=r"'asian' has 9 .* up to 10 .*lower batch_identities .*augment"):
        sampler.split(0, "asian")
    GroupedDomainSampler(domains, 10, seed=0, single="augment").split(0, "asian")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"batch_identities": 0}, "batch_identities must be a whole number from 1"),
        ({"batch_identities": 2.0}, "batch_identities must be a whole number"),
        ({"batch_identities": 2**30, "world": 4}, r"must stay below 2\*\*31"),
        ({"seed": -1}, "seed must be a whole number from 0"),
        ({"rank": 1}, "rank must be a whole number from 0 up to 0"),
        ({"single": "keep"}, "single must be one of drop, augment, got 'keep'"),
        ({"offsets_by_domain": {}}, "at least one domain"),
        ({"offsets_by_domain": {"a": [0]}}, r"'a': want .* got int64 of shape \(1,\)"),
        ({"offsets_by_domain": {"a": [0.0, 2.0]}}, "'a': want whole-number offsets"),
        ({"offsets_by_domain": {"a": [1, 3]}}, "'a' must begin with 0"),
        ({"offsets_by_domain": {"a\udce9": [1, 3]}}, "'a\udce9' must begin with 0"),  # a name of bytes beyond UTF-8
        ({"offsets_by_domain": {"a": [0, 3, 2]}}, "'a' must ascend by less than 2.*: 2 follows 3"),
    ],
)
def test_refuses_arguments_with_a_sentence(change, sentence):
    arguments = {"offsets_by_domain": {"a": csr([2] * 9)}, "batch_identities": 2, "seed": 0} | change
    with pytest.raises(ValueError, match=sentence):
        GroupedDomainSampler(**arguments)


def test_refuses_steps_and_splits_that_do_not_exist():
    one, two = (GroupedDomainSampler(some_domains(*[9] * n), 2, seed=0) for n in (1, 2))
    with pytest.raises(ValueError, match="step must be a whole number from 0"):
        one.batch(-1)
    with pytest.raises(ValueError, match="is beyond what the sampler can count"):
        one.batch(2**62)
    with pytest.raises(ValueError, match="a split needs two domains or more"):
        one.split(0, 0)
    with pytest.raises(ValueError, match="no domain 'domain7' to test on; the domains are domain0, domain1"):
        two.split(0, "domain7")
    with pytest.raises(ValueError, match="meta_test must be a whole number from 0 up to 1, got 2"):
        two.split(0, 2)


def test_what_the_caller_does_to_the_offsets_later_changes_no_draw():
    offsets = {"a": csr([1, 3, 2, 2, 5]), "b": csr([2] * 5)}
    sampler = GroupedDomainSampler(offsets, 4, seed=0)
    before = [sampler.batch(0), *sampler.split(3, "b")]
    for values in offsets.values():
        values[1:] = 10**12
    assert all(map(same, before, [sampler.batch(0), *sampler.split(3, "b")]))


def test_the_extension_refuses_domains_that_are_not_there():
    def make(*offsets, rank=0, world=1):
        return _native.Sampler([str(d) for d in range(len(offsets))], offsets, 2, 0, rank, world, False, False)

    two = make(csr([2] * 9), csr([1, 2, 2]))
    assert [two.dropped(domain) for domain in range(2)] == [0, 1]
    for domain in (2, 99, 2**32 - 1):
        with pytest.raises(IndexError, match=f"domain {domain} was asked for; there are 2"):
            two.dropped(domain)
        with pytest.raises(ValueError, match=rf"meta_test must be in \[0, 2\), got {domain}"):
            two.split(0, domain)
    for offsets in ([], [0]):
        with pytest.raises(ValueError, match="identities; a domain holds 1 to"):
            make(np.array(offsets, np.int64))
    with pytest.raises(ValueError, match="rank must be in"):
        make(csr([2] * 9), world=0)
    with pytest.raises(ValueError, match="one name for each array of offsets"):
        _native.Sampler(["a", "b"], [csr([2] * 9)], 2, 0, 0, 1, False, False)


def test_says_how_to_build_a_missing_extension(monkeypatch):
    monkeypatch.delattr(fastmfr, "_native", raising=False)
    monkeypatch.delitem(sys.modules, "fastmfr.native", raising=False)
    monkeypatch.setitem(sys.modules, "fastmfr._native", None)
    with pytest.raises(ImportError, match="the compiled extension is not built"):
        GroupedDomainSampler([csr([2] * 9)], 2, seed=0)
