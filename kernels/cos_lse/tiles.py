"""What the passes of cos_lse share: the size of their tiles, how tiles are loaded, how programs divide the identities.

Shape suffixes: B = batch, C = identities, D = embedding.
"""

import functools
import math
from typing import Any, Literal, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..launching import ceil_div, multiprocessors, next_power_of_2

_KEPT_MULTIPLE = 128  # columns of what keep="exp" keeps
MAX_EMBEDDING = 1024
LOG2E = tl.constexpr(math.log2(math.e))
LOWEST = tl.constexpr(-1e30)  # below every logit; finite, so that no difference is NaN


class Tile(NamedTuple):
    """How much one program takes at a time.

    Attributes:
        rows: Embeddings of a tile of cosines.
        classes: Identities of a tile of cosines.
        depth: Columns of D that are summed at a time.
        slab: Columns of a gradient that one program computes.
        warps: Warps of a program.
        stages: Loads in flight.
        resident: Programs that share a multiprocessor.
    """

    rows: int
    classes: int
    depth: int
    slab: int = 0
    warps: int = 4
    stages: int = 3
    resident: int = 1

    @property
    def options(self) -> dict[str, int]:
        """Triton's options for a launch."""
        return {"num_warps": self.warps, "num_stages": self.stages}


# Each pair: D up to 256, and D above. A program holds a slab of a gradient in registers, so that a multiprocessor has
# room for one program only. Tiles for 80 stay within the 99 KiB of its smaller relatives. On 90, two products that add
# to one slab need a side of 128: Triton stores a side of 64 twice.
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
_TILES |= {  # of a chunk's passes: a program stores its tile at once, which frees the registers
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
_MIXED = {  # of float32 weights, rounded as they are loaded, if they need another tile
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


def choose_tile(name: str, unit_BD: Tensor, weight_CD: Tensor) -> Tile:
    """Choose the tile of a pass.

    Args:
        name: The pass, as the tables above name it.
        unit_BD: The embeddings; their width, dtype and device decide.
        weight_CD: The weights; their dtype decides.

    Raises:
        ValueError: If the embeddings are wider than MAX_EMBEDDING.
    """
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
    width = max(16, next_power_of_2(D))
    depth = min(tile.depth, width) if D <= 512 else min(tile.depth, 64)
    return tile._replace(depth=depth, slab=min(tile.slab, width))


@functools.cache
def architecture(device: torch.device) -> int | None:
    """Return the column of the tables that serves a GPU, or None on the CPU, where Triton interprets."""
    if device.type == "cpu":
        return None
    major = torch.cuda.get_device_capability(device)[0]
    return {9: 90, 10: 100}.get(major, 80)


def whole_rows(device: torch.device) -> int:
    """Return how many whole rows one program takes: 4 on a GPU, and more in Triton's interpreter, which is faster."""
    return 32 if architecture(device) is None else 4


def divide_identities(C: int, tile: Tile, programs: int, device: torch.device) -> tuple[int, int]:
    """Divide the identities into shares so that all multiprocessors are at work.

    There are never more shares than run at once: a few programs left over would take as long again.

    Args:
        C: Number of identities.
        tile: Tile of the pass.
        programs: Programs that each share needs.
        device: Where they run.

    Returns:
        How many shares there are, and how many identities one share has.
    """
    tiles = ceil_div(C, tile.classes)
    at_once = max(1, tile.resident * multiprocessors(device) // programs)
    size = ceil_div(tiles, min(tiles, at_once)) * tile.classes
    return ceil_div(C, size), size


def kept_width(C: int) -> int:
    """Return how many columns the matrix has that keep="exp" keeps of C identities."""
    return ceil_div(C, _KEPT_MULTIPLE) * _KEPT_MULTIPLE


def empty_float32(like: Tensor, *shapes: tuple[int, ...] | torch.Size) -> list[Tensor]:
    """Allocate a float32 tensor of each shape on the device of `like`."""
    return [torch.empty(shape, dtype=torch.float32, device=like.device) for shape in shapes]


def all_contiguous(*operands: Tensor | None) -> list[Any]:
    """Make each tensor contiguous; None stays None."""
    return [None if one is None else one.contiguous() for one in operands]


def precision(dtype: torch.dtype) -> Literal["tf32", "ieee"]:
    """Say how float32 products are taken: as torch.matmul takes them.

    `allow_tf32` is not read, because it raises once somebody has set `fp32_precision`.
    """
    is_tf32 = dtype == torch.float32 and torch.backends.cuda.matmul.fp32_precision == "tf32"
    return "tf32" if is_tf32 else "ieee"


def scale_for_fp16(
    dtype: torch.dtype,
    g_B: Tensor,
    g_cos_B: Tensor,
    inverse_norm_C: Tensor | None = None,
    bound: Tensor | None = None,
    gain: float = 1.0,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Scale gradients up to the range that float16 represents exactly; other dtypes need no scaling.

    The gradient of a mean over a million identities lies below the smallest float16.

    Args:
        dtype: Dtype of the products.
        g_B: Gradient of the log-sum-exp, times scale.
        g_cos_B: Gradient of the true cosine.
        inverse_norm_C: Factors that the kernel applies to the gradients.
        bound: What tangents were divided by; see `bound_tangents`.
        gain: `gain` times g_B still fits float16 after the scaling.

    Returns:
        The scaled `g_B` and `g_cos_B`, contiguous, and the factor (a tensor ()) that undoes the scaling and the
        division by `bound`; None for other dtypes than float16.
    """
    if dtype != torch.float16:
        return g_B.contiguous(), g_cos_B.contiguous(), None
    peak = torch.maximum(gain * g_B.abs().amax(), g_cos_B.abs().amax())
    if inverse_norm_C is not None:
        peak = peak * inverse_norm_C.amax()
    unscale = (peak / 2**14).clamp_min(torch.finfo(torch.float32).tiny)
    return g_B / unscale, g_cos_B / unscale, unscale if bound is None else unscale * bound


@triton.jit
def load_label(ptr, b, B, C):
    """Labels of rows b in 32 bits, -1 for a label outside of [0, C); rows past the last one repeat it."""
    label = tl.load(ptr + tl.minimum(b, B - 1))
    return tl.where((label >= 0) & (label < C), label, -1).to(tl.int32)


@triton.jit
def load_column(ptr, b, B):
    """Values of rows b as a column (rows, 1), 0 past the last row."""
    return tl.load(ptr + b, mask=b < B, other=0.0)[:, None]


@triton.jit
def operand_pointers(ptr, start, index, last, column, D: tl.constexpr):
    """Pointers to rows start + index of a matrix with D columns; rows from `last` on become the one before it.

    What is computed from such repeated rows is never used. Without a mask to load under, fewer registers are held.
    """
    index = tl.minimum(index, last - 1 - start)
    return ptr + tl.cast(start, tl.int64) * D + (index[:, None] * D + column[None, :])  # 64 bits: C * D may pass 2**31


@triton.jit
def load_tile(at, column, D: tl.constexpr, EVEN: tl.constexpr, dtype: tl.constexpr):
    """The tile at these pointers, 0 in columns past D. EVEN says that no column is past D."""
    if EVEN:
        return tl.load(at).to(dtype)
    return tl.load(at, mask=(column < D)[None, :], other=0.0).to(dtype)


@triton.jit
def dot_products(
    sum, left_at, right_at, D: tl.constexpr, DEPTH: tl.constexpr, dtype: tl.constexpr, PRECISION: tl.constexpr
):
    """`sum` plus left @ right.T of two tiles of rows, DEPTH columns at a time."""
    EVEN: tl.constexpr = D % DEPTH == 0
    for k in range(0, D, DEPTH):
        column = k + tl.arange(0, DEPTH)
        left = load_tile(left_at + k, column, D, EVEN, dtype)
        right = load_tile(right_at + k, column, D, EVEN, dtype)
        sum = tl.dot(left, tl.trans(right), sum, input_precision=PRECISION)
    return sum


@triton.jit
def cosines_of(
    x,
    x_at,
    w_at,
    k,
    A: tl.constexpr,
    B: tl.constexpr,
    D: tl.constexpr,
    DEPTH: tl.constexpr,
    dtype: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """x . w (A, B) of two tiles of rows. `x`, unless None, is the first one as a whole, loaded before."""
    z = tl.zeros((A, B), tl.float32)
    if x is None:
        z = dot_products(z, x_at, w_at, D, DEPTH, dtype, PRECISION)
    else:
        z = tl.dot(x, tl.trans(load_tile(w_at, k, D, DEPTH == D, dtype)), z, input_precision=PRECISION)
    return z


@triton.jit
def logit_pointers(ptr, first, row, start, class_, stride):
    """Pointers to a tile of a matrix (rows, identities): its rows from `first` on, its identities from `start` on."""
    return ptr + tl.cast(first, tl.int64) * stride + start + (row * stride + class_)
