import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from fastmfr.decode import Preprocess, decode_reference
from fastmfr.domains import open_domain
from fastmfr.evaluate import embed, identification, score, score_domain, tar_at_far, verification
from fastmfr.evaluate.roc import exact_roc
from fastmfr.protocols import gallery_probe
from fastmfr.results import Scores, from_json, to_json

FAR = (1e-1, 1e-2, 1e-3)


def normal_scores(genuine=300, impostors=5000, seed=0, decimals=None):
    rng = np.random.default_rng(seed)
    scores = np.concatenate([rng.normal(1.5, 1, genuine), rng.normal(0, 1, impostors)])
    is_mate = np.arange(len(scores)) < genuine
    order = rng.permutation(len(scores))
    return (scores if decimals is None else scores.round(decimals))[order], is_mate[order]


def tar_by_trying_every_threshold(scores, is_mate, far):
    tries = np.append(np.unique(scores), np.inf)
    return max((scores[is_mate] >= t).mean() for t in tries if (scores[~is_mate] >= t).mean() <= far)


# no ties, ties within and across the two kinds, a handful of distinct scores
ties = pytest.mark.parametrize("decimals", [None, 1, 0])


@ties
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_equals_scikit_learn(decimals, dtype):
    scores, is_mate = normal_scores(decimals=decimals)
    scores = scores.astype(dtype)
    from sklearn.metrics import roc_auc_score, roc_curve  # here, for its import takes seconds in every process

    far, tar, _ = roc_curve(is_mate, scores, drop_intermediate=False)
    roc = exact_roc(scores, is_mate)
    assert np.array_equal(roc.far_K, far)
    assert np.array_equal(roc.tar_K, tar)
    assert verification(scores, is_mate)["auc"] == pytest.approx(roc_auc_score(is_mate, scores), abs=1e-12)


@ties
def test_tar_equals_trying_every_threshold(decimals):
    scores, is_mate = normal_scores(200, 1000, decimals=decimals)
    for far in FAR:
        found = verification(scores, is_mate, (far,))["tar_at_far"][far]
        assert found["tar"] == tar_by_trying_every_threshold(scores, is_mate, far) == tar_at_far(scores, is_mate, far)
        accepted = scores >= found["threshold"]
        assert accepted[is_mate].mean() == found["tar"]
        assert accepted[~is_mate].mean() == found["far"] <= far


def test_never_lets_through_more_impostors_than_asked():
    scores, is_mate = [5, 4, 4, 4, 3, 2, 1], [1, 1, 0, 0, 1, 0, 0]  # the nearest ROC point lies above FAR 0.4
    assert tar_at_far(scores, is_mate, 0.4) == pytest.approx(1 / 3)
    assert tar_at_far(scores, is_mate, 0.5) == 1


def test_a_model_that_gives_one_score_to_all_accepts_no_one():
    found = verification(np.zeros(1001), np.arange(1001) == 0, (1e-2,))
    assert found["tar_at_far"][1e-2]["tar"] == 0
    assert (found["auc"], found["eer"]) == (0.5, 0.5)
    assert json.loads(json.dumps(found, allow_nan=False))["genuine"] == 1


def test_perfect_scores_are_perfect():
    found = verification([0.9, 0.8, 0.2, 0.1], [True, True, False, False], (0.5,))
    assert (found["auc"], found["eer"], found["tar_at_far"][0.5]["tar"]) == (1, 0, 1)


def test_eer_lies_between_the_thresholds_around_it():
    assert verification([3, 2, 1], [True, False, True], ())["eer"] == 0.5
    # FAR 1/4 at TAR 0, then FAR 1/4 at TAR 1: the line between crosses at FAR = 1 - TAR = 1/4
    assert verification([5, 4, 3, 2, 1], [False, True, False, False, False], ())["eer"] == 0.25
    scores, is_mate = normal_scores(20000, 20000)
    assert verification(scores, is_mate, ())["eer"] == pytest.approx(0.2266, abs=0.005)  # Phi(-0.75)


def test_takes_tensors_of_any_shape_and_precision():
    scores, is_mate = normal_scores(100, 900, decimals=0)
    want = verification(scores, is_mate)
    for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
        got = verification(
            torch.tensor(scores, dtype=dtype, requires_grad=True).view(20, 50), torch.tensor(is_mate).view(20, 50)
        )
        assert got == want


@ties
def test_the_thinned_curve_is_part_of_the_whole_one(decimals):
    scores, is_mate = normal_scores(impostors=50_000, decimals=decimals)
    thin, roc = verification(scores, is_mate)["roc"], exact_roc(scores, is_mate)
    assert len(thin["far"]) == len(thin["tar"]) <= 400
    assert set(zip(thin["far"], thin["tar"], strict=True)) <= set(zip(roc.far_K, roc.tar_K, strict=True))
    assert (thin["far"][-1], thin["tar"][-1]) == (1, 1)
    assert np.all(np.diff(thin["tar"]) >= 0)
    if decimals is None:
        assert len(thin["far"]) > 200
        assert min(thin["far"]) <= 1 / 50_000


def test_refuses_a_far_that_the_impostors_cannot_measure():
    scores, is_mate = normal_scores(10, 999)
    refused = verification(scores, is_mate, (1e-2, 1e-3))["tar_at_far"]
    assert "tar" in refused[1e-2]
    assert refused[1e-3] == {"refused": "FAR 0.001 needs at least 1000 impostor pairs, there are 999"}
    with pytest.raises(ValueError, match="needs at least 1000 impostor pairs"):
        tar_at_far(scores, is_mate, 1e-3)
    assert tar_at_far(*normal_scores(10, 1000), 1e-3) >= 0  # exactly enough


@pytest.mark.parametrize(
    ("scores", "is_mate", "far", "message"),
    [
        ([1, 2], [True, True], 0.1, "2 genuine of 2 pairs"),
        ([1, 2], [False, False], 0.1, "0 genuine of 2 pairs"),
        ([], [], 0.1, "0 genuine of 0 pairs"),
        ([1, 2], [True], 0.1, "2 scores and 1 flags"),
        ([1, float("nan")], [True, False], 0.1, "1 of 2 scores are not finite"),
        ([1, 2], [True, False], 0, "above 0 and below 1, got 0"),
        ([1, 2], [True, False], 1.5, "got 1.5"),
    ],
)
def test_verification_refuses_with_a_sentence(scores, is_mate, far, message):
    with pytest.raises(ValueError, match=message):
        tar_at_far(scores, is_mate, far)


def people(identities=60, images=4, noise=0.8, seed=0, D=16):
    """Embeddings of every image, person after person, and their offsets."""
    rng = np.random.default_rng(seed)
    centre = np.repeat(rng.normal(size=(identities, D)), images, axis=0)
    return centre + noise * rng.normal(size=centre.shape), np.arange(0, identities * images + 1, images)


def test_rank1_equals_looking_up_each_probe(monkeypatch):
    embedding, offsets = people(noise=1.5)
    pairs = gallery_probe(offsets)
    unit = embedding / np.linalg.norm(embedding, axis=1, keepdims=True)
    nearest = (unit[pairs.gallery] @ unit[pairs.probe].T).argmax(0)
    want = (pairs.gallery_id[nearest] == pairs.probe_id).mean()
    arguments = embedding[pairs.gallery], pairs.gallery_id, embedding[pairs.probe], pairs.probe_id
    assert 0.1 < want < 0.9
    assert identification(*arguments) == want
    monkeypatch.setattr("fastmfr.evaluate.all_pairs.BLOCK", 7 * len(pairs.gallery))
    monkeypatch.setattr("fastmfr.evaluate.all_pairs.EXACT", 0)
    assert identification(*map(torch.from_numpy, arguments)) == want


def test_rank1_finds_any_of_several_gallery_images_and_a_tie_is_no_hit():
    gallery = np.array([[1.0, 0], [0, 1], [0, 2], [-1, 0]])
    assert identification(gallery, [0, 0, 1, 2], [[0.1, 5], [2, 0.1], [-3, 1]], [1, 0, 2]) == pytest.approx(2 / 3)
    assert identification(np.ones((5, 2)), range(5), np.ones((5, 2)), range(5)) == 0


@pytest.mark.parametrize(
    ("probe_id", "message"),
    [
        ([0, 3], "1 of 2 probes have no mate in the gallery, the first is probe 1 of identity 3"),
        ([0], "2 probe rows with 1"),
    ],
)
def test_identification_refuses_with_a_sentence(probe_id, message):
    with pytest.raises(ValueError, match=message):
        identification(np.eye(3), [0, 1, 2], np.eye(3)[:2], probe_id)
    with pytest.raises(ValueError, match="at least one"):
        identification(np.eye(3), [0, 1, 2], np.zeros((0, 3)), [])


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.frozen = nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.BatchNorm2d(5).eval()

    def forward(self, image_B3HW):
        return self.frozen(self.norm(self.conv(image_B3HW))).mean((2, 3)) + image_B3HW[:, :1, 0, :5].flatten(1)


def test_embeds_the_image_and_its_mirror_image():
    torch.manual_seed(0)
    net, image = Net(), torch.randn(7, 3, 8, 8)
    got = embed(net, image.split(3), "cpu")
    assert net.training
    assert net.norm.training
    assert not net.frozen.training
    assert net.norm.num_batches_tracked == 0
    net.eval()
    want = torch.cat([net(image), net(image.flip(3))], 1)
    assert torch.allclose(got, want / want.norm(dim=1, keepdim=True), atol=1e-6)
    mirrored = embed(net, [image.flip(3)], "cpu")
    assert torch.allclose(mirrored, torch.cat([got[:, 5:], got[:, :5]], 1), atol=1e-6)
    assert not got.requires_grad
    assert not got.is_inference()


def test_embed_refuses_no_images_and_broken_weights_and_restores_the_mode():
    net = Net()
    with pytest.raises(ValueError, match="no image"):
        embed(net, [], "cpu")
    with torch.no_grad():
        net.conv.bias[0] = torch.nan
    with pytest.raises(ValueError, match="of 4 of 4 images are not finite, the first that of image 0"):
        embed(net, [torch.zeros(4, 3, 8, 8)], "cpu")
    with pytest.raises(RuntimeError):
        embed(net, [torch.zeros(4, 1, 8, 8)], "cpu")
    assert net.training
    assert not net.frozen.training


def test_score_is_verification_and_rank1_of_all_pairs_and_goes_through_json():
    embedding, offsets = people()
    pairs = gallery_probe(offsets)
    got = score(torch.from_numpy(embedding).float(), pairs, FAR)
    assert got == from_json(Scores, json.loads(json.dumps(to_json(got), allow_nan=False)))
    unit = embedding / np.linalg.norm(embedding, axis=1, keepdims=True)
    want = verification(unit[pairs.gallery] @ unit[pairs.probe].T, pairs.gallery_id[:, None] == pairs.probe_id, FAR)
    assert (got.genuine, got.impostors) == (180, 60 * 180 - 180)
    assert (got.gallery, got.probes, got.identities) == (60, 180, 60)
    assert got.tar_at_far["0.01"].tar == pytest.approx(want["tar_at_far"][0.01]["tar"], abs=0.006)
    assert got.auc == pytest.approx(want["auc"], abs=1e-6)
    assert got.rank1 == identification(
        embedding[pairs.gallery], pairs.gallery_id, embedding[pairs.probe], pairs.probe_id
    )


def tar_of_the_people_drawn(score_GP, pairs, drawn, far):
    """TAR at FAR with each person enrolled and looked up as often as drawn; copies are no impostors of each other."""
    probe = np.concatenate([np.flatnonzero(pairs.probe_id == person) for person in drawn])
    impostor = score_GP[np.ix_(drawn, probe)][drawn[:, None] != pairs.probe_id[probe]]  # gallery row i is person i
    genuine = np.concatenate([score_GP[person, pairs.probe_id == person] for person in drawn])
    return (genuine > np.sort(impostor)[::-1][int(far * len(impostor))]).mean()


def test_the_interval_is_that_of_drawing_the_people_anew():
    embedding, offsets = people(noise=1.5)
    pairs, far = gallery_probe(offsets), 0.1
    found = score(embedding, pairs, (far, 0.01)).tar_at_far
    unit, rng = embedding / np.linalg.norm(embedding, axis=1, keepdims=True), np.random.default_rng(0)
    score_GP = unit[pairs.gallery] @ unit[pairs.probe].T
    tars = [tar_of_the_people_drawn(score_GP, pairs, rng.integers(60, size=60), far) for _ in range(200)]
    assert found["0.1"].interval == pytest.approx(np.quantile(tars, [0.025, 0.975]), abs=1e-9)
    low, high = found["0.1"].interval
    assert low < found["0.1"].tar < high
    assert found["0.01"].interval[0] < found["0.01"].tar < found["0.01"].interval[1]


def test_score_refuses_lists_that_name_images_it_was_not_given():
    embedding, offsets = people()
    with pytest.raises(ValueError, match="name image 239, but there are 200 embeddings"):
        score(embedding[:200], gallery_probe(offsets))


def test_scores_a_domain_in_its_order_whatever_the_batch(tmp_path):
    rng = np.random.default_rng(0)
    for person in range(5):
        (tmp_path / f"person {person}").mkdir()
        for image in range(3):
            pixels = rng.integers(255, size=(8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / f"person {person}" / f"{image}.png")
    domain, preprocess = open_domain(tmp_path), Preprocess(size=8, flip=0.5)
    net, pairs = Net().eval(), gallery_probe(domain.offsets)
    images = [torch.from_numpy(decode_reference(domain.jpeg(image), preprocess, False)) for image in range(15)]
    want = score(embed(net, [torch.stack(images)], "cpu"), pairs, (0.1,))
    for batch_images in (4, 100):  # a filled-up last batch, one batch
        got = score_domain(net, domain, pairs, preprocess, "cpu", far=(0.1,), batch_images=batch_images)
        assert got.auc == pytest.approx(want.auc, abs=1e-3)
        assert got.tar_at_far["0.1"].threshold == pytest.approx(want.tar_at_far["0.1"].threshold, abs=1e-3)
