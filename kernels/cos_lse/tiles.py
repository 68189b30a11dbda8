"""What the passes of cos_lse share: how large their tiles are, how tiles are loaded, how the work is spread.

Shape suffixes: B = batch, C = identities, D = embedding.
"""

import contextlib
import functools
from typing import NamedTuple

import torch
import triton
import triton.language as tl

KEPT_MULTIPLE = 128  # columns of what keep="exp" keeps
MAX_EMBEDDING = 1024
LOG2E = 1.4426950408889634


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
        return {"num_warps": self.warps, "num_stages": self.stages}


# By pass: a tile for D up to 256 and one for D above, of 16-bit products. Gradients hold a slab of a row in registers,
# which leaves room for one program on a multiprocessor. Ampere's tiles stay within 99 KiB, for its smaller relatives.
_HALF = {
    "forward": {
        80: (Tile(128, 64, 64, resident=2), Tile(128, 64, 64, resident=2)),
        90: (Tile(128, 64, 64, resident=2), Tile(128, 64, 64, resident=2)),
        100: (Tile(128, 64, 64, resident=2), Tile(128, 64, 64, resident=2)),
    },
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
        80: (Tile(64, 64, 32, resident=2), Tile(64, 64, 32, resident=2)),
        90: (Tile(64, 64, 64, resident=2), Tile(64, 64, 64, resident=2)),
        100: (Tile(64, 64, 32, resident=2), Tile(64, 64, 32, resident=2)),
    },
    "rows twice": {
        80: (Tile(64, 32, 64, 256, 8, 2), Tile(64, 32, 64, 512, 8, 3)),
        90: (Tile(128, 32, 32, 256, 8, 3), Tile(128, 32, 32, 256, 8, 3)),
        100: (Tile(64, 64, 64, 256, 8, 2), Tile(64, 64, 64, 512, 8, 2)),
    },
    "classes twice": {
        80: (Tile(32, 64, 64, 256, 8, 2), Tile(64, 32, 64, 512, 8, 2)),
        90: (Tile(32, 128, 32, 256, 8, 3), Tile(32, 128, 32, 256, 8, 3)),
        100: (Tile(64, 64, 64, 256, 8, 2), Tile(64, 64, 64, 512, 8, 2)),
    },
}
_SINGLE = {  # float32 products: no tensor cores, unless tf32 is allowed
    "forward": Tile(64, 64, 32, resident=2),
    "rows": Tile(32, 32, 16, 256, 8, 2),
    "classes": Tile(32, 32, 16, 256, 8, 2),
    "mean": Tile(64, 64, 16, resident=2),
    "rows twice": Tile(32, 32, 16, 256, 8, 2),
    "classes twice": Tile(32, 32, 16, 256, 8, 2),
}
_INTERPRETED = Tile(rows=16, classes=32, depth=16, slab=16)  # small, so that small tests reach every edge


def choose(name, dtype, D, device):
    """The tile of a pass for products of `dtype` and embeddings of `D`. Raises ValueError where there is none."""
    if D > MAX_EMBEDDING:
        raise ValueError(f"want embeddings of at most {MAX_EMBEDDING}, got {D}; use fewer, or the path in PyTorch")
    arch = architecture(device)
    if arch is None:
        return _INTERPRETED
    tile = _SINGLE[name] if dtype == torch.float32 else _HALF[name][arch][D > 256]
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


@functools.cache
def multiprocessors(device):
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 2


def split_classes(C, classes, row_blocks, per_multiprocessor, device):
    """(splits, classes of one split, a multiple of `classes`), so that all multiprocessors have work."""
    tiles = triton.cdiv(C, classes)
    splits = min(tiles, triton.cdiv(per_multiprocessor * multiprocessors(device), row_blocks))
    size = triton.cdiv(tiles, splits) * classes
    return triton.cdiv(C, size), size


def floats(like, *shapes):
    """New float32 tensors on the device of `like`."""
    return [torch.empty(shape, dtype=torch.float32, device=like.device) for shape in shapes]


def on_device(tensor):
    """The context to launch in: Triton launches on the current device."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext()


def precision(dtype):
    """How float32 products are taken: as torch.matmul takes them."""
    return "tf32" if dtype == torch.float32 and torch.backends.cuda.matmul.allow_tf32 else "ieee"


def lift(dtype, g_B, g_cos_B, inverse_norm_C, reach=None, gain=1.0):
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


def whole_rows(kernel, *operands, like):
    """Launches a kernel that works on a few whole rows of the (C, D) matrix `like` at a time."""
    C, D = like.shape
    kernel[(triton.cdiv(C, 4),)](*operands, C, D, 4, triton.next_power_of_2(D))


@triton.jit
def rows_at(C, D: tl.constexpr, CLASSES: tl.constexpr, WIDTH: tl.constexpr):
    """Offsets of this program's whole rows of a (C, D) matrix, a mask for them, and which rows there are."""
    class_, column = tl.arange(0, CLASSES), tl.arange(0, WIDTH)
    first = tl.program_id(0) * CLASSES
    inside = first + class_ < C
    at = tl.cast(first, tl.int64) * D + (class_[:, None] * D + column[None, :])
    return at, inside[:, None] & (column < D)[None, :], inside


@triton.jit
def tile_at(ptr, start, index, last, column, D: tl.constexpr):
    """Pointers to rows start + index of a matrix with D columns; rows from `last` on become the one before it.

    What is computed from such repeated rows is never used: no mask to load under is fewer registers to hold.
    """
    index = tl.minimum(index, last - 1 - start)
    return ptr + tl.cast(start, tl.int64) * D + (index[:, None] * D + column[None, :])  # C * D passes 2**31, a tile does not


@triton.jit
def load_tile(at, column, D: tl.constexpr, EVEN: tl.constexpr, dtype: tl.constexpr):
    """The tile at these pointers, 0 in columns past D; EVEN says that there are none."""
    if EVEN:
        return tl.load(at).to(dtype)
    return tl.load(at, mask=(column < D)[None, :], other=0.0).to(dtype)


@triton.jit
def products(sum, left_at, right_at, D: tl.constexpr, DEPTH: tl.constexpr, dtype: tl.constexpr,
             PRECISION: tl.constexpr):  # fmt: skip
    """`sum` plus the dot products (rows on the left, rows on the right) of two tiles, DEPTH columns at a time."""
    EVEN: tl.constexpr = D % DEPTH == 0
    for k in range(0, D, DEPTH):
        column = k + tl.arange(0, DEPTH)
        left = load_tile(left_at + k, column, D, EVEN, dtype)
        right = load_tile(right_at + k, column, D, EVEN, dtype)
        sum = tl.dot(left, tl.trans(right), sum, input_precision=PRECISION)
    return sum
