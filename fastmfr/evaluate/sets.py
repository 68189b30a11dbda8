"""Evaluation sets by their path, scored whole: lists, pairs, .bin files, templates, or a domain as it is.

What lies at a path is told by what it holds (see `open_sets`). Nothing is written there.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fastmfr.decode import Preprocess
from fastmfr.domains import open_domain
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
from fastmfr.protocols.lists import folder_lists
from fastmfr.protocols.templates import find_template_lists

from .embed import embed_domain
from .roc import FAR
from .score import score, score_folds, score_pairs, score_templates


@dataclass(frozen=True)
class EvaluationSet:
    """Images and what to compare among them: exactly one of folds, pairs and templates.

    `mirror`: what `embed` does with the mirror image unless told otherwise: "concat" as the MFR paper on gallery and
    probe, "sum" as InsightFace on pairs and templates.
    """

    name: str
    images: Any  # as ImageStream takes domains
    folds: tuple[GalleryProbe, ...] = ()
    pairs: PairList | None = None
    templates: TemplateSet | None = None

    @property
    def mirror(self) -> str:
        return "concat" if self.folds else "sum"


def open_sets(name: str, path, *, seed: int = 2019, probes_per_identity: int | None = None) -> Iterator[EvaluationSet]:
    """The evaluation sets at `path`, one after the other:

    a .bin file; a .txt list of pairs; a folder with pairs.txt, with gallery and probe lists, or with both (CACD-VS:
    NAME and NAME/pairs); a folder of IJB-style templates; RFW's folder with its four races (NAME/african, ...); or a
    class folder or RecordIO folder, whose gallery is drawn by `seed`, one image a person.
    Raises FileNotFoundError where nothing is there, and ValueError where it is damaged or no set.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"there is no {path}; a set is a .bin file, a list of pairs, or a folder")
    if path.is_file():
        images, pairs = read_pairs(path, name) if path.suffix == ".txt" else read_bin(path, name)
        yield EvaluationSet(name, images, pairs=pairs)
        return
    found = [*_listed(name, path), *_races(name, path)]
    if not found:
        domain = open_domain(path, name)
        drawn = gallery_probe(domain.offsets, seed=seed, probes_per_identity=probes_per_identity)
        found = [EvaluationSet(name, domain, (drawn,))]
    yield from found


def _listed(name, folder):
    """The sets that lists within a folder make."""
    if find_template_lists(folder):
        images, templates = read_templates(folder, name)
        yield EvaluationSet(name, images, templates=templates)
    listed = bool(folder_lists(folder))
    if listed:
        images, folds = read_folds(folder, name)
        yield EvaluationSet(name, images, folds)
    if (folder / "pairs.txt").is_file():
        images, pairs = read_pairs(folder / "pairs.txt", f"{name}/pairs" if listed else name)
        yield EvaluationSet(images.name, images, pairs=pairs)


def _races(name, folder):
    """RFW as it comes: txts/African/African_pairs.txt with data/African/..., in the folder or its `test`."""
    for place in (folder, folder / "test"):
        for listing in sorted(place.glob("txts/*/*_pairs.txt")):
            race = listing.parent.name
            images, pairs = read_pairs(listing, f"{name}/{race.lower()}", place / "data" / race)
            yield EvaluationSet(images.name, images, pairs=pairs)


def embed_set(
    backbone: torch.nn.Module,
    found: EvaluationSet,
    preprocess: Preprocess,
    device,
    *,
    mirror: str | None = None,
    **embedding,
) -> tuple[torch.Tensor, dict[int, str]]:
    """(embedding_ND, bad) of a set's images, as `score_set` wants them; other arguments as `embed_domain` has them."""
    return embed_domain(
        backbone,
        found.images,
        preprocess,
        device,
        mirror=mirror or found.mirror,
        normalise=found.templates is None,
        **embedding,
    )


def score_set(
    backbone: torch.nn.Module,
    found: EvaluationSet,
    preprocess: Preprocess,
    device,
    *,
    far: Sequence[float] = FAR,
    mirror: str | None = None,
    **embedding,
) -> dict:
    """What is reported of a backbone on one set: `score`, `score_folds`, `score_pairs` or `score_templates`.

    With it come images (how many), mirror, and bad_images {key: reason}: images that could not be decoded, which are
    left out of all comparisons. `embedding`: batch_images, progress and decoding, as embed_domain takes them.
    """
    embedding_ND, bad = embed_set(backbone, found, preprocess, device, mirror=mirror, **embedding)
    if found.templates:
        figures = score_templates(embedding_ND, found.templates.without(bad), far)
    elif found.pairs:
        figures = score_pairs(embedding_ND, found.pairs.without(bad), far)
    else:
        folds = [pairs.without(bad) for pairs in found.folds]
        figures = score(embedding_ND, folds[0], far) if len(folds) == 1 else score_folds(embedding_ND, folds, far)
    bad_images = {found.images.key(image): reason for image, reason in bad.items()}
    return figures | {"images": found.images.images, "mirror": mirror or found.mirror, "bad_images": bad_images}
