"""Margin softmax on an H200 on paper: `python bench/predicted.py` counts FLOPs and bytes and prints what to expect.

A pass takes at least as long as its products, what it reads through the L2 cache, and what it moves to and from memory;
the prediction is the largest of the three, as if the others were hidden behind it. To be held against measurements.
"""

from unittest import mock

import torch
from fastmfr.kernels.cos_lse import tiles

PRODUCTS, L2, MEMORY = 790e12, 5.5e12, 4.3e12  # FLOP/s of bf16, bytes/s: as published of Hopper cards; none is ours yet
B, D = 1024, 512


def tile(name, weight_dtype=torch.bfloat16):
    operands = (torch.empty(1, D, dtype=dtype, device="meta") for dtype in (torch.bfloat16, weight_dtype))
    with mock.patch.object(tiles, "architecture", return_value=90):
        return tiles.choose(name, *operands)


def products(name, C, sides, columns):
    """(FLOPs, what they count for, bytes through L2) of a pass: `sides` products over D, then `columns` of a slab.

    A product of 64 x n reads 64 + n rows of shared memory, 128 bytes a cycle, which below n = 64 takes longer than it.
    """
    shape = tile(name)
    count = -(-B // shape.rows) * -(-C // shape.classes)
    slabs = -(-D // shape.slab) if columns else 1
    moving, staying = shape.rows, shape.classes
    if not name.startswith("classes"):
        moving, staying = staying, moving
    whole = shape.depth >= D  # the block that stays is read once, and one tile of the other serves all products
    each = moving if whole else (moving + staying) * max(1, sides - 1) + moving * columns / slabs
    first, second = (2 * count * slabs * moving * staying * size for size in (sides * D, columns * min(D, shape.slab)))
    return first + second, first / min(1, 2 * moving / (64 + moving)) + second, count * slabs * each * D * 2


def passes(C):
    """{what: [(FLOPs, what they count for, L2 bytes, memory bytes), ...]}, one for each kernel."""
    weights, gradient = 2 * C * D, 4 * C * D
    forward = (*products("forward", C, 1, 0), weights)
    dx = (*products("rows", C, 1, 1), weights)
    dw = (*products("classes", C, 1, 1), weights + gradient)
    project = (0, 0, 0, weights + 2 * gradient)
    return {
        "forward": [forward],
        "forward and backward": [forward, dx, dw, project],
        "double backward": [
            (*products("mean", C, 3, 0), 2 * weights),
            (*products("rows twice", C, 3, 2), 2 * weights),
            (*products("classes twice", C, 3, 2), 2 * weights + gradient),
            (0, 0, 0, 3 * weights + gradient),  # the tangent at unit rows
            (0, 0, 0, weights + 4 * gradient),  # what the normalisation adds
        ],
    }


def main():
    print(f"PREDICTED, not measured: H200, bfloat16, B = {B}, D = {D}\n")
    print("| C | what | GFLOP | through L2, GB | memory, GB | predicted ms | bound by | share of the products' floor |")
    print("|---|---|---|---|---|---|---|---|")
    for C in (10_000, 100_000, 1_000_000):
        for (what, kernels), floor in zip(passes(C).items(), (2, 8, 16), strict=True):
            times = [(flops / PRODUCTS, l2 / L2, memory / MEMORY) for _, flops, l2, memory in kernels]
            total, limits = sum(map(max, times)), [sum(column) for column in zip(*times, strict=True)]
            bound = ("products", "L2", "memory")[limits.index(max(limits))]
            sums = [sum(column) / 1e9 for column in zip(*kernels, strict=True)]
            share = floor * B * C * D / PRODUCTS / total
            print(
                f"| {C:,} | {what} | {sums[0]:,.0f} | {sums[2]:.1f} | {sums[3]:.2f} | {1e3 * total:.3f} | {bound} "
                f"| {100 * share:.0f} % |"
            )


if __name__ == "__main__":
    main()
