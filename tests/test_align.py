"""Aligning beside OpenCV's warp and Umeyama's own formula."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from decode_fakes import EITHER, PLAIN, FakeDomain, encode, in_turn, picture
from PIL import Image

from fastmfr import native
from fastmfr.decode import DecodedCache, ImageStream, decode_reference
from fastmfr.decode.align import PLACES_52, PLACES_SIZE, aligned, alignment_maps, exchanged
from fastmfr.decode.cache import CachedStream

cv2 = pytest.importorskip("cv2")


def umeyama(from_52, to_52):
    """The similarity of Umeyama's equations 40 to 43, (2, 3), by a singular value decomposition."""
    p, q = from_52 - from_52.mean(0), to_52 - to_52.mean(0)
    covariance = q.T @ p / len(p)
    u, d, vt = np.linalg.svd(covariance)
    sign = np.array([1, np.sign(np.linalg.det(covariance))])
    turn = u @ np.diag(sign) @ vt
    scale = (d * sign).sum() / p.var(0).sum()
    return np.hstack([scale * turn, (to_52.mean(0) - scale * turn @ from_52.mean(0))[:, None]])


def somewhere(count, side, seed=0, bent=0.04):
    """Landmarks (count, 5, 2) of faces turned, scaled, moved and bent, partly outside of an image of this side."""
    rng = np.random.default_rng(seed)
    turn = np.exp(1j * rng.uniform(-np.pi, np.pi, count)) * rng.uniform(0.3, 1.4, count) * side / PLACES_SIZE
    centre = side * (rng.uniform(0.2, 0.8, count) + 1j * rng.uniform(0.2, 0.8, count))
    places = (PLACES_52 - PLACES_SIZE / 2) @ np.array([1, 1j])
    points = places * turn[:, None] + centre[:, None]
    return np.stack([points.real, points.imag], 2) + rng.normal(0, bent * side, (count, 5, 2))


def by_opencv(pixel_HW3, landmark_52, size):
    """What InsightFace's norm_crop does, but with Umeyama's formula written out."""
    return cv2.warpAffine(pixel_HW3, umeyama(landmark_52, PLACES_52 * size / PLACES_SIZE), (size, size))


@pytest.mark.parametrize("size", [112, 120, 48])
def test_maps_are_umeyamas_solution(size):
    landmarks = somewhere(50, 250)
    landmarks[25:] = landmarks[25:, [1, 0, 2, 4, 3]]  # left and right exchanged: negative determinants
    to = PLACES_52 * size / PLACES_SIZE
    covariance = np.einsum("bki,kj->bij", landmarks - landmarks.mean(1, keepdims=True), to - to.mean(0))
    assert (np.linalg.det(covariance) < 0).sum() > 10
    for landmark_52, map_23 in zip(landmarks, alignment_maps(landmarks, size), strict=True):
        want = cv2.invertAffineTransform(umeyama(landmark_52, to))
        assert np.allclose(map_23, want, rtol=1e-7, atol=1e-7)


# Sides: one below eight bytes a row, tiny, as large as a crop, larger; grey levels: smooth, and noise with every edge.
@pytest.mark.parametrize("side", [2, 5, 112, 333])
@pytest.mark.parametrize("smooth", [True, False])
def test_a_crop_is_opencvs_within_a_grey_level(side, smooth):
    noise = np.random.default_rng(side).integers(0, 256, (side + side // 3, side, 3), np.uint8)
    image = np.asarray(picture(side, side + side // 3, side)) if smooth else noise
    landmarks = somewhere(30, side, seed=side)
    inked = 0
    for landmark_52, map_23 in zip(landmarks, alignment_maps(landmarks, 112), strict=True):
        got, want = aligned(image, map_23, 112), by_opencv(image, landmark_52, 112)
        assert np.abs(got.astype(int) - want).max() <= 1
        inked += (want > 0).any(2).mean()
    assert inked > 3  # the crops are not all black


def test_an_image_that_is_aligned_already_stays_as_it_is():
    image = np.asarray(picture(112, 112, 3))
    (map_23,) = alignment_maps(PLACES_52[None], 112)
    assert np.array_equal(aligned(image, map_23, 112), image)


def test_no_similarity_is_found_for_points_at_one_place_or_without_numbers():
    landmarks = np.stack([np.full((5, 2), 7.0), np.full((5, 2), np.nan), PLACES_52])
    assert np.isnan(alignment_maps(landmarks, 112)).all((1, 2)).tolist() == [True, True, False]


def test_exchanged_left_and_right_are_noticed_whichever_way_the_face_is_turned():
    landmarks = somewhere(200, 250, seed=4, bent=0.01)
    assert not exchanged(landmarks).any()
    assert exchanged(landmarks[:, [1, 0, 2, 4, 3]]).all()


@pytest.mark.parametrize("wrong", ["image", "out", "map", "finite"])
def test_the_extension_refuses_what_it_cannot_warp(wrong):
    given = {"image": np.zeros((4, 4, 3), np.uint8), "map": np.eye(2, 3), "out": np.zeros((4, 4, 3), np.uint8)}
    given |= {"finite": {"map": np.full((2, 3), np.inf)}}.get(wrong) or {wrong: given[wrong][:1, 0]}
    with pytest.raises(ValueError, match="want"):
        native.warp_image(**given)


PICTURES = [picture(*size, seed) for seed, size in enumerate([(90, 70), (64, 64), (16, 24), (200, 180)])]
ENCODED = [encode(image, "PNG") for image in PICTURES]
LOOK = replace(PLAIN, size=64)


def a_domain():
    """Four images; the third has no landmarks."""
    domain = FakeDomain(ENCODED)
    domain.landmark_N52 = somewhere(4, 70, seed=9).astype(np.float32)
    domain.landmark_N52[2] = np.nan
    return domain


@pytest.mark.parametrize("decoder", EITHER)
def test_a_stream_aligns_images_with_landmarks_and_fits_the_others(decoder):
    domain, plain = a_domain(), FakeDomain(ENCODED, name="plain")
    requests = lambda i: (np.array([0, 0, 0, 0, 1]), np.array([0, 1, 2, 3, 0]))  # noqa: E731
    with ImageStream([domain, plain], requests, LOOK, batch_images=5, last=1, decoder=decoder) as stream:
        ((_, image_B3HW),) = stream
    for image in (0, 1, 3):
        want_HW3 = by_opencv(np.asarray(PICTURES[image]), domain.landmark_N52[image].astype(float), 64)
        reference_3HW = decode_reference(ENCODED[image], LOOK, False, domain.landmark_N52[image])
        for got_3HW in (image_B3HW[image].numpy(), reference_3HW):
            assert np.abs(got_3HW.transpose(1, 2, 0) - want_HW3).max() <= 1, image
    for slot, image in ((2, 2), (4, 0)):
        assert np.abs(image_B3HW[slot].numpy() - decode_reference(ENCODED[image], LOOK, mirror=False)).max() <= 2


def test_the_place_of_a_bad_image_is_taken_by_an_aligned_one():
    domain = a_domain()
    domain.encoded = [b"no picture", *ENCODED[1:]]
    with ImageStream([domain], in_turn(2, 4), LOOK, batch_images=2, last=1, decoder="pillow") as stream:
        ((_, image_B3HW),) = stream
    assert torch.equal(image_B3HW[0], image_B3HW[1])


def test_a_cache_holds_aligned_images():
    domain, options = a_domain(), {"batch_images": 4, "last": 1}
    kept = DecodedCache([domain], LOOK, place="host", decoder="pillow")
    (cached,) = dict(CachedStream(kept, in_turn(4, 4), LOOK, **options)).values()
    (decoded,) = dict(ImageStream([domain], in_turn(4, 4), LOOK, decoder="pillow", **options)).values()
    assert torch.equal(cached, decoded)
    assert np.array_equal(cached[3].numpy(), decode_reference(ENCODED[3], LOOK, False, domain.landmark_N52[3]))


@pytest.mark.parametrize("decoder", EITHER)
def test_a_batch_of_too_many_pixels_and_one_that_fails_are_aligned_too(decoder, monkeypatch):
    domain = a_domain()
    want = dict(ImageStream([domain], in_turn(4, 4), LOOK, batch_images=4, last=1, decoder=decoder))[0]
    monkeypatch.setattr("fastmfr.decode.source.MOST_PIXELS", 1 << 16)
    got = dict(ImageStream([domain], in_turn(4, 4), LOOK, batch_images=4, last=1, decoder=decoder))[0]
    assert torch.equal(got, want)
    one_by_one = ImageStream([domain], in_turn(4, 4), LOOK, batch_images=4, last=1, decoder=decoder)
    batch = one_by_one._source.fetch(np.zeros(4, int), np.arange(4))
    with one_by_one:
        assert np.array_equal(one_by_one._one_by_one(batch).permute(0, 3, 1, 2).float(), want)


def test_landmarks_name_points_of_the_upright_image():
    upright = picture(60, 90, 1)
    turned = Image.Image.getexif(upright)
    turned[0x0112] = 6  # to be turned clockwise by a quarter to be seen upright
    stored = encode(upright.transpose(Image.Transpose.ROTATE_90), "PNG", exif=turned.tobytes())
    landmark_52 = somewhere(1, 60, seed=2)[0]
    got = decode_reference(stored, LOOK, False, landmark_52)
    assert np.array_equal(got, decode_reference(encode(upright, "PNG"), LOOK, False, landmark_52))
