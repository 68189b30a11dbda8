"""Whole meta steps in place: the backbone's parameters and their momentum lie in flat buffers, which a step updates.

Shape suffix: P = parameters laid end to end.
"""

from collections.abc import Iterable

import torch
from torch import nn

from fastmfr.config.meta_settings import MetaSettings
from fastmfr.flat import FlatSgd
from fastmfr.kernels import add_split, meta_sgd  # pyright: ignore[reportMissingImports]  # the folder kernels/
from fastmfr.losses import MfrLosses
from fastmfr.meta.cuda_graph import Captured
from fastmfr.meta.engine import make_engine
from fastmfr.meta.splits import joined, summands
from fastmfr.meta.types import MetaStep


class MetaTrainer:
    """Takes meta-gradients of `backbone` as `settings` say, and steps of SGD along them.

    `optimizer`: torch.optim.SGD over all that is trained; its parameters and momentum move into flat buffers and go on
    being its own, so a checkpoint of both is what it would be without. `cuda_graph`: on a GPU, whole steps are recorded
    once for each set of shapes and rates, and replayed: see `Captured`. `engine` and `reason` as of MetaGradient.
    """

    def __init__(
        self, backbone: nn.Module, optimizer: torch.optim.SGD, settings: MetaSettings, *, cuda_graph: bool = True
    ):
        self._settings, self._sgd = settings, FlatSgd(backbone, optimizer)
        self._engine, self.reason = make_engine(backbone, self._sgd.flat.names, settings)
        self.engine = self._engine.name
        self._captured = Captured(self._step, backbone, settings) if cuda_graph else None

    @property
    def graph(self) -> str:
        """Whether steps are replayed from a CUDA graph, and if not, why; a sentence."""
        return self._captured.state if self._captured else "steps run operation by operation, as was asked for"

    def step(self, splits: Iterable, *, alpha: float, rate: float, losses: MfrLosses) -> MetaStep:
        """One meta-batch of `splits`, as meta_gradient takes them, and one step of SGD at `rate`.

        Waits for the device nowhere. Raises ValueError for alpha, losses or splits that do not go with the settings.
        """
        self._settings.check(alpha, losses)
        run = self._captured or self._step
        return run(splits, alpha, rate, losses)

    def _step(self, splits, alpha, rate, losses) -> MetaStep:
        sgd, gamma = self._sgd, self._settings.gamma
        total_P, logs, count, length = None, [], 0, torch.zeros(())
        for part, is_last in summands(self._settings, self._engine, sgd.flat, sgd.theta_P, splits, alpha, losses):
            logs.append((part.losses, part.norms))
            count += len(part.losses["total"])
            combined = part.g_P, part.v_P, part.hv_P
            if is_last:
                length = meta_sgd(
                    sgd.theta_P,
                    sgd.momentum_P,
                    total_P,
                    *combined,
                    alpha=part.alpha,
                    gamma=gamma,
                    splits=count,
                    rate=rate,
                    momentum=sgd.momentum,
                    weight_decay=sgd.weight_decay,
                )
            else:
                total_P = sgd.flat.zeros() if total_P is None else total_P
                add_split(total_P, *combined, part.alpha, gamma)
        terms, norms = joined(logs)
        return MetaStep(terms, norms, length)
