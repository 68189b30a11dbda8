"""Recording of CUDA graphs on a stand-in for torch.cuda: what a failure leaves behind, and what is made beforehand."""

import contextlib
from types import SimpleNamespace
from typing import get_args

import numpy as np
import pytest
import torch
from fastmfr.kernels.batchnorm_prelu import fused
from fastmfr.kernels.cos_lse.tiles import precision

from fastmfr import cuda_graph
from fastmfr.config.choices import Precision
from fastmfr.precision import matmul_precision
from fastmfr.runtime import to_device

GPU = torch.device("cuda", 0)


class Cuda:
    """torch.cuda's streams, pools and recordings, kept as torch keeps them; `zeros` tells when counts were filled."""

    def __init__(self, monkeypatch):
        self.stream, self.streams, self.recording, self.begins, self.is_valid = 0, 0, None, True, True
        self.pools, self.into, self.zeros = {}, set(), []
        functions = {
            "Stream": self.new_stream,
            "stream": self.within,
            "CUDAGraph": lambda: Graph(self),
            "graph_pool_handle": lambda: (0, len(self.pools) + 1),
            "synchronize": lambda: None,
            "empty_cache": lambda: None,
            "is_current_stream_capturing": lambda: self.recording == self.stream,
            "current_stream": lambda device: SimpleNamespace(stream_id=self.stream),
        }
        for name, function in functions.items():
            monkeypatch.setattr(torch.cuda, name, function)
        monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", self.end_allocate)
        monkeypatch.setattr(torch._C, "_cuda_releasePool", self.release)
        monkeypatch.setattr(fused, "_COUNTS", {})
        monkeypatch.setattr(torch, "zeros", self.fill)

    def new_stream(self):
        self.streams += 1
        return SimpleNamespace(stream_id=self.streams, device=GPU)

    @contextlib.contextmanager
    def within(self, stream):
        before, self.stream = self.stream, stream.stream_id
        try:
            yield
        finally:
            self.stream = before

    def fill(self, *size, **options):
        self.zeros.append((self.stream, self.recording))
        return object()

    def end_allocate(self, device, pool):
        if pool not in self.into:
            raise RuntimeError("not currently recording to mempool_id")
        self.into.remove(pool)

    def release(self, device, pool):
        self.pools[pool] -= 1
        assert self.pools[pool] >= 0, "released twice"


class Graph:
    def __init__(self, cuda):
        self.cuda, self.has_ended, self.handle = cuda, False, None

    def capture_begin(self, pool, capture_error_mode):
        assert capture_error_mode == "thread_local"
        self.handle = pool
        self.cuda.pools[pool] = self.cuda.pools.get(pool, 0) + 1
        self.cuda.into.add(pool)
        if not self.cuda.begins:
            raise RuntimeError("no recording begins")
        self.cuda.recording = self.cuda.stream

    def capture_end(self):
        was, self.cuda.recording = self.cuda.recording, None
        if was is None or not self.cuda.is_valid:
            raise RuntimeError("operation failed due to a previous error during capture")
        assert was == self.cuda.stream
        self.cuda.end_allocate(0, self.handle)
        self.has_ended = True

    def pool(self):
        if not self.has_ended:
            raise RuntimeError("without a preceding successful capture")
        return self.handle

    def reset(self):
        if self.has_ended:
            self.cuda.release(0, self.handle)
            self.has_ended = False

    def replay(self):
        pass


@pytest.mark.parametrize("fails", ["in Python", "in CUDA", "at once", "at its end"])
def test_a_recording_that_fails_leaves_neither_its_stream_nor_its_pool(fails, monkeypatch):
    cuda = Cuda(monkeypatch)
    cuda.begins, cuda.is_valid = fails != "at once", fails not in ("in CUDA", "at its end")

    def function():
        if fails != "at its end":
            raise RuntimeError("operation not permitted")

    with pytest.raises(RuntimeError, match=r"not permitted|no recording begins|a previous error"):
        cuda_graph.record(function)
    assert (cuda.stream, cuda.recording, cuda.into) == (0, None, set())
    assert set(cuda.pools.values()) == {0}


def test_counts_are_made_before_each_recording_and_apart_for_each_stream(monkeypatch):
    cuda, recorded = Cuda(monkeypatch), []
    eager = fused.make_counts(GPU)
    for _ in range(2):
        cuda_graph.record(lambda: recorded.append(fused.make_counts(GPU)))
    assert cuda.zeros == [(0, None), (1, None), (2, None)]
    assert len({id(counts) for counts in (eager, *recorded)}) == 3
    assert fused.make_counts(GPU) is eager
    monkeypatch.setattr(fused, "_COUNTS", {})
    cuda.recording = cuda.stream
    with pytest.raises(RuntimeError, match="cannot be recorded as a CUDA graph"):
        fused.make_counts(GPU)


@pytest.mark.parametrize("chosen", get_args(Precision))
def test_float32_products_are_taken_as_the_precision_says(chosen):
    with matmul_precision(chosen):
        assert precision(torch.float32) == ("tf32" if chosen == "tf32" else "ieee")
        assert precision(torch.bfloat16) == "ieee"
    assert precision(torch.float32) == "ieee"


@pytest.mark.parametrize("wanted", ["cpu", "cuda"])
def test_what_goes_to_a_gpu_goes_pinned_and_without_waiting(wanted, monkeypatch):
    told, move = [], torch.Tensor.to
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: told.append("pinned") or tensor)
    monkeypatch.setattr(torch.Tensor, "to", lambda tensor, _, **options: told.append(options) or move(tensor, "cpu"))
    assert to_device(np.arange(3), torch.device(wanted)).tolist() == [0, 1, 2]
    assert told == (["pinned", {"non_blocking": True}] if wanted == "cuda" else [{}])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="records a CUDA graph")
def test_after_a_recording_that_waits_for_the_device_all_goes_on():
    before, value = torch.cuda.current_stream(), torch.ones(1 << 20, device="cuda")
    torch.cuda.empty_cache()
    reserved = torch.cuda.memory_reserved()
    with pytest.raises(RuntimeError):
        cuda_graph.record(lambda: (value * 2).sum().item())
    assert torch.cuda.current_stream() == before
    torch.cuda.empty_cache()
    assert torch.cuda.memory_reserved() <= reserved + (2 << 20)  # the counts, which stay
    replay, doubled = cuda_graph.record(lambda: value * 2)
    replay()
    assert doubled.sum().item() == 2 << 20
