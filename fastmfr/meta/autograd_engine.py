"""The engine for any backbone: autograd, used twice for the second order."""

from collections.abc import Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from fastmfr.config.choices import BatchNormStatistics, Precision
from fastmfr.losses import MfrLosses
from fastmfr.meta.graphs import check_reads, double_backward, leaves_of, reentrant_checkpoints, refuse_first_order
from fastmfr.meta.held import Held
from fastmfr.meta.pair_batches import Groups, loss_gradients
from fastmfr.meta.types import PairBatch, TestPass, TrainPass
from fastmfr.precision import autocast, matmul_precision
from fastmfr.profiling import BACKWARD, FORWARD, LOSSES, part_of_step


class AutogradEngine:
    """The Engine for every module whose operations have a double backward.

    Args:
        backbone: The network.
        names: The names of its trained parameters, in the order of every `theta`.
        batch_norm: The statistics that BatchNorm uses, and with "frozen" InstanceNorm too.
        precision: Of the passes for gradients; None leaves torch's settings as they are.
        curvature: Of the passes for H v. If it differs from `precision`, H v runs passes of its own, with the losses
            in its precision too, because the losses are part of the same graph.
        group: As Engine has it. BatchNorm's statistics of a batch are those of the rank's own images.

    Raises:
        ValueError: If the backbone is a TorchScript module, or wrapped in DistributedDataParallel.
    """

    name = "autograd"

    def __init__(
        self,
        backbone: nn.Module,
        names: Sequence[str],
        batch_norm: BatchNormStatistics,
        *,
        precision: Precision | None = None,
        curvature: Precision | None = None,
        group: ProcessGroup | None = None,
    ):
        _check(backbone)
        self.backbone, self.names = backbone, names
        self.batch_norm: BatchNormStatistics = batch_norm
        self.precision: Precision | None = precision
        self.curvature: Precision | None = curvature
        self._group, self._is_new = group, True

    def train(
        self,
        theta: Sequence[Tensor],
        pairs: PairBatch,
        domain_B: Tensor | None,
        losses: MfrLosses,
        *,
        second_order: bool,
    ) -> TrainPass:
        """Compute losses and gradient of a meta-train batch, as Engine says."""
        keep_graph = second_order and self.precision == self.curvature
        there = self._pass(theta, pairs, self.precision, tracking=True, second_order=keep_graph)
        with part_of_step(LOSSES):
            domain_B = there.groups.domains(domain_B)
            terms, norms, dz = loss_gradients(losses, there.embeddings, domain_B, create_graph=keep_graph)
            if second_order:
                refuse_first_order(terms.total)
        gradient = there.gradient(dz)
        again = partial(self._hvp_of_new_passes, theta, pairs, domain_B, losses, there.held)
        hvp = partial(there.hvp, gradient) if keep_graph else again
        return TrainPass(terms, norms, [value.detach() for value in gradient], hvp)

    def test(self, theta: Sequence[Tensor], pairs: PairBatch, losses: MfrLosses) -> TestPass:
        """Compute losses and gradient of a meta-test batch, as Engine says."""
        there = self._pass(theta, pairs, self.precision, tracking=False, second_order=False)
        with part_of_step(LOSSES):
            terms = losses(*there.embeddings)
            dz = torch.autograd.grad(terms.total, there.embeddings)
        return TestPass(terms, there.gradient(dz))

    def _hvp_of_new_passes(self, theta, pairs, domain_B, losses, held, v):
        """H v with passes in the precision of H v, from the buffers and random numbers of the gradient's passes."""
        there = self._pass(theta, pairs, self.curvature, tracking=False, second_order=True, repeats=held)
        dz = torch.autograd.grad(losses(*there.embeddings, domain_B).total, there.embeddings, create_graph=True)
        return there.hvp(there.gradient(dz), v)

    def _pass(self, theta, pairs, precision, **settings):
        leaves = leaves_of(dict(zip(self.names, theta, strict=True)))
        held = Held(self.backbone, leaves, self.batch_norm, **settings)
        groups = Groups(pairs, self.batch_norm == "per_domain", self._group)
        warned = reentrant_checkpoints() if self._is_new else nullcontext([])
        with part_of_step(FORWARD), warned as refusals, held.first(), autocast(precision, theta[0].device):
            rows = [self.backbone(images) for images in groups.images]
        self._is_new = False
        embeddings = groups.join(rows)
        own = dict(self.backbone.named_parameters())
        reads_all = check_reads(embeddings, leaves, {name: own[name] for name in self.names})
        if refusals and not reads_all:
            raise RuntimeError(refusals[0])
        return _Pass(held, list(leaves.values()), groups, embeddings, precision, settings["second_order"])


@dataclass(frozen=True)
class _Pass:
    """A forward pass that has run: the leaves of its graph, and (gallery_BD, probe_BD)."""

    held: Held
    leaves: list[Tensor]
    groups: Groups
    embeddings: tuple[Tensor, Tensor]
    precision: Precision | None
    second_order: bool

    def gradient(self, dz):
        """The gradient on the leaves; with `second_order` it can be differentiated again."""
        with (
            part_of_step(BACKWARD),
            self._backward(),
        ):  # autocast is for the forward pass: the backward follows its dtypes
            return torch.autograd.grad(
                self.embeddings, self.leaves, dz, create_graph=self.second_order, materialize_grads=True
            )

    def hvp(self, gradient, v):
        """H is symmetric: differentiating the gradient once more against v makes H v."""
        with self._backward():
            return torch.autograd.grad(gradient, self.leaves, v, materialize_grads=True)

    @contextmanager
    def _backward(self):
        with self.held.again(), matmul_precision(self.precision), double_backward():
            yield


def _check(backbone):
    """Raise ValueError for a backbone whose parameters cannot be replaced for a pass."""
    if isinstance(backbone, nn.parallel.DistributedDataParallel):
        raise ValueError(
            "DistributedDataParallel averages the gradients of backward() only, and a meta step does not call it; want "
            "the network inside, backbone.module, and average the meta-gradient over the ranks"
        )
    for name, module in backbone.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise ValueError(
                f"module {name or 'itself'} is TorchScript, whose parameters cannot be replaced for the inner step; "
                "want the nn.Module that it was made from"
            )
