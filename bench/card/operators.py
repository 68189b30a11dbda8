"""The smaller kernels beside eager PyTorch: BatchNorm + PReLU, flat updates, classifier rows, gathering.

`bytes` is what each must read and write at least; short ones are replayed from a CUDA graph, without the host.
"""

from functools import partial
from types import SimpleNamespace

import torch
from fastmfr.kernels import add_split, batchnorm_prelu, gather_images, look_ahead, meta_sgd, sgd_rows
from torch.nn import functional as F

from .timing import DEVICE, arguments, compare, replayed

RATES = {"rate": 0.1, "momentum": 0.9, "weight_decay": 5e-4}
LAYERS = [(256, 64, 56, 56), (256, 256, 14, 14), (512, 64, 112, 112)]


def draw(*shape, dtype=torch.float32):
    return torch.randn(*shape, device=DEVICE).to(dtype)


def layers(small, seconds):
    """Four passes of one layer; eager PyTorch takes its double backward instead. And forward and backward alone."""
    for shape in [(4, 8, 6, 6)] if small else LAYERS:
        for dtype in (torch.float32, torch.bfloat16):
            channels = shape[1]
            x, dy, xd, dyd = (draw(*shape, dtype=dtype).contiguous(memory_format=torch.channels_last) for _ in range(4))
            layer, moving = ([draw(channels) for _ in range(3)] for _ in range(2))

            def first(ctx, x=x, dy=dy, layer=layer):
                batchnorm_prelu.forward(
                    ctx, x, *layer, running=(None, None), batch_statistics=True, momentum=0.1, eps=1e-5
                )
                return batchnorm_prelu.backward(ctx, dy)

            def all_four(xd=xd, dyd=dyd, moving=moving, first=first):
                ctx = SimpleNamespace()
                first(ctx)
                batchnorm_prelu.tangent(ctx, xd, *moving)
                return batchnorm_prelu.second_backward(ctx, dyd)

            values = [value.detach().requires_grad_() for value in (x, *layer)]
            dy_leaf = dy.detach().requires_grad_()

            def eager_first(values=values, dy=dy_leaf, **options):
                y = F.prelu(F.batch_norm(values[0], None, None, *values[1:3], training=True), values[3].to(values[0]))
                return y, torch.autograd.grad(y, values, dy, **options)

            def eager(values=values, dy=dy_leaf, xd=xd, moving=moving, dyd=dyd, eager_first=eager_first):
                y, grads = eager_first(create_graph=True)
                return torch.autograd.grad((*grads, y), [*values, dy], (xd, *moving, dyd))

            # x is read in all of the eight passes, dy in four, x' in four, dy' in two; y, dx, y', dx' are written
            compare(
                "operators",
                "BatchNorm + PReLU, four passes",
                {"ours": all_four, "eager": eager},
                memory=True,
                bytes=22 * x.nbytes,
                shape=str(shape),
                dtype=str(dtype),
                seconds=seconds,
            )
            compare(
                "operators",
                "BatchNorm + PReLU, forward and backward",
                {"ours": lambda first=first: first(SimpleNamespace()), "eager": eager_first},
                bytes=7 * x.nbytes,
                shape=str(shape),
                dtype=str(dtype),
                seconds=seconds,
            )


def updates(small, seconds):
    """Over as many parameters as an iResNet-100 has, and as mfr28 has."""
    for parameters in [1000] if small else [65_000_000, 4_670_000]:
        _updates(parameters, seconds)


def _updates(parameters, seconds):
    theta, momentum, total, g, v, hv = (draw(parameters) for _ in range(6))
    out = torch.empty_like(theta)

    def eager_sgd():
        mean = (total + 0.5 * g + 0.5 * (v - 0.1 * hv)) / 3
        momentum.mul_(0.9).add_(mean.add(theta, alpha=5e-4))
        theta.sub_(momentum, alpha=0.1)

    sgd = partial(meta_sgd, theta, momentum, total, g, v, hv, alpha=0.1, gamma=0.5, splits=3, **RATES)
    for what, ours, eager, moved in (
        ("look_ahead", partial(look_ahead, out, theta, g, 0.1), partial(torch.sub, theta, g, alpha=0.1, out=out), 12),
        (
            "add_split",
            partial(add_split, total, g, v, hv, 0.1, 0.5),
            lambda: total.add_(g, alpha=0.5).add_(v - 0.1 * hv, alpha=0.5),
            20,
        ),
        ("meta_sgd", sgd, eager_sgd, 32),
    ):
        contenders = {"ours": replayed(ours), "eager": replayed(eager)}
        compare("operators", what, contenders, parameters=parameters, bytes=moved * parameters, seconds=seconds)


def rows(small, seconds):
    identities = 1000 if small else 1_000_000
    weight, grad, momentum = (draw(identities, 512) for _ in range(3))
    inverse_norm = torch.empty(identities, device=DEVICE)
    parameter = torch.nn.Parameter(weight.clone())
    parameter.grad = grad
    optimizer = torch.optim.SGD([parameter], lr=0.1, momentum=0.9, weight_decay=5e-4, fused=True)

    def eager():
        optimizer.step()
        return 1 / parameter.detach().norm(dim=1)

    compare(
        "operators",
        "classifier rows",
        {"ours": lambda: sgd_rows(weight, grad, momentum, inverse_norm, **RATES), "torch, fused": eager},
        bytes=20 * weight.numel(),
        identities=identities,
        seconds=seconds,
    )


def gathering(small, seconds):
    images, size = (8, 16) if small else (1024, 112)
    pixels = torch.randint(0, 256, (images * 8, size, size, 3), dtype=torch.uint8, device=DEVICE)
    index = torch.randint(len(pixels), (images,), device=DEVICE)
    mirror = torch.rand(images, device=DEVICE) < 0.5
    shift, gain = torch.randint(-4, 5, (images, 2), device=DEVICE), 1 + 0.1 * draw(images)

    def eager():
        image = pixels[index].permute(0, 3, 1, 2).float()
        return torch.where(mirror[:, None, None, None], image.flip(3), image).sub_(127.5).div_(128.0)

    ours = {
        "ours": lambda: gather_images(pixels, index, mirror_B=mirror, mean=127.5, std=128.0),
        "ours, with shift and tone": lambda: gather_images(
            pixels, index, mirror_B=mirror, shift_B2=shift, gain_B=gain, mean=127.5, std=128.0
        ),
    }
    compare(
        "operators",
        "gathering",
        ours | {"eager": eager},
        images=images,
        bytes=15 * images * size * size,
        seconds=seconds,
    )


def main():
    options = arguments(__doc__)
    for figure in (layers, updates, rows, gathering):
        figure(options.small, options.seconds / 3)


if __name__ == "__main__":
    main()
