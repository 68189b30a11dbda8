"""From encoded images to unit embeddings, and which images could not be decoded; shared out over ranks if need be.

Shape suffixes: N images, B images of a batch, D embedding.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, get_args

import numpy as np
import torch
from torch.distributed import ProcessGroup
from torch.nn import functional as F

from fastmfr.config.choices import Mirror
from fastmfr.decode import ImageStream, Preprocess
from fastmfr.distributed import all_gather_object, gather_whole, raise_on_all_ranks, rank_and_world
from fastmfr.image_set import ImageSet

MIRRORS = get_args(Mirror)


def embed(
    backbone: torch.nn.Module,
    batches: Iterable[torch.Tensor],
    device: torch.device | str,
    *,
    mirror: Mirror = "concat",
    normalise: bool = True,
    group: ProcessGroup | None = None,
) -> torch.Tensor:
    """Return the embeddings of all images in `batches`, float32 on `device`.

    The backbone runs in eval mode; every module's training flag is restored afterwards.

    Args:
        backbone: Maps image_B3HW to embedding_BD.
        batches: An iterable of image_B3HW.
        device: Where the backbone is.
        mirror: What is done with the mirror image. "concat" puts the backbone's outputs for an image and for its mirror
            image side by side, as the MFR paper tests; "sum" adds the outputs, as InsightFace does; "none" leaves the
            mirror image out.
        normalise: Whether rows are brought to unit length, after `mirror`.
        group: A process group whose ranks all call this function, each with as many images as the others. All ranks
            get the rows of all ranks, in their order.

    Returns:
        (N, 2 D) if `mirror` is "concat", else (N, D).

    Raises:
        ValueError: there is no image, or an embedding is not finite; on all ranks alike.
    """
    if mirror not in MIRRORS:
        raise ValueError(f"want mirror out of {', '.join(MIRRORS)}, got {mirror!r}")
    with raise_on_all_ranks(group):
        embedding_ND = _embed_all(backbone, batches, device, mirror, normalise)
    if group is not None:
        embedding_ND = _gather_ranks(embedding_ND, group)
    broken = (~embedding_ND.isfinite().all(1)).nonzero()
    if len(broken):
        raise ValueError(
            f"the embeddings of {len(broken)} of {len(embedding_ND)} images are not finite, the first "
            f"that of image {broken[0].item()}; the backbone's weights or the images hold NaN or infinity"
        )
    return embedding_ND


def _embed_all(backbone, batches, device, mirror, normalise):
    flags = [(module, module.training) for module in backbone.modules()]
    rows = []
    try:
        backbone.eval()
        with torch.inference_mode():
            for image_B3HW in batches:
                embedding_BD = _embed_batch(backbone, image_B3HW.to(device, non_blocking=True), mirror)
                rows.append(F.normalize(embedding_BD) if normalise else embedding_BD)
    finally:
        for module, training in flags:
            module.training = training
    if not rows:
        raise ValueError("there is no image to embed; want at least one batch of images")
    return torch.cat(rows)


def _gather_ranks(embedding_ND, group):
    images = all_gather_object(len(embedding_ND), group)
    if len(set(images)) > 1:
        raise ValueError(f"want as many images on every rank of the group, got {', '.join(map(str, images))}")
    return gather_whole(embedding_ND, group)


def _embed_batch(backbone, image_B3HW, mirror):
    embedding_BD = backbone(image_B3HW).float()
    if mirror == "none":
        return embedding_BD
    mirrored_BD = backbone(image_B3HW.flip(-1)).float()
    return embedding_BD + mirrored_BD if mirror == "sum" else torch.cat([embedding_BD, mirrored_BD], dim=1)


def in_order(image_N: np.ndarray, batch_images: int) -> Callable[[int], tuple[np.ndarray, np.ndarray]]:
    """Return the requests with which an `ImageStream` of one domain yields the images `image_N` in their order.

    Past the end the last image is repeated, so that all batches, and all ranks, are full.
    """

    def requests(batch):
        place_B = np.arange(batch * batch_images, (batch + 1) * batch_images).clip(max=len(image_N) - 1)
        return np.zeros(batch_images, np.int64), image_N[place_B]

    return requests


def stream_of_rank(
    domain: ImageSet,
    image_N: np.ndarray,
    preprocess: Preprocess,
    device: torch.device | str,
    *,
    batch_images: int,
    group: ProcessGroup | None = None,
    **decoding: Any,
) -> ImageStream:
    """Open a stream of images of a domain, in their order and unchanged; the last batch is filled up.

    Args:
        domain: The images.
        image_N: Their numbers, int64 (N,).
        preprocess: How images are prepared; nothing is changed at random.
        device: Where the images are wanted.
        batch_images: How many images are decoded at a time, at most.
        group: The ranks, each of which gets a run of whole batches, as many as the others; None is this process alone.
        decoding: threads, decoder, vet and verdicts, as `ImageStream` takes them.
    """
    rank, ranks = rank_and_world(group)
    batch_images = min(batch_images, len(image_N))
    batches = -(-len(image_N) // (batch_images * ranks))  # of each rank
    return ImageStream(
        [domain],
        in_order(image_N, batch_images),
        preprocess.plain(),
        batch_images=batch_images,
        first=rank * batches,
        last=(rank + 1) * batches,
        device=str(device),
        **decoding,
    )


def bad_of_ranks(stream: ImageStream, group: ProcessGroup | None) -> dict[str, str]:
    """Return {"domain/key": reason} of the images that the streams of all ranks could not decode."""
    return {key: reason for found in all_gather_object(dict(stream.bad), group) for key, reason in found.items()}


def embed_domain(
    backbone: torch.nn.Module,
    domain: ImageSet,
    preprocess: Preprocess,
    device: torch.device | str,
    *,
    batch_images: int = 256,
    mirror: Mirror = "concat",
    normalise: bool = True,
    progress: Callable[[int, int], None] | None = None,
    group: ProcessGroup | None = None,
    **decoding: Any,
) -> tuple[torch.Tensor, dict[int, str]]:
    """Embed all images of a domain, in their order.

    Args:
        backbone: As in `embed`.
        domain: The images.
        preprocess: How images are prepared; nothing is changed at random.
        device: As in `embed`.
        batch_images: How many images are decoded and embedded at a time.
        mirror: As in `embed`.
        normalise: As in `embed`.
        progress: Called with (images done, images in all), first with 0; other ranks are assumed to be as far.
        group: A process group whose ranks each embed a run of whole batches, the same batches that one process makes.
        decoding: threads, decoder, vet and verdicts, as `ImageStream` takes them.

    Returns:
        (embedding_ND, bad), on all ranks. bad is {image number: reason} of the images that could not be decoded; the
        row of such an image holds the embedding of another image.

    Raises:
        ValueError: as in `embed`.
    """
    batch_images, ranks = min(batch_images, domain.images), rank_and_world(group)[1]
    with stream_of_rank(
        domain, np.arange(domain.images), preprocess, device, batch_images=batch_images, group=group, **decoding
    ) as stream:
        images = (image_B3HW for _, image_B3HW in stream)
        if progress:
            images = _watched(images, progress, batch_images * ranks, domain.images)
        embedding_ND = embed(backbone, images, device, mirror=mirror, normalise=normalise, group=group)
        bad = bad_of_ranks(stream, group)
    return embedding_ND[: domain.images], _by_number(domain, bad) if bad else {}


def _watched(batches, progress, step, total) -> Iterator[torch.Tensor]:
    """The batches, each followed by a call of `progress` once it has been used; `step` images are done by each."""
    progress(0, total)
    for number, image_B3HW in enumerate(batches, 1):
        yield image_B3HW
        progress(min(number * step, total), total)


def _by_number(domain, bad):
    """{image number: reason} for {"domain/key": reason}."""
    labels = ((image, domain.label_of(image)) for image in range(domain.images))
    return {image: bad[label] for image, label in labels if label in bad}
