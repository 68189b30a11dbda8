"""A backbone whose BatchNorms, each with the PReLU after it, run as kernels/batchnorm_prelu, on a GPU or on a CPU.

PyTorch makes one pass each for the statistics, the normalisation and the slope, and keeps a tensor between two passes.
The kernels, in Triton on a GPU and in C++ on a CPU, make two passes forward and two back, and keep the input and two
numbers per channel. They have first derivatives only, so a second-order step is refused.
"""

from contextlib import nullcontext
from types import SimpleNamespace

import torch
from torch import Tensor, fx, nn
from torch.distributed import ProcessGroup
from torch.nn.modules.batchnorm import _BatchNorm

from fastmfr.kernels import batchnorm_prelu  # pyright: ignore[reportMissingImports]  # the folder kernels/
from fastmfr.rop.tracing import defaults_of

__all__ = ["AS_IT_IS", "BatchNormPReLU", "fused", "has_batch_norm"]

AS_IT_IS = "BatchNorm and PReLU run as PyTorch has them"
_NDIM = {nn.BatchNorm1d: 2, nn.BatchNorm2d: 4}  # dimensions of the inputs that the kernels take
_NARROW = (torch.bfloat16, torch.float16)
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def fused(backbone: nn.Module, group: ProcessGroup | None = None) -> tuple[nn.Module, str]:
    """Make a network that computes what the backbone computes, with each BatchNorm and its PReLU as one operation.

    The network holds the backbone's own parameters, buffers and layers, under the same names, so training one trains
    the other. In evaluation PyTorch's layers run; they also run for a BatchNorm of a kind that the kernels do not have.

    Args:
        backbone: Any module. Code that reads `self.training` is traced as it runs now.
        group: Ranks over whose images the statistics of a batch are taken; None takes this process's own.

    Returns:
        The network, or the backbone itself if it cannot be traced or has no such BatchNorm; and a sentence that says
        what was done.
    """
    for name, module in backbone.named_modules():
        if any(getattr(module, hooks) for hooks in _HOOKS):
            return backbone, f"{AS_IT_IS}, for module {name or 'itself'} has hooks, which would be left out"
    try:
        network = fx.GraphModule(backbone, fx.Tracer().trace(backbone, defaults_of(backbone)))
    except Exception as error:  # the network's code may raise anything when it gets a proxy
        return backbone, f"{AS_IT_IS}, for torch.fx cannot trace this backbone ({' '.join(str(error).split())})"
    norms, joined = _join(network, group)
    if not norms:
        return backbone, f"{AS_IT_IS}, for no BatchNorm of this backbone is of a kind that the kernels take"
    return network, f"{norms} BatchNorms run as fused kernels, {joined} of them together with the PReLU after"


def has_batch_norm(network: nn.Module) -> bool:
    """Return whether a network has a BatchNorm that PyTorch would run, over the images of this process alone."""
    return any(isinstance(module, _BatchNorm) for module in _called(network))


def _called(network):
    """The layers of a network; of a network that `fused` has made, those that it calls."""
    if not isinstance(network, fx.GraphModule):
        return network.modules()
    called = [network.get_submodule(node.target) for node in network.graph.nodes if node.op == "call_module"]
    return [module for layer in called for module in layer.modules()]


def _join(network, group):
    """Change the graph of the network; (operations made, those of them with a PReLU)."""
    norms = joined = 0
    for node in list(network.graph.nodes):
        norm = _module(network, node)
        if norm is None or not _is_known(norm) or node.kwargs:
            continue
        reader = _prelu_after(network, node)
        target = f"_fused_{norms}"
        network.add_submodule(target, BatchNormPReLU(norm, _module(network, reader), group))
        node.target, norms = target, norms + 1
        if reader is not None:
            joined += 1
            reader.replace_all_uses_with(node)
            network.graph.erase_node(reader)
    network.recompile()
    return norms, joined


def _module(network, node):
    """The layer that a node calls, if it calls one."""
    return network.get_submodule(node.target) if node is not None and node.op == "call_module" else None


def _is_known(norm):
    """Whether the kernels compute what this layer does. With momentum None, the host counts batches for a mean."""
    return type(norm) in _NDIM and norm.affine and norm.momentum is not None


def _prelu_after(network, node):
    """The node of the nn.PReLU that alone reads this node, if there is one."""
    readers = list(node.users)
    return readers[0] if len(readers) == 1 and type(_module(network, readers[0])) is nn.PReLU else None


class BatchNormPReLU(nn.Module):
    """A BatchNorm and the PReLU after it as one operation.

    This module has no parameters: both layers stay where they are in the network.

    Args:
        norm: The BatchNorm.
        prelu: The PReLU, or None.
        group: As `fused` takes it.
    """

    def __init__(
        self, norm: nn.BatchNorm1d | nn.BatchNorm2d, prelu: nn.PReLU | None, group: ProcessGroup | None = None
    ):
        super().__init__()
        self._group = group
        self._layers = norm, prelu  # nn.Module does not register layers in a tuple

    def forward(self, x: Tensor) -> Tensor:
        """Return prelu(norm(x)), of the shape and dtype of x."""
        norm, prelu = self._layers
        if not (norm.training and self._takes(x)):
            return norm(x) if prelu is None else prelu(norm(x))
        if norm.num_batches_tracked is not None:
            norm.num_batches_tracked.add_(1)
        options = {"running": (norm.running_mean, norm.running_var), "momentum": norm.momentum, "eps": norm.eps}
        options["group"] = self._group
        return _Function.apply(x, norm.weight, norm.bias, None if prelu is None else prelu.weight, options)

    def _takes(self, x):
        """Whether the kernels take this input. PyTorch's layers get the others, and raise errors for bad ones."""
        norm, prelu = self._layers
        if x.ndim != _NDIM[type(norm)] or x.shape[1] != norm.num_features or x.numel() <= norm.num_features:
            return False
        wanted = norm.weight.dtype
        dtypes = {wanted} if prelu is None else {wanted, prelu.weight.dtype}
        is_wide = dtypes in ({torch.float32}, {torch.float64})
        slopes = 1 if prelu is None else prelu.weight.numel()
        return is_wide and (x.dtype == wanted or x.dtype in _NARROW) and slopes in (1, norm.num_features)


class _Function(torch.autograd.Function):
    """batchnorm_prelu with the statistics of the batch, for autograd.

    Autograd saves the tensors that forward leaves for backward. So they are freed with the graph, and changes in place
    are found. The rest, such as sizes, stays on the context.
    """

    @staticmethod
    def forward(ctx, x, weight, bias, slope, options):
        left = SimpleNamespace()
        with _as_they_are(x.device):
            y = batchnorm_prelu.forward(left, x, weight, bias, slope, batch_statistics=True, **options)
        tensors = {name: value for name, value in vars(left).items() if isinstance(value, Tensor)}
        ctx.rest = {name: value for name, value in vars(left).items() if name not in tensors}
        ctx.names = tuple(tensors)
        ctx.save_for_backward(*tensors.values(), weight, bias, slope)  # parameters: only so that changes are found
        return y

    @staticmethod
    def backward(ctx, *dys):
        if torch.is_grad_enabled():
            raise RuntimeError(
                "a second-order step (create_graph=True) was wanted of a network whose BatchNorm and PReLU run as "
                "kernels, which have first derivatives only; take the backbone that fused() was called with, or set "
                "pretrain.fused to false"
            )
        (dy,) = dys
        saved = ctx.saved_tensors
        left = SimpleNamespace(**ctx.rest, **dict(zip(ctx.names, saved, strict=False)))
        with _as_they_are(dy.device):
            dx, *gradients = batchnorm_prelu.backward(left, dy)
        wants_x, *wanted = ctx.needs_input_grad[:4]
        gradients = [gradient if wants else None for gradient, wants in zip(gradients, wanted, strict=True)]
        return dx if wants_x else None, *_copied(gradients, saved[-3:]), None


def _as_they_are(device):
    """In this context autocast does not round intermediate results. Entering one costs as much as a small operation."""
    is_on = torch.is_autocast_enabled(device.type)
    return torch.autocast(device.type, enabled=False) if is_on else nullcontext()


def _copied(gradients, parameters):
    """Copies of the gradients in their parameters' dtypes, made in one operation if shapes and dtypes allow.

    A gradient may be one row of a large buffer of sums, and would keep the whole buffer alive. On the CPU the buffer
    has no more rows than there are gradients.
    """
    given = [
        (gradient, parameter.dtype)
        for gradient, parameter in zip(gradients, parameters, strict=True)
        if gradient is not None
    ]
    if all(own.dtype == dtype and own.untyped_storage().nbytes() <= 3 * own.nbytes for own, dtype in given):
        return gradients
    if len({(gradient.shape, gradient.dtype) for gradient, _ in given}) == 1:
        copies = torch.stack([gradient for gradient, _ in given]).unbind()
    else:
        copies = [gradient.clone() for gradient, _ in given]
    own = iter([copy.to(dtype) for copy, (_, dtype) in zip(copies, given, strict=True)])
    return [None if gradient is None else next(own) for gradient in gradients]
