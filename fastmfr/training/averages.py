"""Averages of a backbone's weights over the steps of a stage."""

import copy
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from fastmfr.results import EMA, MEAN


class Averages(nn.Module):
    """An exponential moving average and a mean of the parameters; both are part of a stage's states.

    Args:
        backbone: the network that is trained.
        decay: part of itself that the moving average keeps in a step, in [0, 1). In the first steps it keeps less:
            after `done` steps at most done / (done + 9), so that fresh weights are soon forgotten.
        begin: steps after which the mean begins.
    """

    def __init__(self, backbone: nn.Module, decay: float, begin: int):
        super().__init__()
        self._decay, self._begin = decay, begin
        self._backbone = [backbone]  # in a list: it is no part of this module
        self.ema, self.mean = (copy.deepcopy(backbone).requires_grad_(False) for _ in range(2))

    @torch.no_grad()
    def update(self, done: int) -> None:
        """Take in the parameters after `done` steps, 1 after the first one."""
        current = _tensors(self._backbone[0])
        torch._foreach_lerp_(_tensors(self.ema), current, max(1 - self._decay, 9 / (done + 9)))
        if done > self._begin:
            torch._foreach_lerp_(_tensors(self.mean), current, 1 / (done - self._begin))

    def finished(self, batches: Callable[[], Iterable[Tensor]] | None) -> Iterator[tuple[str, nn.Module]]:
        """Yield (name, network) of both averages, ready to be scored.

        Args:
            batches: makes batches of images, from which BatchNorm's running statistics are made; None takes the
                backbone's, as where a stage did not change these.
        """
        for name, network in ((EMA, self.ema), (MEAN, self.mean)):
            with torch.no_grad():
                for mine, current in zip(network.buffers(), self._backbone[0].buffers(), strict=True):
                    mine.copy_(current)
            if batches is not None:
                update_bn(batches(), network)
            yield name, network


def _tensors(network: nn.Module) -> list[Tensor]:
    return list(network.parameters())
