"""Whole pretraining steps, images to updated weights, beside the trainer a user would write: eager, and compiled.

Theirs: bfloat16 autocast, channels last, InsightFace's order of ArcFace over all identities, torch.optim.SGD, fused.
Ours: the backbone as a run has it and fastmfr's head. Images lie on the device: no decoding is timed.
"""

import os
import warnings

import torch
from peers_margin_softmax import insightface_arcface, tuned_cosface

from fastmfr.backbone import build
from fastmfr.head import MarginHead, make_margin
from fastmfr.optim import set_rate, sgd
from fastmfr.precision import autocast, products
from fastmfr.runtime import fast_layout

from . import lines
from .paths import PATHS, taking
from .timing import DEVICE, GPU, arguments, compare

COMPILED = GPU and os.environ.get("FASTMFR_COMPILED", "1") == "1"  # compiling takes a minute
SIZES = [(128, 100_000), (512, 100_000)]


def inputs(B, C, size):
    gen = torch.Generator(DEVICE).manual_seed(0)
    images = torch.randn(B, 3, size, size, generator=gen, device=DEVICE)
    return images.contiguous(memory_format=torch.channels_last), torch.randint(C, (B,), generator=gen, device=DEVICE)


def ours(name, images, label, C, path, compiled=False):
    torch.manual_seed(0)
    backbone = fast_layout(build(name, image_size=images.shape[2]), DEVICE).train()
    network = torch.compile(backbone, dynamic=False) if compiled else backbone
    head = MarginHead(backbone.embedding, C, make_margin("arcface"), 64.0).to(DEVICE)
    optimizer = sgd(backbone.parameters(), 0.9, 5e-4)
    set_rate(optimizer, 0.01)

    def step():
        with taking(path):
            with autocast("bf16", DEVICE):
                loss_B = head(network(images), label)
            optimizer.zero_grad()
            with products("bf16"):
                loss_B.mean().backward()
            optimizer.step()
            head.update(0.01, 0.9, 5e-4)

    return step


def theirs(name, images, label, C, peer, compiled=False):
    torch.manual_seed(0)
    backbone = fast_layout(build(name, image_size=images.shape[2]), DEVICE).train()
    network = torch.compile(backbone, dynamic=False) if compiled else backbone
    weight = torch.nn.Parameter(0.01 * torch.randn(C, backbone.embedding, device=DEVICE))
    trained = [value for value in backbone.parameters() if value.requires_grad]
    optimizer = torch.optim.SGD([*trained, weight], lr=0.01, momentum=0.9, weight_decay=5e-4, fused=True)

    def step():
        with torch.autocast(DEVICE.type, torch.bfloat16):
            loss = peer(network(images), weight, label)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def main():
    options = arguments(__doc__)
    warnings.simplefilter("ignore")
    name, sizes, size = ("mfr28", [(4, 100)], 32) if options.small else ("iresnet50", SIZES, 112)
    for B, C in sizes:
        images, label = inputs(B, C, size)
        contenders = {}
        makers = {f"ours, {path}": (ours, path) for path in PATHS}
        makers["eager, InsightFace's order"] = (theirs, insightface_arcface)
        makers["eager, tuned torch"] = (theirs, tuned_cosface)
        if COMPILED and B == 512:
            makers["compiled backbone, tuned torch"] = (theirs, tuned_cosface, True)
            makers[f"ours, {PATHS[-1]}, compiled backbone"] = (ours, PATHS[-1], True)
        for who, (make, what, *compiled) in makers.items():
            try:
                contenders[who] = make(name, images, label, C, what, *compiled)
            except Exception as error:
                lines.write("pretraining", what=name, who=who, failed=f"{type(error).__name__}: {error}"[:900])
        compare(
            "pretraining", name, contenders, B=B, C=C, size=size, images=B, memory=True, seconds=3 * options.seconds
        )
        contenders.clear()


if __name__ == "__main__":
    main()
