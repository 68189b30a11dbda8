"""From encoded images to unit embeddings, and which images could not be decoded; shared out over ranks if need be.

Shape suffixes: N images, B images of a batch, D embedding.
"""

from collections.abc import Iterable

import numpy as np
import torch
from torch.nn import functional as F

from fastmfr.decode import ImageStream, Preprocess
from fastmfr.distributed import all_gather_object, gather_whole, raise_on_all_ranks, rank_and_world

MIRRORS = ("concat", "sum", "none")


def embed(
    backbone: torch.nn.Module,
    batches: Iterable[torch.Tensor],
    device,
    *,
    mirror: str = "concat",
    normalise: bool = True,
    group=None,
) -> torch.Tensor:
    """Embedding of the images in `batches`, an iterable of image_B3HW: float32 (N, D or 2 D) on `device`, unit rows.

    `mirror`: "concat" puts the backbone's outputs for an image and for its mirror image side by side (N, 2 D), as the
    MFR paper tests; "sum" adds them, as InsightFace does; "none" leaves the mirror out. `normalise`: to unit length,
    after that. `group`: a process group, each rank of which calls this with as many images as the others; all get the
    rows of all, in the order of ranks. Runs in eval mode and leaves every module's training flag as it was.

    Raises ValueError, on all ranks alike, if there is no image, or for an embedding that is not finite.
    """
    if mirror not in MIRRORS:
        raise ValueError(f"want mirror out of {', '.join(MIRRORS)}, got {mirror!r}")
    with raise_on_all_ranks(group):
        embedding_ND = _embed_all(backbone, batches, device, mirror, normalise)
    if group is not None:
        images = all_gather_object(len(embedding_ND), group)
        if len(set(images)) > 1:
            raise ValueError(f"want as many images on every rank of the group, got {', '.join(map(str, images))}")
        embedding_ND = gather_whole(embedding_ND, group)
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


def _embed_batch(backbone, image_B3HW, mirror):
    embedding_BD = backbone(image_B3HW).float()
    if mirror == "none":
        return embedding_BD
    mirrored_BD = backbone(image_B3HW.flip(-1)).float()
    return embedding_BD + mirrored_BD if mirror == "sum" else torch.cat([embedding_BD, mirrored_BD], dim=1)


def in_order(image_N, batch_images: int):
    """What an ImageStream of one domain asks for to give these images in order, `batch_images` at a time.

    Past the end comes the last image again, so that batches, and ranks, are all filled.
    """

    def requests(batch):
        place_B = np.arange(batch * batch_images, (batch + 1) * batch_images).clip(max=len(image_N) - 1)
        return np.zeros(batch_images, np.int64), image_N[place_B]

    return requests


def embed_domain(
    backbone,
    domain,
    preprocess: Preprocess,
    device,
    *,
    batch_images: int = 256,
    mirror: str = "concat",
    normalise: bool = True,
    progress=None,
    group=None,
    **decoding,
) -> tuple[torch.Tensor, dict[int, str]]:
    """(embedding_ND, bad) of all images of a domain in their order, decoded `batch_images` at a time, unchanged.

    bad {image number: reason}: images that could not be decoded; another image's embedding stands in their row.
    `domain`: anything ImageStream takes. `decoding`: threads, decoder, vet and verdicts, as ImageStream takes them.
    `progress` is called with (images done, images in all), first with 0; the other ranks are taken to be as far.
    `group`: a process group whose ranks each embed a run of whole batches, the same batches that one process makes; all
    ranks get all rows and all bad images.
    """
    rank, ranks = rank_and_world(group)
    batch_images = min(batch_images, domain.images)
    batches = -(-domain.images // (batch_images * ranks))  # of each rank
    first = rank * batches

    def images(stream):
        if progress:
            progress(0, domain.images)
        for batch, image_B3HW in stream:
            yield image_B3HW
            if progress:
                progress(min((batch + 1 - first) * batch_images * ranks, domain.images), domain.images)

    requests = in_order(np.arange(domain.images), batch_images)
    with ImageStream(
        [domain],
        requests,
        preprocess.plain(),
        batch_images=batch_images,
        first=first,
        last=first + batches,
        device=str(device),
        **decoding,
    ) as stream:
        embedding_ND = embed(backbone, images(stream), device, mirror=mirror, normalise=normalise, group=group)
        bad = {key: reason for found in all_gather_object(dict(stream.bad), group) for key, reason in found.items()}
    return embedding_ND[: domain.images], _by_number(domain, bad) if bad else {}


def _by_number(domain, bad):
    """{image number: reason} for {"domain/key": reason}."""
    keys = ((image, f"{domain.name}/{domain.key(image)}") for image in range(domain.images))
    return {image: bad[key] for image, key in keys if key in bad}
