"""From images to figures: embeddings, then TAR at FAR, ROC, AUC, EER and rank-1.

    genuine pair   gallery and probe image of one person          impostor pair   of two people
    TAR(t)         share of genuine pairs scoring >= t            FAR(t)          share of impostor pairs scoring >= t
    TAR at FAR f   the largest TAR with FAR <= f                  rank-1          share of probes whose nearest gallery
                                                                                  image is of the same person
Everything is read off one `Roc`, the counts of accepted pairs at falling thresholds; here it is made exactly, by
sorting every score. Shape suffixes: N images, G gallery, P probes, D embedding, K thresholds.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F

from fastmfr.protocols import GalleryProbe

from .decode import ImageStream, Preprocess

FAR = (1e-2, 1e-3, 1e-4)
ROC_POINTS = 400  # kept for plotting
CHUNK = 2**24  # scores held at once by `identification`


@dataclass(frozen=True)
class Roc:
    """Pairs accepted (score >= threshold) at K falling thresholds; the first accepts none, the last accepts all."""

    threshold_K: np.ndarray  # float64
    impostors_K: np.ndarray  # int64, accepted
    genuine_K: np.ndarray  # int64, accepted

    @property
    def impostors(self) -> int:
        return int(self.impostors_K[-1])

    @property
    def genuine(self) -> int:
        return int(self.genuine_K[-1])

    @property
    def far_K(self) -> np.ndarray:
        return self.impostors_K / self.impostors

    @property
    def tar_K(self) -> np.ndarray:
        return self.genuine_K / self.genuine


def verification(scores, is_mate, far: Sequence[float] = FAR) -> dict:
    """How well `scores` (higher: more alike) tell genuine from impostor pairs; arrays or tensors of one size.

    Returns tar_at_far {far: {tar, threshold, far (realised)} or {refused: reason}}, auc, eer, genuine and impostors
    (counts), and roc {far, tar}, at most 400 points evenly spaced in log FAR. Ties are handled exactly: equal scores
    are accepted together. Raises ValueError for scores that are not finite, or with no pair of one kind.
    """
    roc = _exact_roc(_as_numpy(scores), _as_numpy(is_mate))
    return {
        "tar_at_far": {f: _tar_at_far(roc, f) for f in far},
        "auc": float(np.trapezoid(roc.tar_K, roc.far_K)),
        "eer": _eer(roc),
        "genuine": roc.genuine,
        "impostors": roc.impostors,
        "roc": _thinned(roc),
    }


def tar_at_far(scores, is_mate, far: float) -> float:
    """The largest share of genuine pairs accepted while at most `far` of the impostor pairs are, in [0, 1].

    Raises ValueError where the impostors are too few to measure that FAR, and as `verification` does.
    """
    found = _tar_at_far(_exact_roc(_as_numpy(scores), _as_numpy(is_mate)), far)
    if "refused" in found:
        raise ValueError(found["refused"])
    return found["tar"]


def identification(gallery_GD, gallery_id, probe_PD, probe_id) -> float:
    """Rank-1, the share of probes whose nearest gallery row by cosine is of the same person, in [0, 1].

    Rows need not be of unit length. A mate that ties with a stranger is no hit, so that a collapsed model scores 0.
    Raises ValueError for a probe with no mate in the gallery.
    """
    gallery_GD, probe_PD = _unit(gallery_GD), _unit(probe_PD)
    gallery_id, probe_id = _as_numpy(gallery_id), _as_numpy(probe_id)
    if (len(gallery_GD), len(probe_PD)) != (len(gallery_id), len(probe_id)):
        raise ValueError(f"want one identity for each row, got {len(gallery_GD)} gallery rows with {len(gallery_id)} "
                         f"identities and {len(probe_PD)} probe rows with {len(probe_id)}")
    _refuse_probes_without_mate(gallery_id, probe_id)
    hits, probes = 0, max(1, CHUNK // len(gallery_GD))
    for at in range(0, len(probe_PD), probes):
        score_GP = (gallery_GD @ probe_PD[at:at + probes].T).cpu().numpy()
        hits += _rank1_hits(score_GP, gallery_id[:, None] == probe_id[at:at + probes])
    return hits / len(probe_PD)


def embed(backbone: torch.nn.Module, batches: Iterable[torch.Tensor], device) -> torch.Tensor:
    """Unit-length embedding (N, 2 D), float32 on `device`, of the images in `batches`, an iterable of image_B3HW.

    The backbone's outputs for an image and for its mirror image stand side by side and are normalised together, as
    the MFR paper tests. Runs in eval mode and leaves every module's training flag as it was. Raises ValueError if
    there is no image, or for an embedding that is not finite.
    """
    flags = [(module, module.training) for module in backbone.modules()]
    rows = []
    try:
        backbone.eval()
        with torch.inference_mode():
            for image_B3HW in batches:
                image_B3HW = image_B3HW.to(device, non_blocking=True)
                both = [backbone(image_B3HW), backbone(image_B3HW.flip(-1))]
                rows.append(F.normalize(torch.cat(both, dim=1).float()))
    finally:
        for module, training in flags:
            module.training = training
    if not rows:
        raise ValueError("there is no image to embed; want at least one batch of images")
    embedding_BD = torch.cat(rows)
    broken = (~embedding_BD.isfinite().all(1)).nonzero()
    if len(broken):
        raise ValueError(f"the embeddings of {len(broken)} of {len(embedding_BD)} images are not finite, the first "
                         f"that of image {broken[0].item()}; the backbone's weights or the images hold NaN or infinity")
    return embedding_BD


def score_domain(backbone: torch.nn.Module, domain, pairs: GalleryProbe, preprocess: Preprocess, device, *,
                 far: Sequence[float] = FAR, batch_images: int = 256, **decoding) -> dict:
    """`score` of a backbone on a whole domain, decoded and embedded `batch_images` at a time, unchanged.

    `decoding`: threads, decoder, vet and verdicts, as ImageStream takes them. With the score comes bad_images
    {key: reason}: images that could not be decoded, for which others stood in.
    """
    batch_images = min(batch_images, domain.images)

    def requests(batch):
        image_B = np.arange(batch * batch_images, (batch + 1) * batch_images)
        return np.zeros(batch_images, np.int64), image_B.clip(max=domain.images - 1)  # the last batch is filled up

    batches = -(-domain.images // batch_images)
    with ImageStream([domain], requests, preprocess.plain(), batch_images=batch_images, last=batches,
                     device=str(device), **decoding) as stream:
        embedding_ND = embed(backbone, (image_B3HW for _, image_B3HW in stream), device)[:domain.images]
    return score(embedding_ND, pairs, far) | {"bad_images": dict(stream.bad)}


def score(embedding_ND, pairs: GalleryProbe, far: Sequence[float] = FAR) -> dict:
    """What is reported of one model on one target domain; it equals itself after a round trip through JSON.

    `embedding_ND` holds all images of the domain in their order. Returns `verification` of every gallery x probe
    pair (all held at once), its FARs as text ("0.01"), with rank1, the counts gallery, probes and identities, and
    at the coarsest FAR that could be measured `interval`, the 95 % interval of TAR when the people are drawn anew.
    """
    if len(embedding_ND) <= max(pairs.gallery.max(), pairs.probe.max()):
        raise ValueError(f"the gallery and probe lists name image {max(pairs.gallery.max(), pairs.probe.max())}, but "
                         f"there are {len(embedding_ND)} embeddings; embed every image of the domain, in its order")
    _refuse_probes_without_mate(pairs.gallery_id, pairs.probe_id)
    unit_ND = _unit(embedding_ND)
    score_GP = (unit_ND[pairs.gallery] @ unit_ND[pairs.probe].T).cpu().numpy()
    mate_GP = pairs.gallery_id[:, None] == pairs.probe_id
    out = verification(score_GP, mate_GP, far)
    measured = [f for f in far if "tar" in out["tar_at_far"][f]]
    if measured:
        out["tar_at_far"][max(measured)]["interval"] = _interval(score_GP, mate_GP, pairs, max(measured))
    out["tar_at_far"] = {str(f): found for f, found in out["tar_at_far"].items()}
    return out | {"rank1": _rank1_hits(score_GP, mate_GP) / len(pairs.probe), "gallery": len(pairs.gallery),
                  "probes": len(pairs.probe), "identities": len(np.unique(pairs.gallery_id))}


def _exact_roc(scores: np.ndarray, is_mate: np.ndarray) -> Roc:
    scores, is_mate = scores.ravel(), is_mate.ravel().astype(bool)
    if len(scores) != len(is_mate):
        raise ValueError(f"want one mate flag for each score, got {len(scores)} scores and {len(is_mate)} flags")
    genuine = int(np.count_nonzero(is_mate))
    if genuine in (0, len(scores)):
        raise ValueError(f"want genuine and impostor pairs, got {genuine} genuine of {len(scores)} pairs; "
                         "scoring needs at least two people, and one with two images")
    if not np.isfinite(scores).all():
        raise ValueError(f"{np.count_nonzero(~np.isfinite(scores))} of {len(scores)} scores are not finite; "
                         "the embeddings hold NaN or infinity")
    order = np.argsort(scores)[::-1]
    falling = scores[order].astype(np.float64)
    last_of_tie = np.append(np.flatnonzero(np.diff(falling)), len(falling) - 1)
    genuine_K = np.cumsum(is_mate[order])[last_of_tie]
    return Roc(threshold_K=np.append(np.nextafter(falling[0], np.inf), falling[last_of_tie]),
               impostors_K=np.append(0, last_of_tie + 1 - genuine_K), genuine_K=np.append(0, genuine_K))


def _tar_at_far(roc: Roc, far: float) -> dict:
    if not 0 < far < 1:
        raise ValueError(f"want a false accept rate above 0 and below 1, got {far}")
    if 1 / roc.impostors > far:
        return {"refused": f"FAR {far:g} needs at least {int(np.ceil(1 / far))} impostor pairs, "
                           f"there are {roc.impostors}"}
    k = np.searchsorted(roc.far_K, far, side="right") - 1
    return {"tar": float(roc.tar_K[k]), "threshold": float(roc.threshold_K[k]), "far": float(roc.far_K[k])}


def _eer(roc: Roc) -> float:
    """The rate at which FAR equals 1 - TAR, on the straight line between the two thresholds around it."""
    gap_K = roc.far_K + roc.tar_K - 1  # rises from -1 to 1
    k = int(np.argmax(gap_K >= 0))
    step = gap_K[k - 1] / (gap_K[k - 1] - gap_K[k])
    return float(roc.far_K[k - 1] + step * (roc.far_K[k] - roc.far_K[k - 1]))


def _thinned(roc: Roc) -> dict:
    """Points of the curve, one for each of 400 FARs from 1 / impostors to 1 in equal ratios, repeats left out."""
    far = np.geomspace(1 / roc.impostors, 1, ROC_POINTS)
    far[[0, -1]] = 1 / roc.impostors, 1  # geomspace may round the ends to just below
    kept = np.unique(np.searchsorted(roc.far_K, far, side="right") - 1)
    return {"far": roc.far_K[kept].tolist(), "tar": roc.tar_K[kept].tolist()}


def _rank1_hits(score_GP: np.ndarray, mate_GP: np.ndarray) -> int:
    best_mate_P = np.where(mate_GP, score_GP, -np.inf).max(0)
    best_stranger_P = np.where(mate_GP, -np.inf, score_GP).max(0)
    return int(np.count_nonzero(best_mate_P > best_stranger_P))


def _interval(score_GP: np.ndarray, mate_GP: np.ndarray, pairs: GalleryProbe, far: float, draws: int = 200) -> list:
    """[low, high]: the middle 95 % of TAR at `far` over `draws` bootstrap samples of the identities.

    A person drawn w times weighs w in genuine pairs and w v in impostor pairs with a person drawn v times. Sorting
    once and keeping the highest impostors only makes a draw cost what they cost: the threshold lies well within them.
    """
    people, identity = np.unique(np.concatenate([pairs.gallery_id, pairs.probe_id]), return_inverse=True)
    of_gallery, of_probe = np.split(identity, [len(pairs.gallery_id)])
    genuine, genuine_of = score_GP[mate_GP], of_probe[np.nonzero(mate_GP)[1]]
    impostor = np.where(mate_GP, -np.inf, score_GP).ravel()
    keep = min(impostor.size - len(genuine), 100 + int(10 * far * impostor.size))
    top = np.argpartition(impostor, impostor.size - keep)[impostor.size - keep:]
    top = top[np.argsort(impostor[top])[::-1]]
    top_gallery, top_probe = of_gallery[top // len(of_probe)], of_probe[top % len(of_probe)]
    rng, found = np.random.default_rng(0), []
    for _ in range(draws):
        weight = np.bincount(rng.integers(len(people), size=len(people)), minlength=len(people))
        of_genuine = weight[genuine_of]
        allowed = far * (weight[of_gallery].sum() * weight[of_probe].sum() - (of_genuine**2).sum())
        first_refused = np.searchsorted(np.cumsum(weight[top_gallery] * weight[top_probe]), allowed, side="right")
        above = genuine > impostor[top[min(first_refused, keep - 1)]]
        found.append((of_genuine * above).sum() / max(of_genuine.sum(), 1))
    return np.quantile(found, [0.025, 0.975]).tolist()


def _refuse_probes_without_mate(gallery_id: np.ndarray, probe_id: np.ndarray) -> None:
    lone = np.flatnonzero(~np.isin(probe_id, gallery_id))
    if len(lone) or not len(probe_id):
        raise ValueError("there is no probe to look up; want at least one" if not len(probe_id) else
                         f"{len(lone)} of {len(probe_id)} probes have no mate in the gallery, the first is probe "
                         f"{lone[0]} of identity {probe_id[lone[0]]}; leave them out or enrol an image of theirs")


def _unit(rows_ND) -> torch.Tensor:
    """Rows at unit length in float64: TF32, where the trainer has switched it on, would round cosines to 1e-3."""
    if not isinstance(rows_ND, torch.Tensor):
        rows_ND = torch.from_numpy(np.array(rows_ND, np.float64))  # a copy: torch warns of arrays it may not write
    return F.normalize(rows_ND.detach().double())


def _as_numpy(values) -> np.ndarray:
    if not isinstance(values, torch.Tensor):
        return np.asarray(values)
    values = values.detach().cpu()
    return (values.float() if values.dtype == torch.bfloat16 else values).numpy()
