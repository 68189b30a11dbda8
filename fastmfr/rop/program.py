"""A network run operation by operation: gradients and Hessian-vector products without an autograd graph.

    kept       z = tape.forward(...)     grad = tape.backward(dz)     z' = tape.tangent(V)     H V = tape.second(dz')
    streaming  z, z' = tape.forward_tangent(...)                              H V = tape.second_streaming(dz, dz')

z is the embedding, dz the gradient of a loss on it, dz' the derivative of dz along z'. Kept goes on from the state of
the gradient's own two passes: H V costs 6 more convolutions where forward and backward cost 3. Streaming starts anew
and makes the values of those passes again beside their tangents, 8 convolutions, and holds a layer's x and x' only.

With 16 bits, passes compute as under torch.autocast: convolutions and linear layers on operands of 16 bits, BatchNorm
with PReLU in float32 between activations of 16 bits. Embeddings and sums over a batch come out wide.
Shape suffixes: B = batch, D = embedding, H W = image.
"""

from types import SimpleNamespace

import torch
from torch import nn

from fastmfr.rop.operations import Sums
from fastmfr.rop.tracing import NoROperator, dropping, trace


class Program:
    """The operations of `network`, which goes on owning its running statistics and what is not trained.

    `trained`: names of the parameters that are. Raises NoROperator, a ValueError, where an operation has no R-operator.
    It serves as long as the modules stay the same: values may change in place or be replaced, and BatchNorm's train()
    and eval() say nothing here, but hooks and branches of the code on `training` count as they were when it was made.
    """

    def __init__(self, network: nn.Module, trained):
        self.network, self.steps = network, trace(network)
        self.trained, self.dropping = tuple(trained), dropping(network)
        self.fixed = tuple(name for name, _ in network.named_parameters() if name not in self.trained)
        self.cast = {name for step in self.steps if step.operation.casts for name in step.operation.parameters}
        self.varying = set()  # values that depend on what is trained; only these have tangents and gradients
        for step in self.steps:
            step.operation.input_varies = not self.varying.isdisjoint(step.inputs)
            if step.operation.input_varies or not set(step.operation.parameters).isdisjoint(self.trained):
                self.varying.add(step.output)

    def values(self, parameters):
        """{name: tensor} of all parameters: those trained out of `parameters`, the others as they are now."""
        if since := dropping(self.network) - self.dropping:
            raise NoROperator(
                f"dropout is on in {', '.join(sorted(since))}, and was off when this network was read; "
                "switch it off with eval(), or let autograd take this backbone"
            )
        fixed = {name: self.network.get_parameter(name).detach() for name in self.fixed}
        return fixed | {name: parameters[name].detach() for name in self.trained}


class Tape:
    """One batch through a Program at `parameters` ({name: tensor}, all that is trained); a method a pass.

    `dtype`: None computes in the dtypes of parameters and images; torch.bfloat16 or torch.float16 as torch.autocast
    would, to a float32 embedding and gradients in the parameters' own dtypes. float16 ends at 65,504 and 6e-8: scale
    the gradients and the direction that go in, for what comes out is linear in them. Raises ValueError for another
    dtype, NoROperator for dropout that has been switched on since the Program was made.
    `bytes` is the size of all values that the forward pass made.
    """

    def __init__(self, program: Program, parameters, dtype=None):
        if dtype not in (None, torch.bfloat16, torch.float16):
            raise ValueError(
                f"a Tape computes in torch.bfloat16, torch.float16 or, given None, as its parameters do; got {dtype}"
            )
        self.program, self.dtype = program, dtype
        self.values = program.values(parameters)
        self.P = self._cast(self.values)
        self.contexts, self.bytes = [], 0

    @torch.no_grad()
    def forward(self, image_B3HW, statistics="batch"):
        """embedding_BD. `statistics` of BatchNorm: "tracked" (the batch's, remembered), "batch" (the batch's) or
        "running" (those remembered)."""
        values = {0: self._narrow(image_B3HW)}
        for step in self.program.steps:
            self._forward(step, values, statistics)
            _let_go(step, values)
        return self._wide(values[len(self.program.steps)])

    @torch.no_grad()
    def backward(self, dz_BD, *, keep):
        """{name: gradient}; with `keep` the state stays for `tangent` and `second`."""
        sums = self._sums()

        def go(operation, ctx, dy):
            return (operation.backward(ctx, self.P[operation.casts], dy, sums),)

        self._sweep(go, keep, dz_BD)
        return self._complete(sums)

    @torch.no_grad()
    def tangent(self, V):
        """embedding'_BD along the direction `V` ({name: tensor} of everything trained)."""
        self.V = self._cast(self._direction(V))
        tangents = {}
        for step, ctx in zip(self.program.steps, self.contexts, strict=True):
            self._tangent(step, ctx, tangents)
            _let_go(step, tangents)
        return self._wide(tangents[len(self.program.steps)])

    @torch.no_grad()
    def second(self, dzd_BD):
        """{name: H V}, from the derivative of the embedding's gradient along its tangent; frees the state."""
        sums = self._sums()

        def go(operation, ctx, dyd):
            return (self._second(operation, ctx, dyd, sums),)

        self._sweep(go, False, dzd_BD)
        return self._complete(sums)

    @torch.no_grad()
    def forward_tangent(self, image_B3HW, V, statistics="batch"):
        """(embedding_BD, embedding'_BD)."""
        self.V = self._cast(self._direction(V))
        values, tangents = {0: self._narrow(image_B3HW)}, {}
        for step in self.program.steps:
            ctx = self._forward(step, values, statistics)
            self._tangent(step, ctx, tangents)
            _let_go(step, values, tangents)
        return self._wide(values[len(self.program.steps)]), self._wide(tangents[len(self.program.steps)])

    @torch.no_grad()
    def second_streaming(self, dz_BD, dzd_BD):
        """{name: H V}, from the gradient on the embedding and its derivative; frees the state."""
        sums, none = self._sums(), Sums({})

        def go(operation, ctx, dy, dyd):
            dx = operation.backward(ctx, self.P[operation.casts], dy, none)
            return dx, self._second(operation, ctx, dyd, sums)

        self._sweep(go, False, dz_BD, dzd_BD)
        return self._complete(sums)

    def _forward(self, step, values, statistics):
        ctx = SimpleNamespace(statistics=statistics)
        operation = step.operation
        y = operation.forward(ctx, self.P[operation.casts], *(values[number] for number in step.inputs))
        varies = step.output in self.program.varying
        self.contexts.append(ctx if varies else None)
        self.bytes += y.nbytes if varies else 0
        values[step.output] = y
        return self.contexts[-1]

    def _tangent(self, step, ctx, tangents):
        if ctx is not None:
            inputs = (tangents.get(number) for number in step.inputs)
            P, V = (values[step.operation.casts] for values in (self.P, self.V))
            tangents[step.output] = step.operation.tangent(ctx, P, V, *inputs)

    def _second(self, operation, ctx, dyd, sums):
        return operation.second_backward(ctx, self.P[operation.casts], self.V[operation.casts], dyd, sums)

    def _sweep(self, go, keep, *seeds):
        """From the embedding back: `go` turns one or two gradients of an output into as many of the inputs."""
        pending = {len(self.program.steps): tuple(map(self._narrow, seeds))}
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
        return {name: V[name] if name in V else torch.zeros_like(value) for name, value in self.values.items()}

    def _cast(self, values):
        """{operation.casts: {name: tensor}}, what an operation reads."""
        return {False: values, True: {name: self._narrow(values[name]) for name in self.program.cast}}

    def _narrow(self, tensor):
        return tensor if self.dtype is None else tensor.to(self.dtype)

    def _wide(self, tensor):
        return tensor if self.dtype is None else tensor.float()

    def _sums(self):
        return Sums({name: self.values[name].dtype for name in self.program.trained})

    def _complete(self, sums):
        """The embedding may not depend on all that is trained."""
        missing = {name: torch.zeros_like(self.values[name]) for name in sums.wanted if name not in sums.by_name}
        gradients = sums.by_name | missing
        return {name: gradients[name] for name in sums.wanted}


def _let_go(step, *values_by_number):
    for values in values_by_number:
        for number in step.last:
            values.pop(number, None)
