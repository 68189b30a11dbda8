"""What the meta step costs beside an ordinary step on the same images (28-layer net, 56 px, halves of one size)."""

import pytest
import torch

from fastmfr.backbone import build
from fastmfr.losses import MfrLosses
from fastmfr.meta import PairBatch, meta_gradient

SPLITS, PAIRS, SIZE = 3, 16, 56


def batches(device):
    gen = torch.Generator().manual_seed(0)

    def batch(domain_B):
        gallery, probe = (torch.randn(PAIRS, 3, SIZE, SIZE, generator=gen) for _ in range(2))
        return PairBatch(gallery.to(device), probe.to(device), domain_B.to(device))

    return [(batch(torch.arange(PAIRS) % 2), batch(torch.zeros(PAIRS, dtype=torch.long))) for _ in range(SPLITS)]


@pytest.mark.parametrize("order", [1, 2])
def test_meta_batch_beside_an_ordinary_step(compare, order):
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    backbone = build("mfr28").to(device=device, memory_format=torch.channels_last)
    splits, losses = batches(device), MfrLosses(domain_alignment=1 / 4096)

    def meta():
        return meta_gradient(backbone, splits, alpha=0.01, gamma=0.5, order=order, losses=losses)

    def ordinary():
        for split in splits:
            for pairs in split:
                embedding = backbone(torch.cat([pairs.gallery_B3HW, pairs.probe_B3HW]))
                total = losses(*embedding.chunk(2), pairs.domain_B).total
                torch.autograd.grad(total, list(backbone.parameters()))

    compare(meta, {"ordinary": ordinary}, rounds=7, order=order, splits=SPLITS, pairs=PAIRS, size=SIZE)
