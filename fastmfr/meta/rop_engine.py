"""The engine for backbones of known operations: the R-operator in the body, autograd twice on the embeddings.

All terms across domains (hard negatives, soft classes, alignment) live on the embeddings, so they are exact and add no
convolution.
"""

from functools import partial, reduce

import torch

from fastmfr.meta.autograd_engine import refuse_first_order
from fastmfr.meta.memory import free_bytes
from fastmfr.meta.pair_batches import Groups, pulls_and_gradient
from fastmfr.precision import activations, matmul_precision
from fastmfr.rop import NoROperator, Program, Tape

KEPT = 4  # what the state kept and the passes over it take at most, beside what the forward pass made


class OperatorEngine:
    """What AutogradEngine does, for a backbone that `Program` can read; raises NoROperator for another.

    `memory`: "kept" goes on from the state of the gradient's passes, "streaming" makes it again and needs about
    two thirds of the memory; "auto" keeps the state where it takes less than half of what is free. `precision` and
    `curvature` as AutogradEngine has them; where they differ, the state is not kept.
    """

    name = "rop"

    def __init__(self, backbone, names, batch_norm, memory, *, precision=None, curvature=None):
        device = next((value.device.type for value in backbone.parameters()), "cpu")
        if precision is None and torch.is_autocast_enabled(device):
            raise NoROperator(
                "autocast is on, and the R-operator computes in the precision of the parameters; "
                "autograd takes this step, or give a precision"
            )
        self.program = Program(backbone, names)
        self.names, self.batch_norm, self.memory = names, batch_norm, memory
        self.precision, self.curvature = precision, curvature

    def train(self, theta, pairs, domain_B, losses, *, twice):
        """(terms, pulls, gradient, curve) of meta-train; curve(v), there where `twice`, is the Hessian times v."""
        groups, tapes, leaves = self._forward(theta, pairs, "tracked")
        embeddings = groups.join(leaves)
        terms, lengths, dz = pulls_and_gradient(losses, embeddings, domain_B, create_graph=twice)
        if twice:
            refuse_first_order(terms.total)
        dz = torch.autograd.grad(embeddings, leaves, dz, create_graph=twice)
        keep = twice and self._keep(tapes, leaves[0].device)
        gradient = self._backward(tapes, dz, keep=keep)

        curve = (
            partial(self._kept, tapes, leaves, dz)
            if keep
            else partial(self._streaming, theta, groups, leaves, dz, domain_B, losses)
        )
        return terms, lengths, gradient, curve

    def _kept(self, tapes, leaves, dz, v):
        """The Hessian times v, from the state of the gradient's passes, which is freed."""
        direction = dict(zip(self.names, v, strict=True))
        with matmul_precision(self.curvature):
            zd = [tape.tangent(direction) for tape in tapes]
        dzd = torch.autograd.grad(dz, leaves, zd)
        with matmul_precision(self.curvature):
            return _sum(tape.second(part) for tape, part in zip(tapes, dzd, strict=True))

    def _streaming(self, theta, groups, leaves, dz, domain_B, losses, v):
        """The same from the images."""
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
        if self.curvature != self.precision:  # the embeddings differ a little, and so does what pulls on them
            leaves = [embedding.requires_grad_() for embedding in z]
            dz = torch.autograd.grad(losses(*groups.join(leaves), domain_B).total, leaves, create_graph=True)
        dzd = torch.autograd.grad(dz, leaves, zd)
        with matmul_precision(self.curvature):
            return _sum(
                tape.second_streaming(part.detach(), part_d) for tape, part, part_d in zip(tapes, dz, dzd, strict=True)
            )

    def test(self, theta, pairs, losses):
        """(terms, gradient) of meta-test."""
        groups, tapes, leaves = self._forward(theta, pairs, "batch")
        terms = losses(*groups.join(leaves))
        return terms, self._backward(tapes, torch.autograd.grad(terms.total, leaves), keep=False)

    def _forward(self, theta, pairs, statistics):
        """Groups, of each a Tape that has run forward and its embedding as a leaf of autograd."""
        groups = Groups(pairs, self.batch_norm == "per_domain")
        tapes = [self._tape(theta, self.precision) for _ in groups.images]
        with matmul_precision(self.precision):
            leaves = [
                tape.forward(images, self._statistics(statistics)).requires_grad_()
                for tape, images in zip(tapes, groups.images, strict=True)
            ]
        return groups, tapes, leaves

    def _backward(self, tapes, dz, *, keep):
        with matmul_precision(self.precision):
            return _sum(tape.backward(part.detach(), keep=keep) for tape, part in zip(tapes, dz, strict=True))

    def _tape(self, theta, precision):
        return Tape(self.program, dict(zip(self.names, theta, strict=True)), activations(precision))

    def _statistics(self, wanted):
        return "running" if self.batch_norm == "frozen" else wanted

    def _keep(self, tapes, device):
        if self.curvature != self.precision:
            return False
        if self.memory != "auto":
            return self.memory == "kept"
        return KEPT * sum(tape.bytes for tape in tapes) < free_bytes(device) / 2


def _sum(gradients):
    """The sum of {name: gradient}, as a list; not in place, for a tape's gradients are part of its state."""
    return reduce(torch._foreach_add, [list(gradient.values()) for gradient in gradients])
