"""Whole meta steps at the paper's size, with and without their CUDA graph, beside ordinary steps and autograd twice.

`ordinary`: plain gradients of the same images and one step of torch's SGD, in the same precision.
"""

import warnings
from functools import partial

import torch
from bench_meta import ALPHA, GAMMA, LOSSES, batch, hv_errors, network

from fastmfr.meta import MetaSettings, MetaTrainer
from fastmfr.precision import autocast, matmul_precision
from fastmfr.training.optim import set_rate, sgd

from . import lines
from .timing import DEVICE, GPU, algorithms_tried, arguments, compare, replayed

DOMAINS, PAIRS, PIXELS, WIDTH = 3, 128, 120, 0.5


def ordinary(splits, width, precision):
    backbone = network(width)
    optimizer = sgd(backbone.parameters(), 0.9, 5e-4)
    set_rate(optimizer, 1e-4)

    def step():
        optimizer.zero_grad(set_to_none=False)
        for split in splits:
            for pairs in split:
                with autocast(precision, DEVICE):
                    embedding = backbone(torch.cat([pairs.gallery_B3HW, pairs.probe_B3HW])).float()
                    total = LOSSES(*embedding.chunk(2), pairs.domain_B).total
                with matmul_precision(precision):
                    total.backward()
        optimizer.step()

    return step


def trainer(splits, width, precision, **options):
    graph, is_tried = options.pop("cuda_graph", False), options.pop("is_tried", False)
    backbone, settings = network(width), MetaSettings(GAMMA, precision=precision, **options)
    made = MetaTrainer(backbone, sgd(backbone.parameters(), 0.9, 5e-4), settings, cuda_graph=graph)

    def step():
        return made.step(splits, alpha=ALPHA, rate=1e-4, losses=LOSSES)

    with algorithms_tried(is_tried):
        for _ in range(3 if graph else 0):  # the second is recorded
            step()
    lines.write("meta", what="state", precision=precision, graph=made.graph, engine=made.engine)
    return step


def main():
    options = arguments(__doc__)
    warnings.simplefilter("ignore")
    width, pixels, pairs = (0.0625, 16, 4) if options.small else (WIDTH, PIXELS, PAIRS)
    gen = torch.Generator().manual_seed(0)
    splits = [(batch(gen, pairs, pixels, 2), batch(gen, pairs, pixels)) for _ in range(DOMAINS)]
    ways = {"autograd twice": {"engine": "autograd"}, "rop": {"engine": "rop"}}
    if GPU:
        ways["rop, CUDA graph"] = {"engine": "rop", "cuda_graph": True}
        ways["rop, CUDA graph, algorithms tried"] = {"engine": "rop", "cuda_graph": True, "is_tried": True}
        ways["rop streaming, CUDA graph"] = {"engine": "rop", "memory": "streaming", "cuda_graph": True}
    for precision in ("bf16", "fp32", "tf32") if GPU else ("fp32",):
        contenders = {}
        makers = {"ordinary": partial(ordinary, splits, width, precision)}
        if GPU:
            makers["ordinary, CUDA graph"] = lambda precision=precision: replayed(ordinary(splits, width, precision))
        makers |= {name: partial(trainer, splits, width, precision, **settings) for name, settings in ways.items()}
        for name, make in makers.items():
            try:
                contenders[name] = make()
            except Exception as error:
                lines.write("meta", what=f"whole step, {precision}", who=name, failed=lines.reason(error))
        compare(
            "meta",
            f"whole step, {precision}",
            contenders,
            domains=DOMAINS,
            size=pixels,
            images=4 * pairs * DOMAINS,
            memory=True,
            seconds=2 * options.seconds,
        )
        contenders.clear()
    errors, by_precision = hv_errors(width, batch(gen, 8, max(pixels, 32), 2))
    lines.write("meta", what="error of H v against float64", errors=errors, by_precision=by_precision)


if __name__ == "__main__":
    main()
