"""The engine for backbones of known operations: the R-operator in the body, autograd twice on the embeddings.

All terms across domains (hard negatives, soft classes, alignment) live on the embeddings, so they are exact and add no
convolution.
"""

from functools import reduce

import torch

from fastmfr.meta.autograd import refuse_first_order
from fastmfr.meta.embedding import Groups, pulls
from fastmfr.meta.memory import free_bytes
from fastmfr.rop import NoROperator, Program, Tape

KEPT = 4  # what the state kept and the passes over it take at most, beside what the forward pass made


class OperatorEngine:
    """What AutogradEngine does, for a backbone that `Program` can read; raises NoROperator for another.

    `memory`: "kept" goes on from the state of the gradient's passes, "streaming" makes it again and needs about
    two thirds of the memory; "auto" keeps the state where it takes less than half of what is free.
    """

    name = "rop"

    def __init__(self, backbone, names, losses, batch_norm, memory):
        device = next((value.device.type for value in backbone.parameters()), "cpu")
        if torch.is_autocast_enabled(device):
            raise NoROperator("autocast is on, and the R-operator computes in the precision of the parameters; "
                              "autograd takes this step")  # fmt: skip
        self.program = Program(backbone, names)
        self.names, self.losses, self.batch_norm, self.memory = names, losses, batch_norm, memory

    def train(self, theta, pairs, domain_B, *, twice):
        """(terms, pulls, gradient, curve) of meta-train; curve(v), there where `twice`, is the Hessian times v."""
        groups, tapes, leaves = self._forward(theta, pairs, "tracked")
        embeddings = groups.join(leaves)
        terms = self.losses(*embeddings, domain_B)
        lengths = pulls(terms, self.losses, embeddings)
        if twice:
            refuse_first_order(terms.total)
        dz = torch.autograd.grad(terms.total, leaves, create_graph=twice)
        keep = twice and self._keep(tapes, leaves[0].device)
        gradient = _sum(tape.backward(part.detach(), keep=keep) for tape, part in zip(tapes, dz, strict=True))

        def curve(v):
            direction = dict(zip(self.names, v, strict=True))
            if keep:
                zd = [tape.tangent(direction) for tape in tapes]
                dzd = torch.autograd.grad(dz, leaves, zd)
                return _sum(tape.second(part) for tape, part in zip(tapes, dzd, strict=True))
            again = [self._tape(theta) for _ in groups.images]
            zd = [tape.forward_tangent(images, direction, self._statistics("batch"))[1]
                  for tape, images in zip(again, groups.images, strict=True)]  # fmt: skip
            dzd = torch.autograd.grad(dz, leaves, zd)
            return _sum(tape.second_streaming(part.detach(), part_d)
                        for tape, part, part_d in zip(again, dz, dzd, strict=True))  # fmt: skip

        return terms, lengths, gradient, curve

    def test(self, theta, pairs):
        """(terms, gradient) of meta-test."""
        groups, tapes, leaves = self._forward(theta, pairs, "batch")
        terms = self.losses(*groups.join(leaves))
        dz = torch.autograd.grad(terms.total, leaves)
        return terms, _sum(tape.backward(part, keep=False) for tape, part in zip(tapes, dz, strict=True))

    def _forward(self, theta, pairs, statistics):
        """Groups, and of each a Tape that has run forward and its embedding as a leaf of autograd."""
        groups = Groups(pairs, self.batch_norm == "per_domain")
        tapes = [self._tape(theta) for _ in groups.images]
        embeddings = [tape.forward(images, self._statistics(statistics))
                      for tape, images in zip(tapes, groups.images, strict=True)]  # fmt: skip
        return groups, tapes, [embedding.requires_grad_() for embedding in embeddings]

    def _tape(self, theta):
        return Tape(self.program, dict(zip(self.names, theta, strict=True)))

    def _statistics(self, wanted):
        return "running" if self.batch_norm == "frozen" else wanted

    def _keep(self, tapes, device):
        if self.memory != "auto":
            return self.memory == "kept"
        return KEPT * sum(tape.bytes for tape in tapes) < free_bytes(device) / 2


def _sum(gradients):
    """The sum of {name: gradient}, as a list; not in place, for a tape's gradients are part of its state."""
    return reduce(torch._foreach_add, [list(gradient.values()) for gradient in gradients])
