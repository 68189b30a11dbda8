"""What is reported of one model: on gallery and probe lists, on lists of pairs, on templates.

Shape suffixes: N images or pairs, D embedding, T templates.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from fastmfr.decode import Preprocess
from fastmfr.image_set import ImageSet
from fastmfr.protocols import GalleryProbe, PairList, TemplateSet
from fastmfr.results import FAR, Scores, TarAtFar

from .accuracy import FOLDS, accuracies
from .all_pairs import AllPairs, unit_rows
from .bootstrap import Sample, interval_of, pair_sample, share_draws, tar_draws
from .curve_draws import AUC, EER, CurveSample, band_of, curve_draws
from .embed import embed_domain
from .roc import exact_roc, score_curve
from .sampling import curve_sample_of_pairs, samples

ROWS = 2**16  # embeddings gathered at once


def score_domain(
    backbone: torch.nn.Module,
    domain: ImageSet,
    pairs: GalleryProbe,
    preprocess: Preprocess,
    device: torch.device | str,
    *,
    far: Sequence[float] = FAR,
    batch_images: int = 256,
    **decoding: Any,
) -> Scores:
    """Embed a whole domain and score the embeddings by its gallery and probe lists, as `score` does.

    Args:
        backbone: Maps image_B3HW to embedding_BD.
        domain: The images.
        pairs: The gallery and probe lists; images that could not be decoded are left out of the lists.
        preprocess: How images are prepared; nothing is changed at random.
        device: Where to embed.
        far: False accept rates in (0, 1).
        batch_images: How many images are decoded and embedded at a time.
        decoding: threads, decoder, vet and verdicts, as `ImageStream` takes them.

    Returns:
        The scores, with bad_images by "domain/key".

    Raises:
        ValueError: as in `score` and `embed`.
    """
    scores, _, bad = embed_and_score(
        backbone, domain, pairs, preprocess, device, far=far, batch_images=batch_images, **decoding
    )
    return replace(scores, bad_images={domain.label_of(image): reason for image, reason in bad.items()})


def embed_and_score(
    backbone: torch.nn.Module,
    domain: ImageSet,
    pairs: GalleryProbe,
    preprocess: Preprocess,
    device: torch.device | str,
    *,
    far: Sequence[float] = FAR,
    **embedding: Any,
) -> tuple[Scores, torch.Tensor, dict[int, str]]:
    """Do what `score_domain` does, and return the embeddings as well.

    Args:
        backbone: As in `score_domain`.
        domain: As in `score_domain`.
        pairs: As in `score_domain`.
        preprocess: As in `score_domain`.
        device: As in `score_domain`.
        far: As in `score_domain`.
        embedding: batch_images and decoding, as `embed_domain` takes them.

    Returns:
        (scores, embedding_ND, bad), the last two as `embed_domain` returns them.
    """
    embedding_ND, bad = embed_domain(backbone, domain, preprocess, device, **embedding)
    return score(embedding_ND, pairs.without(bad), far), embedding_ND, bad


def score(embedding_ND: torch.Tensor | np.ndarray, pairs: GalleryProbe, far: Sequence[float] = FAR) -> Scores:
    """Score every gallery x probe pair of one model on one domain.

    Args:
        embedding_ND: The embeddings of all images of the domain in their order; rows need not be of unit length.
        pairs: The gallery and probe lists.
        far: False accept rates in (0, 1).

    Returns:
        The figures of `verification`; rank-1 and rank-5 over the probes with a mate in the gallery; the counts; and
        the 95 % intervals of TAR, the curve, AUC, EER and rank-1 over draws of the people.

    Raises:
        ValueError: no probe has a mate, the lists name an image that has no embedding, an embedding in the lists is not
            finite, or there are no pairs of one kind.
    """
    return _score(embedding_ND, pairs, far, _people(pairs))[0]


def _people(*folds):
    """All identities in the lists, each once and in order."""
    return np.unique(np.concatenate([ids for pairs in folds for ids in (pairs.gallery_id, pairs.probe_id)]))


def _score(embedding_ND, pairs, far, people) -> tuple[Scores, dict[float, Sample], CurveSample]:
    """(what `score` returns, {far: Sample} to draw the people from, and what to draw from for AUC and EER)."""
    _check(embedding_ND, pairs)
    gallery_id, probe_id = pairs.gallery_id, pairs.probe_id
    all_pairs = AllPairs(embedding_ND[pairs.gallery], gallery_id, embedding_ND[pairs.probe], probe_id)
    roc, rank_P = all_pairs.roc_and_ranks()
    curve = score_curve(roc, far)
    measured = [f for f in far if curve.tar_at_far[str(f)].refused is None]
    drawn_from, of_curve = samples(all_pairs, roc, gallery_id, probe_id, measured, people)
    mated_P = rank_P >= 0
    first = share_draws(rank_P[mated_P] < 1, probe_id[mated_P])
    curve = _with_intervals(curve, {f: [sample] for f, sample in drawn_from.items()}, [of_curve])
    scores = replace(
        curve,
        draws=curve.draws | {"rank1": first},
        rank1=float((rank_P[mated_P] < 1).mean()),
        rank1_interval=interval_of(first),
        rank5=float((rank_P[mated_P] < 5).mean()),
        gallery=len(gallery_id),
        probes=len(probe_id),
        probes_without_mate=int((~mated_P).sum()),
        identities=len(np.unique(gallery_id)),
        exact=all_pairs.exact,
    )
    return scores, drawn_from, of_curve


def _check(embedding_ND, pairs):
    last = max(pairs.gallery.max(initial=-1), pairs.probe.max(initial=-1))
    if len(embedding_ND) <= last:
        raise ValueError(
            f"the gallery and probe lists name image {last}, but there are {len(embedding_ND)} "
            "embeddings; embed every image of the domain, in its order"
        )
    if not np.isin(pairs.probe_id, pairs.gallery_id).any():
        raise ValueError(
            f"none of the {len(pairs.probe_id)} probes has a mate among the {len(pairs.gallery_id)} "
            "gallery images; want lists that name the same people"
        )


def _with_intervals(
    scores: Scores, folds_by_far: Mapping[float, Sequence[Sample]], curve_folds: Sequence[CurveSample]
) -> Scores:
    """The scores, with draws and intervals of TAR at each FAR that there are samples for, and of AUC and EER."""
    rates, draws = dict(scores.tar_at_far), dict(scores.draws)
    for f, folds in folds_by_far.items():
        drawn = draws[f"tar_at_far_{f}"] = tar_draws(folds, f)
        rates[str(f)] = replace(rates[str(f)], interval=interval_of(drawn))
    scores = replace(scores, tar_at_far=rates, draws=draws)
    drawn_RF = curve_draws(curve_folds)
    if not len(drawn_RF):  # so few people that every draw lacks pairs of one kind
        return scores
    auc, eer = drawn_RF[:, AUC].tolist(), drawn_RF[:, EER].tolist()
    return replace(
        scores,
        draws=draws | {"auc": auc, "eer": eer},
        auc_interval=interval_of(auc),
        eer_interval=interval_of(eer),
        roc=scores.roc and replace(scores.roc, band=band_of(drawn_RF, curve_folds[0])),
    )


def score_folds(
    embedding_ND: torch.Tensor | np.ndarray, folds: Sequence[GalleryProbe], far: Sequence[float] = FAR
) -> Scores:
    """Return the mean of `score` over several gallery and probe lists, as CASIA NIR-VIS 2.0 is reported.

    Args:
        embedding_ND: As in `score`.
        folds: The gallery and probe lists; an identity is the same person in all of them.
        far: False accept rates in (0, 1); a rate that one fold is too small for is refused.

    Returns:
        The means of tar_at_far, rank1, auc and eer, with standard deviations and intervals, and the scores of each
        fold without its curve.

    Raises:
        ValueError: as in `score`.
    """
    people = _people(*folds)
    scored, drawn_from, of_curve = zip(*(_score(embedding_ND, pairs, far, people) for pairs in folds), strict=True)
    rates = {str(f): _mean_tar([fold.tar_at_far[str(f)] for fold in scored]) for f in far}
    measured = [f for f in far if rates[str(f)].refused is None]
    scores = Scores(
        tar_at_far=rates,
        auc=float(np.mean([fold.auc for fold in scored])),
        eer=float(np.mean([fold.eer for fold in scored])),
        rank1=float(np.mean([fold.rank1 for fold in scored])),
        rank1_std=float(np.std([fold.rank1 for fold in scored])),
        folds=[replace(fold, roc=None) for fold in scored],
    )
    folds_by_far = {f: [samples_by_far[f] for samples_by_far in drawn_from] for f in measured}
    return _with_intervals(scores, folds_by_far, of_curve)


def _mean_tar(found: Sequence[TarAtFar]) -> TarAtFar:
    refused = [fold.refused for fold in found if fold.refused is not None]
    if refused:
        return TarAtFar(refused=f"{refused[0]} (so in {len(refused)} of {len(found)} folds)")
    tar = [fold.tar for fold in found if fold.tar is not None]
    realised = [fold.far for fold in found if fold.far is not None]
    return TarAtFar(tar=float(np.mean(tar)), std=float(np.std(tar)), far=float(np.mean(realised)))


def score_pairs(embedding_ND: torch.Tensor | np.ndarray, pairs: PairList, far: Sequence[float] = FAR) -> Scores:
    """Score one model on a list of pairs.

    Args:
        embedding_ND: The embeddings of all images that the list numbers; rows need not be of unit length.
        pairs: The list.
        far: False accept rates in (0, 1).

    Returns:
        The figures of `verification`, and accuracy as `accuracies` returns it, if there are at least ten pairs of each
        kind. Intervals are over draws of the people, or of the pairs if the list does not name the people.

    Raises:
        ValueError: an embedding is not finite, or there are no pairs of one kind.
    """
    unit_ND = unit_rows(embedding_ND)
    first_N, second_N = (torch.from_numpy(image_N).to(unit_ND.device) for image_N in (pairs.first, pairs.second))
    parts = zip(first_N.split(ROWS), second_N.split(ROWS), strict=True)
    cos_N = torch.cat([(unit_ND[a] * unit_ND[b]).sum(1) for a, b in parts]).cpu().numpy()
    roc = exact_roc(cos_N, pairs.is_mate)
    curve = score_curve(roc, far)
    sample = pair_sample(cos_N, pairs.is_mate, pairs.people)
    measured = [f for f in far if curve.tar_at_far[str(f)].refused is None]
    accuracy = None
    if min(roc.genuine, roc.impostors) >= FOLDS:
        accuracy = accuracies(cos_N, pairs.is_mate, pairs.fold, None if pairs.people is None else pairs.people[0])
    of_curve = curve_sample_of_pairs(sample, roc)
    return replace(_with_intervals(curve, {f: [sample] for f in measured}, [of_curve]), accuracy=accuracy)


def score_templates(
    embedding_ND: torch.Tensor | np.ndarray, templates: TemplateSet, far: Sequence[float] = FAR
) -> Scores:
    """Score one model on IJB-style templates, as `score_pairs` does.

    Args:
        embedding_ND: The embeddings of all images; they should not be normalised, as in InsightFace's IJB evaluation:
            a network's longer outputs, of clearer images, then weigh more in a template.
        templates: The templates and the pairs of templates.
        far: False accept rates in (0, 1).

    Raises:
        ValueError: as in `score_pairs`.
    """
    return score_pairs(template_embeddings(embedding_ND, templates), templates.pairs, far)


def template_embeddings(embedding_ND: torch.Tensor | np.ndarray, templates: TemplateSet) -> torch.Tensor:
    """Return the unit embedding of each template (T, D), float64: the mean over media of the mean over their images."""
    embedding_ND = torch.as_tensor(embedding_ND).detach()
    device = embedding_ND.device
    share_N = 1 / np.bincount(templates.medium)[templates.medium]  # the media are summed: a mean has that direction too
    columns = (templates.image, templates.template_of_medium[templates.medium], share_N)
    sum_TD = torch.zeros(templates.templates, embedding_ND.shape[1], dtype=torch.float64, device=device)
    parts = (torch.from_numpy(column).to(device).split(ROWS) for column in columns)
    for image, template, share in zip(*parts, strict=True):
        sum_TD.index_add_(0, template, embedding_ND[image].double() * share[:, None])
    return unit_rows(sum_TD, what="template embeddings")
