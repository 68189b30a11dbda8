"""Margin softmax beside eager, tuned and compiled PyTorch: loss and gradients, time and peak memory.

Embeddings are bfloat16 and peers run under autocast; weights and their gradients are float32, as training has them.
"""

import contextlib
import warnings
from functools import partial

import torch
from fastmfr.kernels import CosFace, inverse_norm, margin_softmax
from peers_margin_softmax import COSFACE, SCALE, insightface_arcface, tuned_cosface

from .paths import PATHS, taking
from .timing import COMPILED, DEVICE, GPU, arguments, compare

SIZES = [
    (1024, 100_000),
    (1024, 1_000_000),
    (128, 100_000),
    (512, 100_000),
    (1024, 10_000),
    (64, 100_000),
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
            with torch.autocast(DEVICE.type, torch.bfloat16, cache_enabled=False):
                loss = peer(embedding, weight, label)
            return torch.autograd.grad(loss, (embedding, weight)) if gradients else loss

    return call


def compiled():
    torch._dynamo.reset()
    return torch.compile(tuned_cosface, dynamic=False)


def mine(embedding, weight, label, gradients=True):
    """Our paths by name; `ours` is what a user gets."""
    make = partial(ours, embedding, weight, label, gradients=gradients)
    contenders = {"ours": make("auto", "auto"), "ours, nothing kept": make("auto"), "ours, tiles": make("tiles")}
    if gradients:
        contenders |= {"ours, tiles, kept": make("tiles", "exp"), "ours, chunks, kept": make("chunks", "exp")}
    else:
        contenders["ours, chunks"] = make("chunks")
    return contenders if GPU else {"ours": contenders["ours"]}


def main():
    options = arguments(__doc__, only_second="H v alone")
    warnings.simplefilter("ignore")  # inductor has some to give for narrow softmaxes; a peer's are no fault of ours
    if options.only_second:
        return second(*((32, 500) if options.small else (1024, 100_000)), options.seconds)
    for B, C in [(64, 1000)] if options.small else SIZES:
        facts = {"B": B, "C": C, "D": D, "seconds": options.seconds}
        beside(*inputs(B, C), facts)
    B, C = (32, 500) if options.small else (1024, 100_000)
    facts = {"B": B, "C": C, "D": D, "seconds": options.seconds, "graphs": GPU}
    compare(
        "margin",
        "forward and backward, bf16 weights",
        mine(*inputs(B, C, torch.bfloat16)),
        flops=8 * B * C * D,
        **facts,
    )
    second(B, C, options.seconds)


def beside(embedding, weight, label, facts):
    """Each as a host launches it, and replayed from a CUDA graph."""
    B, C = facts["B"], facts["C"]
    peers = {"tuned torch": theirs(tuned_cosface, embedding, weight, label)}
    if C <= 100_000:
        peers["InsightFace's order (ArcFace)"] = theirs(insightface_arcface, embedding, weight, label)
    if COMPILED and C == 100_000 and B in (128, 1024):
        peers["tuned torch, compiled"] = theirs(compiled(), embedding, weight, label)
    launched = {"ours": ours(embedding, weight, label, "auto", "auto")} | peers
    compare("margin", "forward and backward", launched, memory=True, flops=8 * B * C * D, **facts)
    if GPU:
        compare(
            "margin",
            "forward and backward",
            mine(embedding, weight, label) | peers,
            flops=8 * B * C * D,
            graphs=True,
            **facts,
        )
    alone = mine(embedding, weight, label, gradients=False)
    alone["tuned torch"] = theirs(tuned_cosface, embedding, weight, label, gradients=False)
    compare("margin", "forward", alone, flops=2 * B * C * D, graphs=GPU, **facts)


def second(B, C, seconds):
    """Loss, gradients and H v beside plain PyTorch: weights inside of what is differentiated twice, and outside."""
    embedding, weight, label = inputs(B, C)
    tangents = torch.randn_like(embedding), torch.randn_like(weight)
    for what, inside in (("H v, weights inside", True), ("H v, weights outside", False)):
        held = weight if inside else weight.detach()
        wanted = (embedding, held) if inside else (embedding,)
        inverse_norm_C = inverse_norm(weight.detach())

        def derived(loss, wanted=wanted):
            first = torch.autograd.grad(loss, wanted, create_graph=True)
            return torch.autograd.grad(first, wanted, tangents[: len(wanted)])

        def our_second(path, held=held, inverse_norm_C=inverse_norm_C, derived=derived):
            with taking(path):
                loss = margin_softmax(
                    embedding,
                    held,
                    label,
                    margin=CosFace(COSFACE),
                    scale=SCALE,
                    inverse_norm_C=inverse_norm_C,
                    keep="none",
                )
                return derived(loss.mean())

        def their_second(held=held, derived=derived):
            with torch.autocast(DEVICE.type, torch.bfloat16, cache_enabled=False):
                loss = tuned_cosface(embedding, held, label)
            return derived(loss)

        contenders = {f"ours, {path}": partial(our_second, path) for path in ("auto", *PATHS)}
        contenders["tuned torch"] = their_second
        products = 24 if inside else 12
        compare("margin", what, contenders, flops=products * B * C * D, graphs=GPU, B=B, C=C, D=D, seconds=seconds)


if __name__ == "__main__":
    main()
