"""Every gallery image against every probe, block by block: the curve, and the rank of each probe's mate.

Up to 2**24 pairs the curve is exact. Scores of more pairs are counted into a Histogram, in constant memory.
Shape suffixes: G gallery, P probes (in a block: fewer), D embedding.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from .histogram import Histogram
from .roc import Roc, exact_roc, refuse_one_kind

EXACT = 2**24  # pairs of which every score is kept
BLOCK = 2**22  # scores held at once beyond: 16 MB
Rows = torch.Tensor | np.ndarray | Sequence[Sequence[float]]  # embeddings (N, D)


class AllPairs:
    """The scores (cosines) of all gallery x probe pairs.

    Scores are computed in float64 up to 2**24 pairs, and on a GPU, where TF32, if switched on, would round cosines to
    1e-3; else in float32.

    Args:
        gallery_GD: Embeddings; rows need not be of unit length.
        gallery_id: The identity of each gallery row, (G,).
        probe_PD: Embeddings; rows need not be of unit length.
        probe_id: The identity of each probe row, (P,).

    Attributes:
        exact: Whether every score is kept for the curve.
        gallery_order: int64 (G,), the gallery row behind each column of score_PG.
        mates_P: int64 (P,), how many gallery rows are of each probe's identity.

    Raises:
        ValueError: a row is not finite.
    """

    def __init__(
        self,
        gallery_GD: Rows,
        gallery_id: np.ndarray,
        probe_PD: Rows,
        probe_id: np.ndarray,
    ):
        self.exact = len(gallery_GD) * len(probe_PD) <= EXACT
        order = np.argsort(gallery_id, kind="stable")
        self.gallery_order = order
        self._gallery_id = gallery_id[order]
        self._gallery_GD = unit_rows(gallery_GD, self.exact, "gallery embeddings")[torch.from_numpy(order)]
        self._probe_PD = unit_rows(probe_PD, self.exact, "probe embeddings")
        self._first_P = np.asarray(np.searchsorted(self._gallery_id, probe_id))
        self.mates_P = np.searchsorted(self._gallery_id, probe_id, side="right") - self._first_P

    @property
    def genuine(self) -> int:
        """The number of genuine pairs."""
        return int(self.mates_P.sum())

    @property
    def pairs(self) -> int:
        """The number of all pairs."""
        return len(self._gallery_id) * len(self._probe_PD)

    def blocks(self) -> Iterator[tuple[int, torch.Tensor]]:
        """Yield (number of the first probe, score_PG) of successive probes, each against the whole gallery."""
        probes = len(self._probe_PD) if self.exact else max(1, BLOCK // len(self._gallery_id))
        for first in range(0, len(self._probe_PD), probes):
            yield first, self._probe_PD[first : first + probes] @ self._gallery_GD.T

    def mates(self, first: int, probes: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (row, column) in score_PG of the genuine pairs of the block from probe `first` on, row by row."""
        count_P = self.mates_P[first : first + probes]
        row = np.repeat(np.arange(probes), count_P)
        within = np.arange(len(row)) - np.repeat(np.cumsum(count_P) - count_P, count_P)
        device = self._gallery_GD.device
        column = self._first_P[first : first + probes][row] + within
        return torch.from_numpy(row).to(device), torch.from_numpy(column).to(device)

    def ranks(self) -> np.ndarray:
        """Return how many strangers score at least as high as each probe's best mate, int64 (P,); -1 without a mate.

        A tie with a stranger counts against the mate, so that a collapsed model finds no one.
        """
        blocks = ((score_PG, *self.mates(first, len(score_PG))) for first, score_PG in self.blocks())
        return np.concatenate([_ranks(*block) for block in blocks])

    def roc_and_ranks(self) -> tuple[Roc, np.ndarray]:
        """Return the curve, and what `ranks` returns, in one pass.

        Raises:
            ValueError: there are no pairs of one kind.
        """
        refuse_one_kind(self.genuine, self.pairs)
        counts = Histogram()
        curve, ranks = None, []
        for first, score_PG in self.blocks():
            row, column = self.mates(first, len(score_PG))
            ranks.append(_ranks(score_PG, row, column))
            if self.exact:
                is_mate_PG = np.zeros(score_PG.shape, bool)
                is_mate_PG[row.cpu(), column.cpu()] = True
                curve = exact_roc(score_PG.cpu().numpy(), is_mate_PG)
            else:
                counts.add(score_PG, score_PG[row, column])
        return curve or counts.roc(), np.concatenate(ranks)


def _ranks(score_PG, row, column) -> np.ndarray:
    """Strangers at or above the best mate of each probe, -1 without a mate; (row, column) are the mates."""
    genuine = score_PG[row, column]
    best_P = score_PG.new_full((len(score_PG),), torch.inf).scatter_reduce(0, row, genuine, "amax", include_self=False)
    above_P = (score_PG >= best_P[:, None]).sum(1)
    mates_P = torch.bincount(row, minlength=len(score_PG))
    mates_above_P = torch.bincount(row[genuine >= best_P[row]], minlength=len(score_PG))
    return torch.where(mates_P > 0, above_P - mates_above_P, -1).cpu().numpy()


def unit_rows(rows_ND: Rows, exact: bool = True, what: str = "embeddings") -> torch.Tensor:
    """Return the rows at unit length, on their device; a row of zeros stays zero.

    Args:
        rows_ND: Rows of any length.
        exact: Whether to compute in float64; else float64 on a GPU and float32 on the CPU.
        what: How an error message calls the rows.

    Raises:
        ValueError: the length of a row is not finite. No comparison with NaN holds, so a rank or a curve of such rows
            would look as good as any.
    """
    if not isinstance(rows_ND, torch.Tensor):
        rows_ND = torch.from_numpy(np.array(rows_ND, np.float64))  # a copy: torch warns of arrays it may not write
    rows_ND = rows_ND.detach()
    rows_ND = rows_ND.double() if exact or rows_ND.is_cuda else rows_ND.float()
    length_N = torch.linalg.vector_norm(rows_ND, dim=1)
    broken = (~length_N.isfinite()).nonzero()
    if len(broken):
        raise ValueError(
            f"want embeddings of finite length, but {len(broken)} of {len(rows_ND)} {what} hold NaN or "
            f"infinity, or overflow, the first that of row {int(broken[0])}; look at what the network "
            "makes of that image, or leave the row out"
        )
    return rows_ND / length_N.clamp_min(1e-12)[:, None]
