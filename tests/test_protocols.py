import numpy as np
import pytest

from fastmfr.protocols import Protocol, gallery_probe, hold_out, leave_one_out

COUNTS = [3, 1, 4, 0, 2, 6]  # several probes, gallery only, several, nobody, one probe, several
OFFSETS = np.append(0, np.cumsum(COUNTS))
PATHS = {"african": "a.rec", "asian": "b.rec", "indian": "c.rec"}


def identity_of(image):
    return np.searchsorted(OFFSETS, image, side="right") - 1


def test_enrols_one_image_of_each_person_and_looks_up_the_others():
    pairs = gallery_probe(OFFSETS)
    assert pairs.gallery_id.tolist() == [0, 1, 2, 4, 5]
    assert np.array_equal(np.bincount(pairs.probe_id, minlength=6), [2, 0, 3, 0, 1, 5])
    assert np.array_equal(np.sort(np.concatenate([pairs.gallery, pairs.probe])), np.arange(sum(COUNTS)))
    assert np.array_equal(identity_of(pairs.gallery), pairs.gallery_id)
    assert np.array_equal(identity_of(pairs.probe), pairs.probe_id)
    assert {array.dtype for array in vars(pairs).values()} == {np.dtype(np.int64)}


def test_draws_by_seed_and_evenly_among_a_persons_images():
    offsets = np.arange(0, 4001, 4)
    first, again, other = (gallery_probe(offsets, seed=seed) for seed in (0, 0, 1))
    assert np.array_equal(first.gallery, again.gallery)
    assert np.array_equal(first.probe, again.probe)
    assert not np.array_equal(first.gallery, other.gallery)
    share = np.bincount(first.gallery % 4) / 1000
    assert np.abs(share - 0.25).max() < 0.06  # over four standard errors


def test_a_persons_draw_does_not_depend_on_who_else_there_is():
    small, large = gallery_probe(OFFSETS, probes_per_identity=2), gallery_probe(np.append(OFFSETS, 90), seed=0)
    assert np.array_equal(small.gallery, large.gallery[:5])
    assert np.array_equal(small.probe, gallery_probe(np.append(OFFSETS, 90), probes_per_identity=2).probe[:7])


def test_keeps_at_most_the_probes_asked_for():
    pairs = gallery_probe(OFFSETS, probes_per_identity=2)
    assert np.array_equal(np.bincount(pairs.probe_id, minlength=6), [2, 0, 2, 0, 1, 2])
    assert not set(pairs.gallery) & set(pairs.probe)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(offsets=np.arange(5)), "none of the 4 people has a second image"),
        (dict(offsets=OFFSETS, probes_per_identity=0), "want at least 1 probe"),
        (dict(offsets=OFFSETS[::-1]), "never fall"),
        (dict(offsets=OFFSETS.astype(float)), "whole numbers"),
    ],
)
def test_gallery_probe_refuses_with_a_sentence(arguments, message):
    with pytest.raises(ValueError, match=message):
        gallery_probe(**arguments)


def test_held_out_people_are_scored_and_not_trained_on():
    train, scored = hold_out(100, 0.3, seed=7)
    assert (len(train), len(scored)) == (70, 30)
    assert np.array_equal(np.sort(np.concatenate([train, scored])), np.arange(100))
    assert (np.diff(train) > 0).all()
    assert (np.diff(scored) > 0).all()
    assert np.array_equal(scored, hold_out(100, 0.3, seed=7)[1])
    assert not np.array_equal(scored, hold_out(100, 0.3, seed=8)[1])


@pytest.mark.parametrize(
    ("identities", "fraction", "message"),
    [
        (10, 0.1, "trains on 9 and scores 1"),
        (10, 0.9, "trains on 1 and scores 9"),
        (3, 0.5, "at least 2"),
        (10, 0.0, "above 0 and below 1"),
        (10, 1.0, "above 0 and below 1"),
    ],
)
def test_hold_out_refuses_with_a_sentence(identities, fraction, message):
    with pytest.raises(ValueError, match=message):
        hold_out(identities, fraction, seed=0)


def test_leaves_one_domain_out():
    protocol = leave_one_out(PATHS, "asian")
    assert protocol.sources == {"african": "a.rec", "indian": "c.rec"}
    assert protocol.targets == {"asian": "b.rec"}
    assert protocol.held_out == []


def test_a_domain_on_both_sides_is_held_out_by_people():
    assert Protocol(PATHS, {"indian": "./c.rec", "glasses": "d.rec"}).held_out == ["indian"]


@pytest.mark.parametrize(
    ("sources", "targets", "message"),
    [
        ({}, {"indian": "c.rec"}, "at least one source"),
        ({"indian": "c.rec"}, {"indian": "d.rec"}, "two different names"),
        ({"indian": "c.rec"}, {"indien": "c.rec"}, "both 'indian' and 'indien'"),
        ({"a": "c.rec", "b": "./c.rec"}, {}, "counted twice"),
        ({"a": ""}, {}, "NAME: PATH"),
        ({" ": "c.rec"}, {}, "NAME: PATH"),
    ],
)
def test_a_protocol_that_would_mix_its_sides_is_refused(sources, targets, message):
    with pytest.raises(ValueError, match=message):
        Protocol(sources, targets)


@pytest.mark.parametrize(("domains", "message"), [(PATHS, "none of the domains"), ({"welsh": "w.rec"}, "at least two")])
def test_leave_one_out_refuses_with_a_sentence(domains, message):
    with pytest.raises(ValueError, match=message):
        leave_one_out(domains, "welsh")
