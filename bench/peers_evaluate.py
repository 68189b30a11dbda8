"""How others verify: every image of a .bin expanded to float32 twice, and all scores materialised and sorted.

Written anew after the steps of InsightFace's arcface_torch (eval/verification.py) and its IJB evaluation. OpenCV stands
in for mxnet's decoder, which is OpenCV too.
"""

import pickle

import cv2
import numpy as np
import torch

FOLDS, GRID, FINE_GRID = 10, np.arange(0, 4, 0.01), np.arange(0, 4, 0.001)


def expand(path):
    """(both_2N3HW, is_mate_N): the images of a .bin and their mirror images, all decoded, 0 to 255 in float32."""
    with open(path, "rb") as file:
        encoded, flags = pickle.load(file)
    both_2N3HW = torch.empty(2, len(encoded), 3, 112, 112)
    for number, content in enumerate(encoded):
        pixel_HW3 = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR_RGB)
        image_3HW = torch.from_numpy(pixel_HW3.transpose(2, 0, 1))
        both_2N3HW[0, number], both_2N3HW[1, number] = image_3HW, image_3HW.flip(-1)
    return both_2N3HW, np.array(flags)


@torch.no_grad()
def verify(network, path, batch_images, device):
    """Mean accuracy over ten folds, and mean TAR at FAR 1e-3, of the pairs in a .bin."""
    both_2N3HW, is_mate_N = expand(path)
    sides = []
    for image_N3HW in both_2N3HW:
        rows = [
            network((image_B3HW.to(device) / 255 - 0.5) / 0.5).cpu().numpy().astype(np.float64)
            for image_B3HW in image_N3HW.split(batch_images)
        ]
        sides.append(np.concatenate(rows))
    embedding_ND = sides[0] + sides[1]
    embedding_ND /= np.linalg.norm(embedding_ND, axis=1, keepdims=True)
    distance_N = ((embedding_ND[0::2] - embedding_ND[1::2]) ** 2).sum(1)
    return _by_folds(distance_N, is_mate_N)


def _by_folds(distance_N, is_mate_N):
    """Each threshold tried in turn, fold by fold."""
    accuracy, tar = [], []
    for test in np.array_split(np.arange(len(distance_N)), FOLDS):
        train = np.setdiff1d(np.arange(len(distance_N)), test)
        right = [_rates(distance_N[train], is_mate_N[train], threshold)[0] for threshold in GRID]
        accuracy.append(_rates(distance_N[test], is_mate_N[test], GRID[np.argmax(right)])[0])
        far = np.array([_rates(distance_N[train], is_mate_N[train], threshold)[2] for threshold in FINE_GRID])
        threshold = np.interp(1e-3, *np.unique(far, return_index=True)) * 0.001 if far.max() >= 1e-3 else 0.0
        tar.append(_rates(distance_N[test], is_mate_N[test], threshold)[1])
    return np.mean(accuracy), np.mean(tar)


def _rates(distance_N, is_mate_N, threshold):
    """(accuracy, TAR, FAR) where distances below the threshold are accepted."""
    accepted_N = distance_N < threshold
    genuine, impostors = (accepted_N & is_mate_N).sum(), (accepted_N & ~is_mate_N).sum()
    right = genuine + (~is_mate_N).sum() - impostors
    return right / len(is_mate_N), genuine / is_mate_N.sum(), impostors / (~is_mate_N).sum()


def all_pairs(gallery_GD, gallery_id, probe_PD, probe_id, far):
    """{far: TAR} of all gallery x probe pairs: every score and flag materialised, sorted, and the nearest FAR taken."""
    scores = (gallery_GD @ probe_PD.T).numpy().ravel()
    is_mate = (gallery_id[:, None] == probe_id).ravel()
    falling = is_mate[np.argsort(scores)[::-1]]
    genuine, impostors = np.cumsum(falling), np.cumsum(~falling)
    tar_K, far_K = genuine / genuine[-1], impostors / impostors[-1]
    return {f: tar_K[np.argmin(np.abs(far_K - f))] for f in far}
