"""A backbone whose BatchNorms, each with the PReLU after it, run as the kernels of kernels/batchnorm_prelu.

PyTorch makes a pass of its own for the statistics, the normalisation and the slope, and keeps a tensor between them.
The kernels make two passes forward and two back, and keep the input and two numbers per channel. They give first
derivatives only: a step through gradients is refused.
"""

from types import SimpleNamespace

import torch
from torch import Tensor, fx, nn

from fastmfr.kernels import batchnorm_prelu  # pyright: ignore[reportMissingImports]  # the folder kernels/

AS_IT_IS = "BatchNorm and PReLU run as PyTorch has them"
_NDIM = {nn.BatchNorm1d: 2, nn.BatchNorm2d: 4}  # of inputs that the kernels take
_NARROW = (torch.bfloat16, torch.float16)
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def fused(backbone: nn.Module) -> tuple[nn.Module, str]:
    """(the backbone with BatchNorm and PReLU as one operation each, a sentence that says what was done).

    The network shares every parameter, buffer and layer with the backbone, under the same names: to train one is to
    train the other. Its layers are in training or evaluation as the backbone's are. In evaluation PyTorch's own layers
    run, and so they do where a BatchNorm is of a kind that the kernels do not have. A backbone that cannot be traced
    comes back itself, and the sentence says why. Code that asks for `self.training` is traced as it runs now.
    """
    for name, module in backbone.named_modules():
        if any(getattr(module, hooks) for hooks in _HOOKS):
            return backbone, f"{AS_IT_IS}, for module {name or 'itself'} has hooks, which would be left out"
    try:
        network = fx.GraphModule(backbone, fx.Tracer().trace(backbone))
    except Exception as error:  # whatever the network's own code raises when it is handed a proxy
        return backbone, f"{AS_IT_IS}, for torch.fx cannot trace this backbone ({' '.join(str(error).split())})"
    norms, joined = _join(network)
    if not norms:
        return backbone, f"{AS_IT_IS}, for no BatchNorm of this backbone is of a kind that the kernels take"
    return network, f"{norms} BatchNorms run as kernels of their own, {joined} of them together with the PReLU after"


def _join(network):
    """Changes the graph. (Operations made, those of them with a PReLU)."""
    norms = joined = 0
    for node in list(network.graph.nodes):
        norm = _module(network, node)
        if norm is None or not _is_known(norm) or node.kwargs:
            continue
        reader = _prelu_after(network, node)
        target = f"_fused_{norms}"
        network.add_submodule(target, BatchNormPReLU(norm, _module(network, reader)))
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
    """Whether the kernels have all that this layer does. A momentum of None is of a mean that the host counts."""
    return type(norm) in _NDIM and norm.affine and norm.momentum is not None


def _prelu_after(network, node):
    """The node of the nn.PReLU that alone reads this node, if there is one."""
    readers = list(node.users)
    return readers[0] if len(readers) == 1 and type(_module(network, readers[0])) is nn.PReLU else None


class BatchNormPReLU(nn.Module):
    """What `norm`, then `prelu` or nothing, give. Both stay where they are: this module has no parameters."""

    def __init__(self, norm: nn.BatchNorm1d | nn.BatchNorm2d, prelu: nn.PReLU | None):
        super().__init__()
        self._layers = norm, prelu  # within a tuple nn.Module does not see them

    def forward(self, x: Tensor) -> Tensor:
        norm, prelu = self._layers
        if not (norm.training and self._takes(x)):
            return norm(x) if prelu is None else prelu(norm(x))
        if norm.num_batches_tracked is not None:
            norm.num_batches_tracked.add_(1)
        options = {"running": (norm.running_mean, norm.running_var), "momentum": norm.momentum, "eps": norm.eps}
        return _Function.apply(x, norm.weight, norm.bias, None if prelu is None else prelu.weight, options)

    def _takes(self, x):
        """Whether the kernels take this input; what PyTorch does not take either is for its layers to refuse."""
        norm, prelu = self._layers
        if x.ndim != _NDIM[type(norm)] or x.shape[1] != norm.num_features or x.numel() <= norm.num_features:
            return False
        wanted = norm.weight.dtype
        dtypes = {wanted} if prelu is None else {wanted, prelu.weight.dtype}
        is_wide = dtypes in ({torch.float32}, {torch.float64})
        slopes = 1 if prelu is None else prelu.weight.numel()
        return is_wide and (x.dtype == wanted or x.dtype in _NARROW) and slopes in (1, norm.num_features)


class _Function(torch.autograd.Function):
    """batchnorm_prelu with the batch's statistics, for autograd.

    What forward leaves for backward is saved by autograd where it is a tensor by itself. So it is freed with the graph,
    and a change in place is found. The rest, sizes and parameters, stays on the context.
    """

    @staticmethod
    def forward(ctx, x, weight, bias, slope, options):
        left = SimpleNamespace()
        with torch.autocast(x.device.type, enabled=False):  # it would round what is in between
            y = batchnorm_prelu.forward(left, x, weight, bias, slope, batch_statistics=True, **options)
        tensors = {name: value for name, value in vars(left).items() if isinstance(value, Tensor)}
        ctx.rest = {name: value for name, value in vars(left).items() if name not in tensors}
        ctx.names = tuple(tensors)
        ctx.save_for_backward(*tensors.values(), weight, bias, slope)  # the last only so that changes are found
        return y

    @staticmethod
    def backward(ctx, *dys):
        if torch.is_grad_enabled():
            raise RuntimeError(
                "a second-order step (create_graph=True) was wanted of a network whose BatchNorm and PReLU run as "
                "kernels, which have first derivatives only; take the backbone that was handed to fused(), or set "
                "pretrain.fused to false"
            )
        (dy,) = dys
        saved = ctx.saved_tensors
        left = SimpleNamespace(**ctx.rest, **dict(zip(ctx.names, saved, strict=False)))
        with torch.autocast(dy.device.type, enabled=False):
            dx, *gradients = batchnorm_prelu.backward(left, dy)
        wants_x, *wanted = ctx.needs_input_grad[:4]
        gradients = [gradient if wants else None for gradient, wants in zip(gradients, wanted, strict=True)]
        return dx if wants_x else None, *_by_themselves(gradients, saved[-3:]), None


def _by_themselves(gradients, parameters):
    """The same gradients in their parameters' dtypes and in memory of their own, copied at once where they can be.

    They may be rows of the many sums that they were made of, all of which they would keep.
    """
    given = [
        (gradient, parameter.dtype)
        for gradient, parameter in zip(gradients, parameters, strict=True)
        if gradient is not None
    ]
    if len({(gradient.shape, gradient.dtype) for gradient, _ in given}) == 1:
        copies = torch.stack([gradient for gradient, _ in given]).unbind()
    else:
        copies = [gradient.clone() for gradient, _ in given]
    own = iter([copy.to(dtype) for copy, (_, dtype) in zip(copies, given, strict=True)])
    return [None if gradient is None else next(own) for gradient in gradients]
