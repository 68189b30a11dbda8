"""Any number of cosines counted into bins: the curve in constant memory.

A threshold is the lower end of one of 2**20 bins over the cosines, each 1.9e-6 wide. The realised FAR never exceeds the
FAR asked for, and a TAR lacks at most the pairs of one bin. Shape suffix: K bins.
"""

import numpy as np
import torch

from .roc import Roc

BINS = 2**20
REACH = 1 + 2**-10  # the bins go from -REACH to REACH: rounding lifts cosines above 1


class Histogram:
    """Counts of the genuine and of all scores; scores are added in tensors of up to 2**24."""

    def __init__(self):
        self._all_K, self._genuine_K = np.zeros((2, BINS), np.int64)

    def add(self, score: torch.Tensor, genuine: torch.Tensor) -> None:
        """Count the cosines of all pairs, `score`, of which `genuine` are those of the genuine pairs.

        Raises:
            ValueError: a score is not finite or outside [-1, 1].
        """
        counted = _counts(score)
        if counted.sum() != score.numel():
            raise ValueError(
                f"{score.numel() - counted.sum()} of {score.numel()} scores are not cosines but NaN, "
                "infinite or outside [-1, 1]; the embeddings hold NaN or infinity"
            )
        self._all_K += counted
        self._genuine_K += _counts(genuine)

    def roc(self) -> Roc:
        """Return the curve with a threshold at each bin that holds a score."""
        held = np.flatnonzero(self._all_K)[::-1]
        genuine_K, all_K = np.cumsum(self._genuine_K[held]), np.cumsum(self._all_K[held])
        threshold_K = held * (2 * REACH / BINS) - REACH
        return Roc(np.append(np.inf, threshold_K), np.append(0, all_K - genuine_K), np.append(0, genuine_K))


def _counts(score) -> np.ndarray:
    """The number of scores in each bin, int64; scores that are no cosine are in none."""
    return torch.histc(score, BINS, -REACH, REACH).cpu().numpy().astype(np.int64)  # float32, exact up to 2**24
