"""Margin softmax at real sizes against float64: errors of each path beside plain PyTorch's own, and equal bits twice.

An error is the length of the difference beside that of the float64 result.
"""

import torch
from fastmfr.kernels import CosFace, margin_softmax
from peers_margin_softmax import COSFACE, SCALE, tuned_cosface

from . import lines
from .paths import PATHS, taking
from .timing import DEVICE, arguments

SIZES = [(128, 10_007, 320), (1024, 100_000, 512)]


def relative(got, want):
    return ((got.double() - want).norm() / want.norm().clamp_min(1e-300)).item()


def derivatives(loss, embedding, weight, tangents):
    """(dx, dw, Dx, Dw): gradients of the mean loss, and their derivative along the tangents."""
    first = torch.autograd.grad(loss, (embedding, weight), create_graph=True)
    second = torch.autograd.grad(first, (embedding, weight), tangents)
    return [value.detach() for value in (*first, *second)]


def main():
    options = arguments(__doc__)
    for B, C, D in [(32, 300, 64)] if options.small else SIZES:
        gen = torch.Generator(DEVICE).manual_seed(1)
        draw = lambda *shape: torch.randn(*shape, generator=gen, device=DEVICE)  # noqa: E731,B023
        weight, label = 0.01 * draw(C, D), torch.randint(C, (B,), generator=gen, device=DEVICE)
        # rows lean to their identity, so that the softmax is peaked for some, as it is in training
        embedding = draw(B, D) + 60 * torch.rand(B, 1, generator=gen, device=DEVICE) * weight[label]
        tangents = draw(B, D), draw(C, D)
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            given = embedding.to(dtype)
            exact = [value.double().requires_grad_() for value in (given, weight)]
            loss = tuned_cosface(*exact, label)
            truth = [loss.detach(), *derivatives(loss, *exact, [one.double() for one in tangents])]
            figures = {}
            for who in (*PATHS, "torch"):
                runs = []
                try:
                    for _ in range(2):
                        x, w = given.clone().requires_grad_(), weight.clone().requires_grad_()
                        if who == "torch":
                            with torch.autocast(DEVICE.type, dtype, enabled=dtype != torch.float32):
                                loss = tuned_cosface(x, w, label)
                        else:
                            with taking(who):
                                loss = margin_softmax(x, w, label, margin=CosFace(COSFACE), scale=SCALE).mean()
                        with taking(who) if who != "torch" else taking(PATHS[0]):
                            runs.append([loss.detach(), *derivatives(loss, x, w, (tangents[0].to(dtype), tangents[1]))])
                except Exception as error:
                    lines.write(
                        "accuracy",
                        what=f"{dtype}",
                        who=who,
                        B=B,
                        C=C,
                        D=D,
                        failed=lines.reason(error),
                    )
                    continue
                names = ("loss", "dx", "dw", "Dx", "Dw")
                figures[who] = {
                    name: relative(got, want) for name, got, want in zip(names, runs[0], truth, strict=True)
                }
                bits = all(torch.equal(one, other) for one, other in zip(*runs, strict=True))
                lines.write(
                    "accuracy",
                    what=str(dtype).removeprefix("torch."),
                    who=who,
                    B=B,
                    C=C,
                    D=D,
                    errors=figures[who],
                    equal_bits_twice=bits,
                )


if __name__ == "__main__":
    main()
