"""Several tensors laid end to end in one buffer, so that an update of all of them is one operation.

Shape suffix: P = all their elements, and the gaps between them.
"""

import warnings
from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

__all__ = ["Flat", "trained_parameters"]

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

    def pieces(self, counts: Sequence[int]) -> list[slice]:
        """Return the parts of a buffer that hold the first counts[0] tensors, the next counts[1] tensors, and so on."""
        starts = [start for _, _, start in self._places] + [self._elements]
        ends = list(accumulate(counts, initial=0))
        return [slice(starts[begin], starts[end]) for begin, end in pairwise(ends)]

    def by_name(self, flat_P: Tensor) -> dict[str, Tensor]:
        """Return the same views by name."""
        return dict(zip(self.names, self.views(flat_P), strict=True))

    def fill(self, flat_P: Tensor, values: Sequence[Tensor]) -> Tensor:
        """Copy `values`, in the order of the names, into a buffer, and return the buffer."""
        torch._foreach_copy_(self.views(flat_P), list(values))
        return flat_P


def trained_parameters(network: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters of a network that are trained, by name; warn of hooks on them, which nothing will call.

    Raises:
        ValueError: If the network is no module, or if a parameter has no value yet, is a shard, or was made in
            torch.inference_mode().
    """
    if not isinstance(network, nn.Module):
        raise ValueError(f"want a backbone that is a torch.nn.Module, got a {type(network).__name__}")
    for name, value in network.named_parameters():
        if is_lazy(value):
            raise ValueError(
                f"{name} has no shape yet, for its module is lazy; pass one batch through the network first"
            )
        if type(value.data) is not Tensor:
            raise ValueError(
                f"want parameters that are plain tensors, got {name}, which is a {type(value.data).__name__}; a "
                "meta step takes the whole, unsharded network on each rank"
            )
        if value.is_inference():
            raise ValueError(
                f"{name} was made in torch.inference_mode() and cannot be trained; make the network outside"
            )
    trained = {name: value for name, value in network.named_parameters() if value.requires_grad}
    hooked = [name for name, value in trained.items() if value._backward_hooks or value._post_accumulate_grad_hooks]
    if hooked:
        warnings.warn(
            f"parameters have hooks ({', '.join(hooked)}), which a meta step does not call; change the gradients that "
            "meta_gradient returns instead",
            stacklevel=3,
        )
    return trained
