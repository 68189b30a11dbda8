"""What the exact meta step costs beside ordinary steps on the same images: time, memory, operations and its error.

`ordinary` is forward and backward of the backbone and the losses on all images of a split, at one point, by autograd.
Every contender's times_ordinary is the median over the rounds of its time over that.
"""

from dataclasses import replace
from functools import partial

import peers_meta
import pytest
import torch
from conftest import peak_bytes
from torch.utils._python_dispatch import TorchDispatchMode

from fastmfr.backbone import build
from fastmfr.losses import MfrLosses
from fastmfr.meta import MetaSettings, MetaTrainer, PairBatch, meta_gradient
from fastmfr.meta.autograd_engine import AutogradEngine
from fastmfr.meta.rop_engine import RopEngine
from fastmfr.training.optim import set_rate, sgd

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
LOSSES = MfrLosses(domain_alignment=1 / 4096)
SMOOTH = replace(LOSSES, tau_p=2.0, tau_n=-2.0)  # every pair is mined: rounding moves none across a threshold
ALPHA, GAMMA = 0.01, 0.5
# Width, image size, pairs of meta-train (of two domains) and of meta-test: small paper-like steps, the quickstart's.
SIZES = {"56px": (0.5, 56, 16, 8), "112px": (0.5, 112, 16, 8), "quickstart": (0.25, 48, 32, 32)}
LARGEST = "quickstart"
PRECISIONS = {"fp32": ("fp32", "fp32"), "bf16": ("bf16", "bf16"), "bf16, curvature fp32": ("bf16", "fp32")}
if DEVICE.type == "cuda":
    SIZES["paper"] = 0.5, 120, 128, 128
    LARGEST = "paper"
    PRECISIONS |= {"tf32": ("tf32", "tf32"), "bf16, curvature tf32": ("bf16", "tf32")}


def batch(gen, pairs, size, domains=1):
    gallery, probe = (torch.randn(pairs, 3, size, size, generator=gen).to(DEVICE) for _ in range(2))
    gallery, probe = (images.contiguous(memory_format=torch.channels_last) for images in (gallery, probe))
    return PairBatch(gallery, probe, (torch.arange(pairs) % domains).to(DEVICE))


def network(width):
    torch.manual_seed(0)
    return build("mfr28", width=width).to(DEVICE, memory_format=torch.channels_last)


def ordinary(backbone, batches):
    """The function that takes a plain gradient on each of the batches."""

    def steps():
        for pairs in batches:
            embedding = backbone(torch.cat([pairs.gallery_B3HW, pairs.probe_B3HW]))
            total = LOSSES(*embedding.chunk(2), pairs.domain_B).total
            torch.autograd.grad(total, list(backbone.parameters()))

    return steps


class Count(TorchDispatchMode):
    """Counts ATen operations that do work: no views, which launch nothing."""

    operations = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.operations += func.namespace == "aten" and not func.is_view
        return func(*args, **(kwargs or {}))


def doubled(pairs):
    return PairBatch(pairs.gallery_B3HW.double(), pairs.probe_B3HW.double(), pairs.domain_B)


def relative(got, truth):
    """Length of the difference beside that of the truth."""
    pairs = [(one.double() - other, other) for one, other in zip(got, truth, strict=True)]
    lengths = [torch.stack([part.norm() for part in parts]).norm() for parts in zip(*pairs, strict=True)]
    return (lengths[0] / lengths[1]).item()


def smooth(width, dtype):
    """With PReLUs of slope 1 that are not trained: at any other slope a value that rounds to the other side of 0 moves
    H v by about 1e-3, by whichever way it comes."""
    backbone = network(width)
    for module in backbone.modules():
        if isinstance(module, torch.nn.PReLU):
            module.weight.requires_grad_(False).fill_(1)
    return backbone.to(dtype)


def hv_errors(width, train):
    """Error of H v along one v against autograd in float64, of a smooth network."""

    def product(make, dtype, *memory, **precision):
        backbone, pairs = smooth(width, dtype), train if dtype == torch.float32 else doubled(train)
        parameters = {name: value for name, value in backbone.named_parameters() if value.requires_grad}
        gen = torch.Generator().manual_seed(1)
        v = [torch.randn(value.shape, generator=gen).to(value) for value in parameters.values()]
        engine = make(backbone, list(parameters), "batch", *memory, **precision)
        return engine.train(list(parameters.values()), pairs, pairs.domain_B, SMOOTH, second_order=True).hvp(v)

    truth = product(AutogradEngine, torch.float64)
    errors = {
        "rop kept": relative(product(RopEngine, torch.float32, "kept"), truth),
        "rop streaming": relative(product(RopEngine, torch.float32, "streaming"), truth),
        "autograd": relative(product(AutogradEngine, torch.float32), truth),
    }
    by_precision = {
        name: relative(product(RopEngine, torch.float32, "streaming", precision=one, curvature=other), truth)
        for name, (one, other) in PRECISIONS.items()
    }
    return errors, by_precision


def gradient_errors(width, split):
    """Error of the meta-gradient in each precision against autograd in float64, of a smooth network."""

    def gradient(dtype, split, **settings):
        settings |= {"alpha": ALPHA, "gamma": GAMMA, "losses": SMOOTH}
        return meta_gradient(smooth(width, dtype), [split], **settings).grad.values()

    truth = gradient(torch.float64, [doubled(pairs) for pairs in split], engine="autograd")
    return {
        name: relative(gradient(torch.float32, split, precision=one, curvature=other), truth)
        for name, (one, other) in PRECISIONS.items()
    }


def beside_ordinary(extra_info, contenders):
    """Adds to each contender's figures: times_ordinary, peak memory and operations."""
    for name, function in contenders.items():
        with Count() as count:
            peak = peak_bytes(function)
        extra_info[name] |= {
            "times_ordinary": round(extra_info[name]["times_ours"], 3),
            "peak_megabytes": peak // 2**20,
            "operations": count.operations,
        }


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")  # torch.func's own, in jvp
@pytest.mark.parametrize("size", SIZES)
def test_one_exact_split(compare, benchmark, size):
    width, pixels, train_pairs, test_pairs = SIZES[size]
    gen, backbone = torch.Generator().manual_seed(0), network(width)
    train, test = batch(gen, train_pairs, pixels, 2), batch(gen, test_pairs, pixels)

    def ours(backbone=backbone, split=(train, test), **settings):
        return meta_gradient(backbone, [split], alpha=ALPHA, gamma=GAMMA, losses=LOSSES, **settings)

    gradients = {
        "rop kept": lambda: ours(engine="rop", memory="kept").grad.values(),
        "rop streaming": lambda: ours(engine="rop", memory="streaming").grad.values(),
        "autograd": lambda: ours(engine="autograd").grad.values(),
    }
    for name, make in peers_meta.PEERS.items():
        gradients[name] = partial(make(backbone, LOSSES, ALPHA, GAMMA), train, test)
    first = {
        "first order, rop": lambda: ours(order=1, engine="rop"),
        "first order, autograd": lambda: ours(order=1, engine="autograd"),
    }
    steps = ordinary(backbone, (train, test))
    compare(
        steps,
        first | gradients,
        rounds=3 if size == "112px" else 7,
        absent=", ".join(peers_meta.ABSENT),
        size=size,
        images=f"{2 * train_pairs} meta-train, {2 * test_pairs} meta-test",
    )
    info = benchmark.extra_info
    beside_ordinary(info, {"ours": steps} | first | gradients)
    info["ordinary"] = info.pop("ours")
    truth = ours(network(width).double(), (doubled(train), doubled(test)), engine="autograd").grad.values()
    for name, gradient in gradients.items():
        info[name]["gradient_error"] = relative(gradient(), truth)
    errors, by_precision = hv_errors(width, train)
    for name, error in errors.items():
        info[name]["hv_error"] = error
    info["hv_error_by_precision"] = by_precision
    info["gradient_error_by_precision"] = gradient_errors(width, (train, test))


@pytest.mark.parametrize(("domains", "size"), [(n, size) for size in ("56px", "112px") for n in (3, 4, 8)])
def test_a_whole_rotation_that_shares_per_domain(compare, benchmark, domains, size):
    """Figures are per split: N splits a call, beside one ordinary step on the images of a split."""
    width, pixels, _, pairs = SIZES[size]
    gen, backbone = torch.Generator().manual_seed(0), network(width)
    batches = [(batch(gen, pairs, pixels), batch(gen, pairs, pixels)) for _ in range(domains)]

    def shared(memory):
        return lambda: meta_gradient(
            backbone,
            batches,
            alpha=ALPHA,
            gamma=GAMMA,
            losses=MfrLosses(domain_alignment=0),
            engine="rop",
            memory=memory,
            batch_norm="per_domain",
            sharing="per_domain",
        )

    steps = ordinary(backbone, (batch(gen, (domains - 1) * pairs, pixels), batches[0][1]))
    contenders = {f"rop {memory}": shared(memory) for memory in ("kept", "streaming")}
    units, rounds = dict.fromkeys(contenders, domains), 5 if size == "56px" else 3
    compare(
        steps,
        contenders,
        rounds=rounds,
        units=units,
        domains=domains,
        size=size,
        images=f"{2 * pairs} a domain for meta-train, as many for meta-test",
    )
    beside_ordinary(benchmark.extra_info, {"ours": steps} | contenders)
    benchmark.extra_info["ordinary"] = benchmark.extra_info.pop("ours")


@pytest.mark.parametrize("domains", [3, 4])
def test_meta_batches_with_their_update(compare, benchmark, domains):
    """Whole steps of the trainer, N splits each, beside as many ordinary gradients and one step of torch's SGD."""
    width, pixels, train_pairs, test_pairs = SIZES[LARGEST]
    gen = torch.Generator().manual_seed(0)
    splits = [(batch(gen, train_pairs, pixels, 2), batch(gen, test_pairs, pixels)) for _ in range(domains)]

    def trainer(engine="auto", cuda_graph=False, precision="fp32"):
        backbone, settings = network(width), MetaSettings(GAMMA, engine=engine, precision=precision)
        optimizer = sgd(backbone.parameters(), 0.9, 5e-4)
        made = MetaTrainer(backbone, optimizer, settings, cuda_graph=cuda_graph)
        return lambda: made.step(splits, alpha=ALPHA, rate=1e-4, losses=LOSSES)

    backbone = network(width)
    optimizer = sgd(backbone.parameters(), 0.9, 5e-4)
    set_rate(optimizer, 1e-4)
    gradients = [ordinary(backbone, split) for split in splits]
    for parameter in backbone.parameters():
        parameter.grad = torch.zeros_like(parameter)

    def plain():
        for gradient in gradients:
            gradient()
        optimizer.step()

    contenders = {"rop": trainer(), "autograd": trainer("autograd")}
    if DEVICE.type == "cuda":
        contenders |= {
            "rop, CUDA graph": trainer(cuda_graph=True),
            "rop, CUDA graph, tf32": trainer(cuda_graph=True, precision="tf32"),
            "rop, CUDA graph, bf16": trainer(cuda_graph=True, precision="bf16"),
        }
    for contender in contenders.values():
        contender(), contender()  # the second is recorded
    compare(plain, contenders, rounds=5, domains=domains, size=LARGEST, images=2 * (train_pairs + test_pairs) * domains)
    beside_ordinary(benchmark.extra_info, {"ours": plain} | contenders)
    benchmark.extra_info["ordinary"] = benchmark.extra_info.pop("ours")
