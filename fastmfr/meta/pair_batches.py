"""Which images go through the backbone together, and the gradients of the losses on their embeddings.

Shape suffixes: B = pairs, D = embedding, H W = image.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from fastmfr.distributed import gather_whole
from fastmfr.losses import LOSSES, MfrLosses, MfrTerms, through_length, unit_pairs
from fastmfr.meta.types import PairBatch, Split


class Groups:
    """The images of a PairBatch in groups, each of which goes through the backbone as one batch.

    With a process group, each rank has its share of the pairs, and the losses are of the pairs of all ranks.

    Attributes:
        images: One tensor for each group, shape (2 * pairs of the group, 3, H, W): its galleries, then its probes.

    Args:
        pairs: The batch.
        per_domain: Whether each domain is a group; else all pairs are one group.
        group: The ranks that share the pairs, equally; None is this process alone.
    """

    def __init__(self, pairs: PairBatch, per_domain: bool, group: ProcessGroup | None = None):
        self._ranks = group
        if per_domain:  # unique() synchronises the host: the price of statistics by domain outside of a CUDA graph
            rows = [(pairs.domain_B == domain).nonzero().squeeze(1) for domain in pairs.domain_B.unique()]
            halves = [(pairs.gallery_B3HW[group], pairs.probe_B3HW[group]) for group in rows]
            self._back = torch.cat(rows).argsort()
        else:
            halves, self._back = [(pairs.gallery_B3HW, pairs.probe_B3HW)], None
        self.images = [torch.cat(half) for half in halves]

    def join(self, embeddings: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Return (gallery_BD, probe_BD) in the order of the pairs, from the embeddings of each group's images.

        The pairs are those of all ranks, in the order of the ranks. Each rank must compute the same from them.

        The losses are computed in float32 if the embeddings have 16 bits.

        Raises:
            ValueError: If a backbone has returned something else than a tensor (images, D) of floating point numbers.
        """
        embeddings = [_checked(*made) for made in zip(embeddings, self.images, strict=True)]
        if self._back is None:
            gallery_BD, probe_BD = embeddings[0].chunk(2)
            return self._of_all_ranks(gallery_BD, probe_BD)
        halves = zip(*(embedding.chunk(2) for embedding in embeddings), strict=True)
        gallery_BD, probe_BD = (torch.cat(half)[self._back] for half in halves)
        return self._of_all_ranks(gallery_BD, probe_BD)

    def _of_all_ranks(self, gallery_BD, probe_BD):
        if self._ranks is None:
            return gallery_BD, probe_BD
        gallery_BD, probe_BD = gather_whole(torch.stack([gallery_BD, probe_BD], dim=1), self._ranks).unbind(1)
        return gallery_BD, probe_BD

    def domains(self, domain_B: Tensor | None) -> Tensor | None:
        """Return the domains of the pairs of all ranks, given this rank's."""
        return domain_B if domain_B is None or self._ranks is None else gather_whole(domain_B, self._ranks)


def splits_of_batch(image_N3HW: Tensor, domain_N: Tensor, splits: int) -> list[Split]:
    """Make splits of the images that a loader has brought for one meta step.

    Args:
        image_N3HW: The images of split after split. Those of a split are galleries and probes of meta-train, then
            galleries and probes of meta-test, as many of each: the order of `fastmfr.batch_sampler.SplitBatchSampler`.
        domain_N: The domain of each image, int64.
        splits: The number of splits.

    Returns:
        The (train, test) batches of each split, views of the images.

    Raises:
        ValueError: If the images are not of `splits` splits, or if there is not one domain for each.
    """
    N = len(image_N3HW)
    if domain_N.shape != (N,) or splits < 1 or not N or N % (4 * splits):
        raise ValueError(
            f"want images in {splits} splits of galleries and probes of meta-train and of meta-test, and a domain for "
            f"each image, got {N} images, which is no multiple of {4 * splits}, or domains of shape "
            f"{tuple(domain_N.shape)}"
        )
    quarters = list(zip(image_N3HW.chunk(4 * splits), domain_N.chunk(4 * splits), strict=True))
    halves = [PairBatch(image, quarters[k + 1][0], domain) for k, (image, domain) in enumerate(quarters) if k % 2 == 0]
    return list(zip(halves[::2], halves[1::2], strict=True))


def train_and_test(split: Split) -> Split:
    """Return a split if it is (train, test), both of them PairBatches whose tensors go together.

    Raises:
        ValueError: If the split is something else, or if a batch is not made of images (B, 3, H, W), twice, and of
            domains (B,), for at least one pair.
    """
    if not isinstance(split, (tuple, list)) or len(split) != 2:
        raise ValueError(f"want each split as (train, test), two PairBatches, got a {_described(split)}")
    train, test = split
    _check(train)
    _check(test)
    return train, test


def _check(pairs):
    """Raise ValueError for a batch whose rows would not belong together."""
    parts: list[Any] = [getattr(pairs, name, None) for name in ("gallery_B3HW", "probe_B3HW", "domain_B")]
    gallery, probe, domain = parts
    if (
        all(isinstance(part, Tensor) for part in parts)
        and gallery.ndim == 4
        and gallery.is_floating_point()
        and gallery.shape == probe.shape
        and domain.shape == gallery.shape[:1]
        and len(gallery)
    ):
        return
    got = (f"{tuple(part.shape)} of {part.dtype}" if isinstance(part, Tensor) else _described(part) for part in parts)
    raise ValueError(
        "want a PairBatch of at least one pair, with gallery_B3HW and probe_B3HW of one shape (B, 3, H, W), floating "
        f"point, and domain_B of shape (B,); got {', '.join(got)}"
    )


def _checked(embedding, images):
    """The embeddings of a group, in at least float32."""
    is_tensor = isinstance(embedding, Tensor)
    if not is_tensor or embedding.ndim != 2 or len(embedding) != len(images) or not embedding.is_floating_point():
        got = f"a tensor {tuple(embedding.shape)} of {embedding.dtype}" if is_tensor else f"a {_described(embedding)}"
        raise ValueError(
            f"want a backbone that maps images {tuple(images.shape)} to a floating point tensor of embeddings "
            f"({len(images)}, D), got {got}; wrap the backbone in a module that returns the embeddings alone"
        )
    return embedding.float() if embedding.dtype in (torch.bfloat16, torch.float16) else embedding


def _described(value):
    return f"{type(value).__name__} of {len(value)}" if isinstance(value, (tuple, list, dict)) else type(value).__name__


def loss_gradients(
    losses: MfrLosses, embeddings: tuple[Tensor, Tensor], domain_B: Tensor | None, *, create_graph: bool
) -> tuple[MfrTerms, Tensor, tuple[Tensor, ...]]:
    """Differentiate each loss once, on the unit rows, and carry the three gradients on to the embeddings together.

    Args:
        losses: The losses.
        embeddings: (gallery_BD, probe_BD).
        domain_B: The domains to align, or None for no domain alignment.
        create_graph: Whether the gradients can be differentiated again.

    Returns:
        The losses; the norms of the three weighted losses' gradients on the embeddings, shape (3,), in the order of
        LOSSES; and the gradient of the total loss on gallery_BD and on probe_BD.
    """
    unit_2BD, inverse_2B1 = unit_pairs(*embeddings)
    terms = losses.of_unit_pairs(unit_2BD, domain_B)
    parts = []
    for name in LOSSES:
        loss = getattr(terms, name)
        if loss.requires_grad:
            weight = torch.full_like(loss, getattr(losses, name))
            parts += torch.autograd.grad(loss, unit_2BD, weight, retain_graph=True, create_graph=create_graph)
        else:  # without domain_B nothing is aligned
            parts.append(torch.zeros_like(unit_2BD))
    with torch.set_grad_enabled(create_graph):
        dz_32BD = through_length(torch.stack(parts), unit_2BD, inverse_2B1)
        return terms, torch.linalg.vector_norm(dz_32BD.detach(), dim=(1, 2)), dz_32BD.sum(0).chunk(2)
