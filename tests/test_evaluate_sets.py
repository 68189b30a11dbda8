import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from evaluation_fakes import IMAGES, PEOPLE, class_folder, face, lfw_bin, trials
from torch import nn

from fastmfr.decode import Preprocess, decode_reference
from fastmfr.domains import open_domain
from fastmfr.evaluate import embed, embed_domain, open_sets, score, score_domain, score_pairs, score_set
from fastmfr.evaluate.score import template_embeddings
from fastmfr.protocols import PairList, TemplateSet, gallery_probe, read_bin, read_pairs
from fastmfr.protocols.drawing import ListSettings, write_lists
from fastmfr.results import Scores, from_json, to_json

LOOK = Preprocess(size=16)


class Pixels(nn.Module):
    """A network that sees the colours of the picture's left half, not of the right: mirror images differ."""

    def forward(self, image_B3HW):
        return nn.functional.adaptive_avg_pool2d(image_B3HW[..., :8], (4, 2)).flatten(1)


def embedding_of(encoded, mirror):
    images = torch.stack([torch.from_numpy(decode_reference(one, LOOK, False)) for one in encoded])
    return embed(Pixels(), [images], "cpu", mirror=mirror)


def only(name, path, **options):
    (found,) = open_sets(name, path, **options)
    return found


def test_mirror_images_are_added_set_beside_or_left_out():
    torch.manual_seed(0)
    image, net = torch.randn(5, 3, 16, 16), Pixels()
    plain, mirrored = net(image), net(image.flip(3))
    for mirror, want in (("sum", plain + mirrored), ("concat", torch.cat([plain, mirrored], 1)), ("none", plain)):
        assert torch.allclose(embed(net, image.split(2), "cpu", mirror=mirror, normalise=False), want)
        assert torch.allclose(embed(net, [image], "cpu", mirror=mirror), nn.functional.normalize(want))
    with pytest.raises(ValueError, match="want mirror out of concat, sum, none, got 'twice'"):
        embed(net, [image], "cpu", mirror="twice")


@pytest.mark.parametrize("batch_images", [7, 500])
def test_a_bin_is_scored_as_its_images_decoded_one_by_one(tmp_path, batch_images):
    found = only("lfw", lfw_bin(tmp_path / "lfw.bin"))
    told = []
    got = score_set(
        Pixels(), found, LOOK, "cpu", far=(0.1,), batch_images=batch_images, progress=lambda *done: told.append(done)
    )
    encoded = [face(*one) for first, second, _ in trials() for one in (first, second)]
    want = score_pairs(embedding_of(encoded, "sum"), read_bin(tmp_path / "lfw.bin")[1], (0.1,))
    assert (got.images, got.mirror, got.bad_images) == (120, "sum", {})
    assert got.auc == pytest.approx(want.auc, abs=1e-3)
    assert got.accuracy["grid_0.01"].mean == pytest.approx(want.accuracy["grid_0.01"].mean, abs=0.02)
    assert got.accuracy["grid_0.01"].mean > 0.8
    assert got == from_json(Scores, json.loads(json.dumps(to_json(got), allow_nan=False)))
    assert (told[0], told[-1]) == ((0, 120), (120, 120))


def test_pairs_with_images_that_cannot_be_decoded_are_left_out_and_named(tmp_path):
    path = lfw_bin(tmp_path / "lfw.bin")
    whole = score_set(Pixels(), only("lfw", path), LOOK, "cpu", far=(0.1,))
    broken = only("lfw", path)
    broken.images._encoded[6] = b"no picture"  # the first impostor pair
    got = score_set(Pixels(), broken, LOOK, "cpu", far=(0.1,))
    assert got.bad_images == {"6": "neither JPEG nor PNG, BMP, WebP or TIFF"}
    assert (got.genuine, got.impostors) == (whole.genuine, whole.impostors - 1)


def test_a_domain_with_an_image_that_cannot_be_decoded_is_scored_without_it(tmp_path):
    class_folder(tmp_path)
    domain = open_domain(tmp_path)
    pairs = gallery_probe(domain.offsets)
    probe, gallery = domain.key(int(pairs.probe[0])), domain.key(int(pairs.gallery[5]))
    for key in (probe, gallery):
        (tmp_path / key).write_bytes(face(0, 0)[:-200])
    got = score_domain(Pixels(), domain, pairs, LOOK, "cpu", far=(0.1,))
    assert sorted(got.bad_images) == sorted(f"{domain.name}/{key}" for key in (probe, gallery))
    assert (got.gallery, got.probes, got.probes_without_mate) == (PEOPLE - 1, PEOPLE * (IMAGES - 1) - 1, 2)


def test_a_class_folder_is_scored_with_one_drawn_image_a_person_enrolled(tmp_path):
    class_folder(tmp_path)
    got = score_set(Pixels(), only("faces", tmp_path, seed=3), LOOK, "cpu", far=(0.1,))
    domain = open_domain(tmp_path)
    embedding, _ = embed_domain(Pixels(), domain, LOOK, "cpu")
    want = score(embedding, gallery_probe(domain.offsets, seed=3), (0.1,))
    assert got.mirror == "concat"
    assert replace(got, images=None, mirror=None, bad_images=None) == want


def test_lists_that_split_wrote_are_scored_alone_and_in_folds(tmp_path):
    domain = open_domain(class_folder(tmp_path / "faces"))
    write_lists(domain, ListSettings(scored=8), tmp_path / "one")
    write_lists(domain, ListSettings(scored=8, folds=3), tmp_path / "three")
    one = score_set(Pixels(), only("one", tmp_path / "one"), LOOK, "cpu", far=(0.1, 1e-3))
    assert (one.gallery, one.probes) == (8, 16)
    assert one.tar_at_far["0.1"].tar > 0.9
    three = score_set(Pixels(), only("three", tmp_path / "three"), LOOK, "cpu", far=(0.1, 1e-3))
    tars = [fold.tar_at_far["0.1"].tar for fold in three.folds]
    assert three.tar_at_far["0.1"].tar == pytest.approx(np.mean(tars))
    assert three.tar_at_far["0.1"].std == pytest.approx(np.std(tars))
    low, high = three.tar_at_far["0.1"].interval
    assert low <= np.mean(tars) <= high
    assert three.rank1 == pytest.approx(np.mean([fold.rank1 for fold in three.folds]))
    assert three.tar_at_far["0.001"].refused.endswith("there are 112 (so in 3 of 3 folds)")
    assert len(three.folds) == 3
    assert three == from_json(Scores, json.loads(json.dumps(to_json(three), allow_nan=False)))


def test_a_folder_with_lists_and_pairs_is_two_sets(tmp_path):
    """As CACD-VS: gallery and probe, and 4000 pairs with accuracy and AUC."""
    class_folder(tmp_path)
    write_lists(open_domain(tmp_path), ListSettings(scored=6), tmp_path)
    (tmp_path / "pairs.txt").write_text("p00/0.jpg p00/1.jpg 1\np00/0.jpg p01/1.jpg 0\n")
    lists, pairs = open_sets("cacd-vs", tmp_path)
    assert (lists.name, len(lists.folds), pairs.name) == ("cacd-vs", 1, "cacd-vs/pairs")
    assert score_set(Pixels(), pairs, LOOK, "cpu", far=(0.5,)).auc in (0, 1)
    (tmp_path / "gallery.txt").unlink()
    (tmp_path / "probe.txt").unlink()
    assert only("cacd-vs", tmp_path).name == "cacd-vs"
    assert np.array_equal(only("x", tmp_path / "pairs.txt").pairs.first, read_pairs(tmp_path / "pairs.txt")[1].first)


def test_rfw_is_four_sets(tmp_path):
    for race in ("African", "Asian", "Caucasian", "Indian"):
        class_folder(tmp_path / "test" / "data" / race, people=2, form="m.{person}/m.{person}_000{image}.jpg")
        listing = tmp_path / "test" / "txts" / race / f"{race}_pairs.txt"
        listing.parent.mkdir(parents=True)
        listing.write_text("1\t1\nm.0\t0\t2\nm.0\t1\tm.1\t2\n")
    sets = list(open_sets("rfw", tmp_path))
    assert [found.name for found in sets] == ["rfw/african", "rfw/asian", "rfw/caucasian", "rfw/indian"]
    assert [score_set(Pixels(), found, LOOK, "cpu", far=(0.5,)).images for found in sets] == [4] * 4


def test_templates_average_their_media_and_media_their_images():
    embedding = torch.tensor([[3.0, 0], [1, 4], [0, 2], [0, 1], [1, 0]])
    pairs = PairList(np.array([0]), np.array([1]), np.array([True]))
    # template 0: medium 0 of images 0 and 1, medium 1 of image 2; template 1: medium 2 of image 3
    templates = TemplateSet(np.array([0, 1, 2, 3]), np.array([0, 0, 1, 2]), np.array([0, 0, 1]), 2, pairs)
    want = torch.tensor([[2.0, 4], [0, 1]])
    got = template_embeddings(embedding, templates)
    assert torch.allclose(got, nn.functional.normalize(want).double())
    assert torch.allclose(template_embeddings(embedding, templates.without([0, 1]))[0], torch.tensor([0.0, 1]).double())


def test_a_folder_of_templates_is_scored_with_embeddings_as_long_as_the_network_makes_them(tmp_path):
    class_folder(tmp_path / "images", people=4, form="{person}{image}.jpg")
    named = [f"{p}{k}.jpg {2 * p + k // 2} {k}\n" for p in range(4) for k in range(3)]
    (tmp_path / "tid_mid.txt").write_text("".join(named))
    rows = [f"{a} {b} {int(a // 2 == b // 2)}\n" for a in range(8) for b in range(a)]
    (tmp_path / "template_pair_label.txt").write_text("".join(rows))
    found = only("ijb", tmp_path)
    got = score_set(Pixels(), found, LOOK, "cpu", far=(0.5,))
    encoded = [face(p, k) for p in range(4) for k in range(3)]
    images = torch.stack([torch.from_numpy(decode_reference(one, LOOK, False)) for one in encoded])
    raw = embed(Pixels(), [images], "cpu", mirror="sum", normalise=False)
    template = torch.stack([part.sum(0) for person in raw.split(3) for part in (person[:2], person[2:])])
    want = score_pairs(template, found.templates.pairs, (0.5,))
    assert (got.genuine, got.impostors) == (4, 24)
    assert got.auc == pytest.approx(want.auc, abs=1e-2)
    assert got.tar_at_far["0.5"].threshold == pytest.approx(want.tar_at_far["0.5"].threshold, abs=1e-2)


def test_what_is_no_set_is_refused_with_a_sentence(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"a set is a \.bin file, a list of pairs, or a folder"):
        list(open_sets("none", tmp_path / "none"))
    with pytest.raises(ValueError, match="holds no domain"):
        list(open_sets("empty", tmp_path))
