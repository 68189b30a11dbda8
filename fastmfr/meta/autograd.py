"""The engine for any backbone: autograd, used twice where the second order is wanted."""

from contextlib import contextmanager

import torch
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

from fastmfr.meta.embedding import Groups, pulls


class AutogradEngine:
    """Gradients and Hessian-vector products of the losses of a pair batch, at any parameters; lists of tensors."""

    name = "autograd"

    def __init__(self, backbone, names, losses, batch_norm):
        self.backbone, self.names, self.losses, self.batch_norm = backbone, names, losses, batch_norm

    def train(self, theta, pairs, domain_B, *, twice):
        """(terms, pulls, gradient, curve) of meta-train; curve(v), there where `twice`, is the Hessian times v."""
        leaves = _leaves(theta)
        embeddings = self._embed(leaves, pairs, tracking=True)
        terms = self.losses(*embeddings, domain_B)
        lengths = pulls(terms, self.losses, embeddings)
        if twice:
            refuse_first_order(terms.total)
        gradient = torch.autograd.grad(terms.total, leaves, create_graph=twice, materialize_grads=True)

        def curve(v):  # H is symmetric: differentiating the gradient once more against v gives H v
            return torch.autograd.grad(gradient, leaves, v, materialize_grads=True)

        return terms, lengths, [value.detach() for value in gradient], curve

    def test(self, theta, pairs):
        """(terms, gradient) of meta-test."""
        leaves = _leaves(theta)
        terms = self.losses(*self._embed(leaves, pairs, tracking=False))
        return terms, torch.autograd.grad(terms.total, leaves, materialize_grads=True)

    def _embed(self, theta, pairs, *, tracking):
        groups = Groups(pairs, self.batch_norm == "per_domain")
        parameters = dict(zip(self.names, theta, strict=True))
        with _batch_norm(self.backbone, frozen=self.batch_norm == "frozen", tracking=tracking):
            return groups.join([functional_call(self.backbone, parameters, (images,)) for images in groups.images])


def _leaves(theta):
    return [value.detach().requires_grad_() for value in theta]


@contextmanager
def _batch_norm(backbone, *, frozen, tracking):
    """BatchNorm with its running statistics (`frozen`) or the batch's; these are remembered only while `tracking`."""
    layers = [module for module in backbone.modules() if isinstance(module, _BatchNorm)]
    before = [(layer.training, layer.track_running_stats) for layer in layers]
    for layer in layers:
        layer.training, layer.track_running_stats = not frozen, tracking or frozen
    try:
        yield
    finally:
        for layer, (training, track) in zip(layers, before, strict=True):
            layer.training, layer.track_running_stats = training, track


def refuse_first_order(loss):
    """Raises RuntimeError if a custom operation under `loss` cannot be differentiated twice.

    torch says so itself only where the failing node lies on the way to the parameters; that of `once_differentiable`
    does not, so its curvature would be left out without a word.
    """
    seen, waiting = set(), [loss.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        waiting.extend(parent for parent, _ in node.next_functions)
        backward = getattr(getattr(type(node), "_forward_cls", None), "backward", None)
        if backward is not None and backward.__code__.co_filename == torch.autograd.function.__file__:
            raise RuntimeError(
                f"{type(node)._forward_cls.__name__} has no double backward (it is once_differentiable), so order 2 "
                "would be silently wrong; use an operation that has one, or order 1"
            )
