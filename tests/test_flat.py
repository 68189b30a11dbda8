"""Tensors in one buffer: each in its own memory order, aligned, with nothing between them."""

import pytest
import torch

from fastmfr.flat import Flat


def test_tensors_keep_their_memory_order_and_gaps_stay_empty():
    gen = torch.Generator().manual_seed(0)
    tensors = {
        "wide": torch.randn(4, 3, 3, 3, generator=gen).contiguous(memory_format=torch.channels_last),
        "one": torch.randn((), generator=gen),
        "odd": torch.randn(7, generator=gen),
    }
    flat = Flat(tensors)
    fresh, buffer_P = (flat.fill(made, list(tensors.values())) for made in (flat.zeros(), flat.empty()))
    assert torch.equal(fresh, buffer_P)
    for name, view in flat.by_name(buffer_P).items():
        assert torch.equal(view, tensors[name])
        assert view.stride() == tensors[name].stride()
        assert view.storage_offset() * 4 % 128 == 0
    assert buffer_P.square().sum() == pytest.approx(sum(value.square().sum().item() for value in tensors.values()))
    flat.views(buffer_P)[2].zero_()
    assert not buffer_P[-32:].any()


def test_refuses_tensors_of_several_dtypes():
    with pytest.raises(ValueError, match=r"one dtype on one device, got torch.float32 on cpu, torch.float64 on cpu"):
        Flat({"a": torch.zeros(2), "b": torch.zeros(2, dtype=torch.float64)})
    with pytest.raises(ValueError, match="got none"):
        Flat({})
