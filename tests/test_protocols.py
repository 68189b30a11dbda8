import numpy as np
import pytest
from pack_fakes import folder, picture

from fastmfr.domains import open_domain
from fastmfr.pack.build import pack
from fastmfr.protocols import Protocol, gallery_probe, hold_out, leave_one_out, read_folds, read_pairs, shared_images

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


def test_a_link_to_a_source_is_that_source(tmp_path):
    (tmp_path / "faces").mkdir()
    (tmp_path / "link").symlink_to("faces")
    faces, link = str(tmp_path / "faces"), str(tmp_path / "link")
    with pytest.raises(ValueError, match="both 'asian' and 'unseen': its people would be counted twice"):
        Protocol({"asian": faces}, {"unseen": link})
    assert Protocol({"asian": faces}, {"asian": link}).held_out == ["asian"]


def test_images_that_target_and_source_share_are_counted_whatever_holds_them(tmp_path):
    people = {f"p{k}": [picture(2 * k), picture(2 * k + 1)] for k in range(6)}
    [source] = folder(tmp_path / "source", people)
    pack([source], tmp_path / "copy")
    [mixed] = folder(tmp_path / "mixed", {"zoe": [picture(90), people["p3"][1]], "yan": [picture(91), b"", b""]})
    [other] = folder(tmp_path / "other", {"yan": [picture(92), b"", b""]})
    sources = [open_domain(other), open_domain(source)]
    targets = [open_domain(path) for path in (tmp_path / "copy", mixed)]
    said = list(shared_images(sources, targets))
    assert len(said) == 2
    assert (
        "12 of 12 images compared of target copy are images of source source, byte for byte, the first copy/" in said[0]
    )
    assert "1 of 3 images compared of target mixed are images of source source" in said[1]
    assert "the first mixed/zoe/1.jpg = source/p3/1.jpg: its score" in said[1]
    assert "4 of 4 images compared of target copy" in next(shared_images(sources, targets, most=4))  # the same four
    assert list(shared_images([sources[0]], targets)) == []


def test_an_image_that_is_enrolled_and_looked_up_is_counted(tmp_path):
    for fold in (1, 2):
        (tmp_path / f"gallery_{fold}.txt").write_text("a/1.jpg\nb/1.jpg\nc/1.jpg\n")
        (tmp_path / f"probe_{fold}.txt").write_text("a/2.jpg\nb/2.jpg\n" + "c/1.jpg\n./b/1.jpg\n" * (fold - 1))
    images, _ = read_folds(tmp_path, "nir")
    assert len(images.notes) == 1
    assert images.notes[0].startswith(
        "2 of 6 images looked up are enrolled too, in the gallery of the same fold, the first b/1.jpg: each finds"
    )
    (tmp_path / "probe_2.txt").write_text("a/2.jpg\n")
    assert read_folds(tmp_path)[0].notes == ()


def test_pairs_of_an_image_with_itself_are_counted(tmp_path):
    (tmp_path / "pairs.txt").write_text("a/1.jpg a/2.jpg 1\na/2.jpg a/2.jpg 1\na/1.jpg b/1.jpg 0\n")
    images, _ = read_pairs(tmp_path / "pairs.txt")
    assert images.notes == (
        "1 of 3 pairs compare an image with itself, the first a/2.jpg: the figures are too good. Remove these pairs",
    )


@pytest.mark.parametrize(("domains", "message"), [(PATHS, "none of the domains"), ({"welsh": "w.rec"}, "at least two")])
def test_leave_one_out_refuses_with_a_sentence(domains, message):
    with pytest.raises(ValueError, match=message):
        leave_one_out(domains, "welsh")
