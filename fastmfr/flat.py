"""Several tensors laid end to end in one buffer, so that an update of all of them is one operation.

Shape suffix: P = all their elements, and the gaps between them.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

_ALIGNED = 128  # bytes: convolution libraries and vector loads want a tensor to begin at a multiple


class Flat:
    """The layout of named tensors in a buffer of shape (P,): each in its memory order, and aligned.

    The gaps between tensors are 0 and stay 0, so a sum or norm over a buffer is a sum or norm over the tensors.

    Args:
        tensors: {name: tensor}; only shape, memory order, dtype and device are read.

    Attributes:
        names: The names, in order.
        dtype: The dtype of all tensors.
        device: The device of all tensors.

    Raises:
        ValueError: If the tensors do not have one dtype and one device.
    """

    def __init__(self, tensors: Mapping[str, Tensor]):
        kinds = {(tensor.dtype, tensor.device) for tensor in tensors.values()}
        if len(kinds) != 1:
            found = ", ".join(sorted(f"{dtype} on {device}" for dtype, device in kinds)) or "none"
            raise ValueError(
                f"want trained parameters of one dtype on one device, got {found}; move or convert the "
                "backbone as a whole, or freeze the odd ones with requires_grad_(False)"
            )
        ((self.dtype, self.device),) = kinds
        self.names, self._places, self._gaps, self._elements = list(tensors), [], [], 0
        step = _ALIGNED // self.dtype.itemsize
        for tensor in tensors.values():
            dense = torch.empty_like(tensor, device="meta")  # keeps the memory order, but for overlapping elements
            self._places.append((tensor.shape, dense.stride(), self._elements))
            end, self._elements = self._elements + tensor.numel(), self._elements + -(-tensor.numel() // step) * step
            if end < self._elements:
                self._gaps.append(slice(end, self._elements))

    def zeros(self) -> Tensor:
        """Return a new buffer (P,) of zeros."""
        return torch.zeros(self._elements, dtype=self.dtype, device=self.device)

    def empty(self) -> Tensor:
        """Return a new buffer (P,) whose gaps are 0 and whose tensors are not set."""
        flat_P = torch.empty(self._elements, dtype=self.dtype, device=self.device)
        if self._gaps:
            torch._foreach_zero_([flat_P[gap] for gap in self._gaps])
        return flat_P

    def views(self, flat_P: Tensor) -> list[Tensor]:
        """Return the tensors that lie in a buffer, as views."""
        return [flat_P.as_strided(*place) for place in self._places]

    def by_name(self, flat_P: Tensor) -> dict[str, Tensor]:
        """Return the same views by name."""
        return dict(zip(self.names, self.views(flat_P), strict=True))

    def fill(self, flat_P: Tensor, values: Sequence[Tensor]) -> Tensor:
        """Copy `values`, in the order of the names, into a buffer, and return the buffer."""
        torch._foreach_copy_(self.views(flat_P), list(values))
        return flat_P


class FlatSgd:
    """The parameters and the momentum of torch.optim.SGD, moved into two flat buffers.

    The network and the optimizer hold views of the buffers, so saving and stepping them work as before.

    Args:
        network: The network; its trained parameters become views.
        optimizer: SGD over all trained parameters of the network, in one group.

    Attributes:
        flat: The layout of both buffers, in the order of the network's parameters.
        theta_P: The parameters.
        momentum_P: Their momentum; 0 if the optimizer has none yet.
        momentum: The optimizer's factor of the momentum.
        weight_decay: The optimizer's weight decay.

    Raises:
        ValueError: If the parameters do not have one dtype and one device.
    """

    def __init__(self, network: nn.Module, optimizer: torch.optim.SGD):
        (group,) = optimizer.param_groups
        self.momentum, self.weight_decay = group["momentum"], group["weight_decay"]
        trained = {name: value for name, value in network.named_parameters() if value.requires_grad}
        self.flat = Flat({name: value.detach() for name, value in trained.items()})
        self.theta_P = self.flat.fill(self.flat.empty(), [value.detach() for value in trained.values()])
        self.momentum_P = self.flat.zeros()
        for parameter, value, momentum in zip(
            trained.values(), self.flat.views(self.theta_P), self.flat.views(self.momentum_P), strict=True
        ):
            before = optimizer.state[parameter].get("momentum_buffer")
            if before is not None:
                momentum.copy_(before)
            parameter.data, optimizer.state[parameter]["momentum_buffer"] = value, momentum
