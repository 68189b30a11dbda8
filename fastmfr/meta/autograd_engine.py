"""The engine for any backbone: autograd, used twice where the second order is wanted."""

from contextlib import contextmanager

import torch
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

from fastmfr.meta.pair_batches import Groups, pulls_and_gradient
from fastmfr.precision import autocast, matmul_precision


class AutogradEngine:
    """Gradients and Hessian-vector products of the losses of a pair batch, at any parameters; lists of tensors.

    `precision` of the passes for gradients, `curvature` of those for H v; where they differ, H v makes its own, and
    takes the losses along in its precision: here they are part of the one graph.
    """

    name = "autograd"

    def __init__(self, backbone, names, batch_norm, *, precision=None, curvature=None):
        self.backbone, self.names, self.batch_norm = backbone, names, batch_norm
        self.precision, self.curvature = precision, curvature

    def train(self, theta, pairs, domain_B, losses, *, twice):
        """(terms, pulls, gradient, curve) of meta-train; curve(v), there where `twice`, is the Hessian times v."""
        again = twice and self.precision != self.curvature
        leaves, embeddings = self._embed(theta, pairs, self.precision, tracking=True)
        terms, lengths, dz = pulls_and_gradient(losses, embeddings, domain_B, create_graph=twice and not again)
        if twice:
            refuse_first_order(terms.total)
        gradient = _gradient(embeddings, dz, leaves, self.precision, create_graph=twice and not again)

        def curve(v):  # H is symmetric: differentiating the gradient once more against v gives H v
            at, g = leaves, gradient
            if again:
                at, embeddings = self._embed(theta, pairs, self.curvature, tracking=False)
                dz = torch.autograd.grad(losses(*embeddings, domain_B).total, embeddings, create_graph=True)
                g = _gradient(embeddings, dz, at, self.curvature, create_graph=True)
            with matmul_precision(self.curvature):
                return torch.autograd.grad(g, at, v, materialize_grads=True)

        return terms, lengths, [value.detach() for value in gradient], curve

    def test(self, theta, pairs, losses):
        """(terms, gradient) of meta-test."""
        leaves, embeddings = self._embed(theta, pairs, self.precision, tracking=False)
        terms = losses(*embeddings)
        dz = torch.autograd.grad(terms.total, embeddings)
        return terms, _gradient(embeddings, dz, leaves, self.precision, create_graph=False)

    def _embed(self, theta, pairs, precision, *, tracking):
        """(theta as leaves, embeddings)."""
        leaves = [value.detach().requires_grad_() for value in theta]
        groups = Groups(pairs, self.batch_norm == "per_domain")
        parameters = dict(zip(self.names, leaves, strict=True))
        with (
            _batch_norm(self.backbone, frozen=self.batch_norm == "frozen", tracking=tracking),
            autocast(precision, leaves[0].device),
        ):
            rows = [functional_call(self.backbone, parameters, (images,)) for images in groups.images]
        return leaves, groups.join([_in_full(row) for row in rows])


def _gradient(embeddings, dz, leaves, precision, *, create_graph):
    with matmul_precision(precision):  # autocast is for the forward pass: the backward follows its dtypes
        return torch.autograd.grad(embeddings, leaves, dz, create_graph=create_graph, materialize_grads=True)


def _in_full(row_BD):
    """Losses are float32 where activations are 16 bits wide."""
    return row_BD.float() if row_BD.dtype in (torch.bfloat16, torch.float16) else row_BD


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
