"""Ten million identities in one head on one device: loss, gradients and the update of all rows, time and memory."""

import torch
from fastmfr.kernels import CosFace, margin_softmax, sgd_rows

from . import lines
from .paths import PATHS, taking
from .timing import DEVICE, arguments, compare

RATES = {"rate": 0.1, "momentum": 0.9, "weight_decay": 5e-4}


def main():
    options = arguments(__doc__)
    B, C, D = (8, 1000, 32) if options.small else (512, 10_000_000, 512)
    torch.manual_seed(0)
    embedding = torch.randn(B, D, device=DEVICE).bfloat16().requires_grad_()
    weight = torch.empty(C, D, device=DEVICE).normal_(std=0.01).requires_grad_()
    momentum, label = torch.zeros(C, D, device=DEVICE), torch.randint(C, (B,), device=DEVICE)
    inverse_norm_C = torch.full((C,), 1 / (0.01 * D**0.5), device=DEVICE)

    def step(path):
        with taking(path):
            loss = margin_softmax(
                embedding, weight, label, margin=CosFace(0.35), inverse_norm_C=inverse_norm_C, keep="none"
            ).mean()
            _, dw = torch.autograd.grad(loss, (embedding, weight))
            sgd_rows(weight.detach(), dw, momentum, inverse_norm_C, **RATES)
        return loss.detach()

    losses = []
    for path in reversed(PATHS):
        compare(
            "ten million",
            "loss, gradients and update",
            {f"ours, {path}": lambda: losses.append(step(path))},  # noqa: B023
            B=B,
            C=C,
            D=D,
            memory=True,
            seconds=options.seconds,
            flops=8 * B * C * D,
        )
    lines.write(
        "ten million",
        what="losses",
        first=losses[0].item(),
        last=losses[-1].item(),
        steps=len(losses),
        weights_gradients_and_momentum_bytes=3 * weight.nbytes,
    )


if __name__ == "__main__":
    main()
