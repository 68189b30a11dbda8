"""From images to figures: embeddings, then TAR at FAR, ROC, AUC, EER, rank-1 and accuracy, with intervals.

embed.py      images -> unit embeddings, the mirror image's beside or added
roc.py        scores -> the curve and what is read off it; exact, by sorting
histogram.py  the same curve out of bins: any number of pairs in constant memory
all_pairs.py  all gallery x probe pairs, block by block
rank.py       rank-1 and rank-k
accuracy.py   accuracy by folds, as InsightFace computes it and exactly
bootstrap.py  intervals, by drawing the people scored with replacement
curve_draws.py  the same for AUC, EER and the curve
sampling.py   which of all pairs are kept to draw people from
gains.py      intervals of the gains over the base, on the same people
score.py      what is reported on gallery and probe lists, pairs and templates
gap.py        how far apart a model keeps domains
hardest.py    the pairs a model gets most wrong, where wrong labels show
sets.py       evaluation sets by their path, scored whole
table.py      scores of several sets as a table for the console
"""

from fastmfr.results import FAR

from .accuracy import accuracies
from .embed import embed, embed_domain
from .gains import paired_gains
from .gap import domain_gap, draw_evenly
from .hardest import hardest_pairs
from .histogram import Histogram
from .rank import identification
from .roc import Roc, tar_at_far, verification
from .score import embed_and_score, score, score_domain, score_folds, score_pairs, score_templates
from .sets import open_sets, score_set

__all__ = [
    "FAR",
    "Histogram",
    "Roc",
    "accuracies",
    "domain_gap",
    "draw_evenly",
    "embed",
    "embed_and_score",
    "embed_domain",
    "hardest_pairs",
    "identification",
    "open_sets",
    "paired_gains",
    "score",
    "score_domain",
    "score_folds",
    "score_pairs",
    "score_set",
    "score_templates",
    "tar_at_far",
    "verification",
]
