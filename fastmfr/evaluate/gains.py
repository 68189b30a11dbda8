"""Intervals of the gains of models over the base on one target, paired: both models are scored on the same people."""

from collections.abc import Mapping

import numpy as np

from fastmfr.results import Scores, base_of

from .bootstrap import interval_of


def paired_gains(models: Mapping[str, Scores]) -> dict[str, dict[str, list[float]]]:
    """Return the 95 % intervals of the gains over the base, over draws of the people scored.

    A draw of people counts for both models, so people whom both find hard do not widen the interval.

    Args:
        models: The scores of each model on one target, with their draws.

    Returns:
        By model and by figure, called as in `Scores.draws`, [low, high] of the difference of two shares. A figure that
        was not drawn for both models, as often, is left out.
    """
    base = models[base_of(models)]
    return {
        model: {
            figure: interval_of(np.subtract(drawn, base.draws[figure]))
            for figure, drawn in scores.draws.items()
            if len(drawn) == len(base.draws.get(figure, ()))
        }
        for model, scores in models.items()
        if scores is not base and scores.draws
    }
