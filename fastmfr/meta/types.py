"""What the meta step takes and returns. Shape suffixes: B = pairs, P = parameters laid end to end, H W = image."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fastmfr.losses import MfrTerms


@dataclass(frozen=True)
class PairBatch:
    """B pairs of images; row i of both image tensors shows one person.

    Attributes:
        gallery_B3HW: One image of each person, floating point.
        probe_B3HW: Another image of each person, of the same shape and dtype.
        domain_B: The number of each person's domain, int64.
    """

    gallery_B3HW: Tensor
    probe_B3HW: Tensor
    domain_B: Tensor


Split = tuple[PairBatch, PairBatch]  # (train, test)


@dataclass(frozen=True)
class TrainPass:
    """What an engine computes of a meta-train batch at theta. H is the Hessian of the total loss at theta.

    Attributes:
        terms: The losses.
        loss_gradient_norms: Shape (3,), in the order of `fastmfr.losses.LOSSES`: the norm of each weighted loss's
            gradient on the embeddings.
        gradient: The gradient of the total loss, in the order of theta.
        hvp: Maps a vector v, in the order of theta, to the Hessian-vector product H v. It may be called once, and only
            if the pass was made with `second_order`.
    """

    terms: MfrTerms
    loss_gradient_norms: Tensor
    gradient: Sequence[Tensor]
    hvp: Callable[[Sequence[Tensor]], Sequence[Tensor]]


@dataclass(frozen=True)
class TestPass:
    """What an engine computes of a meta-test batch at theta'.

    Attributes:
        terms: The losses, without domain alignment.
        gradient: The gradient of the total loss, in the order of theta'.
    """

    __test__ = False  # pytest would collect the class

    terms: MfrTerms
    gradient: Sequence[Tensor]


@dataclass(frozen=True)
class Summand:
    """One summand of the meta-gradient: gamma * g + (1 - gamma) * (v - alpha * hv).

    With sharing 'none' there is one summand for each split. With 'per_domain' a single summand covers all splits.

    Attributes:
        g_P: Gradient of meta-train. The three buffers are overwritten when the next summand is computed.
        v_P: Gradient of meta-test at theta'.
        hv_P: The Hessian-vector product H v, or None below order 2.
        alpha: The factor of `hv_P`.
        losses: As of MetaGradient.
        norms: As of MetaGradient.
    """

    g_P: Tensor
    v_P: Tensor
    hv_P: Tensor | None
    alpha: float
    losses: dict[str, Tensor]
    norms: dict[str, Tensor]


@dataclass(frozen=True)
class MetaGradient:
    """The gradient of one meta-batch and what was measured on the way. All tensors are detached.

    Attributes:
        grad: {parameter name: gradient}, the mean over the splits.
        losses: {name: (splits,)}. Of meta-train at theta: hard_pair, soft_classification, domain_alignment, their
            weighted sum total, and the sizes of the mined sets, positives and negatives. Of meta-test at theta': the
            same but domain_alignment, with the ending _test.
        norms: {name: (splits,)}. meta_train is |grad L_S|. meta_test is |v|. alpha_hv_over_v is alpha |H v| / |v|: 0
            below order 2, and a single figure for all splits with sharing 'per_domain'. share_NAME, in [0, 1], is the
            norm of loss NAME's gradient on the meta-train embeddings, divided by the sum of the three norms.
        engine: "rop" or "autograd", the engine that was used.
        reason: Why the engine was not the R-operator, or "".
    """

    grad: dict[str, Tensor]
    losses: dict[str, Tensor]
    norms: dict[str, Tensor]
    engine: str
    reason: str

    @torch.no_grad()
    def apply_to(self, module: nn.Module) -> None:
        """Add the gradient to `.grad` of the parameters of a module, as `backward()` of a loss does.

        An optimizer's `zero_grad()` comes before, its `step()` after. Between them, `.grad` is what it is after any
        backward pass: it may be clipped, and other losses may add to it. The values of `grad` are copied, so what is
        done to `.grad` does not reach them. Hooks of parameters are not called, and DistributedDataParallel does not
        average over ranks: both hang on backward passes.

        Args:
            module: The network that the gradient was computed of, or one whose trained parameters have the same names,
                shapes, dtypes and devices.

        Raises:
            ValueError: If `module` is no module, or if its trained parameters are others than those of the gradient. No
                `.grad` is changed then.
        """
        if not isinstance(module, nn.Module):
            raise ValueError(f"want a torch.nn.Module to apply the gradient to, got a {type(module).__name__}")
        trained = {name: value for name, value in module.named_parameters() if value.requires_grad}
        _check_parameters(trained, self.grad)
        for name, value in self.grad.items():
            parameter = trained[name]
            if parameter.grad is None:
                parameter.grad = value.clone()
            else:
                parameter.grad.add_(value)


def _check_parameters(trained, gradient):
    """Raise ValueError unless each trained parameter has a gradient of its kind, and each gradient a parameter."""
    if missing := [name for name in gradient if name not in trained]:
        prefixes = [name.removesuffix(missing[0]) for name in trained if name.endswith(f".{missing[0]}")]
        within = [f", here .{prefix[:-1]}" for prefix in prefixes if all(prefix + name in trained for name in gradient)]
        raise ValueError(
            f"{len(missing)} of {len(gradient)} gradients have no trained parameter in the module, the first one is of "
            f"{missing[0]}; want the module that the gradient was computed of{''.join(within[:1])}"
        )
    if without := [name for name in trained if name not in gradient]:
        raise ValueError(
            f"{len(without)} of {len(trained)} trained parameters have no gradient here, the first one is {without[0]};"
            " want the module that the gradient was computed of, or freeze the others by requires_grad_(False)"
        )
    for name, value in gradient.items():
        wanted, given = _kind(trained[name]), _kind(value)
        if wanted != given:
            raise ValueError(f"want a gradient of {name} of {wanted}, as the parameter is, got one of {given}")


def _kind(tensor):
    return f"{tensor.dtype}, shape {tuple(tensor.shape)}, on {tensor.device}"


@dataclass(frozen=True)
class MetaStep:
    """What a step of MetaTrainer measured, on the device of the backbone.

    Attributes:
        losses: As of MetaGradient.
        norms: As of MetaGradient.
        gradient_norm: Norm of the mean gradient, without weight decay; a tensor of shape ().
    """

    losses: dict[str, Tensor]
    norms: dict[str, Tensor]
    gradient_norm: Tensor
