"""The balance of the losses of stage two: the weight of domain alignment if it is "auto", and what a run warns of."""

from collections.abc import Iterable, Mapping

import torch
from torch import nn

from fastmfr.config import Config, Meta, narrowed
from fastmfr.config.choices import AUTO
from fastmfr.losses import LOSSES, MfrLosses
from fastmfr.meta import PairBatch
from fastmfr.meta.balance import ALIGNMENT, loss_gradient_norms, weight_at_share
from fastmfr.training.logbook import Logbook

SHARE = 0.1  # of the gradient, that domain alignment supplies at the weight that "auto" chooses
MOST_ALIGNMENT = 0.5  # of the gradient, above which domain alignment supplies more than the other losses together
MOST = 0.95  # of the gradient, above which any loss leaves next to nothing to the others


class AlignmentWeight(nn.Module):
    """The weight of domain alignment in one run; a weight that was chosen is part of the states of stage two.

    Args:
        settings: The settings of stage two.
    """

    def __init__(self, settings: Meta):
        super().__init__()
        self._settings = settings
        if self.is_auto:
            self.register_buffer("chosen", torch.zeros((), dtype=torch.float64))

    @property
    def is_auto(self) -> bool:
        """Whether the weight is chosen by the run."""
        return self._settings.domain_alignment == AUTO

    @property
    def value(self) -> float:
        """The weight."""
        typed = self._settings.domain_alignment
        return self.get_buffer("chosen").item() if typed == AUTO else float(typed)

    def choose(self, backbone: nn.Module, batches: Iterable[PairBatch], logbook: Logbook) -> None:
        """Choose the weight at which domain alignment supplies SHARE of the gradient, and say which one it is.

        Args:
            backbone: The network as stage two begins with it.
            batches: The meta-train batches of the first step.
            logbook: Says the weight.
        """
        settings = self._settings
        losses = narrowed(settings, MfrLosses, domain_alignment=1.0)
        norms_3 = loss_gradient_norms(backbone, batches, losses, settings.batch_norm).double().mean(0)
        alignment = norms_3[ALIGNMENT].item()
        others = norms_3.sum().item() - alignment
        weight = weight_at_share(alignment, others, SHARE)
        self.get_buffer("chosen").fill_(weight)
        logbook.say(_choice(alignment, others, weight))


def _choice(alignment, others, weight):
    """The sentence on the weight that was chosen."""
    if alignment == 0:
        return (
            "meta.domain_alignment 0, chosen: a split trains on one domain, so there is nothing to align; with a third "
            "source there would be"
        )
    if weight == 0:
        return "meta.domain_alignment 0, chosen: the other losses have no gradient in the first batches"
    return (
        f"meta.domain_alignment {weight:g}, chosen: in the first batches domain alignment then supplies "
        f"{100 * SHARE:.0f} % of the gradient; at 1 it would supply {100 * alignment / (alignment + others):.0f} %"
    )


def warn_of_shares(record: Mapping[str, float], config: Config, weight: float, logbook: Logbook) -> None:
    """Warn if one loss supplies so much of a step's gradient that the others hardly count.

    Args:
        record: What was measured of the step, with share_NAME of every loss.
        config: The settings of the run.
        weight: The weight of domain alignment.
        logbook: Shows the warning.
    """
    for name in LOSSES:
        part = record[f"share_{name}"]
        if name == "domain_alignment" and part > MOST_ALIGNMENT:
            better = weight_at_share(part / weight, 1 - part, SHARE)
            logbook.warn(
                f"domain_alignment supplies {100 * part:.0f} % of the gradient, more than the other losses together; "
                f"for {100 * SHARE:.0f} % set --meta.domain_alignment {better:g} (now {weight:g}), or auto"
            )
        elif part > MOST:
            logbook.warn(
                f"{name} supplies {100 * part:.0f} % of the gradient, the other losses next to nothing; lower "
                f"--meta.{name} (now {getattr(config.meta, name):g})"
            )


def warn_of_curvature(ratio: float, alpha: float, logbook: Logbook) -> None:
    """Warn if alpha |Hv| / |v|, a mean over steps, says that the look-ahead is no small step."""
    if ratio > 1:
        logbook.warn(
            f"the second-order term is {ratio:.1f} times the first-order one, so the look-ahead is no small step; "
            f"lower --meta.alpha (now {alpha:g}) until alpha |Hv| / |v| is about 0.1 to 0.3"
        )
