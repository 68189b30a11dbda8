"""How many launches an exact split takes on a GPU, counted without one, and that none of them is waited for.

Kernels are counted and not run. What they would write decides nothing of what comes next: a step that looked at a
value on the host could not be recorded as a CUDA graph.
"""

import re
from collections import Counter
from pathlib import Path

import pytest
import torch
import triton
from fastmfr.kernels import batchnorm_prelu
from fastmfr.kernels.batchnorm_prelu import fused
from fastmfr.kernels.launching import ceil_div, next_power_of_2
from torch.utils._python_dispatch import TorchDispatchMode

from fastmfr.backbone import build
from fastmfr.meta import PairBatch, meta_gradient

pytestmark = pytest.mark.kernel
ROOT = Path(__file__).parent.parent
LAUNCHES = {"kept": 1500, "streaming": 1800}  # at most; autograd twice takes more than 6000
NOTHING = ("empty", "new_empty", "detach", "alias", "_unsafe_view")  # memory and views
WAITS = ("_local_scalar_dense", "nonzero", "_unique2", "equal")  # the host reads what the device made
MANY = 30  # tensors that one kernel of a foreach operation takes at least, if they are laid out alike


class Launches(TorchDispatchMode):
    """Counts by name what ATen launches on a GPU."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.removeprefix("aten::")
        if func.namespace == "aten" and not func.is_view and not name.startswith(NOTHING):
            self.counts[name] += launches(name, args)
        return func(*args, **(kwargs or {}))


def launches(name, args):
    if name == "convolution_backward":  # of the input and of the weight
        return 2
    if name.startswith("_foreach_"):
        lists = [arg for arg in args if isinstance(arg, (list, tuple))]
        alike = all(len({tensor.stride() for tensor in tensors}) == 1 for tensors in zip(*lists, strict=True))
        return -(-len(lists[0]) // MANY) if alike else len(lists[0])
    return 1


def batch(pairs, domains):
    gen = torch.Generator().manual_seed(0)
    gallery, probe = (torch.randn(pairs, 3, 16, 16, generator=gen) for _ in range(2))
    return PairBatch(gallery, probe, torch.arange(pairs) % domains)


@pytest.fixture(params=LAUNCHES)
def split(request, monkeypatch):
    """(memory, counts by name) of one exact split of mfr28, BatchNorm by its kernels; counts depend on no size."""
    backbone = build("mfr28", width=0.125).to(memory_format=torch.channels_last)
    mode = Launches()

    def count(kernel, *args, **settings):
        mode.counts[f"triton {kernel.fn.__name__}"] += 1

    monkeypatch.setattr(batchnorm_prelu, "reference", fused)
    monkeypatch.setattr(batchnorm_prelu.native, "takes", lambda x, *layer: False)
    monkeypatch.setattr(type(fused.normalise_input_kernel), "run", count)
    with mode:
        meta_gradient(backbone, [(batch(4, 2), batch(4, 1))], alpha=0.01, gamma=0.5, engine="rop", memory=request.param)
    return request.param, mode.counts


def test_an_exact_split_stays_within_its_launches(split):
    memory, counts = split
    assert counts["triton compute_second_gradient_kernel"] == 45  # of each BatchNorm: the kernels were taken
    assert counts.total() < LAUNCHES[memory], counts.most_common(30)


def test_an_exact_split_waits_for_the_device_nowhere(split):
    _, counts = split
    assert not [name for name in counts if name in WAITS]


def test_tiles_are_counted_without_triton_whose_division_takes_as_long_as_half_a_launch():
    counts, sizes = (1, 2, 3, 63, 64, 65, 1000), (1, 3, 64)
    assert [ceil_div(a, b) for a in counts for b in sizes] == [triton.cdiv(a, b) for a in counts for b in sizes]
    assert [next_power_of_2(a) for a in counts] == [triton.next_power_of_2(a) for a in counts]
    slow = re.compile(r"triton\.(cdiv|next_power_of_2)\(")
    assert not [path for path in (ROOT / "kernels").rglob("*.py") if slow.search(path.read_text())]
