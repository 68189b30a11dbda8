"""The interface of the two engines, and which of the two a backbone gets."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from fastmfr.config.meta_settings import MetaSettings
from fastmfr.fused import has_batch_norm
from fastmfr.losses import MfrLosses
from fastmfr.meta.autograd_engine import AutogradEngine
from fastmfr.meta.rop_engine import RopEngine
from fastmfr.meta.types import PairBatch, TestPass, TrainPass
from fastmfr.precision import check_precision
from fastmfr.rop import NoROperator


class Engine(Protocol):
    """Gradients and Hessian-vector products of the losses of a PairBatch, at any parameters of one backbone.

    `theta` is a list of tensors, in the order of the names that the engine was made with. The backbone keeps its own
    parameters. BatchNorm's running statistics are updated by `train` only.

    With a process group, each rank has its share of the pairs of a batch. The losses are of all pairs, and the same on
    all ranks. A gradient, and H v, are this rank's summand: the sum over the ranks is that of the whole batch.
    """

    @property
    def name(self) -> str:
        """Return "rop" or "autograd"."""
        ...

    def train(
        self,
        theta: Sequence[Tensor],
        pairs: PairBatch,
        domain_B: Tensor | None,
        losses: MfrLosses,
        *,
        second_order: bool,
    ) -> TrainPass:
        """Compute losses and gradient of a meta-train batch, and prepare its Hessian-vector product if wanted.

        Args:
            theta: The parameters.
            pairs: The batch.
            domain_B: The domains to align, or None for no domain alignment.
            losses: The losses.
            second_order: Whether `hvp` of the result is going to be called.

        Raises:
            RuntimeError: With `second_order`, if an operation of the losses has no double backward.
        """
        ...

    def test(self, theta: Sequence[Tensor], pairs: PairBatch, losses: MfrLosses) -> TestPass:
        """Compute losses and gradient of a meta-test batch, without domain alignment."""
        ...


@contextmanager
def gradients_on() -> Iterator[None]:
    """Record graphs of autograd within the block, whatever torch.no_grad() or inference_mode() surround it."""
    with torch.inference_mode(False), torch.enable_grad():
        yield


def make_engine(
    backbone: nn.Module, names: Sequence[str], settings: MetaSettings, group: ProcessGroup | None = None
) -> tuple[Engine, str]:
    """Make the engine that the settings ask for.

    Args:
        backbone: The network to differentiate.
        names: The names of its trained parameters, in the order of every `theta`.
        settings: Which engine is wanted, and how it computes.
        group: The ranks that share the pairs of every batch; None is this process alone.

    Returns:
        The engine, and why it is not the R-operator, or "".

    Raises:
        ValueError: If engine "rop" is wanted and does not apply to the backbone, if the backbone's device does not
            have a precision, or if the ranks cannot have the statistics that BatchNorm is to use.
    """
    device = next((value.device for value in backbone.parameters()), torch.device("cpu"))
    precision, curvature = settings.precision, settings.hvp_precision
    check_precision(precision, device)
    check_precision(curvature, device)
    # With sharing, every batch is of one domain: the statistics of the domain are those of the batch.
    one_domain = settings.sharing != "none" and settings.batch_norm == "per_domain"
    batch_norm = "batch" if one_domain else settings.batch_norm
    if group is not None and batch_norm == "per_domain":
        raise ValueError(
            "meta.batch_norm per_domain wants all images of a domain in one process, and the ranks share them out; "
            "want meta.batch_norm batch or frozen, or one process"
        )
    reason = "autograd was asked for"
    if settings.engine != "autograd":
        try:
            return RopEngine(
                backbone,
                names,
                batch_norm,
                settings.memory,
                precision=precision,
                curvature=curvature,
                group=group,
                sync=settings.sync_batch_norm,
            ), ""
        except NoROperator as error:
            if settings.engine == "rop":
                raise
            reason = str(error)
    if group is not None and batch_norm != "frozen" and settings.sync_batch_norm and has_batch_norm(backbone):
        raise ValueError(
            f"autograd computes the meta step ({reason}), and has BatchNorm's statistics of each rank's own images "
            "only; want meta.batch_norm frozen, or meta.sync_batch_norm false"
        )
    return AutogradEngine(backbone, names, batch_norm, precision=precision, curvature=curvature, group=group), reason
