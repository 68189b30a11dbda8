"""Several tensors laid end to end in one buffer, so that what happens to all of them is one operation.

Shape suffix: P = all their elements, and what little lies between them.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

_ALIGNED = 128  # bytes: where convolution libraries and vector loads want a tensor to begin


class Flat:
    """Where each of `tensors` ({name: tensor}) lies in a buffer (P,): in its own memory order, aligned.

    The gaps between tensors are 0 and stay so: sums and norms over a buffer are over the tensors.
    Raises ValueError where the tensors are not of one dtype and device.
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
        """A new buffer (P,), to add to."""
        return torch.zeros(self._elements, dtype=self.dtype, device=self.device)

    def empty(self) -> Tensor:
        """A new buffer (P,), to fill."""
        flat_P = torch.empty(self._elements, dtype=self.dtype, device=self.device)
        if self._gaps:
            torch._foreach_zero_([flat_P[gap] for gap in self._gaps])
        return flat_P

    def views(self, flat_P: Tensor) -> list[Tensor]:
        """The tensors that lie in a buffer."""
        return [flat_P.as_strided(*place) for place in self._places]

    def by_name(self, flat_P: Tensor) -> dict[str, Tensor]:
        """The same by their names."""
        return dict(zip(self.names, self.views(flat_P), strict=True))

    def fill(self, flat_P: Tensor, values: Sequence[Tensor]) -> Tensor:
        """Copies `values`, in the order of the names, into a buffer, and gives it."""
        torch._foreach_copy_(self.views(flat_P), list(values))
        return flat_P


class FlatSgd:
    """What torch.optim.SGD holds, moved into two flat buffers: the parameters `theta_P` and their `momentum_P`.

    The network and the optimizer keep both as views: whoever saves or steps them sees no difference.
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
