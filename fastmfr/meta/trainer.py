"""Whole meta steps in place: the backbone's parameters and their momentum lie in flat buffers, which a step updates.

Shape suffix: P = parameters laid end to end.
"""

from collections.abc import Iterable

import torch
from torch import distributed as dist
from torch import nn
from torch.distributed import ProcessGroup

from fastmfr.config.checks import require
from fastmfr.config.meta_settings import MetaSettings
from fastmfr.cuda_graph import PLAINLY
from fastmfr.kernels import add_split  # pyright: ignore[reportMissingImports]  # the folder kernels/
from fastmfr.losses import MfrLosses
from fastmfr.meta.cuda_graph import RecordedStep
from fastmfr.meta.engine import gradients_on, make_engine
from fastmfr.meta.optimizer import FlatOptimizer
from fastmfr.meta.splits import concatenated, summands
from fastmfr.meta.types import MetaStep, Split
from fastmfr.profiling import UPDATE, part_of_step


class MetaTrainer:
    """Computes meta-gradients of a backbone and takes steps of an optimizer along them.

    SGD with or without momentum and weight decay is one kernel for each group of parameters. Any other optimizer of
    torch, SGD with nesterov, dampening or maximize, and SGD with hooks take their steps themselves.

    Args:
        backbone: The network; its parameters and running statistics are changed in place.
        optimizer: An optimizer over all parameters of the backbone or a part of them; the others are not trained, as if
            they were frozen. Groups keep their weight decay and other settings. Learning rates of groups count in
            proportion to the first group's. Parameters, and the momentum of SGD, move into flat buffers, of which the
            backbone and the optimizer hold views, so a checkpoint of both stays what it was.
        settings: How meta-gradients are computed.
        cuda_graph: Whether a GPU records a step for each set of shapes and rates, and replays it. Only steps that the
            kernel for SGD takes are recorded.
        group: The ranks, all with equal backbones, that share the pairs of every batch equally. All ranks take the same
            step. A split sends its embeddings, their gradients and, for each pass, one buffer of P. None is this
            process alone.

    Attributes:
        engine: "rop" or "autograd", the engine that computes.
        reason: Why the engine is not the R-operator, or "".

    Raises:
        ValueError: If engine "rop" is asked for and does not apply, if the device does not have a precision, or if the
            optimizer has parameters of another network, has no trained parameter of this one, or needs a closure.
    """

    @gradients_on()
    def __init__(
        self,
        backbone: nn.Module,
        optimizer: torch.optim.Optimizer,
        settings: MetaSettings,
        *,
        cuda_graph: bool = True,
        group: ProcessGroup | None = None,
    ):
        self._settings, self._optimizer, self._group = settings, FlatOptimizer(backbone, optimizer), group
        self._engine, self.reason = make_engine(backbone, self._optimizer.flat.names, settings, group)
        apart = group is not None and settings.batch_norm == "batch" and not settings.sync_batch_norm
        self._apart = list(backbone.buffers()) if apart else []
        self.engine = self._engine.name
        self._recorded = RecordedStep(self._step, backbone, settings) if cuda_graph and group is None else None

    @property
    def graph(self) -> str:
        """Return a sentence: whether steps are replayed from a CUDA graph, and if not, why."""
        if self._group is not None:
            return f"{PLAINLY}, for several processes share them"
        if self._recorded is None:
            return f"{PLAINLY}, as was asked for"
        if not self._optimizer.is_fused:
            return f"{PLAINLY}, for only plain SGD with momentum and weight decay is recorded"
        return self._recorded.state

    @gradients_on()
    def step(self, splits: Iterable[Split], *, alpha: float, rate: float, losses: MfrLosses) -> MetaStep:
        """Take one step along the gradient of one meta-batch; the host waits for the device nowhere.

        torch.no_grad() and torch.inference_mode() around the call have no effect.

        Args:
            splits: (train, test) batches, as `meta_gradient` takes them.
            alpha: Inner step size, >= 0.
            rate: Learning rate of the first group of parameters, >= 0; it replaces the optimizer's.
            losses: The losses of a split.

        Returns:
            Losses and norms. If the step was replayed, they are valid until the next step.

        Raises:
            ValueError: If alpha, rate, losses or splits do not go with the settings, or if parameters were added,
                frozen, unfrozen, converted or moved to a device since the MetaTrainer was made.
        """
        self._settings.check(alpha, losses)
        require(rate >= 0, f"want rate >= 0, got {rate}")
        self._optimizer.link()
        if self._recorded is None or not self._optimizer.is_fused:
            return self._step(splits, alpha, rate, losses)
        return self._recorded(splits, alpha, rate, losses, self._optimizer.numbers)

    def _step(self, splits, alpha, rate, losses) -> MetaStep:
        optimizer, gamma = self._optimizer, self._settings.gamma
        theta_P, total_P, logs, count = optimizer.theta_P, None, [], 0
        gradient_norm = torch.zeros(())
        engine, flat = self._engine, optimizer.flat
        for part, is_last in summands(self._settings, engine, flat, theta_P, splits, alpha, losses, self._group):
            logs.append((part.losses, part.norms))
            count += len(part.losses["total"])
            with part_of_step(UPDATE):
                if is_last:
                    gradient_norm = optimizer.step(total_P, part, gamma=gamma, splits=count, rate=rate)
                else:
                    total_P = optimizer.flat.zeros() if total_P is None else total_P
                    add_split(total_P, part.g_P, part.v_P, part.hv_P, part.alpha, gamma)
        for buffer in self._apart:  # the ranks have gone apart in them alone; all go on with those of the first rank
            dist.broadcast(buffer, 0, group=self._group)
        terms, norms = concatenated(logs)
        return MetaStep(terms, norms, gradient_norm)
