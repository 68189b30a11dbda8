"""What the passes of cos_lse share: how large their tiles are, how tiles are loaded, how the work is spread.

Shape suffixes: B = batch, C = identities, D = embedding.
"""

import functools
import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from ..launching import FUSED, multiprocessors

KEPT_MULTIPLE = 128  # columns of what keep="exp" keeps
MAX_EMBEDDING = 1024
LOG2E = tl.constexpr(math.log2(math.e))


class Tile(NamedTuple):
    """One program's share: `rows` x `classes` cosines at a time, summed over `depth` columns of D at a time.

    `slab`: columns of a gradient that one program makes. `stages`: loads in flight. `resident`: programs that share a
    multiprocessor.
    """

    rows: int
    classes: int
    depth: int
    slab: int = 0
    warps: int = 4
    stages: int = 3
    resident: int = 1

    @property
    def options(self):
        return {"num_warps": self.warps, "num_stages": self.stages, **FUSED}


# For D up to 256, and above. A program holds a slab of a gradient in registers, which leaves a multiprocessor room for
# one. 80 stays within the 99 KiB of its smaller relatives. On 90 two products that add to one slab need 128 of a side:
# Triton lays 64 out twice.
_FORWARD = (Tile(128, 64, 64, resident=2),) * 2
_SHALLOW = (Tile(128, 64, 32, resident=2),) * 2
_STAYING = Tile(128, 64, 256, warps=8, stages=2), Tile(128, 32, 512, warps=8, stages=2)  # of rows: half the L2 traffic
_TILES = {  # of 16-bit products
    "forward": {80: _FORWARD, 90: _STAYING, 100: (Tile(128, 32, 256, warps=8, stages=2), _STAYING[1])},
    "forward, kept": {80: _FORWARD, 90: _SHALLOW, 100: (Tile(128, 64, 32, warps=8, resident=2),) * 2},
    "rows": {
        80: (Tile(64, 64, 64, 256, 8, 2), Tile(64, 32, 64, 512, 8, 3)),
        90: (Tile(64, 64, 256, 256, 8, 2), Tile(64, 32, 512, 512, 8, 2)),
        100: (Tile(64, 64, 256, 256, 8, 2), Tile(64, 32, 512, 512, 8, 2)),
    },
    "classes": {
        80: (Tile(64, 64, 64, 256, 8, 2), Tile(32, 64, 64, 512, 8, 3)),
        90: (Tile(64, 64, 256, 256, 8, 2), Tile(32, 64, 512, 512, 8, 2)),
        100: (Tile(64, 64, 256, 256, 8, 2), Tile(32, 64, 512, 512, 8, 2)),
    },
    "mean": {
        80: (Tile(64, 64, 64, stages=2, resident=2),) * 2,
        90: (Tile(64, 64, 64, resident=2),) * 2,
        100: (Tile(64, 64, 32, resident=2),) * 2,
    },
    "rows twice": {
        80: (Tile(64, 32, 64, 256, 8, 2), Tile(32, 64, 64, 512, 8, 2)),
        90: (Tile(128, 32, 32, 256, 8, 3),) * 2,
        100: (Tile(64, 64, 64, 256, 8, 2), Tile(64, 64, 64, 512, 8, 2)),
    },
    "classes twice": {
        80: (Tile(32, 64, 64, 256, 8, 2), Tile(64, 32, 64, 512, 8, 2)),
        90: (Tile(32, 128, 32, 256, 8, 3),) * 2,
        100: (Tile(64, 64, 64, 256, 8, 2), Tile(64, 64, 64, 512, 8, 2)),
    },
}
_TILES |= {  # of a chunk's passes: what a program makes it stores, and needs no registers for long
    "gradient": {
        80: (Tile(128, 128, 64, stages=2, resident=2),) * 2,
        90: (Tile(128, 128, 64, resident=2),) * 2,
        100: (Tile(128, 128, 64, warps=8),) * 2,
    },
    "gradient, kept": {arch: (Tile(16, 128, 32, resident=8),) * 2 for arch in (80, 90, 100)},  # takes no product
    "curvature": {
        80: (Tile(64, 64, 64, stages=2, resident=2),) * 2,
        90: (Tile(128, 128, 64, warps=8),) * 2,
        100: (Tile(64, 64, 32, resident=2),) * 2,
    },
}
_MIXED = {  # where weights are float32 and rounded as they are loaded, if that needs another tile
    "forward": {90: _FORWARD, 100: (_SHALLOW[0], _FORWARD[1])},
    "rows": {80: (Tile(64, 64, 64, 256, 8, 2), Tile(32, 32, 64, 512, 8, 2))},
    "classes": {
        90: (Tile(64, 64, 64, 256, 8, 2), Tile(32, 64, 64, 512, 8, 2)),
        100: (Tile(64, 64, 64, 256, 8, 2), Tile(32, 64, 64, 512, 8, 2)),
    },
}
_SINGLE = {  # of float32 products: no tensor cores, unless tf32 is allowed
    "forward": Tile(64, 64, 32, resident=2),
    "forward, kept": Tile(64, 64, 16, resident=2),
    "rows": Tile(32, 16, 16, 256, 8, 2),
    "classes": Tile(16, 32, 16, 256, 8, 2),
    "mean": Tile(64, 32, 16, resident=2),
    "gradient": Tile(64, 64, 32, resident=2),
    "gradient, kept": Tile(16, 128, 32, resident=8),
    "curvature": Tile(64, 32, 16, warps=8, resident=2),
    "rows twice": Tile(32, 16, 16, 128, 8, 2, resident=2),
    "classes twice": Tile(16, 32, 16, 256, 8, 2),
}
_INTERPRETED = Tile(rows=16, classes=32, depth=16, slab=16)  # small, so that small tests reach every edge


def choose(name, unit_BD, weight_CD):
    """The tile of a pass over these operands. Raises ValueError where there is none."""
    D, device = unit_BD.shape[1], unit_BD.device
    if D > MAX_EMBEDDING:
        raise ValueError(f"want embeddings of at most {MAX_EMBEDDING}, got {D}; use fewer, or the path in PyTorch")
    arch = architecture(device)
    if arch is None:
        return _INTERPRETED
    if unit_BD.dtype == torch.float32:
        tile = _SINGLE[name]
    else:
        mixed = _MIXED.get(name, {}) if weight_CD.dtype == torch.float32 else {}
        tile = mixed.get(arch, _TILES[name][arch])[D > 256]
    width = max(16, triton.next_power_of_2(D))
    depth = min(tile.depth, width) if D <= 512 else min(tile.depth, 64)
    return tile._replace(depth=depth, slab=min(tile.slab, width))


@functools.cache
def architecture(device):
    """Which column of the table serves a GPU, or None on the CPU, where Triton interprets."""
    if device.type == "cpu":
        return None
    major = torch.cuda.get_device_capability(device)[0]
    return {9: 90, 10: 100}.get(major, 80)


def shares(C, tile, programs, device):
    """(how many shares of the identities, how many in one) that keep all multiprocessors at work, each with `programs`.

    Never more than run at once: a few programs left over would take as long again.
    """
    tiles = triton.cdiv(C, tile.classes)
    at_once = max(1, tile.resident * multiprocessors(device) // programs)
    size = triton.cdiv(tiles, min(tiles, at_once)) * tile.classes
    return triton.cdiv(C, size), size


def floats(like, *shapes):
    """New float32 tensors on the device of `like`."""
    return [torch.empty(shape, dtype=torch.float32, device=like.device) for shape in shapes]


def contiguous(*operands):
    return [None if one is None else one.contiguous() for one in operands]


def precision(dtype):
    """How float32 products are taken: as torch.matmul takes them.

    Not asked of `allow_tf32`, which raises once somebody has set `fp32_precision`.
    """
    is_tf32 = dtype == torch.float32 and torch.backends.cuda.matmul.fp32_precision == "tf32"
    return "tf32" if is_tf32 else "ieee"


def lift(dtype, g_B, g_cos_B, inverse_norm_C=None, reach=None, gain=1.0):
    """(g_B, g_cos_B, what undoes it): float16 gradients raised to where float16 is exact; others as they are, None.

    A gradient of a mean over a million identities lies below the smallest float16. `gain` times g_B still fits;
    `reach` is undone as well.
    """
    if dtype != torch.float16:
        return g_B.contiguous(), g_cos_B.contiguous(), None
    peak = torch.maximum(gain * g_B.abs().amax(), g_cos_B.abs().amax())
    if inverse_norm_C is not None:
        peak = peak * inverse_norm_C.amax()
    unlift = (peak / 2**14).clamp_min(torch.finfo(torch.float32).tiny)
    return g_B / unlift, g_cos_B / unlift, unlift if reach is None else unlift * reach


@triton.jit
def load_label(ptr, b, B, C):
    """True identities of rows b, clamped to those there are, in 32 bits; -1 where a label names none."""
    label = tl.load(ptr + tl.minimum(b, B - 1))
    return tl.where((label >= 0) & (label < C), label, -1).to(tl.int32)


@triton.jit
def tile_at(ptr, start, index, last, column, D: tl.constexpr):
    """Pointers to rows start + index of a matrix with D columns; rows from `last` on become the one before it.

    What is computed from such repeated rows is never used: no mask to load under is fewer registers to hold.
    """
    index = tl.minimum(index, last - 1 - start)
    return ptr + tl.cast(start, tl.int64) * D + (index[:, None] * D + column[None, :])  # 64 bits: C * D may pass 2**31


@triton.jit
def load_tile(at, column, D: tl.constexpr, EVEN: tl.constexpr, dtype: tl.constexpr):
    """The tile at these pointers, 0 in columns past D; EVEN says that there are none."""
    if EVEN:
        return tl.load(at).to(dtype)
    return tl.load(at, mask=(column < D)[None, :], other=0.0).to(dtype)


@triton.jit
def products(
    sum, left_at, right_at, D: tl.constexpr, DEPTH: tl.constexpr, dtype: tl.constexpr, PRECISION: tl.constexpr
):
    """`sum` plus the dot products (rows on the left, rows on the right) of two tiles, DEPTH columns at a time."""
    EVEN: tl.constexpr = D % DEPTH == 0
    for k in range(0, D, DEPTH):
        column = k + tl.arange(0, DEPTH)
        left = load_tile(left_at + k, column, D, EVEN, dtype)
        right = load_tile(right_at + k, column, D, EVEN, dtype)
        sum = tl.dot(left, tl.trans(right), sum, input_precision=PRECISION)
    return sum


@triton.jit
def kept_at(ptr, first, row, start, class_, stride):
    """Pointers to what is kept of a tile: its rows from `first` on, its identities from `start` on."""
    return ptr + tl.cast(first, tl.int64) * stride + start + (row * stride + class_)
