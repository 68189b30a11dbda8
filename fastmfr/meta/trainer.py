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
from fastmfr.meta.cuda_graph import RecordedStep
from fastmfr.meta.engine import make_engine
from fastmfr.meta.splits import concatenated, summands
from fastmfr.meta.types import MetaStep, Split


class MetaTrainer:
    """Computes meta-gradients of a backbone and takes steps of SGD along them.

    Args:
        backbone: The network; its parameters and running statistics are changed in place.
        optimizer: SGD over all trained parameters of the backbone, in one group. Parameters and momentum move into flat
            buffers, of which the backbone and the optimizer hold views, so a checkpoint of both stays what it was.
        settings: How meta-gradients are computed.
        cuda_graph: Whether a GPU records a step for each set of shapes and rates, and replays it.

    Attributes:
        engine: "rop" or "autograd", the engine that computes.
        reason: Why the engine is not the R-operator, or "".

    Raises:
        ValueError: If engine "rop" is asked for and does not apply, or if the device does not have a precision.
    """

    def __init__(
        self, backbone: nn.Module, optimizer: torch.optim.SGD, settings: MetaSettings, *, cuda_graph: bool = True
    ):
        self._settings, self._sgd = settings, FlatSgd(backbone, optimizer)
        self._engine, self.reason = make_engine(backbone, self._sgd.flat.names, settings)
        self.engine = self._engine.name
        self._recorded = RecordedStep(self._step, backbone, settings) if cuda_graph else None

    @property
    def graph(self) -> str:
        """Return a sentence: whether steps are replayed from a CUDA graph, and if not, why."""
        return self._recorded.state if self._recorded else "steps run operation by operation, as was asked for"

    def step(self, splits: Iterable[Split], *, alpha: float, rate: float, losses: MfrLosses) -> MetaStep:
        """Take one step of SGD along the gradient of one meta-batch; the host waits for the device nowhere.

        Args:
            splits: (train, test) batches, as `meta_gradient` takes them.
            alpha: Inner step size, >= 0.
            rate: Learning rate.
            losses: The losses of a split.

        Returns:
            Losses and norms. If the step was replayed, they are valid until the next step.

        Raises:
            ValueError: If alpha, losses or splits do not go with the settings.
        """
        self._settings.check(alpha, losses)
        step = self._recorded or self._step
        return step(splits, alpha, rate, losses)

    def _step(self, splits, alpha, rate, losses) -> MetaStep:
        sgd, gamma = self._sgd, self._settings.gamma
        total_P, logs, count, gradient_norm = None, [], 0, torch.zeros(())
        for part, is_last in summands(self._settings, self._engine, sgd.flat, sgd.theta_P, splits, alpha, losses):
            logs.append((part.losses, part.norms))
            count += len(part.losses["total"])
            combined = part.g_P, part.v_P, part.hv_P
            if is_last:
                gradient_norm = meta_sgd(
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
        terms, norms = concatenated(logs)
        return MetaStep(terms, norms, gradient_norm)
