"""What a head step, a meta step and opening images cost as their work grows, and the slope that each should have.

Shape suffixes: B = rows of a batch, C = identities, D = embedding, H W = image.
"""

import io
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from fastmfr.backbone import build
from fastmfr.domains import open_domain
from fastmfr.head import MarginHead
from fastmfr.losses import MfrLosses
from fastmfr.meta import MetaSettings, MetaTrainer, PairBatch
from fastmfr.pack import RecordWriter
from fastmfr.runtime import to_channels_last
from fastmfr.sampler import GroupedDomainSampler
from fastmfr.training.optim import sgd

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
EACH = 10  # images of an identity
HEAD, META, OPENING = "head", "meta", "opening"
Calls = Mapping[str, Callable[[], object]]


@dataclass(frozen=True)
class Curve:
    """Calls to time at each of several sizes.

    Attributes:
        name: What the lines of its figures are called.
        title: What the picture calls it.
        axis: What grows.
        sizes: The sizes, ascending.
        made: Opens a size: (size, a folder for files) -> a context manager of {line: call}.
        slope: Of log seconds over log size, the most that is expected; what every call costs makes it less.
        facts: What else the figures are of.
    """

    name: str
    title: str
    axis: str
    sizes: Sequence[int]
    made: Callable
    slope: float
    facts: Mapping[str, object]


def curves(large: bool) -> list[Curve]:
    """All curves; `large` has the sizes of real runs, and ten million identities on a GPU."""
    rows, embedding = 64, 512 if large else 128
    pairs, pixels, width = (32, 112, 0.5) if large else (4, 32, 0.125)
    most = 10_000_000 if large and DEVICE.type == "cuda" else 1_000_000
    return [
        Curve(
            HEAD,
            "Head step: loss, gradients, update",
            "identities",
            sizes(10_000, most),
            lambda size, folder: head(size, rows, embedding),
            1.0,
            {"rows": rows, "embedding": embedding},
        ),
        Curve(
            META,
            "Meta step: every domain left out once",
            "domains",
            [3, 4, 8, 16],
            lambda size, folder: meta(size, pairs, pixels, width),
            1.0,
            {"pairs": pairs, "pixels": pixels, "width": width},
        ),
        Curve(
            OPENING,
            "Opening images, and the first batch",
            "images",
            sizes(1_000, 1_000_000 if large else 100_000),
            opening,
            1.0,
            {"images_of_an_identity": EACH},
        ),
    ]


def sizes(least: int, most: int) -> list[int]:
    """One, three, ten, thirty ... times the least size, up to the most."""
    steps = (least * times * 10**decade for decade in range(9) for times in (1, 3))
    return [size for size in steps if size <= most]


@contextmanager
def head(identities: int, rows: int, embedding: int) -> Iterator[Calls]:
    """A step of the classifier alone, CosFace over all identities."""
    gen = torch.Generator().manual_seed(0)
    made = MarginHead(embedding, identities, "cosface").to(DEVICE)
    embedding_BD = torch.randn(rows, embedding, generator=gen).to(DEVICE).requires_grad_()
    label_B = torch.randint(identities, (rows,), generator=gen).to(DEVICE)

    def step():
        embedding_BD.grad = None
        made(embedding_BD, label_B).mean().backward()
        made.update(0.1, 0.9, 5e-4)

    yield {"head step": step}


@contextmanager
def meta(domains: int, pairs: int, pixels: int, width: float) -> Iterator[Calls]:
    """Whole meta steps: as many splits as domains, each with as many pairs; and with each domain's gradients shared."""
    gen = torch.Generator().manual_seed(0)

    def batch(domain_B):
        images = (torch.randn(pairs, 3, pixels, pixels, generator=gen).to(DEVICE) for _ in range(2))
        return PairBatch(*images, domain_B.to(DEVICE))

    def trainer(splits, alignment, **settings):
        torch.manual_seed(0)
        backbone = to_channels_last(build("mfr28", width=width), DEVICE)
        made = MetaTrainer(backbone, sgd(backbone.parameters(), 0.9, 5e-4), MetaSettings(engine="rop", **settings))
        losses = MfrLosses(domain_alignment=alignment)
        return lambda: made.step(splits, alpha=4e-4, rate=1e-5, losses=losses)

    alone = [torch.full((pairs,), left_out) for left_out in range(domains)]
    others = [(left_out + 1 + torch.arange(pairs) % (domains - 1)) % domains for left_out in range(domains)]
    yield {
        "every split by itself": trainer([(batch(t), batch(a)) for t, a in zip(others, alone, strict=True)], 1 / 4096),
        "domains shared": trainer(
            [(batch(a), batch(a)) for a in alone], 0.0, batch_norm="per_domain", sharing="per_domain"
        ),
    }


@contextmanager
def opening(images: int, folder: Path) -> Iterator[Calls]:
    """A RecordIO file opened by its text index and by the index kept beside it, a class folder, and a sampler."""
    records, classes = folder / "records", folder / "classes"
    encoded = _small_jpeg()
    with RecordWriter(records, (8, 8)) as writer:
        for image in range(images):
            writer.add(image // EACH, encoded)
    before = set(records.iterdir())
    open_domain(records)
    kept = set(records.iterdir()) - before
    if not kept:
        raise ValueError(f"no index was kept beside the records in {records}; want a folder that can be written to")
    _write_classes(classes, images, encoded)
    offsets = {"all": np.arange(0, images + 1, EACH)}

    def by_text():
        for path in kept:
            path.unlink(missing_ok=True)
        open_domain(records)

    yield {
        "records, by their text index": by_text,
        "records, opened again": lambda: open_domain(records),
        "class folder": lambda: open_domain(classes),
        "sampler and its first batch": lambda: GroupedDomainSampler(offsets, 64, seed=0).batch(0),
    }
    for path in (records, classes):
        shutil.rmtree(path)


def _small_jpeg() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), "grey").save(buffer, "JPEG")
    return buffer.getvalue()


def _write_classes(folder, images, encoded):
    """Class folders; the images of a person are one file under several names, for it is names that opening reads."""
    for person in range(images // EACH):
        home = folder / f"{person:07d}"
        home.mkdir(parents=True)
        first = home / "00.jpg"
        first.write_bytes(encoded)
        for image in range(1, EACH):
            (home / f"{image:02d}.jpg").hardlink_to(first)
