"""A network run operation by operation: gradients and Hessian-vector products without an autograd graph.

    kept       z = tape.forward(...)     grad = tape.backward(dz)     z' = tape.tangent(V)     H V = tape.second(dz')
    streaming  z, z' = tape.forward_tangent(...)                              H V = tape.second_streaming(dz, dz')

z is the embedding, dz the gradient of a loss on z, and dz' the derivative of dz along z'. Kept uses the state of the
gradient's two passes: forward and backward cost 3 convolutions a layer, and H V costs 6 more. Streaming computes the
values of those passes again together with their tangents. That costs 8 convolutions, and holds a layer's x and x' only.

With 16 bits, passes compute as under torch.autocast: convolutions and linear layers on operands of 16 bits, BatchNorm
with PReLU in float32 between activations of 16 bits. Embeddings are float32, and gradients have the dtype of their
parameters.
Shape suffixes: B = batch, D = embedding, H W = image.
"""

from collections.abc import Iterable
from types import SimpleNamespace
from typing import Literal

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from fastmfr.rop.operations import Sums, Values
from fastmfr.rop.reading import steps_of
from fastmfr.rop.tracing import NoROperator, dropping

Statistics = Literal["batch", "tracked", "running"]


class Program:
    """The operations of a network, valid as long as the network's modules stay the same.

    The network keeps its running statistics and its parameters that are not trained. Their values may change or be
    replaced. train() and eval() of BatchNorm have no effect here. Hooks, and branches of the code on `training`, count
    as they were when the Program was made.

    Args:
        network: Maps image_B3HW to embedding_BD.
        trained: The names of the trained parameters.

    Raises:
        NoROperator: If an operation has no R-operator; a ValueError.
    """

    def __init__(self, network: nn.Module, trained: Iterable[str]):
        self.network, self.steps = network, steps_of(network)
        self.trained, self.dropping = tuple(trained), dropping(network)
        self.fixed = tuple(name for name, _ in network.named_parameters() if name not in self.trained)
        self.cast = {name for step in self.steps if step.operation.casts for name in step.operation.parameters}
        self.varying = set()  # values that depend on a trained parameter; only these have tangents and gradients
        for step in self.steps:
            step.operation.input_varies = not self.varying.isdisjoint(step.inputs)
            if step.operation.input_varies or not set(step.operation.parameters).isdisjoint(self.trained):
                self.varying.add(step.output)

    def values(self, parameters: Values) -> dict[str, Tensor]:
        """Return all parameters by name: the trained ones from `parameters`, the others as the network has them.

        Raises:
            NoROperator: If dropout has been switched on since the Program was made.
        """
        if since := dropping(self.network) - self.dropping:
            raise NoROperator(
                f"dropout is on in {', '.join(sorted(since))}, and was off when this network was read; "
                "switch it off with eval(), or let autograd take this backbone"
            )
        fixed = {name: self.network.get_parameter(name).detach() for name in self.fixed}
        return fixed | {name: parameters[name].detach() for name in self.trained}


class Tape:
    """One batch through a Program; each method is a pass.

    Args:
        program: The network.
        parameters: {name: tensor} of all trained parameters.
        dtype: None computes in the dtypes of parameters and images. torch.bfloat16 and torch.float16 compute as
            torch.autocast does; embeddings are then float32, and gradients have the dtypes of their parameters. The
            range of float16 is 6e-8 to 65,504: scale the gradients and the direction that go in, because the results
            are linear in them.
        group: Ranks over whose images BatchNorm takes the statistics of a batch. Each rank's gradients and H V are then
            summands, whose sums over the ranks are those of the whole batch. None takes this process's own images.

    Attributes:
        bytes: The size of all values that the forward pass made and that depend on trained parameters.

    Raises:
        ValueError: If `dtype` is another one.
        NoROperator: If dropout has been switched on since the Program was made.
    """

    def __init__(
        self,
        program: Program,
        parameters: Values,
        dtype: torch.dtype | None = None,
        group: ProcessGroup | None = None,
    ):
        if dtype not in (None, torch.bfloat16, torch.float16):
            raise ValueError(
                f"a Tape computes in torch.bfloat16, torch.float16 or, given None, as its parameters do; got {dtype}"
            )
        self.program, self.dtype, self.group = program, dtype, group
        self.values = program.values(parameters)
        self.P = self._cast(self.values)
        self.contexts, self.bytes = [], 0

    @torch.no_grad()
    def forward(self, image_B3HW: Tensor, statistics: Statistics = "batch") -> Tensor:
        """Return embedding_BD.

        Args:
            image_B3HW: Images.
            statistics: Of BatchNorm. "batch" uses those of the batch, "tracked" too but updates the running ones, and
                "running" uses the running ones.
        """
        values = {0: self._narrow(image_B3HW)}
        for step in self.program.steps:
            self._forward(step, values, statistics)
            _let_go(step, values)
        return self._wide(values[len(self.program.steps)])

    @torch.no_grad()
    def backward(self, dz_BD: Tensor, *, keep: bool) -> dict[str, Tensor]:
        """Return {name: gradient} of the trained parameters.

        Args:
            dz_BD: Gradient on the embeddings.
            keep: Whether the state is kept for `tangent` and `second`; else it is freed.
        """
        sums = self._sums()

        def go(operation, ctx, dy):
            return (operation.backward(ctx, self.P[operation.casts], dy, sums),)

        self._sweep(go, keep, dz_BD)
        return self._complete(sums)

    @torch.no_grad()
    def tangent(self, V: Values) -> Tensor:
        """Return embedding'_BD along a direction V, {name: tensor} of all trained parameters."""
        self.V = self._cast(self._direction(V))
        tangents = {}
        for step, ctx in zip(self.program.steps, self.contexts, strict=True):
            self._tangent(step, ctx, tangents)
            _let_go(step, tangents)
        return self._wide(tangents[len(self.program.steps)])

    @torch.no_grad()
    def second(self, dzd_BD: Tensor) -> dict[str, Tensor]:
        """Return {name: H V} and free the state.

        Args:
            dzd_BD: The derivative of the gradient on the embeddings along their tangent.
        """
        sums = self._sums()

        def go(operation, ctx, dyd):
            return (self._second(operation, ctx, dyd, sums),)

        self._sweep(go, False, dzd_BD)
        return self._complete(sums)

    @torch.no_grad()
    def forward_tangent(self, image_B3HW: Tensor, V: Values, statistics: Statistics = "batch") -> tuple[Tensor, Tensor]:
        """Return (embedding_BD, embedding'_BD), as `forward` and `tangent` do."""
        self.V = self._cast(self._direction(V))
        values, tangents = {0: self._narrow(image_B3HW)}, {}
        for step in self.program.steps:
            ctx = self._forward(step, values, statistics)
            self._tangent(step, ctx, tangents)
            _let_go(step, values, tangents)
        return self._wide(values[len(self.program.steps)]), self._wide(tangents[len(self.program.steps)])

    @torch.no_grad()
    def second_streaming(self, dz_BD: Tensor, dzd_BD: Tensor) -> dict[str, Tensor]:
        """Return {name: H V} and free the state.

        Args:
            dz_BD: Gradient on the embeddings.
            dzd_BD: The derivative of that gradient along the tangent of the embeddings.
        """
        sums, none = self._sums(), Sums({})

        def go(operation, ctx, dy, dyd):
            dx = operation.backward(ctx, self.P[operation.casts], dy, none)
            return dx, self._second(operation, ctx, dyd, sums)

        self._sweep(go, False, dz_BD, dzd_BD)
        return self._complete(sums)

    def _forward(self, step, values, statistics):
        ctx = SimpleNamespace(statistics=statistics, dtype=self.dtype, group=self.group)
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
        """From the embedding back: `go` maps one or two gradients on an output to as many on the inputs."""
        pending = {len(self.program.steps): tuple(map(self._narrow, seeds))}
        for number, step in reversed(list(enumerate(self.program.steps))):
            dys, ctx = pending.pop(step.output, None), self.contexts[number]
            if dys is None or ctx is None:  # leads nowhere, or depends on nothing trained
                continue
            dxs = go(step.operation, ctx, *dys)
            for place, value in enumerate(step.inputs):
                mine = tuple(dx[place] if isinstance(dx, tuple) else dx for dx in dxs)
                if value in self.program.varying and mine[0] is not None:
                    others = pending.get(value)
                    pending[value] = tuple(map(torch.add, others, mine)) if others else mine
            if not keep:
                self.contexts[number] = None

    def _direction(self, V):
        """The direction of all parameters: 0 for those that are not trained."""
        return {name: V[name] if name in V else torch.zeros_like(value) for name, value in self.values.items()}

    def _cast(self, values):
        """{operation.casts: {name: tensor}}: the values that an operation reads."""
        return {False: values, True: {name: self._narrow(values[name]) for name in self.program.cast}}

    def _narrow(self, tensor):
        return tensor if self.dtype is None else tensor.to(self.dtype)

    def _wide(self, tensor):
        return tensor if self.dtype is None else tensor.float()

    def _sums(self):
        return Sums({name: self.values[name].dtype for name in self.program.trained})

    def _complete(self, sums):
        """All gradients in order; 0 for a parameter that the embedding does not depend on."""
        missing = {name: torch.zeros_like(self.values[name]) for name in sums.wanted if name not in sums.by_name}
        gradients = sums.by_name | missing
        return {name: gradients[name] for name in sums.wanted}


def _let_go(step, *values_by_number):
    for values in values_by_number:
        for number in step.last:
            values.pop(number, None)
