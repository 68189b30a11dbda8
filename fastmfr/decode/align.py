"""Align faces: from five landmarks to the map that brings a face to its place in a crop, and the crop.

The places are ArcFace's, for the eyes, the nose and the corners of the mouth in a crop of 112 pixels; for another size
they are multiplied. The map is the similarity (turn, one scale, shift; no mirroring) with the least squared distance
between the landmarks and the places (Umeyama, https://doi.org/10.1109/34.88573). The crop is interpolated once,
bilinearly, out of the decoded image, and black around it, as InsightFace's norm_crop does.
Shape suffixes: B = images, 5 = landmarks, 2 = (x, y), or rows of a map; 3 = columns of a map, or RGB; H W = pixels.
"""

import numpy as np

from fastmfr import native

POINTS = ("left eye", "right eye", "nose", "left corner of the mouth", "right corner of the mouth")  # in the picture
PLACES_SIZE = 112  # pixels of the crop with the places below
PLACES_52 = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]]
)


def alignment_maps(landmark_B52: np.ndarray, size: int) -> np.ndarray:
    """Find for each image the map from the pixels of an aligned crop to the pixels of the image.

    In two dimensions Umeyama's solution has a closed form without a singular value decomposition: about the mean
    points, turn and scale are the complex number sum(conj(p) q) / sum(|p|^2), of landmarks p and places q. No
    similarity that mirrors is considered, so left and right that are exchanged are not put right.

    Args:
        landmark_B52: the landmarks in pixels of the image, (x, y), in the order of POINTS; whole numbers are the
            middles of pixels.
        size: pixels a side of the crop.

    Returns:
        float64 (B, 2, 3): column x and row y of the crop show what lies at map @ (x, y, 1) in the image. NaN for an
        image whose landmarks are NaN, or are such that no similarity is better than all others.
    """
    points = landmark_B52.astype(np.float64)
    p = points[..., 0] + 1j * points[..., 1]
    q = (PLACES_52[:, 0] + 1j * PLACES_52[:, 1]) * (size / PLACES_SIZE)
    p_mean, q_mean = p.mean(1), q.mean()
    p, q = p - p_mean[:, None], q - q_mean
    with np.errstate(divide="ignore", invalid="ignore"):
        inverse = (np.abs(p) ** 2).sum(1) / (p.conj() * q).sum(1)  # of turn and scale: from the crop to the image
        shift = p_mean - inverse * q_mean
    maps_B23 = np.empty((len(p), 2, 3))
    maps_B23[:, 0] = np.stack([inverse.real, -inverse.imag, shift.real], 1)
    maps_B23[:, 1] = np.stack([inverse.imag, inverse.real, shift.imag], 1)
    maps_B23[~(np.isfinite(maps_B23).all((1, 2)) & (np.abs(inverse) > 0))] = np.nan
    return maps_B23


def aligned(pixel_HW3: np.ndarray, map_23: np.ndarray, size: int) -> np.ndarray:
    """Cut an aligned crop out of an image.

    Args:
        pixel_HW3: the image, uint8.
        map_23: as `alignment_maps` returns it.
        size: pixels a side of the crop.

    Returns:
        uint8 (size, size, 3).
    """
    crop_HW3 = np.empty((size, size, 3), np.uint8)
    native.warp_image(pixel_HW3, map_23, crop_HW3)
    return crop_HW3


def exchanged(landmark_B52: np.ndarray) -> np.ndarray:
    """Tell of which images left and right are exchanged, bool (B,): no turn of the head brings the mouth there."""
    left, right, mouth = landmark_B52[:, 0], landmark_B52[:, 1], landmark_B52[:, 3:].mean(1)
    (across_x, across_y), (down_x, down_y) = (right - left).T, (mouth - left).T
    return across_x * down_y - across_y * down_x < 0
