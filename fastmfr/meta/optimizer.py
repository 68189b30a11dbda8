"""The optimizer of a MetaTrainer: parameters in one flat buffer, stepped by one kernel for SGD, else by torch.

Shape suffix: P = parameters laid end to end.
"""

import inspect
from collections import Counter

import torch
from torch import Tensor, nn

from fastmfr.flat import Flat, trained_parameters
from fastmfr.kernels import add_split, meta_sgd  # pyright: ignore[reportMissingImports]  # the folder kernels/
from fastmfr.meta.types import Summand

_NOT_FUSED = ("nesterov", "maximize", "dampening")  # settings of SGD that the kernel does not have


class FlatOptimizer:
    """An optimizer whose parameters, and for SGD their momentum, lie in flat buffers that the fused update changes.

    The network and the optimizer hold views of the buffers, so saving and stepping them work as before. Parameters that
    the optimizer does not have, and frozen ones, stay as they are. Weight decay, momentum and the learning rates of
    groups are read at each step.

    Args:
        network: The network; those of its trained parameters that the optimizer has become views.
        optimizer: Any optimizer of torch over parameters of the network.

    Attributes:
        flat: The layout of the buffers: group after group, each in the order of the network's parameters.
        theta_P: The parameters.
        momentum_P: Their momentum, 0 if the optimizer has none yet; None before the first fused step of an optimizer
            that was not fused at first.

    Raises:
        ValueError: If the optimizer has parameters that are not the network's or has no trained one, if its step needs
            a closure, if rates of groups cannot be compared, or if the parameters do not have one dtype and one device.
    """

    def __init__(self, network: nn.Module, optimizer: torch.optim.Optimizer):
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise ValueError(f"want an optimizer of torch.optim, got a {type(optimizer).__name__}")
        trained, groups = trained_parameters(network), optimizer.param_groups
        _check(network, optimizer)
        self._network, self._optimizer = network, optimizer
        self._given = self._parameters()
        group_of = {id(value): number for number, group in enumerate(groups) for value in group["params"]}
        names = sorted(
            (name for name in trained if id(trained[name]) in group_of), key=lambda n: group_of[id(trained[n])]
        )
        if not names:
            raise ValueError("want an optimizer over trained parameters of the backbone, got one that has none of them")
        self._trained = [trained[name] for name in names]
        self.flat = Flat({name: trained[name].detach() for name in names})
        counts = Counter(group_of[id(value)] for value in self._trained)
        pieces = self.flat.pieces(list(counts.values()))
        self._numbers, self._pieces = list(counts), pieces
        self.theta_P = self.flat.empty()
        self.momentum_P: Tensor | None = None
        self._factors()
        self.link()

    @property
    def is_fused(self) -> bool:
        """Return whether one kernel takes the step: for plain SGD, with or without momentum and weight decay."""
        optimizer = self._optimizer
        return (
            type(optimizer) is torch.optim.SGD
            and not (optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks)
            and not any(group[name] for group in self._groups for name in _NOT_FUSED)
        )

    @property
    def _groups(self):
        """The groups with trained parameters, as they are now: loading a state replaces them."""
        return [self._optimizer.param_groups[number] for number in self._numbers]

    @property
    def numbers(self) -> list[tuple[float, float, float]]:
        """Return the factor of the rate, the momentum and the weight decay of each group that the kernel updates."""
        return [
            (factor, float(group["momentum"]), float(group["weight_decay"]))
            for factor, group in zip(self._factors(), self._groups, strict=True)
        ]

    @torch.no_grad()
    def link(self) -> None:
        """Bring into the buffers what was put into the network or the optimizer since, such as a loaded state.

        Raises:
            ValueError: If the parameters, or their dtype or device, are no longer those of the beginning, or if
                some were frozen or unfrozen.
        """
        if self._parameters() != self._given:
            raise ValueError(
                "parameters of the backbone or of the optimizer were added, replaced, frozen or unfrozen since the "
                "MetaTrainer was made; make a new MetaTrainer"
            )
        for parameter, value in zip(self._trained, self.flat.views(self.theta_P), strict=True):
            if parameter.data_ptr() != value.data_ptr():
                if (parameter.dtype, parameter.device, parameter.shape) != (value.dtype, value.device, value.shape):
                    raise ValueError(
                        f"parameters were {value.dtype} on {value.device} when the MetaTrainer was made, and are "
                        f"{parameter.dtype} on {parameter.device} now; make a new MetaTrainer"
                    )
                value.copy_(parameter)
                parameter.data = value
        if self.is_fused:
            self._link_momentum()

    def _link_momentum(self):
        if self.momentum_P is None:
            self.momentum_P = self.flat.zeros()
        for parameter, value in zip(self._trained, self.flat.views(self.momentum_P), strict=True):
            state = self._optimizer.state[parameter]
            before = state.get("momentum_buffer")
            if before is None:
                value.zero_()
            elif before.data_ptr() != value.data_ptr():
                value.copy_(before)
            state["momentum_buffer"] = value

    def step(self, total_P: Tensor | None, last: Summand, *, gamma: float, splits: int, rate: float) -> Tensor:
        """Step along the mean gradient of a meta-batch.

        Args:
            total_P: The sum over the splits before the last one, which may be overwritten; None if there is none.
            last: The last summand.
            gamma: Weight of meta-train.
            splits: Number of splits.
            rate: Learning rate of the first group.

        Returns:
            The norm of the mean gradient, without weight decay, a tensor ().
        """
        step = self._by_kernel if self.is_fused else self._by_torch
        return step(total_P, last, gamma, splits, rate)

    def _by_kernel(self, total_P, last, gamma, splits, rate):
        buffers = self.theta_P, self.momentum_P, total_P, last.g_P, last.v_P, last.hv_P
        norms = []
        for piece, (factor, momentum, weight_decay) in zip(self._pieces, self.numbers, strict=True):
            norm = meta_sgd(
                *(None if buffer_P is None else buffer_P[piece] for buffer_P in buffers),
                alpha=last.alpha,
                gamma=gamma,
                splits=splits,
                rate=rate * factor,
                momentum=momentum,
                weight_decay=weight_decay,
            )
            norms.append(norm)
        return norms[0] if len(norms) == 1 else torch.linalg.vector_norm(torch.stack(norms))

    def _by_torch(self, total_P, last, gamma, splits, rate):
        total_P = self.flat.zeros() if total_P is None else total_P
        add_split(total_P, last.g_P, last.v_P, last.hv_P, last.alpha, gamma)
        gradients = self.flat.views(total_P.div_(splits))
        norm = total_P.norm()
        before = [value.grad for value in self._trained], [group["lr"] for group in self._groups]
        self._set(gradients, [rate * factor for factor in self._factors()])
        try:
            self._optimizer.step()
        finally:
            self._set(*before)
        return norm

    def _set(self, gradients, rates):
        for value, gradient in zip(self._trained, gradients, strict=True):
            value.grad = gradient
        for group, rate in zip(self._groups, rates, strict=True):
            group["lr"] = rate

    def _factors(self):
        """The rate of each group beside that of the first."""
        rates = [float(group["lr"]) for group in self._groups]
        if len(set(rates)) == 1:
            return [1.0] * len(rates)
        if not rates[0]:
            raise ValueError(
                f"the rates of the optimizer's groups count in proportion to the first one's, which is 0 of {rates}; "
                "want a first group whose rate is not 0, or equal rates"
            )
        return [rate / rates[0] for rate in rates]

    def _parameters(self):
        given = [value for group in self._optimizer.param_groups for value in group["params"]]
        return [(id(value), value.requires_grad) for value in (*given, *self._network.parameters())]


def _check(network, optimizer):
    """Raise ValueError for an optimizer that cannot be stepped along a meta-gradient of the network."""
    own = {id(value) for value in network.parameters()}
    given = [value for group in optimizer.param_groups for value in group["params"]]
    if others := [tuple(value.shape) for value in given if id(value) not in own]:
        raise ValueError(
            f"{len(others)} of the optimizer's {len(given)} parameters are not the backbone's, the first one of shape "
            f"{others[0]}, and would never be trained; want an optimizer over parameters of the backbone alone"
        )
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise ValueError(
            f"{type(optimizer).__name__} computes the loss again during a step, which a meta step cannot; want another "
            "optimizer, such as SGD or AdamW"
        )
    differentiable = any(group.get("differentiable") for group in optimizer.param_groups)
    if differentiable or isinstance(optimizer, torch.optim.SparseAdam):
        raise ValueError(
            f"{type(optimizer).__name__} wants sparse gradients, or steps that autograd records (differentiable=True); "
            "a meta step has neither; want another optimizer, such as SGD or AdamW"
        )
