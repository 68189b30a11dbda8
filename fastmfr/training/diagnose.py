"""What a run tells of its data and models beside the scores: how domains look, the gap between them, the hardest pairs.

Shape suffixes: N images, D embedding, H W pixels.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from fastmfr.config import Config
from fastmfr.decode import ImageStream
from fastmfr.domains import Joint
from fastmfr.evaluate import domain_gap, draw_evenly, embed, hardest_pairs
from fastmfr.evaluate.embed import in_order
from fastmfr.evaluate.gap import MOST, MOST_IN_ALL
from fastmfr.report import contact_sheet, hardest_sheet
from fastmfr.training.stages import preprocess


class Diagnosis:
    """Of one run: `targets` by name, with .domain .pairs .unseen; `decoding` as ImageStream takes it.

    For every model, first `of_target` with its embeddings of each target, then `gap`, which embeds the other domains.
    """

    def __init__(self, sources: Joint, targets: Mapping, config: Config, device, decoding: dict):
        self._targets, self._device, self._decoding = targets, device, decoding
        self._look, self._batch_images = preprocess(config.data).plain(), config.evaluate.batch_images
        # Of a domain trained on and scored, the people held out: the model's embeddings of them are there already.
        self._domains = {domain.name: domain for domain in sources.domains}
        self._domains |= {name: target.domain for name, target in targets.items()}
        most = min(MOST, MOST_IN_ALL // len(self._domains))
        self._drawn = {name: draw_evenly(domain.offsets, most, config.seed) for name, domain in self._domains.items()}
        self._embedded = {}

    def draw_domains(self, path: Path, people: int = 5, images: int = 2) -> None:
        """A row a domain, as the network sees them, so that a mix-up of folders or channels meets the eye."""
        rows = {}
        for name, domain in self._domains.items():
            starts, ends = domain.offsets[:-1][:people], domain.offsets[1:][:people]
            first = [range(start, min(end, start + images)) for start, end in zip(starts, ends, strict=True)]
            rows[name] = self._pixels(domain, np.concatenate(first))
        contact_sheet(rows, path)

    def of_target(self, name: str, model: str, embedding_ND, bad: Mapping[int, str]) -> dict:
        """The hardest pairs of the target as `model` embeds it: `hardest_pairs`, with the images' keys and the people.

        Keeps of the embeddings what `gap` needs; `bad`: images that could not be decoded, whose rows are another's.
        """
        domain, pairs = self._targets[name].domain, self._targets[name].pairs.without(bad)
        drawn = self._drawn[name][~np.isin(self._drawn[name], list(bad))]
        self._embedded[name] = embedding_ND[drawn], _person(domain, drawn)
        found = hardest_pairs(embedding_ND, pairs)
        for pair in [pair for of_kind in found.values() for pair in of_kind]:
            for side in ("gallery", "probe"):
                pair[f"{side}_key"] = domain.key(pair[side])
                pair[f"{side}_identity"] = domain.identity_name(pair.pop(f"{side}_id"))
        return {"model": model} | found

    def gap(self, backbone: torch.nn.Module) -> dict:
        """`domain_gap` of all domains as the backbone embeds them; {} where there are fewer than two to compare."""
        embedded = {}
        for name, domain in self._domains.items():
            rows, person_N = self._embedded.pop(name, None) or self._embed(backbone, domain, self._drawn[name])
            if len(np.unique(person_N)) > 1:
                embedded[name] = rows, person_N
        if len(embedded) < 2:
            return {}
        unseen = [name in self._targets and self._targets[name].unseen for name in embedded]
        return domain_gap(embedded) | {"unseen": unseen}

    def draw_hardest(self, scored: Mapping[str, dict], path: Path) -> None:
        """The hardest pairs of each target in `scored`, the targets of results.json, as pictures."""
        sides = "gallery", "probe"
        shown = {
            name: [pair[side] for kind in ("genuine", "impostor") for pair in target["hardest"][kind] for side in sides]
            for name, target in scored.items()
        }
        pixels = {name: self._pixels(self._targets[name].domain, np.array(images)) for name, images in shown.items()}
        hardest_sheet(scored, pixels, path)

    def _embed(self, backbone, domain, image_N):
        """(embeddings, people) of these images, without those that could not be decoded."""
        with self._stream(domain, image_N) as stream:
            rows = embed(backbone, (batch for _, batch in stream), self._device)[: len(image_N)]
            bad = dict(stream.bad)
        whole = np.array([not bad or f"{domain.name}/{domain.key(image)}" not in bad for image in image_N.tolist()])
        return rows[torch.from_numpy(whole).to(rows.device)], _person(domain, image_N[whole])

    def _pixels(self, domain, image_N) -> np.ndarray:
        """uint8 (N, H, W, 3) of these images, as the network sees them."""
        with self._stream(domain, image_N) as stream:
            grey_N3HW = torch.cat([batch for _, batch in stream])[: len(image_N)] * self._look.std + self._look.mean
        return grey_N3HW.round().clip(0, 255).byte().permute(0, 2, 3, 1).cpu().numpy()

    def _stream(self, domain, image_N):
        """Batches of these images in order, the last one filled up."""
        batch_images = min(self._batch_images, len(image_N))
        return ImageStream(
            [domain],
            in_order(image_N, batch_images),
            self._look,
            batch_images=batch_images,
            last=-(-len(image_N) // batch_images),
            device=str(self._device),
            **self._decoding,
        )


def _person(domain, image_N) -> np.ndarray:
    return np.searchsorted(domain.offsets, image_N, side="right") - 1
