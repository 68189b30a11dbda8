"""The classifier of pretraining: one weight row for each identity, and a margin on the true identity.

With a process group, each rank stores a slice of the weight rows. Embeddings are all-gathered; each rank returns a
log-sum-exp and a target cosine per row, so the loss and gradients equal those of an unsharded classifier.
Shape suffixes: B = batch, C = identities of this rank, N = those drawn for this step, D = embedding.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from fastmfr.distributed import gather_partial, gather_whole, log_sum_whole, rank_and_world, take_own
from fastmfr.kernels import (  # pyright: ignore[reportMissingImports]  # the folder kernels/, under its installed name
    as_margin,
    cos_lse,
    inverse_norm,
    margin_loss,
    sgd_rows,
    unit_rows,
)
from fastmfr.kernels import margins as _margins  # pyright: ignore[reportMissingImports]

__all__ = ["MARGINS", "MarginHead", "make_margin"]

MARGINS, make_margin = _margins.MARGINS, _margins.make_margin

# Rows of first weights, and chances. A multiple of 16, so that the pieces equal one large draw.
_DRAWN_AT_ONCE = 1 << 16


class MarginHead(nn.Module):
    """Margin softmax over all identities.

    With a process group, each rank differentiates the loss of its rows; the gradients are those of the sum over the
    ranks.

    Args:
        embedding: Length D of an embedding.
        identities: Number of identities over all ranks.
        margin: The margin on the target cosine, or its name, as of `fastmfr.kernels.make_margin`.
        scale: Factor of the cosines, > 0.
        keep: What the forward pass of `fastmfr.kernels.cos_lse` keeps for the backward pass.
        sample_rate: Chance of an identity to take part in a step, above 0 and at most 1. The batch's identities always
            take part. So the draw is the same on any number of ranks; PartialFC (arXiv 2010.05222) draws as many on
            each rank instead.
        seed: Seed of these draws.
        group: The ranks, all with batches of one size, that each store a slice of the weight rows. None stores all
            rows here.

    Raises:
        ValueError: If there are fewer than two identities, or fewer identities than ranks, if `sample_rate` is out of
            range, or if `margin` is no margin.
    """

    inverse_norm_C: Tensor
    tensors_by_row = ("weight_CD", "momentum_CD")  # of which each rank has `rows`

    def __init__(
        self,
        embedding: int,
        identities: int,
        margin: Callable[[Tensor, Tensor], Tensor] | str,
        scale: float = 64.0,
        *,
        keep: str = "auto",
        sample_rate: float = 1.0,
        seed: int = 0,
        group: ProcessGroup | None = None,
    ):
        super().__init__()
        if identities < 2:
            raise ValueError(f"a classifier needs at least 2 identities, got {identities}")
        if not 0 < sample_rate <= 1:
            raise ValueError(f"want sample_rate above 0 and at most 1, got {sample_rate}")
        self.identities, self.scale, self.keep, self.group = identities, scale, keep, group
        self.margin = as_margin(margin)
        self.sample_rate, self.seed = sample_rate, seed
        rank, self._world = rank_and_world(group)
        self.rows = first, last = rank * identities // self._world, (rank + 1) * identities // self._world
        if last == first:
            raise ValueError(f"want at least one identity for each of {self._world} ranks, got {identities}")
        self.weight_CD = nn.Parameter(_first_weights(identities, embedding, first, last))
        self.register_buffer("momentum_CD", torch.zeros_like(self.weight_CD))
        self.register_buffer("inverse_norm_C", torch.empty(last - first), persistent=False)
        self._normed = None  # the version of the weights that `inverse_norm_C` was computed from
        self._drawn = None  # (row_N, weight_ND) of this step, if not all identities take part
        self._idle = False  # whether none of this rank's identities takes part in this step

    def forward(self, embedding_BD: Tensor, label_B: Tensor, draw: int = 0) -> Tensor:
        """Compute the loss of each row.

        Args:
            embedding_BD: Embeddings, any length of rows.
            label_B: Identities in [-1, identities), int64; -1 is ignored and has the loss 0.
            draw: Number of the step; together with the seed it decides which identities take part.

        Returns:
            loss_B, float32.
        """
        unit_BD, norm_B = unit_rows(embedding_BD)
        if self.group:
            unit_BD, norm_B = gather_partial(unit_BD, self.group), gather_whole(norm_B, self.group)
            label_B = gather_whole(label_B, self.group)
        weight_ND, inverse_norm_N, local_B = self._taking_part(label_B, draw)
        log_sum_B, cos_B = cos_lse(
            unit_BD, weight_ND, local_B, self.scale, inverse_norm_C=inverse_norm_N, keep=self.keep
        )
        if self._idle:  # of the other ranks' identities alone: this one adds nothing to their sums
            log_sum_B = torch.full_like(log_sum_B, -torch.inf)
        if self.group:
            log_sum_B, cos_B = log_sum_whole(log_sum_B, cos_B, self.group)  # the cosine is 0 on all ranks but one
        loss_B = margin_loss(log_sum_B, cos_B, norm_B, label_B, self.identities, margin=self.margin, scale=self.scale)
        return take_own(loss_B, self.group) if self.group else loss_B

    @torch.no_grad()
    def update(self, rate: float, momentum: float, weight_decay: float) -> None:
        """Take one step of SGD with the mean gradient over the ranks, on the weights that took part.

        The gradient is dropped.

        Args:
            rate: Learning rate.
            momentum: Of SGD.
            weight_decay: Of SGD.

        Raises:
            RuntimeError: If there is no gradient.
        """
        if self._idle:
            self._drawn, self._idle = None, False
            return
        row_N, drawn_ND = self._drawn or (None, self.weight_CD)
        if drawn_ND.grad is None:
            raise RuntimeError("the classifier has no gradient yet; call backward() on its loss before update()")
        if self._world > 1:
            drawn_ND.grad.div_(self._world)  # in place: a copy would be as large as the weights
        sgd_rows(
            self.weight_CD.detach(),
            drawn_ND.grad,
            self.momentum_CD,
            self.inverse_norms(),
            row_N,
            rate=rate,
            momentum=momentum,
            weight_decay=weight_decay,
        )
        self._normed, drawn_ND.grad, self._drawn = self.weight_CD._version, None, None

    def inverse_norms(self) -> Tensor:
        """Return 1 / |weight_CD|, shape (C,), computed again if anything but `update` has changed the weights.

        The tensor is always the same one, because a recorded step goes on reading its memory.
        """
        if self._normed != self.weight_CD._version:
            self.inverse_norm_C.copy_(inverse_norm(self.weight_CD.detach()))
            self._normed = self.weight_CD._version
        return self.inverse_norm_C

    def _taking_part(self, label_B, draw):
        """(weight_ND, inverse_norm_N, the row among these of each label, or a number out of range for other ranks')."""
        local_B = label_B - self.rows[0]
        if self.sample_rate == 1:
            return self.weight_CD, self.inverse_norms(), local_B
        C = len(self.weight_CD)
        here_B = (local_B >= 0) & (local_B < C)
        taken_C = torch.empty(C + 1, dtype=torch.bool, device=self.weight_CD.device)
        taken_C[:C] = self._chances(draw) < self.sample_rate
        taken_C[torch.where(here_B, local_B, C)] = True  # the batch's always; labels of other ranks go past the end
        row_N = taken_C[:C].nonzero().squeeze(1)
        self._idle = not len(row_N)
        if self._idle:  # one row, for the shapes
            row_N = taken_C.new_zeros(1, dtype=torch.int64)
        self._drawn = row_N, self.weight_CD.detach()[row_N].requires_grad_()
        return self._drawn[1], self.inverse_norms()[row_N], torch.where(here_B, torch.searchsorted(row_N, local_B), -1)

    def _chances(self, draw):
        """A number in [0, 1) for each identity of this rank, the same on any number of ranks: drawn block by block."""
        device, (first, last) = self.weight_CD.device, self.rows
        blocks = range(first // _DRAWN_AT_ONCE, -(-last // _DRAWN_AT_ONCE))
        drawn = []
        for block in blocks:
            state = np.random.SeedSequence([self.seed, draw, block]).generate_state(1)
            lot = torch.Generator(device).manual_seed(int(state[0]))
            drawn.append(torch.rand(_DRAWN_AT_ONCE, generator=lot, device=device))
        begin = first - blocks.start * _DRAWN_AT_ONCE
        return torch.cat(drawn)[begin : begin + last - first]


def _first_weights(identities, embedding, first, last):
    """The rows `first` .. `last` - 1: normal with deviation 0.01; the same for any number of ranks.

    Every rank draws all rows, and holds one block of them beside its own: all rows may be more than a machine can hold.
    """
    own_CD = torch.empty(last - first, embedding)
    for start in range(0, identities, _DRAWN_AT_ONCE):
        block_CD = torch.randn(min(_DRAWN_AT_ONCE, identities - start), embedding).mul_(0.01)
        begin, end = max(first, start), min(last, start + len(block_CD))
        if begin < end:
            own_CD[begin - first : end - first] = block_CD[begin - start : end - start]
    return own_CD
