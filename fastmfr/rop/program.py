"""A network run operation by operation: gradients and Hessian-vector products without an autograd graph.

    kept       z = tape.forward(...)     grad = tape.backward(dz)     z' = tape.tangent(V)     H V = tape.second(dz')
    streaming  z, z' = tape.forward_tangent(...)                              H V = tape.second_streaming(dz, dz')

z is the embedding, dz the gradient of a loss on it, dz' the derivative of dz along z'. Kept goes on from the state of
the gradient's own two passes: H V costs 6 more convolutions where forward and backward cost 3. Streaming starts anew
and makes the values of those passes again beside their tangents, 8 convolutions, and holds a layer's x and x' only.
Shape suffixes: B = batch, D = embedding, H W = image.
"""

from types import SimpleNamespace

import torch
from torch import nn

from fastmfr.rop.operations import Sums
from fastmfr.rop.tracing import trace


class Program:
    """The operations of `network`, which goes on owning its running statistics and what is not trained.

    `trained`: names of the parameters that are. Raises NoROperator, a ValueError, where an operation has no R-operator.
    """

    def __init__(self, network: nn.Module, trained):
        self.steps = trace(network)
        self.trained = tuple(trained)
        self.fixed = {name: value.detach() for name, value in network.named_parameters() if name not in self.trained}
        self.varying = set()  # values that depend on what is trained; only these have tangents and gradients
        for step in self.steps:
            step.operation.input_varies = not self.varying.isdisjoint(step.inputs)
            if step.operation.input_varies or not set(step.operation.parameters).isdisjoint(self.trained):
                self.varying.add(step.output)


class Tape:
    """One batch through a Program at `parameters` ({name: tensor}, all that is trained); a method a pass.

    `bytes` is the size of all values that the forward pass made.
    """

    def __init__(self, program: Program, parameters):
        self.program = program
        self.P = program.fixed | {name: parameters[name].detach() for name in program.trained}
        self.contexts, self.bytes = [], 0

    @torch.no_grad()
    def forward(self, image_B3HW, statistics="batch"):
        """embedding_BD. `statistics` of BatchNorm: "tracked" (the batch's, remembered), "batch" (the batch's) or
        "running" (those remembered)."""
        values = {0: image_B3HW}
        for step in self.program.steps:
            self._forward(step, values, statistics)
            _let_go(step, values)
        return values[len(self.program.steps)]

    @torch.no_grad()
    def backward(self, dz_BD, *, keep):
        """{name: gradient}; with `keep` the state stays for `tangent` and `second`."""
        sums = Sums(self.program.trained)

        def go(operation, ctx, dy):
            return (operation.backward(ctx, self.P, dy, sums),)

        self._sweep(go, keep, dz_BD)
        return self._complete(sums)

    @torch.no_grad()
    def tangent(self, V):
        """embedding'_BD along the direction `V` ({name: tensor} of everything trained)."""
        self.V = self._direction(V)
        tangents = {}
        for step, ctx in zip(self.program.steps, self.contexts, strict=True):
            self._tangent(step, ctx, tangents)
            _let_go(step, tangents)
        return tangents[len(self.program.steps)]

    @torch.no_grad()
    def second(self, dzd_BD):
        """{name: H V}, from the derivative of the embedding's gradient along its tangent; frees the state."""
        sums = Sums(self.program.trained)

        def go(operation, ctx, dyd):
            return (operation.second_backward(ctx, self.P, self.V, dyd, sums),)

        self._sweep(go, False, dzd_BD)
        return self._complete(sums)

    @torch.no_grad()
    def forward_tangent(self, image_B3HW, V, statistics="batch"):
        """(embedding_BD, embedding'_BD)."""
        self.V = self._direction(V)
        values, tangents = {0: image_B3HW}, {}
        for step in self.program.steps:
            ctx = self._forward(step, values, statistics)
            self._tangent(step, ctx, tangents)
            _let_go(step, values, tangents)
        return values[len(self.program.steps)], tangents[len(self.program.steps)]

    @torch.no_grad()
    def second_streaming(self, dz_BD, dzd_BD):
        """{name: H V}, from the gradient on the embedding and its derivative; frees the state."""
        sums, none = Sums(self.program.trained), Sums(())

        def go(operation, ctx, dy, dyd):
            dx = operation.backward(ctx, self.P, dy, none)
            return dx, operation.second_backward(ctx, self.P, self.V, dyd, sums)

        self._sweep(go, False, dz_BD, dzd_BD)
        return self._complete(sums)

    def _forward(self, step, values, statistics):
        ctx = SimpleNamespace(statistics=statistics)
        y = step.operation.forward(ctx, self.P, *(values[number] for number in step.inputs))
        varies = step.output in self.program.varying
        self.contexts.append(ctx if varies else None)
        self.bytes += y.nbytes if varies else 0
        values[step.output] = y
        return self.contexts[-1]

    def _tangent(self, step, ctx, tangents):
        if ctx is not None:
            inputs = (tangents.get(number) for number in step.inputs)
            tangents[step.output] = step.operation.tangent(ctx, self.P, self.V, *inputs)

    def _sweep(self, go, keep, *seeds):
        """From the embedding back: `go` turns one or two gradients of an output into as many of the inputs."""
        pending = {len(self.program.steps): seeds}
        for number, step in reversed(list(enumerate(self.program.steps))):
            dys, ctx = pending.pop(step.output, None), self.contexts[number]
            if dys is None or ctx is None:  # leads nowhere, or depends on nothing trained
                continue
            dxs = go(step.operation, ctx, *dys)
            for place, value in enumerate(step.inputs):
                if value in self.program.varying:
                    mine = tuple(dx[place] if isinstance(dx, tuple) else dx for dx in dxs)
                    others = pending.get(value)
                    pending[value] = tuple(map(torch.add, others, mine)) if others else mine
            if not keep:
                self.contexts[number] = None

    def _direction(self, V):
        """What is not trained does not move."""
        return {name: V[name] if name in V else torch.zeros_like(value) for name, value in self.P.items()}

    def _complete(self, sums):
        """The embedding may not depend on all that is trained."""
        missing = {name: torch.zeros_like(self.P[name]) for name in self.program.trained if name not in sums.by_name}
        return {name: (sums.by_name | missing)[name] for name in self.program.trained}


def _let_go(step, *values_by_number):
    for values in values_by_number:
        for number in step.last:
            values.pop(number, None)
