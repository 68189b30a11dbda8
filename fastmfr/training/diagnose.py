"""What a run says of its data and models beside the scores: how domains look, the gap between them, the hardest pairs.

Shape suffixes: N images, D embedding, H W pixels.
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np
import torch

from fastmfr.domains import people_of
from fastmfr.evaluate import domain_gap, draw_evenly, hardest_pairs
from fastmfr.evaluate.gap import MOST, MOST_IN_ALL
from fastmfr.report import contact_sheet, hardest_sheet
from fastmfr.results import DomainGap, HardestPairs, TargetResult
from fastmfr.training.run import Run


class Diagnosis:
    """The diagnosis of one run.

    For every model, call `of_target` with its embeddings of each target, then `gap`, which embeds the other domains.
    """

    def __init__(self, run: Run):
        self._run, self._look, self._domains = run, run.preprocess.plain(), run.domains
        most, seed = min(MOST, MOST_IN_ALL // len(self._domains)), run.config.seed
        self._drawn = {name: draw_evenly(domain.offsets, most, seed) for name, domain in self._domains.items()}
        self._embedded = {}

    def draw_domains(self, path: Path, people: int = 5, images: int = 2) -> None:
        """Draw a row of images a domain, as the network sees them: a mix-up of folders or channels meets the eye."""
        rows = {}
        for name, domain in self._domains.items():
            starts, ends = domain.offsets[:-1][:people], domain.offsets[1:][:people]
            first = [range(start, min(end, start + images)) for start, end in zip(starts, ends, strict=True)]
            rows[name] = self._pixels(domain, np.concatenate(first))
        contact_sheet(rows, path)

    def of_target(self, name: str, model: str, embedding_ND: torch.Tensor, bad: Mapping[int, str]) -> HardestPairs:
        """Find the hardest pairs of a target, and keep of the embeddings what `gap` needs.

        Args:
            name: the target.
            model: the name of the model that embedded the target's images.
            embedding_ND: the embeddings of all images of the target, in their order.
            bad: why an image could not be decoded, by its number; its row is another image's.
        """
        target = self._run.targets[name]
        drawn = self._drawn[name][~np.isin(self._drawn[name], list(bad))]
        self._embedded[name] = embedding_ND[drawn], target.domain.identity_of(drawn)
        hardest = partial(hardest_pairs, embedding_ND, target.pairs.without(bad), target.domain, model)
        return self._run.ranks.by_first(hardest)

    def gap(self, backbone: torch.nn.Module) -> DomainGap | None:
        """Measure the gap between all domains as the backbone embeds them; None for fewer than two domains."""
        embedded = {}
        for name, domain in self._domains.items():
            rows, person_N = self._embedded.pop(name, None) or self._run.embed(backbone, domain, self._drawn[name])
            if len(np.unique(person_N)) > 1:
                embedded[name] = rows, person_N
        if len(embedded) < 2:
            return None
        unseen = [name for name, target in self._run.targets.items() if target.unseen]
        gap = partial(domain_gap, embedded, unseen=unseen, people=people_of(self._domains))
        return self._run.ranks.by_first(gap)

    def draw_hardest(self, scored: Mapping[str, TargetResult], path: Path) -> None:
        """Draw the hardest pairs of each target that has some."""
        hardest = {name: target.hardest for name, target in scored.items() if target.hardest}
        shown = {
            name: [image for pair in (*found.genuine, *found.impostor) for image in (pair.gallery, pair.probe)]
            for name, found in hardest.items()
        }
        targets = self._run.targets
        pixels = {name: self._pixels(targets[name].domain, np.array(images)) for name, images in shown.items()}
        hardest_sheet(scored, pixels, path)

    def _pixels(self, domain, image_N) -> np.ndarray:
        """uint8 (N, H, W, 3) of these images, as the network sees them."""
        with self._run.stream(domain, image_N) as stream:
            grey_N3HW = torch.cat([batch for _, batch in stream])[: len(image_N)] * self._look.std + self._look.mean
        return grey_N3HW.round().clip(0, 255).byte().permute(0, 2, 3, 1).cpu().numpy()
