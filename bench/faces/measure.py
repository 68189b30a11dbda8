"""A domain as a model sees it: cosines of genuine and impostor pairs, and what is read off them.

Shape suffixes: N images, D embedding, G genuine pairs, P impostor pairs.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from fastmfr import synthetic
from fastmfr.backbone import build_backbone
from fastmfr.config import Config, Meta
from fastmfr.decode import checked_decoder
from fastmfr.domains import Domain, open_domain
from fastmfr.evaluate import domain_gap, embed_domain, score
from fastmfr.protocols import gallery_probe
from fastmfr.results import Scores
from fastmfr.weights import Model

FAR = (0.01,)
TAU_P, TAU_N = Meta().tau_p, Meta().tau_n  # the paper's thresholds
SYNTHETIC = "synthetic:"
REAL, SEEN, UNSEEN = "photographs", "trained on, held-out people", "never seen"


@dataclass(frozen=True)
class Measured:
    """What one model makes of one domain.

    Attributes:
        name: of the domain.
        kind: REAL, SEEN or UNSEEN.
        scores: TAR at FAR 1e-2, AUC and the counts, as `fastmfr.evaluate.score` returns them.
        genuine_G: cosines of a person's gallery image and other images.
        impostor_P: cosines of a person's gallery image and images of others.
        pixels: TAR of the images' own gray pixels in place of embeddings, in [0, 1].
        gap: distance between the domain's mean embedding and that of the photographs; None without photographs.
    """

    name: str
    kind: str
    scores: Scores
    genuine_G: np.ndarray
    impostor_P: np.ndarray
    pixels: float
    gap: float | None = None

    @property
    def tar(self) -> float:
        """TAR at FAR 1e-2, in [0, 1]; NaN if there are fewer than 100 impostor pairs."""
        return _tar(self.scores)

    @property
    def hard_genuine(self) -> float:
        """The share of genuine pairs that the paper's threshold takes as hard."""
        return float((self.genuine_G < TAU_P).mean())

    @property
    def hard_impostor(self) -> float:
        """The share of impostor pairs that the paper's threshold takes as hard."""
        return float((self.impostor_P > TAU_N).mean())

    @property
    def d_prime(self) -> float:
        """The distance between the mean cosines of both kinds, in units of their pooled standard deviation."""
        pooled = np.sqrt((self.genuine_G.var() + self.impostor_P.var()) / 2)
        return float((self.genuine_G.mean() - self.impostor_P.mean()) / pooled)


def seen_domains(config: Config) -> list[str]:
    """Return the procedural domains that a run trained on.

    Raises:
        ValueError: there is none.
    """
    paths = {**config.data.pretrain, **config.data.sources}.values()
    seen = [path.removeprefix(SYNTHETIC) for path in paths if path.startswith(SYNTHETIC)]
    if not seen:
        raise ValueError("want a run with a procedural domain among its sources, such as the quickstart's; got none")
    return list(dict.fromkeys(seen))


def draw_domains(config: Config, names: list[str], people: int, root: Path, twins: float = 0.0) -> list[Domain]:
    """Draw people of procedural domains whom no run with these settings has met: numbers past those of the run.

    Args:
        config: The settings of the run.
        names: The domains.
        people: How many people of each.
        root: Where the faces are kept and found again.
        twins: The share of people who are twins.
    """
    faces = config.data.synthetic
    first = faces.identities + faces.identities % 2  # twins begin with an even number
    folder = root / f"{first}-{first + people}x{faces.images}-{faces.size}px-twins{twins}"
    made = synthetic.make(
        folder,
        domains=names,
        identities=range(first, first + people),
        images=faces.images,
        size=faces.size,
        twins=twins,
    )
    return [open_domain(made[name], name) for name in names]


class Pixels(torch.nn.Module):
    """Maps images to their own gray pixels, less the mean of each image: what an embedding has to be better than."""

    def forward(self, image_B3HW: torch.Tensor) -> torch.Tensor:
        pixel_BD = image_B3HW.mean(1).flatten(1)
        return pixel_BD - pixel_BD.mean(1, keepdim=True)


def measure(model: Model, domains: list[tuple[Domain, str]], seed: int = 0) -> list[Measured]:
    """Embed and score domains, each given with its kind; the gaps are to the domain whose kind is REAL."""
    embedded, pixels = {}, {}
    for domain, _ in domains:
        embedded[domain.name] = _embed(model, model.backbone, domain, seed)
        pixels[domain.name] = _tar(score(*_embed(model, Pixels(), domain, seed, mirror="none"), FAR))
    gaps = _gaps(domains, embedded)
    return [
        _measured(domain.name, kind, *embedded[domain.name], pixels[domain.name], gaps.get(domain.name))
        for domain, kind in domains
    ]


def untrained(model: Model, domain: Domain, networks: int = 3) -> list[float]:
    """Return the TAR on a domain of networks like the model's that have learned nothing, for seeds 0, 1, ..."""
    found = []
    for seed in range(networks):
        torch.manual_seed(seed)
        backbone = build_backbone(model.config).to(model.device)
        found.append(_tar(score(*_embed(model, backbone, domain, seed=0), FAR)))
    return found


def _embed(model, backbone, domain, seed, **embedding):
    """(embeddings of all images, the gallery and probe lists)."""
    decoder = checked_decoder("cpu", model.device)
    embedding_ND, bad = embed_domain(backbone, domain, model.preprocess, model.device, decoder=decoder, **embedding)
    return embedding_ND, gallery_probe(domain.offsets, seed=seed).without(bad)


def _tar(scores: Scores) -> float:
    tar = scores.rate(str(FAR[0])).tar
    return float("nan") if tar is None else tar


def _measured(name, kind, embedding_ND, pairs, pixels, gap) -> Measured:
    cosine = (embedding_ND[pairs.gallery] @ embedding_ND[pairs.probe].T).cpu().numpy()
    mates = pairs.gallery_id[:, None] == pairs.probe_id
    return Measured(name, kind, score(embedding_ND, pairs, FAR), cosine[mates], cosine[~mates], pixels, gap)


def _gaps(domains, embedded) -> dict[str, float]:
    """The distance of each other domain's mean to that of the photographs."""
    real = [domain.name for domain, kind in domains if kind == REAL]
    if not real or len(domains) < 2:
        return {}
    rows = {
        domain.name: (embedded[domain.name][0], np.repeat(np.arange(domain.identities), np.diff(domain.offsets)))
        for domain, _ in domains
    }
    gap = domain_gap(rows, far=FAR[0])
    at = gap.domains.index(real[0])
    return {name: gap.distance[at][number] for number, name in enumerate(gap.domains) if number != at}
