"""The map that aligns a face beside Umeyama's own formula, and the warp beside OpenCV's."""

import numpy as np
import pytest
from decode_fakes import picture

from fastmfr import native
from fastmfr.decode.align import PLACES_52, PLACES_SIZE, aligned, alignment_maps, exchanged

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
