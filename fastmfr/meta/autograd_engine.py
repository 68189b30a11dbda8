"""The engine for any backbone: autograd, used twice for the second order."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

from fastmfr.config.choices import BatchNormStatistics, Precision
from fastmfr.losses import MfrLosses
from fastmfr.meta.pair_batches import Groups, loss_gradients
from fastmfr.meta.types import PairBatch, TestPass, TrainPass
from fastmfr.precision import autocast, matmul_precision


class AutogradEngine:
    """The Engine for every module whose operations have a double backward.

    Args:
        backbone: The network.
        names: The names of its trained parameters, in the order of every `theta`.
        batch_norm: The statistics that BatchNorm uses.
        precision: Of the passes for gradients; None leaves torch's settings as they are.
        curvature: Of the passes for H v. If it differs from `precision`, H v runs passes of its own, with the losses
            in its precision too, because the losses are part of the same graph.
    """

    name = "autograd"

    def __init__(
        self,
        backbone: nn.Module,
        names: Sequence[str],
        batch_norm: BatchNormStatistics,
        *,
        precision: Precision | None = None,
        curvature: Precision | None = None,
    ):
        self.backbone, self.names, self.batch_norm = backbone, names, batch_norm
        self.precision: Precision | None = precision
        self.curvature: Precision | None = curvature

    def train(
        self,
        theta: Sequence[Tensor],
        pairs: PairBatch,
        domain_B: Tensor | None,
        losses: MfrLosses,
        *,
        second_order: bool,
    ) -> TrainPass:
        """Compute losses and gradient of a meta-train batch, as Engine says."""
        keep_graph = second_order and self.precision == self.curvature
        leaves, embeddings = self._embed(theta, pairs, self.precision, tracking=True)
        terms, norms, dz = loss_gradients(losses, embeddings, domain_B, create_graph=keep_graph)
        if second_order:
            refuse_first_order(terms.total)
        gradient = _gradient(embeddings, dz, leaves, self.precision, create_graph=keep_graph)
        again = partial(self._hvp_of_new_passes, theta, pairs, domain_B, losses)
        hvp = partial(self._hvp, gradient, leaves) if keep_graph else again
        return TrainPass(terms, norms, [value.detach() for value in gradient], hvp)

    def test(self, theta: Sequence[Tensor], pairs: PairBatch, losses: MfrLosses) -> TestPass:
        """Compute losses and gradient of a meta-test batch, as Engine says."""
        leaves, embeddings = self._embed(theta, pairs, self.precision, tracking=False)
        terms = losses(*embeddings)
        dz = torch.autograd.grad(terms.total, embeddings)
        return TestPass(terms, _gradient(embeddings, dz, leaves, self.precision, create_graph=False))

    def _hvp(self, gradient, leaves, v):
        """H is symmetric: differentiating the gradient once more against v makes H v."""
        with matmul_precision(self.curvature):
            return torch.autograd.grad(gradient, leaves, v, materialize_grads=True)

    def _hvp_of_new_passes(self, theta, pairs, domain_B, losses, v):
        """The same, with passes in the precision of H v."""
        leaves, embeddings = self._embed(theta, pairs, self.curvature, tracking=False)
        dz = torch.autograd.grad(losses(*embeddings, domain_B).total, embeddings, create_graph=True)
        return self._hvp(_gradient(embeddings, dz, leaves, self.curvature, create_graph=True), leaves, v)

    def _embed(self, theta, pairs, precision, *, tracking):
        """(theta as leaves of autograd, (gallery_BD, probe_BD))."""
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
    """Losses are computed in float32 if activations have 16 bits."""
    return row_BD.float() if row_BD.dtype in (torch.bfloat16, torch.float16) else row_BD


@contextmanager
def _batch_norm(backbone, *, frozen, tracking) -> Iterator[None]:
    """BatchNorm with its running statistics (`frozen`) or those of the batch, which are tracked only if `tracking`."""
    layers = [module for module in backbone.modules() if isinstance(module, _BatchNorm)]
    before = [(layer.training, layer.track_running_stats) for layer in layers]
    for layer in layers:
        layer.training, layer.track_running_stats = not frozen, tracking or frozen
    try:
        yield
    finally:
        for layer, (training, track) in zip(layers, before, strict=True):
            layer.training, layer.track_running_stats = training, track


def refuse_first_order(loss: Tensor) -> None:
    """Raise RuntimeError if a custom operation under `loss` cannot be differentiated twice.

    torch raises an error by itself only if the failing node lies on the way to the parameters. The node of
    `once_differentiable` does not lie there, so its curvature would be left out silently.
    """
    seen, waiting = set(), [loss.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        waiting.extend(parent for parent, _ in node.next_functions)
        function = getattr(type(node), "_forward_cls", node)
        backward = getattr(function, "backward", None)
        if backward is not None and backward.__code__.co_filename == torch.autograd.function.__file__:
            raise RuntimeError(
                f"{function.__name__} has no double backward (it is once_differentiable), so order 2 "
                "would be silently wrong; use an operation that has one, or order 1"
            )
