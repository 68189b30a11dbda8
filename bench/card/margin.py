"""Margin softmax beside eager, tuned and compiled PyTorch: loss and gradients, time and peak memory.

Embeddings are bfloat16 and peers run under autocast; weights and their gradients are float32, as training has them.
"""

import contextlib
import os
import warnings

import torch
from fastmfr.kernels import CosFace, inverse_norm, margin_softmax
from peers_margin_softmax import COSFACE, SCALE, insightface_arcface, tuned_cosface

from . import lines
from .paths import PATHS, taking
from .timing import DEVICE, GPU, arguments, compare

SIZES = [
    (1024, 100_000),
    (1024, 1_000_000),
    (128, 100_000),
    (512, 100_000),
    (1024, 10_000),
    (64, 100_000),
    (256, 1_000_000),
]
D = 512


def inputs(B, C, weight_dtype=torch.float32):
    gen = torch.Generator(DEVICE).manual_seed(0)
    embedding = torch.randn(B, D, generator=gen, device=DEVICE).bfloat16().requires_grad_()
    weight = (0.01 * torch.randn(C, D, generator=gen, device=DEVICE)).to(weight_dtype).requires_grad_()
    return embedding, weight, torch.randint(C, (B,), generator=gen, device=DEVICE)


def ours(embedding, weight, label, path, keep="none", gradients=True):
    inverse_norm_C = inverse_norm(weight.detach())  # a trainer has them of its last update

    def call():
        with taking(path), contextlib.nullcontext() if gradients else torch.no_grad():
            loss = margin_softmax(
                embedding, weight, label, margin=CosFace(COSFACE), scale=SCALE, keep=keep, inverse_norm_C=inverse_norm_C
            ).mean()
            return torch.autograd.grad(loss, (embedding, weight)) if gradients else loss

    return call


def theirs(peer, embedding, weight, label, gradients=True):
    def call():
        with contextlib.nullcontext() if gradients else torch.no_grad():
            with torch.autocast(DEVICE.type, torch.bfloat16):
                loss = peer(embedding, weight, label)
            return torch.autograd.grad(loss, (embedding, weight)) if gradients else loss

    return call


def compiled():
    torch._dynamo.reset()
    return torch.compile(tuned_cosface, dynamic=False)


def main():
    options = arguments(__doc__)
    warnings.simplefilter("ignore")  # inductor has some to give for narrow softmaxes; a peer's are no fault of ours
    sizes = [(64, 1000)] if options.small else SIZES
    with_compiled = os.environ.get("FASTMFR_COMPILED", "1") == "1" and GPU
    for B, C in sizes:
        facts = {"B": B, "C": C, "D": D, "seconds": options.seconds}
        embedding, weight, label = inputs(B, C)
        mine = {f"ours, {path}": ours(embedding, weight, label, path) for path in PATHS}
        if GPU:
            mine["ours, tiles, kept"] = ours(embedding, weight, label, "tiles", "exp")
        peers = {"tuned torch": theirs(tuned_cosface, embedding, weight, label)}
        if C <= 100_000:
            peers["InsightFace's order (ArcFace)"] = theirs(insightface_arcface, embedding, weight, label)
        if with_compiled and C == 100_000 and B in (128, 1024):
            peers["tuned torch, compiled"] = theirs(compiled(), embedding, weight, label)
        compare("margin", "forward and backward", mine | peers, memory=True, flops=8 * B * C * D, **facts)
        alone = {f"ours, {path}": ours(embedding, weight, label, path, gradients=False) for path in PATHS}
        alone["tuned torch"] = theirs(tuned_cosface, embedding, weight, label, gradients=False)
        compare("margin", "forward", alone, flops=2 * B * C * D, **facts)
    B, C = (32, 500) if options.small else (1024, 100_000)
    embedding, weight, label = inputs(B, C, torch.bfloat16)
    mine = {f"ours, {path}": ours(embedding, weight, label, path) for path in PATHS}
    compare(
        "margin",
        "forward and backward, bf16 weights",
        mine,
        B=B,
        C=C,
        D=D,
        flops=8 * B * C * D,
        seconds=options.seconds,
    )
    second(B, C, options.seconds)


def second(B, C, seconds):
    """H v beside plain PyTorch: with weights inside of what is differentiated twice, and outside."""
    embedding, weight, label = inputs(B, C)
    tangents = torch.randn_like(embedding), torch.randn_like(weight)
    for what, inside in (("double backward, weights inside", True), ("double backward, weights outside", False)):
        held = weight if inside else weight.detach()
        wanted = (embedding, held) if inside else (embedding,)
        inverse_norm_C = inverse_norm(weight.detach())

        def of(loss, wanted=wanted):
            first = torch.autograd.grad(loss, wanted, create_graph=True)
            return lambda: torch.autograd.grad(first, wanted, tangents[: len(wanted)], retain_graph=True)

        contenders = {}
        for path in PATHS:
            try:
                with taking(path):
                    loss = margin_softmax(
                        embedding,
                        held,
                        label,
                        margin=CosFace(COSFACE),
                        scale=SCALE,
                        inverse_norm_C=inverse_norm_C,
                        keep="none",
                    ).mean()
                    run = of(loss)
            except Exception as error:
                lines.write("margin", what=what, who=f"ours, {path}", failed=str(error)[:600])
                continue

            def call(run=run, path=path):
                with taking(path):
                    return run()

            contenders[f"ours, {path}"] = call
        with torch.autocast(DEVICE.type, torch.bfloat16):
            loss = tuned_cosface(embedding, held, label)
        contenders["tuned torch"] = of(loss)
        products = 16 if inside else 6
        compare("margin", what, contenders, B=B, C=C, D=D, flops=products * B * C * D, memory=True, seconds=seconds)


if __name__ == "__main__":
    main()
