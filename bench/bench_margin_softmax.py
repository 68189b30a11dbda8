"""Margin softmax beside how others compute it: time and peak memory of loss and gradients, over many identities.

On a GPU the embeddings are bfloat16 and peers run under autocast; weights and their gradients are float32 everywhere.
"""

import pytest
import torch
from conftest import peak_bytes
from fastmfr.kernels import ArcFace, CosFace, margin_softmax
from peers_margin_softmax import ARCFACE, COSFACE, SCALE, metric_learning, peers, tuned_arcface, tuned_cosface

GPU = torch.cuda.is_available()
DEVICE, DTYPE = ("cuda", torch.bfloat16) if GPU else ("cpu", torch.float32)
SIZES = [(B, C, 512) for C in (10_000, 100_000, 1_000_000) for B in ((64, 128, 256, 1024) if GPU else (64,))]
SIZES += [(128, 100_000, 256), (1024, 100_000, 256)] if GPU else [(64, 100_000, 256)]
# torch.compile imports parts of torch that torch itself has deprecated
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
IDS = [f"B{B}-C{C}-D{D}" for B, C, D in SIZES]


def inputs(B, C, D, dtype=DTYPE, device=DEVICE):
    gen = torch.Generator(device).manual_seed(0)
    embedding = torch.randn(B, D, generator=gen, device=device).to(dtype).requires_grad_()
    weight = (0.01 * torch.randn(C, D, generator=gen, device=device)).requires_grad_()
    return embedding, weight, torch.randint(C, (B,), generator=gen, device=device)


def autocast():
    return torch.autocast(DEVICE, torch.bfloat16, enabled=GPU)


def rounds(B, C):
    return 20 if GPU or B * C < 10**7 else 3


def with_memory(benchmark, contenders):
    """Adds to each contender's figures what it needs at most beside what was there before."""
    for name, call in contenders.items():
        benchmark.extra_info[name]["peak_megabytes"] = round(peak_bytes(call) / 1e6)


@pytest.mark.parametrize(("B", "C", "D"), SIZES, ids=IDS)
def test_loss_and_gradients(compare, benchmark, B, C, D):
    """CosFace; InsightFace's order computes ArcFace, whose cost it is known for."""
    embedding, weight, label = inputs(B, C, D)

    def ours():
        loss = margin_softmax(embedding, weight, label, margin=CosFace(COSFACE), scale=SCALE).mean()
        return torch.autograd.grad(loss, (embedding, weight))

    def calling(peer):
        def call():
            with autocast():
                loss, their_weight = peer(embedding, label)
            return torch.autograd.grad(loss, (embedding, their_weight))

        return call

    others = {name: calling(peer) for name, peer in peers(weight).items()}
    compare(
        ours,
        others,
        rounds=rounds(B, C),
        B=B,
        C=C,
        D=D,
        dtype=str(DTYPE),
        device=DEVICE,
        logits_megabytes=round(4 * B * C / 1e6),
        weight_megabytes=round(4 * C * D / 1e6),
        flops=8 * B * C * D,
        bytes=3 * 4 * C * D,
    )  # weights read twice, their gradient written
    with_memory(benchmark, {"ours": ours, **others})


@pytest.mark.parametrize(("B", "C", "D"), SIZES if GPU else SIZES[:1], ids=IDS if GPU else IDS[:1])
def test_second_derivative(compare, benchmark, B, C, D):
    """H v of the mean loss, with respect to embeddings and weights, beside the same by plain PyTorch."""
    embedding, weight, label = inputs(B, C, D)
    tangents = torch.randn_like(embedding), torch.randn_like(weight)

    def second(loss):
        first = torch.autograd.grad(loss, (embedding, weight), create_graph=True)
        return torch.autograd.grad(first, (embedding, weight), tangents)

    def ours():
        return second(margin_softmax(embedding, weight, label, margin=CosFace(COSFACE), scale=SCALE).mean())

    def tuned():
        with autocast():
            loss = tuned_cosface(embedding, weight, label)
        return second(loss)

    compare(
        ours,
        {"tuned torch": tuned},
        rounds=rounds(B, C),
        B=B,
        C=C,
        D=D,
        dtype=str(DTYPE),
        device=DEVICE,
        flops=22 * B * C * D,
    )  # of this and the first derivative, nothing kept
    with_memory(benchmark, {"ours": ours, "tuned torch": tuned})


@pytest.mark.parametrize("name", ["CosFaceLoss", "ArcFaceLoss"])
def test_values_and_gradients_beside_pytorch_metric_learning(compare, name):
    """How far both miss the same loss in float64, in the largest entry; the times are those of this small size."""
    pytest.importorskip("pytorch_metric_learning")
    margin, truth = {
        "CosFaceLoss": (CosFace(COSFACE), tuned_cosface),
        "ArcFaceLoss": (ArcFace(ARCFACE), tuned_arcface),
    }[name]
    embedding, weight, label = inputs(64, 1000, 128, torch.float32, "cpu")
    theirs = metric_learning(name, weight)

    def ours():
        loss = margin_softmax(embedding, weight, label, margin=margin, scale=SCALE).mean()
        return [loss, *torch.autograd.grad(loss, (embedding, weight))]

    def peer():
        loss = theirs(embedding, label)
        dx, dw = torch.autograd.grad(loss, (embedding, theirs.W))
        return [loss, dx, dw.T]

    exact = [value.detach().double().requires_grad_() for value in (embedding, weight)]
    loss = truth(*exact, label)
    wanted = [loss, *torch.autograd.grad(loss, exact)]
    misses = {
        f"{who} misses {what} by": f"{(got - want).abs().max().item():.1e}"
        for who, results in (("ours", ours()), ("theirs", peer()))
        for what, got, want in zip(("loss", "dx", "dw"), results, wanted, strict=True)
    }
    compare(ours, {"pytorch-metric-learning": peer}, rounds=20, B=64, C=1000, D=128, **misses)
