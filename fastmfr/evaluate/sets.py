"""Evaluation sets by their path, scored whole: lists, pairs, .bin files, templates, or a domain as it is.

`open_sets` finds out what lies at a path by what the path holds. Nothing is written there.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from fastmfr.config.choices import Mirror
from fastmfr.decode import Preprocess
from fastmfr.domains import open_domain
from fastmfr.image_set import ImageSet
from fastmfr.protocols import (
    GalleryProbe,
    PairList,
    TemplateSet,
    gallery_probe,
    read_bin,
    read_folds,
    read_pairs,
    read_templates,
)
from fastmfr.protocols.landmarks import UNUSED, attach, find_landmarks, read_landmarks
from fastmfr.protocols.lists import folder_lists
from fastmfr.protocols.templates import find_template_lists
from fastmfr.results import FAR, Scores

from .embed import embed_domain
from .score import score, score_folds, score_pairs, score_templates


@dataclass(frozen=True)
class EvaluationSet:
    """Images and what to compare among them: exactly one of folds, pairs and templates."""

    name: str
    images: ImageSet
    folds: tuple[GalleryProbe, ...] = ()
    pairs: PairList | None = None
    templates: TemplateSet | None = None

    @property
    def mirror(self) -> Mirror:
        """What `embed` does with mirror images by default: "concat" for gallery and probe, "sum" for pairs, templates.

        The MFR paper does the former, InsightFace the latter.
        """
        return "concat" if self.folds else "sum"


def open_sets(
    name: str,
    path: Path | str,
    *,
    seed: int = 2019,
    probes_per_identity: int | None = None,
    landmarks: Path | str | None = None,
) -> Iterator[EvaluationSet]:
    """Yield the evaluation sets at `path`, one after the other.

    A path may be: a .bin file; a .txt list of pairs; a folder with pairs.txt, with gallery and probe lists, or with
    both (CACD-VS: NAME and NAME/pairs); a folder of IJB-style templates; RFW's folder with its four races
    (NAME/african, ...); or a class folder or RecordIO folder.

    Args:
        name: The name of the set, or the beginning of the names of several sets.
        path: A file or folder.
        seed: Draws the gallery of a class or RecordIO folder, one image a person.
        probes_per_identity: How many images of a person are looked up at most in such a folder; None for all.
        landmarks: A file of five points an image, by which images are aligned; None takes the file that lies beside the
            lists of IJB or RFW, if there is one; "none" takes no file. The images' `notes` say how many are aligned.

    Raises:
        FileNotFoundError: there is nothing at `path`, or no file of landmarks.
        ValueError: what lies there is damaged, or no set.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"there is no {path}; a set is a .bin file, a list of pairs, or a folder")
    if path.is_file():
        images, pairs = read_pairs(path, name) if path.suffix == ".txt" else read_bin(path, name)
        yield _aligned(EvaluationSet(name, images, pairs=pairs), landmarks)
        return
    found = [*_listed(name, path, landmarks), *_races(name, path, landmarks)]
    if not found:
        domain = open_domain(path, name)
        drawn = gallery_probe(domain.offsets, seed=seed, probes_per_identity=probes_per_identity)
        found = [_aligned(EvaluationSet(name, domain, (drawn,)), landmarks)]
    yield from found


def _listed(name, folder, landmarks):
    """The sets that lists within a folder make."""
    if find_template_lists(folder):
        images, templates = read_templates(folder, name)
        yield _aligned(EvaluationSet(name, images, templates=templates), landmarks, folder, folder / "meta")
    listed = bool(folder_lists(folder))
    if listed:
        images, folds = read_folds(folder, name)
        yield _aligned(EvaluationSet(name, images, folds), landmarks)
    if (folder / "pairs.txt").is_file():
        images, pairs = read_pairs(folder / "pairs.txt", f"{name}/pairs" if listed else name)
        yield _aligned(EvaluationSet(images.name, images, pairs=pairs), landmarks)


def _races(name, folder, landmarks):
    """RFW as it comes: txts/African/African_pairs.txt with data/African/..., in the folder or its `test`."""
    for place in (folder, folder / "test"):
        for listing in sorted(place.glob("txts/*/*_pairs.txt")):
            race = listing.parent.name
            images, pairs = read_pairs(listing, f"{name}/{race.lower()}", place / "data" / race)
            yield _aligned(EvaluationSet(images.name, images, pairs=pairs), landmarks, listing.parent)


def _aligned(found, landmarks, *places):
    """The set, with its images to be aligned by the landmarks asked for, or by a file that lies in one of `places`."""
    beside = None if landmarks else find_landmarks(*places)
    if beside is None and (not landmarks or landmarks == UNUSED):
        return found
    try:
        sentence = attach(found.images, read_landmarks(beside or landmarks))
    except ValueError as error:
        if beside is None:
            raise
        top = found.name.partition("/")[0]
        raise ValueError(f"{error}; --data.landmarks.{top} {UNUSED} scores the images as they are") from None
    found.images.notes = (sentence, *found.images.notes)
    return found


def embed_set(
    backbone: torch.nn.Module,
    evaluation_set: EvaluationSet,
    preprocess: Preprocess,
    device: torch.device | str,
    *,
    mirror: Mirror | None = None,
    **embedding: Any,
) -> tuple[torch.Tensor, dict[int, str]]:
    """Embed the images of a set as `score_set` needs them.

    Args:
        backbone: As in `embed_domain`.
        evaluation_set: The set.
        preprocess: As in `embed_domain`.
        device: As in `embed_domain`.
        mirror: As in `embed`; None for the set's own.
        embedding: batch_images, progress, group and decoding, as `embed_domain` takes them.

    Returns:
        (embedding_ND, bad), as `embed_domain` returns them.
    """
    return embed_domain(
        backbone,
        evaluation_set.images,
        preprocess,
        device,
        mirror=mirror or evaluation_set.mirror,
        normalise=evaluation_set.templates is None,
        **embedding,
    )


def score_set(
    backbone: torch.nn.Module,
    evaluation_set: EvaluationSet,
    preprocess: Preprocess,
    device: torch.device | str,
    *,
    far: Sequence[float] = FAR,
    mirror: Mirror | None = None,
    **embedding: Any,
) -> Scores:
    """Score a backbone on one set by `score`, `score_folds`, `score_pairs` or `score_templates`.

    Args:
        backbone: As in `embed_set`.
        evaluation_set: The set.
        preprocess: As in `embed_set`.
        device: As in `embed_set`.
        far: False accept rates in (0, 1).
        mirror: As in `embed_set`.
        embedding: As in `embed_set`.

    Returns:
        The scores, with images (how many), mirror, and bad_images by key: the images that could not be decoded, which
        are left out of all comparisons.

    Raises:
        ValueError: as in `embed` and the scoring functions.
    """
    embedding_ND, bad = embed_set(backbone, evaluation_set, preprocess, device, mirror=mirror, **embedding)
    if evaluation_set.templates:
        scores = score_templates(embedding_ND, evaluation_set.templates.without(bad), far)
    elif evaluation_set.pairs:
        scores = score_pairs(embedding_ND, evaluation_set.pairs.without(bad), far)
    else:
        folds = [pairs.without(bad) for pairs in evaluation_set.folds]
        scores = score(embedding_ND, folds[0], far) if len(folds) == 1 else score_folds(embedding_ND, folds, far)
    images = evaluation_set.images
    return replace(
        scores,
        images=images.images,
        mirror=mirror or evaluation_set.mirror,
        bad_images={images.key(image): reason for image, reason in bad.items()},
    )
