"""The meta step: every source domain left out once, looked ahead by one inner step, differentiated through.

For a split with meta-train loss L_S, meta-test loss L_T and inner step theta' = theta - alpha * grad L_S(theta):

    v = grad L_T at theta'        H = Hessian of L_S at theta
    gradient = gamma * grad L_S + (1 - gamma) * (v - alpha * H v)        exact; the mean over the splits is applied once

Autograd is used twice and theta' is never copied, so the identity term and the curvature are both there.
Source: arXiv 2003.07733, algorithm 1. Shape suffixes: B = pairs, D = embedding, H W = image.
"""

from collections.abc import Iterable
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

from fastmfr.losses import MfrLosses, MfrTerms

BATCH_NORM = ("batch", "frozen", "per_domain")


@dataclass(frozen=True)
class PairBatch:
    """B pairs: row i of `gallery_B3HW` and of `probe_B3HW` show one person, who is of domain `domain_B[i]`."""

    gallery_B3HW: Tensor
    probe_B3HW: Tensor
    domain_B: Tensor


@dataclass(frozen=True)
class MetaGradient:
    """`grad`: {parameter name: tensor}, the mean over the splits. `losses`, `norms`: {name: (splits,)}, detached.

    losses: hard_pair, soft_classification, domain_alignment, total of meta-train; the same with _test at theta';
    positives and negatives, the sizes of the mined sets. norms: meta_train = |grad L_S|, meta_test = |v|,
    alpha_hv_over_v = alpha |H v| / |v| (0 for order below 2), share_NAME = the part of the gradient on the meta-train
    embeddings that loss NAME supplies.
    """

    grad: dict[str, Tensor]
    losses: dict[str, Tensor]
    norms: dict[str, Tensor]


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


def _embed(backbone, parameters, pairs, batch_norm, *, tracking):
    """(gallery_BD, probe_BD) with the given parameters; both halves share their batch statistics."""
    with _batch_norm(backbone, frozen=batch_norm == "frozen", tracking=tracking):
        if batch_norm != "per_domain":
            images = torch.cat([pairs.gallery_B3HW, pairs.probe_B3HW])
            return functional_call(backbone, parameters, (images,)).chunk(2)
        rows_by_domain, halves = [], []
        for domain in pairs.domain_B.unique():  # synchronises the host: the price of statistics by domain when eager
            rows = (pairs.domain_B == domain).nonzero().squeeze(1)
            images = torch.cat([pairs.gallery_B3HW[rows], pairs.probe_B3HW[rows]])
            rows_by_domain.append(rows)
            halves.append(functional_call(backbone, parameters, (images,)).chunk(2))
        back = torch.cat(rows_by_domain).argsort()
        gallery_BD, probe_BD = (torch.cat(half)[back] for half in zip(*halves, strict=True))
        return gallery_BD, probe_BD


def _norm(tensors):
    return torch.stack([tensor.detach().norm() for tensor in tensors]).norm()


def _shares(terms: MfrTerms, losses: MfrLosses, embeddings):
    """What part of the gradient on the embeddings each loss supplies: norms over their sum. Costs no body pass."""
    names = ("hard_pair", "soft_classification", "domain_alignment")
    norms = []
    for name in names:
        loss = getattr(terms, name)
        if not loss.requires_grad:  # one domain, nothing to align
            norms.append(torch.zeros_like(loss))
            continue
        gradients = torch.autograd.grad(getattr(losses, name) * loss, embeddings, retain_graph=True)
        norms.append(_norm(gradients))
    shares = torch.stack(norms) / torch.stack(norms).sum().clamp_min(torch.finfo(norms[0].dtype).tiny)
    return {f"share_{name}": share for name, share in zip(names, shares, strict=True)}


def _refuse_first_order(loss):
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


def _split_gradient(backbone, parameters, train, test, alpha, gamma, order, losses, batch_norm):
    values = list(parameters.values())
    embeddings = _embed(backbone, parameters, train, batch_norm, tracking=True)
    terms = losses(*embeddings, train.domain_B)
    shares = _shares(terms, losses, embeddings)
    if order == 2:
        _refuse_first_order(terms.total)
    grad_train = torch.autograd.grad(terms.total, values, create_graph=order == 2, materialize_grads=True)

    inner = {name: value - alpha * grad for (name, value), grad in zip(parameters.items(), grad_train, strict=True)}
    terms_test = losses(*_embed(backbone, inner, test, batch_norm, tracking=False))
    v = torch.autograd.grad(terms_test.total, list(inner.values()), retain_graph=order == 2, materialize_grads=True)

    curved = [torch.zeros_like(value) for value in values]
    if order == 2:  # H is symmetric: differentiating the gradient once more against v gives H v
        curved = torch.autograd.grad(grad_train, values, v, materialize_grads=True)
    gradient = [
        gamma * g.detach() + (1 - gamma) * (v_i - alpha * hv) for g, v_i, hv in zip(grad_train, v, curved, strict=True)
    ]
    norms = {
        "meta_train": _norm(grad_train),
        "meta_test": _norm(v),
        "alpha_hv_over_v": alpha * _norm(curved) / _norm(v).clamp_min(torch.finfo(v[0].dtype).tiny),
        **shares,
    }
    tested = {f"{name}_test": value for name, value in vars(terms_test).items() if name != "domain_alignment"}
    return gradient, {**vars(terms), **tested}, norms


def _by_name(logs):
    """Dicts of one tensor a split -> one dict of (splits,)."""
    return {name: torch.stack([log[name].detach() for log in logs]) for name in logs[0]}


def meta_gradient(
    backbone: nn.Module,
    splits: Iterable,
    *,
    alpha: float,
    gamma: float,
    order: int = 2,
    engine: str = "auto",
    losses: MfrLosses | None = None,
    batch_norm: str = "batch",
) -> MetaGradient:
    """The gradient of one meta-batch: the mean over splits of gamma * grad L_S + (1 - gamma) * d L_T(theta') / d theta.

    `splits`: (train, test) pairs with .gallery_B3HW, .probe_B3HW, .domain_B as PairBatch has them; read one at a time.
    `alpha` >= 0: inner step size. `gamma` in [0, 1]: weight of meta-train. `order`: 2 is exact, 1 leaves out the
    Hessian but keeps theta', 0 takes no look-ahead (alpha = 0: the plain sum of both losses). `batch_norm`: "batch"
    uses batch statistics in both passes and lets only the pass at theta update the running ones; "frozen" uses the
    running ones; "per_domain" takes batch statistics of each domain by itself. `backbone`: any module whose operations
    have a double backward; it is not changed but for its running statistics. Raises ValueError for a setting outside
    these.
    """
    if order not in (0, 1, 2):
        raise ValueError(f"want order 0 (no look-ahead), 1 (first order) or 2 (exact), got {order!r}")
    if alpha < 0 or not 0 <= gamma <= 1:
        raise ValueError(f"want alpha >= 0 and gamma in [0, 1], got alpha {alpha} and gamma {gamma}")
    if engine not in ("auto", "autograd"):
        raise ValueError(f"want engine 'auto' or 'autograd', got {engine!r}")
    if batch_norm not in BATCH_NORM:
        raise ValueError(f"want batch_norm out of {', '.join(BATCH_NORM)}, got {batch_norm!r}")
    if order == 0:
        alpha = 0.0
    order = order if alpha else 0  # at alpha = 0 the Hessian has no part in the gradient
    parameters = {name: value for name, value in backbone.named_parameters() if value.requires_grad}
    total, logs = None, []
    for train, test in splits:
        gradient, *log = _split_gradient(
            backbone, parameters, train, test, alpha, gamma, order, losses or MfrLosses(), batch_norm
        )
        logs.append(log)
        total = gradient if total is None else [a + b for a, b in zip(total, gradient, strict=True)]
    if total is None:
        raise ValueError("want at least one split, got none")
    mean = {name: value / len(logs) for name, value in zip(parameters, total, strict=True)}
    values, norms = zip(*logs, strict=True)
    return MetaGradient(mean, _by_name(values), _by_name(norms))
