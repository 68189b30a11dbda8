"""How much of the gradient each of the three losses supplies, measured without a step.

Shape suffix: N = batches.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from fastmfr.config.choices import BatchNormStatistics
from fastmfr.losses import LOSSES, MfrLosses
from fastmfr.meta.engine import gradients_on
from fastmfr.meta.held import Held
from fastmfr.meta.pair_batches import Groups, loss_gradients
from fastmfr.meta.types import PairBatch

ALIGNMENT = LOSSES.index("domain_alignment")


@gradients_on()
def loss_gradient_norms(
    backbone: nn.Module, batches: Iterable[PairBatch], losses: MfrLosses, batch_norm: BatchNormStatistics
) -> Tensor:
    """Measure the gradients of the losses on the embeddings of meta-train batches.

    A batch costs one forward pass. The backbone stays as it is, with all of its buffers, and so does the generator of
    random numbers.

    Args:
        backbone: Maps image_B3HW to embedding_BD.
        batches: Meta-train batches, read one at a time.
        losses: The losses.
        batch_norm: The statistics of BatchNorm, as of GradientSettings.

    Returns:
        The norms of the weighted losses' gradients, (N, 3), in the order of `fastmfr.losses.LOSSES`.
    """
    parameters = {name: value.detach() for name, value in backbone.named_parameters()}
    device = next(iter(parameters.values())).device
    norms = []
    for pairs in batches:
        held = Held(backbone, parameters, batch_norm, tracking=False, second_order=False)
        groups = Groups(pairs, batch_norm == "per_domain")
        with torch.random.fork_rng([device] if device.type == "cuda" else []), held.first(), torch.no_grad():
            rows = [backbone(images) for images in groups.images]
        gallery_BD, probe_BD = (half.detach().requires_grad_() for half in groups.join(rows))
        norms.append(loss_gradients(losses, (gallery_BD, probe_BD), pairs.domain_B, create_graph=False)[1])
    return torch.stack(norms)


def weight_at_share(alignment: float, others: float, share: float) -> float:
    """Return the weight at which domain alignment supplies a share of the gradient, or 0 if no weight does.

    Args:
        alignment: Norm of the gradient of domain alignment at weight 1, or in proportion to that norm.
        others: Sum of the norms of the other weighted losses' gradients, in the same proportion.
        share: In (0, 1): the norm of domain alignment's gradient divided by the sum of all three.

    Returns:
        The weight, rounded to three digits, so that the weight that is said is the weight that is taken.
    """
    return float(f"{share / (1 - share) * others / alignment:.3g}") if alignment > 0 else 0.0
