"""The engine for backbones of known operations: the R-operator in the body, autograd twice on the embeddings.

All losses across domains (hard negatives, soft classes, alignment) are functions of the embeddings. So they are exact
and cost no convolution.
"""

from collections.abc import Sequence
from functools import partial, reduce

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from fastmfr.config.choices import BatchNormStatistics, Memory, Precision
from fastmfr.losses import MfrLosses
from fastmfr.meta.graphs import refuse_first_order
from fastmfr.meta.pair_batches import Groups, loss_gradients
from fastmfr.meta.types import PairBatch, TestPass, TrainPass
from fastmfr.precision import activations, matmul_precision
from fastmfr.profiling import BACKWARD, FORWARD, LOSSES, part_of_step
from fastmfr.rop import NoROperator, Program, Tape
from fastmfr.runtime import free_bytes

KEPT = 4  # most memory of the kept state and of the passes over it, as a multiple of what the forward pass made


class RopEngine:
    """The Engine for a backbone that `Program` can read.

    Args:
        backbone: The network.
        names: The names of its trained parameters, in the order of every `theta`.
        batch_norm: The statistics that BatchNorm uses.
        memory: "kept" computes H v from the state of the gradient's passes. "streaming" computes the state again and
            needs about two thirds of the memory. "auto" keeps the state if that takes less than half of what is free.
        precision: Of the passes for gradients; None leaves torch's settings as they are.
        curvature: Of the passes for H v. If it differs from `precision`, the state is not kept.
        group: As Engine has it.
        sync: Whether BatchNorm's statistics of a batch are those of all ranks.

    Raises:
        NoROperator: If the backbone has an operation without an R-operator, or if autocast is on and `precision` is
            None.
    """

    name = "rop"

    def __init__(
        self,
        backbone: nn.Module,
        names: Sequence[str],
        batch_norm: BatchNormStatistics,
        memory: Memory,
        *,
        precision: Precision | None = None,
        curvature: Precision | None = None,
        group: ProcessGroup | None = None,
        sync: bool = True,
    ):
        device = next((value.device.type for value in backbone.parameters()), "cpu")
        if precision is None and torch.is_autocast_enabled(device):
            raise NoROperator(
                "autocast is on, and the R-operator computes in the precision of the parameters; "
                "autograd takes this step, or give a precision"
            )
        self.program = Program(backbone, names)
        self.names, self.batch_norm, self.memory = names, batch_norm, memory
        self.precision: Precision | None = precision
        self.curvature: Precision | None = curvature
        self._group, self._statistics_of = group, group if sync else None

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
        groups, tapes, leaves = self._forward(theta, pairs, "tracked")
        with part_of_step(LOSSES):
            embeddings, domain_B = groups.join(leaves), groups.domains(domain_B)
            terms, norms, dz = loss_gradients(losses, embeddings, domain_B, create_graph=second_order)
            if second_order:
                refuse_first_order(terms.total)
            dz = torch.autograd.grad(embeddings, leaves, dz, create_graph=second_order)
        keep = second_order and self._keep(tapes, leaves[0].device)
        gradient = self._backward(tapes, dz, keep=keep)
        if keep:
            return TrainPass(terms, norms, gradient, partial(self._hvp_kept, tapes, leaves, dz))
        hvp = partial(self._hvp_streaming, theta, groups, leaves, dz, domain_B, losses)
        return TrainPass(terms, norms, gradient, hvp)

    def test(self, theta: Sequence[Tensor], pairs: PairBatch, losses: MfrLosses) -> TestPass:
        """Compute losses and gradient of a meta-test batch, as Engine says."""
        groups, tapes, leaves = self._forward(theta, pairs, "batch")
        with part_of_step(LOSSES):
            terms = losses(*groups.join(leaves))
            dz = torch.autograd.grad(terms.total, leaves)
        return TestPass(terms, self._backward(tapes, dz, keep=False))

    def _hvp_kept(self, tapes, leaves, dz, v):
        """H v from the state of the gradient's passes, which is freed."""
        direction = dict(zip(self.names, v, strict=True))
        with matmul_precision(self.curvature):
            zd = [tape.tangent(direction) for tape in tapes]
        dzd = torch.autograd.grad(dz, leaves, zd)
        with matmul_precision(self.curvature):
            return _sum_of_groups(tape.second(part) for tape, part in zip(tapes, dzd, strict=True))

    def _hvp_streaming(self, theta, groups, leaves, dz, domain_B, losses, v):
        """H v from the images."""
        direction = dict(zip(self.names, v, strict=True))
        with matmul_precision(self.curvature):
            tapes = [self._tape(theta, self.curvature) for _ in groups.images]
            z, zd = zip(
                *(
                    tape.forward_tangent(images, direction, self._statistics("batch"))
                    for tape, images in zip(tapes, groups.images, strict=True)
                ),
                strict=True,
            )
        if self.curvature != self.precision:  # the embeddings differ a little, and so do the losses' gradients on them
            leaves = [embedding.requires_grad_() for embedding in z]
            dz = torch.autograd.grad(losses(*groups.join(leaves), domain_B).total, leaves, create_graph=True)
        dzd = torch.autograd.grad(dz, leaves, zd)
        with matmul_precision(self.curvature):
            return _sum_of_groups(
                tape.second_streaming(part.detach(), part_d) for tape, part, part_d in zip(tapes, dz, dzd, strict=True)
            )

    def _forward(self, theta, pairs, statistics):
        """The groups; for each a Tape that has run forward, and its embeddings as a leaf of autograd."""
        groups = Groups(pairs, self.batch_norm == "per_domain", self._group)
        tapes = [self._tape(theta, self.precision) for _ in groups.images]
        with part_of_step(FORWARD), matmul_precision(self.precision):
            leaves = [
                tape.forward(images, self._statistics(statistics)).requires_grad_()
                for tape, images in zip(tapes, groups.images, strict=True)
            ]
        return groups, tapes, leaves

    def _backward(self, tapes, dz, *, keep):
        with part_of_step(BACKWARD), matmul_precision(self.precision):
            return _sum_of_groups(tape.backward(part.detach(), keep=keep) for tape, part in zip(tapes, dz, strict=True))

    def _tape(self, theta, precision):
        values = dict(zip(self.names, theta, strict=True))
        return Tape(self.program, values, activations(precision), self._statistics_of)

    def _statistics(self, wanted):
        return "running" if self.batch_norm == "frozen" else wanted

    def _keep(self, tapes, device):
        if self.curvature != self.precision:
            return False
        if self.memory != "auto":
            return self.memory == "kept"
        return KEPT * sum(tape.bytes for tape in tapes) < free_bytes(device) / 2


def _sum_of_groups(gradients):
    """The sum of {name: gradient} over groups, as a list. Not in place: a tape's gradients are part of its state."""
    return reduce(torch._foreach_add, [list(gradient.values()) for gradient in gradients])
