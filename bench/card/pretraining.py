"""Whole pretraining steps, images to updated weights, beside the trainer a user would write: eager, and compiled.

Theirs: bfloat16 autocast, channels last, InsightFace's order of ArcFace over all identities, torch.optim.SGD, fused.
Ours: the backbone as a run has it and fastmfr's head. Images lie on the device: no decoding is timed.
"""

import warnings

import torch
from peers_margin_softmax import insightface_arcface, tuned_cosface

from fastmfr.backbone import build
from fastmfr.fused import fused
from fastmfr.head import MarginHead, make_margin
from fastmfr.runtime import to_channels_last
from fastmfr.training.optim import set_rate, sgd
from fastmfr.training.pretraining_step import PretrainingStep

from . import lines
from .timing import COMPILED, DEVICE, GPU, algorithms_tried, arguments, compare, replayed

SIZES = [(128, 100_000), (512, 100_000)]


def inputs(B, C, size):
    gen = torch.Generator(DEVICE).manual_seed(0)
    images = torch.randn(B, 3, size, size, generator=gen, device=DEVICE)
    return images.contiguous(memory_format=torch.channels_last), torch.randint(C, (B,), generator=gen, device=DEVICE)


def ours(name, images, label, C, cuda_graph=True, is_fused=True, is_tried=False):
    """A step as stages.pretrain makes it, without its log. `is_tried`: cuDNN tries its algorithms out."""
    torch.manual_seed(0)
    backbone = to_channels_last(build(name, image_size=images.shape[2]), DEVICE).train()
    network = fused(backbone)[0] if is_fused and GPU else backbone
    head = MarginHead(backbone.embedding, C, make_margin("arcface"), 64.0).to(DEVICE)
    optimizer = sgd(backbone.parameters(), 0.9, 5e-4)
    set_rate(optimizer, 0.01)
    run = PretrainingStep(network, head, "bf16", cuda_graph=cuda_graph)

    def step():
        run(images, label)
        optimizer.step()
        head.update(0.01, 0.9, 5e-4)

    with algorithms_tried(is_tried):
        for _ in range(3):  # the second is recorded
            step()
    lines.write("pretraining", what="state", graph=run.state)
    return step


def theirs(name, images, label, C, peer, compiled=False):
    torch.manual_seed(0)
    backbone = to_channels_last(build(name, image_size=images.shape[2]), DEVICE).train()
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


def replayed_whole(*given):
    """Their step, with its update, as one CUDA graph: what PyTorch can do at best where the host is slow."""
    return replayed(theirs(*given))


def main():
    options = arguments(__doc__)
    warnings.simplefilter("ignore")
    name, sizes, size = ("mfr28", [(4, 100)], 32) if options.small else ("iresnet50", SIZES, 112)
    for B, C in sizes:
        makers = {
            "ours": (ours,),
            "ours, algorithms tried": (ours, True, True, True),
            "ours, not fused": (ours, True, False),
            "eager, InsightFace's order": (theirs, insightface_arcface),
            "eager, tuned torch": (theirs, tuned_cosface),
        }
        if GPU and B == 128:  # where the host is what is slow
            makers["ours, launched"] = (ours, False)
            makers["tuned torch, all of it a CUDA graph"] = (replayed_whole, tuned_cosface)
        beside(name, makers, B, C, size, 3 * options.seconds)
    if COMPILED:  # last, for it takes the longest
        makers = {"ours": (ours,), "compiled backbone, tuned torch": (theirs, tuned_cosface, True)}
        beside(name, makers, *SIZES[-1], size, 2 * options.seconds)


def beside(name, makers, B, C, size, seconds):
    images, label = inputs(B, C, size)
    contenders = {}
    for who, (make, *how) in makers.items():
        try:
            contenders[who] = make(name, images, label, C, *how)
        except Exception as error:
            lines.write("pretraining", what=name, who=who, failed=lines.reason(error))
    compare("pretraining", name, contenders, B=B, C=C, size=size, images=B, memory=True, seconds=seconds)


if __name__ == "__main__":
    main()
