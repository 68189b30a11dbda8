"""The smaller kernels beside eager PyTorch: BatchNorm + PReLU with its double backward, flat updates, rows, gathering.

`bytes` is what each must read and write at least; beside bench_ceilings' copy it gives the share of the bandwidth.
"""

from types import SimpleNamespace

import pytest
import torch
from fastmfr.kernels import add_split, batchnorm_prelu, gather_images, look_ahead, meta_sgd, sgd_rows
from torch.nn import functional as F

GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"
PARAMETERS = 65_000_000 if GPU else 1_000_000  # of an iResNet-100, or fewer
IDENTITIES = 1_000_000 if GPU else 10_000
IMAGES, CHANNELS, SIZE = (256, 64, 56) if GPU else (16, 64, 28)
RATES = {"rate": 0.1, "momentum": 0.9, "weight_decay": 5e-4}


def draw(*shape):
    return torch.randn(*shape, device=DEVICE)


def test_batchnorm_and_prelu_with_its_double_backward(compare):
    """Forward, backward, tangent and second backward of one layer, float32; eager takes its double backward instead."""
    shape = IMAGES, CHANNELS, SIZE, SIZE
    x, dy, xd, dyd = (draw(*shape).contiguous(memory_format=torch.channels_last) for _ in range(4))
    layer, moving = ([draw(CHANNELS) for _ in range(3)] for _ in range(2))

    def ours():
        ctx = SimpleNamespace()
        batchnorm_prelu.forward(ctx, x, *layer, running=(None, None), batch_statistics=True, momentum=0.1, eps=1e-5)
        batchnorm_prelu.backward(ctx, dy)
        batchnorm_prelu.tangent(ctx, xd, *moving)
        return batchnorm_prelu.second_backward(ctx, dyd)

    values = [value.detach().requires_grad_() for value in (x, *layer)]
    dy_leaf = dy.detach().requires_grad_()

    def eager():
        y = F.prelu(F.batch_norm(values[0], None, None, *values[1:3], training=True), values[3])
        first = torch.autograd.grad(y, values, dy_leaf, create_graph=True)
        return torch.autograd.grad((*first, y), [*values, dy_leaf], (xd, *moving, dyd))

    # x is read in all of the eight passes, dy in four, x' in four, dy' in two; y, dx, y', dx' are written
    compare(ours, {"eager": eager}, rounds=20, device=DEVICE, bytes=22 * x.nbytes, shape=str(shape))


@pytest.mark.parametrize("what", ["look_ahead", "add_split", "meta_sgd"])
def test_flat_updates(compare, what):
    theta, momentum, total, g, v, hv = (draw(PARAMETERS) for _ in range(6))
    out, alpha, gamma = torch.empty_like(theta), 0.1, 0.5

    def foreach_sgd():
        mean = (total + gamma * g + (1 - gamma) * (v - alpha * hv)) / 3
        momentum.mul_(0.9).add_(mean.add(theta, alpha=5e-4))
        theta.sub_(momentum, alpha=0.1)

    ours, eager, moved = {
        "look_ahead": (lambda: look_ahead(out, theta, g, alpha), lambda: torch.sub(theta, g, alpha=alpha, out=out), 12),
        "add_split": (
            lambda: add_split(total, g, v, hv, alpha, gamma),
            lambda: total.add_(g, alpha=gamma).add_(v - alpha * hv, alpha=1 - gamma),
            20,
        ),
        "meta_sgd": (
            lambda: meta_sgd(theta, momentum, total, g, v, hv, alpha=alpha, gamma=gamma, splits=3, **RATES),
            foreach_sgd,
            32,
        ),
    }[what]
    compare(ours, {"eager": eager}, rounds=20, device=DEVICE, bytes=moved * PARAMETERS, parameters=PARAMETERS)


def test_classifier_rows(compare):
    """SGD that leaves the inverse norms behind, beside torch's and a pass for the norms."""
    weight, grad, momentum = (draw(IDENTITIES, 512) for _ in range(3))
    inverse_norm = torch.empty(IDENTITIES, device=DEVICE)
    parameter = torch.nn.Parameter(weight.clone())
    parameter.grad, optimizer = grad, torch.optim.SGD([parameter], lr=0.1, momentum=0.9, weight_decay=5e-4)

    def eager():
        optimizer.step()
        return 1 / parameter.detach().norm(dim=1)

    compare(
        lambda: sgd_rows(weight, grad, momentum, inverse_norm, **RATES),
        {"eager": eager},
        rounds=20,
        device=DEVICE,
        bytes=20 * weight.numel(),
        identities=IDENTITIES,
    )


@pytest.mark.skipif(not GPU, reason="on the CPU it is C++, see bench_decode")
@pytest.mark.parametrize("changed", [False, True])
def test_gathering(compare, changed):
    """Images out of the decoded cache: at random, mirrored, normalised; with shift and tone where `changed`."""
    pixels = torch.randint(0, 256, (IMAGES * 16, 120, 120, 3), dtype=torch.uint8, device=DEVICE)
    index, mirror = torch.randint(len(pixels), (IMAGES,), device=DEVICE), torch.rand(IMAGES, device=DEVICE) < 0.5
    more = {}
    if changed:
        more = {"shift_B2": torch.randint(-4, 5, (IMAGES, 2), device=DEVICE), "gain_B": 1 + 0.1 * draw(IMAGES)}

    def ours():
        return gather_images(pixels, index, mirror_B=mirror, **more, mean=127.5, std=128.0)

    def eager():
        image = pixels[index].permute(0, 3, 1, 2).float()
        return torch.where(mirror[:, None, None, None], image.flip(3), image).sub_(127.5).div_(128.0)

    compare(
        ours,
        {} if changed else {"eager": eager},
        rounds=20,
        device=DEVICE,
        images=IMAGES,
        bytes=15 * IMAGES * 120 * 120,
    )
