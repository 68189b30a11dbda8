"""Margin softmax on an H200 on paper: `python bench/predicted.py` counts FLOPs and bytes, and prints predictions.

A kernel takes at least as long as its products, what it reads through the L2 cache, and what it moves to and from
memory; the prediction is the largest of the three, as if the others were hidden behind it. Two ways are told side by
side: all products in Triton, a tile at a time, and gradients by chunks of identities with cuBLAS, which is what
training takes. Weights are float32, as training has them. Beside the predictions stand the medians of recorded runs,
replayed from a CUDA graph.

Shape suffixes: B = batch, C = identities, N = identities of one chunk, D = embedding.
"""

from typing import NamedTuple
from unittest import mock

import torch
from card.page import figures, find
from fastmfr.kernels.cos_lse import tiles

RECORDED = "20261127-030155-gpu-h200.jsonl", "20261127-211118-gpu-h200.jsonl"
# Measured in the first: a bf16 product of 8192^3 by cuBLAS (FLOP/s) and a copy in memory (bytes/s). L2 (bytes/s) is
# what the forward pass by tiles of 100,000 identities read there, so that this one line is no prediction.
PRODUCTS, L2, MEMORY = 744e12, 7.4e12, 4.2e12
B, D, HALF, FULL = 1024, 512, 2, 4  # bytes of bfloat16 and of float32
SIZES = 10_000, 100_000, 1_000_000
FORWARD, BOTH, H_V = "forward", "forward and backward", "H v, weights inside"
FLOORS = {FORWARD: 2, BOTH: 8, H_V: 28}  # FLOPs for each row, identity and column, none computed twice
NAMES = {"tiles": "ours, tiles", "chunks": "ours, chunks"}


class Kernel(NamedTuple):
    """What one kernel does.

    Attributes:
        flops: Its multiplications and additions.
        paced: FLOPs of a product at full rate that take as long as its own.
        cached: Bytes that it reads through L2.
        moved: Bytes that it moves to and from memory.
    """

    flops: float = 0
    paced: float = 0
    cached: float = 0
    moved: float = 0

    @property
    def seconds(self):
        return max(self.paced / PRODUCTS, self.cached / L2, self.moved / MEMORY)


def tile(name, weight_dtype):
    operands = (torch.empty(1, D, dtype=dtype, device="meta") for dtype in (torch.bfloat16, weight_dtype))
    with mock.patch.object(tiles, "architecture", return_value=90):
        return tiles.choose_tile(name, *operands)


def slowed(flops, across, warps, rows):
    """FLOPs at full rate that take as long as products of blocks of `rows` x `across`.

    A group of four warps takes 64 rows by n columns at a time, out of shared memory: 64 + n rows of it, 128 bytes a
    cycle, which take longer than the product if n is below 64. Groups that find no more rows divide the columns.
    """
    n = across / max(1, warps // 4 * 64 // max(64, rows))
    return flops / min(1, 2 * n / (64 + n))


def triton_pass(name, C, sides, columns, moved, weight_dtype=torch.float32):
    """A pass in Triton: `sides` products over D of each tile, then `columns` products that add to a slab."""
    shape = tile(name, weight_dtype)
    count = -(-B // shape.rows) * -(-C // shape.classes)
    slabs = -(-D // shape.slab) if columns else 1
    moving, staying = shape.rows, shape.classes
    if not name.startswith("classes"):
        moving, staying = staying, moving
    row, identity = D * HALF, D * weight_dtype.itemsize  # bytes
    if name.startswith("classes"):
        moving_bytes, staying_bytes = moving * row, staying * identity
    else:
        moving_bytes, staying_bytes = moving * identity, staying * row
    whole = shape.depth >= D  # the block that stays is read once, and one tile of the other serves all products
    each = (
        moving_bytes if whole else (moving_bytes + staying_bytes) * max(1, sides - 1) + moving_bytes * columns / slabs
    )
    first, second = (2 * count * slabs * moving * staying * n for n in (sides * D, columns * min(D, shape.slab)))
    paced = slowed(first, shape.classes, shape.warps, shape.rows) + second
    return Kernel(first + second, paced, count * slabs * each, moved)


def product(rows, columns, inner, moved):
    """A product in cuBLAS, at the rate of the large product that was measured."""
    flops = 2 * rows * columns * inner
    return Kernel(flops, flops, 0, moved)


def by_tiles(C):
    """{what: kernels} of a way that takes every product in Triton."""
    weights, gradient = FULL * C * D, FULL * C * D
    both = [
        triton_pass("forward", C, 1, 0, weights),
        triton_pass("rows", C, 1, 1, weights),
        triton_pass("classes", C, 1, 1, weights + gradient),
        Kernel(moved=weights + 2 * gradient),  # projection
    ]
    twice = [
        triton_pass("mean", C, 3, 0, weights + HALF * C * D),
        triton_pass("rows twice", C, 3, 2, weights + HALF * C * D),
        triton_pass("classes twice", C, 3, 2, weights + HALF * C * D + gradient),
        Kernel(moved=2 * weights + HALF * C * D),  # the tangent at unit rows
        Kernel(moved=2 * weights + 3 * gradient),  # what the normalisation adds
    ]
    return {FORWARD: both[:1], BOTH: both, H_V: both + twice}


def by_chunks(C):
    """{what: kernels} of a way that takes gradients a chunk of identities at a time, their products in cuBLAS."""
    weights, gradient, logits, unit = FULL * C * D, FULL * C * D, HALF * B * C, HALF * C * D
    bf16 = torch.bfloat16
    unit_rows = Kernel(moved=weights + unit)
    both = [
        triton_pass("forward", C, 1, 0, weights),  # by tiles, which are faster there
        unit_rows,
        triton_pass("gradient", C, 1, 0, unit + logits, bf16),
        product(B, D, C, logits + unit),
        product(C, D, B, logits + gradient),
        Kernel(moved=weights + 2 * gradient),  # projection
    ]
    tangent = Kernel(moved=2 * weights + unit)
    twice = [
        *2 * [unit_rows, tangent],  # for the mean, and again for R and M
        triton_pass("curvature", C, 3, 0, 2 * unit, bf16),
        triton_pass("curvature", C, 3, 0, 2 * unit + 2 * logits, bf16),
        product(B, D, 2 * C, 2 * logits + 2 * unit),
        product(C, D, 2 * B, 2 * logits + gradient),
        Kernel(moved=2 * weights + 3 * gradient),  # what the normalisation adds
    ]
    forward = [unit_rows, triton_pass("forward", C, 1, 0, unit, bf16)]
    return {FORWARD: forward, BOTH: both, H_V: both + twice}


def frozen(C):
    """{way: (kernels of two sweeps, kernels of one)} of a double backward where the weights get no gradient."""
    weights, logits, unit = FULL * C * D, HALF * B * C, HALF * C * D
    rows = [triton_pass("rows twice", C, 2, 1, weights)]
    mean = [triton_pass("mean", C, 2, 0, weights)]
    sweep = [Kernel(moved=weights + unit), triton_pass("curvature", C, 2, 0, unit, torch.bfloat16)]
    last = [
        Kernel(moved=weights + unit),
        triton_pass("curvature", C, 2, 0, unit + 2 * logits, torch.bfloat16),
        product(B, D, C, logits + unit),
    ]
    return {"tiles": (mean + rows, rows), "chunks": (sweep + last, last)}


def recorded():
    """{(what, way, identities): ms} of the recorded runs."""
    rows = [row for name in RECORDED for row in find(figures(name), stage="margin", replayed=True, B=B)]
    came = {(row["what"], row["who"], row["C"]): 1e3 * row["median_seconds"] for row in rows}
    for C in SIZES:  # chunks make both gradients where nothing is kept
        came[BOTH, "ours, chunks", C] = came.get((BOTH, "ours, nothing kept", C))
    return came


def report(what, way, C, kernels, floor, came):
    """A line of the table."""
    limits = [
        sum(getattr(kernel, cost) for kernel in kernels) / rate
        for cost, rate in (("paced", PRODUCTS), ("cached", L2), ("moved", MEMORY))
    ]
    bound = ("products", "L2", "memory")[limits.index(max(limits))]
    flops, _, cached, moved = (sum(column) for column in zip(*kernels, strict=True))
    seconds = sum(kernel.seconds for kernel in kernels)
    share = floor * B * C * D / PRODUCTS / seconds
    return (
        f"| {C:,} | {what} | {way} | {flops / 1e9:,.0f} | {cached / 1e9:.1f} | {moved / 1e9:.2f} | {1e3 * seconds:.3f} "
        f"| {bound} | {100 * share:.0f} % | {'' if came is None else f'{came:.3f}'} |"
    )


def main():
    came = recorded()
    print(f"Margin softmax on an H200: B = {B}, D = {D}, bfloat16 products, float32 weights. PREDICTED on paper.")
    print("Share: of the predicted time that the products alone would take, none of them computed twice.")
    print(f"Came: medians of {' and '.join(RECORDED)}.\n")
    print("| C | what | way | GFLOP | through L2, GB | memory, GB | predicted ms | bound by | share | came, ms |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for C in SIZES:
        ways = {"tiles": by_tiles(C), "chunks": by_chunks(C)}
        for what, floor in FLOORS.items():
            for way, passes in ways.items():
                print(report(what, way, C, passes[what], floor, came.get((what, NAMES[way], C))))
        for way, (before, now) in frozen(C).items():
            for sweeps, kernels in (("two sweeps, as before", before), ("one sweep", now)):
                print(report("double backward, weights frozen", f"{way}, {sweeps}", C, kernels, 6, None))


if __name__ == "__main__":
    main()
