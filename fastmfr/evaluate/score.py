"""What is reported of one model: on gallery and probe lists, on pair lists, on templates. Plain types, for JSON.

Shape suffixes: N images or pairs, D embedding, T templates.
"""

from collections.abc import Sequence

import numpy as np
import torch

from fastmfr.decode import Preprocess
from fastmfr.protocols import GalleryProbe, PairList, TemplateSet

from .accuracy import FOLDS, accuracies
from .all_pairs import AllPairs, unit
from .bootstrap import pair_sample, samples, share_interval, tar_interval
from .embed import embed_domain
from .roc import FAR, exact_roc, figures

ROWS = 2**16  # embeddings gathered at once


def score_domain(
    backbone: torch.nn.Module,
    domain,
    pairs: GalleryProbe,
    preprocess: Preprocess,
    device,
    *,
    far: Sequence[float] = FAR,
    batch_images: int = 256,
    **decoding,
) -> dict:
    """`score` of a backbone on a whole domain, decoded and embedded `batch_images` at a time, unchanged.

    `decoding`: threads, decoder, vet and verdicts, as ImageStream takes them. Images that could not be decoded are
    left out of the lists; bad_images {key: reason} comes with the score.
    """
    scores, _, bad = embed_and_score(
        backbone, domain, pairs, preprocess, device, far=far, batch_images=batch_images, **decoding
    )
    return scores | {"bad_images": {f"{domain.name}/{domain.key(image)}": reason for image, reason in bad.items()}}


def embed_and_score(
    backbone: torch.nn.Module,
    domain,
    pairs: GalleryProbe,
    preprocess: Preprocess,
    device,
    *,
    far: Sequence[float] = FAR,
    **embedding,
) -> tuple[dict, torch.Tensor, dict[int, str]]:
    """(`score` of a backbone on a whole domain, embedding_ND, bad), the last two as `embed_domain` returns them.

    `embedding`: batch_images and decoding, as `embed_domain` takes them.
    """
    embedding_ND, bad = embed_domain(backbone, domain, preprocess, device, **embedding)
    return score(embedding_ND, pairs.without(bad), far), embedding_ND, bad


def score(embedding_ND, pairs: GalleryProbe, far: Sequence[float] = FAR) -> dict:
    """What is reported of one model on one target domain; it equals itself after a round trip through JSON.

    `embedding_ND` holds all images of the domain in their order. Returns `verification` of every gallery x probe
    pair, its FARs as text ("0.01"), rank1 and rank5 over the probes with a mate in the gallery, and the counts gallery,
    probes, probes_without_mate and identities. Each TAR has `interval`, rank-1 rank1_interval: the 95 % interval when
    the people are drawn anew. `exact`: whether the scores were sorted or counted into bins. Raises ValueError where
    no probe has a mate.
    """
    return _score(embedding_ND, pairs, far, _people(pairs))[0]


def _people(*folds):
    """All identities in the lists, each once and in order."""
    return np.unique(np.concatenate([ids for pairs in folds for ids in (pairs.gallery_id, pairs.probe_id)]))


def _score(embedding_ND, pairs, far, people):
    """(what `score` returns, {far: Sample} to draw the people from)."""
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
    gallery_id, probe_id = pairs.gallery_id, pairs.probe_id
    crossing = AllPairs(embedding_ND[pairs.gallery], gallery_id, embedding_ND[pairs.probe], probe_id)
    roc, rank_P = crossing.roc_and_ranks()
    out = figures(roc, far)
    measured = [f for f in far if "tar" in out["tar_at_far"][f]]
    drawn_from = samples(crossing, roc, gallery_id, probe_id, measured, people)
    for f, sample in drawn_from.items():
        out["tar_at_far"][f]["interval"] = tar_interval([sample], f)
    out["tar_at_far"] = {str(f): found for f, found in out["tar_at_far"].items()}
    mated_P = rank_P >= 0
    out |= {
        "rank1": float((rank_P[mated_P] < 1).mean()),
        "rank1_interval": share_interval(rank_P[mated_P] < 1, probe_id[mated_P]),
        "rank5": float((rank_P[mated_P] < 5).mean()),
        "gallery": len(gallery_id),
        "probes": len(probe_id),
        "probes_without_mate": int((~mated_P).sum()),
        "identities": len(np.unique(gallery_id)),
        "exact": crossing.exact,
    }
    return out, drawn_from


def score_folds(embedding_ND, folds: Sequence[GalleryProbe], far: Sequence[float] = FAR) -> dict:
    """The mean of `score` over several gallery and probe lists, as CASIA NIR-VIS 2.0 is reported, and each of them.

    Returns tar_at_far {far: {tar, std, far, interval}}, rank1, rank1_std, auc, eer, and folds: the scores, without
    their curves. A FAR that one fold is too small for is refused. Identities mean the same people in all folds.
    """
    people = _people(*folds)
    found, drawn_from = zip(*(_score(embedding_ND, pairs, far, people) for pairs in folds), strict=True)
    for fold in found:
        del fold["roc"]
    out: dict = {"tar_at_far": {str(f): _mean_tar([fold["tar_at_far"][str(f)] for fold in found]) for f in far}}
    for f in far:
        if "tar" in (mean := out["tar_at_far"][str(f)]):
            mean["interval"] = tar_interval([samples_of[f] for samples_of in drawn_from], f)
    for name in ("rank1", "auc", "eer"):
        out[name] = float(np.mean([fold[name] for fold in found]))
    return out | {"rank1_std": float(np.std([fold["rank1"] for fold in found])), "folds": list(found)}


def _mean_tar(found):
    refused = [fold["refused"] for fold in found if "refused" in fold]
    if refused:
        return {"refused": f"{refused[0]} (so in {len(refused)} of {len(found)} folds)"}
    tar, realised = ([fold[name] for fold in found] for name in ("tar", "far"))
    return {"tar": float(np.mean(tar)), "std": float(np.std(tar)), "far": float(np.mean(realised))}


def score_pairs(embedding_ND, pairs: PairList, far: Sequence[float] = FAR) -> dict:
    """What is reported on a list of pairs: `verification`, its FARs as text, and accuracy as `accuracies` returns it.

    Intervals are of drawing the people anew, or the pairs where the list does not say who is who. accuracy is left out
    where there are fewer than ten pairs of one kind.
    """
    unit_ND = unit(embedding_ND)
    first_N, second_N = (torch.from_numpy(image_N).to(unit_ND.device) for image_N in (pairs.first, pairs.second))
    parts = zip(first_N.split(ROWS), second_N.split(ROWS), strict=True)
    cos_N = torch.cat([(unit_ND[a] * unit_ND[b]).sum(1) for a, b in parts]).cpu().numpy()
    return _pair_figures(cos_N, pairs, far)


def score_templates(embedding_ND, templates: TemplateSet, far: Sequence[float] = FAR) -> dict:
    """`score_pairs` of IJB-style templates: the images of a medium are averaged, then the media of a template.

    `embedding_ND` should not be normalised: a network's longer outputs, of clearer images, then count for more, as in
    InsightFace's IJB evaluation.
    """
    return score_pairs(template_embeddings(embedding_ND, templates), templates.pairs, far)


def template_embeddings(embedding_ND, templates: TemplateSet) -> torch.Tensor:
    """Unit embedding of each template (T, D), float64: the mean over its media of the mean over their images."""
    embedding_ND = torch.as_tensor(embedding_ND).detach()
    device = embedding_ND.device
    share_N = 1 / np.bincount(templates.medium)[templates.medium]  # the media are summed: a mean has that direction too
    columns = (templates.image, templates.template_of_medium[templates.medium], share_N)
    sum_TD = torch.zeros(templates.templates, embedding_ND.shape[1], dtype=torch.float64, device=device)
    parts = (torch.from_numpy(column).to(device).split(ROWS) for column in columns)
    for image, template, share in zip(*parts, strict=True):
        sum_TD.index_add_(0, template, embedding_ND[image].double() * share[:, None])
    return unit(sum_TD, what="template embeddings")


def _pair_figures(cos_N, pairs, far):
    out = figures(exact_roc(cos_N, pairs.is_mate), far)
    sample = pair_sample(cos_N, pairs.is_mate, pairs.people)
    for f, found in out["tar_at_far"].items():
        if "tar" in found:
            found["interval"] = tar_interval([sample], f)
    out["tar_at_far"] = {str(f): found for f, found in out["tar_at_far"].items()}
    if min(out["genuine"], out["impostors"]) >= FOLDS:
        person_N = None if pairs.people is None else pairs.people[0]
        out["accuracy"] = accuracies(cos_N, pairs.is_mate, pairs.fold, person_N)
    return out
