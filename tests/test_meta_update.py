"""The flat updates of a meta step: kernels against references, and the references against the formulas."""

import pytest
import torch
from fastmfr.kernels import meta_update
from helpers import DEVICE, assert_as_accurate

pytestmark = pytest.mark.kernel
RATES = {"alpha": 0.3, "gamma": 0.4}
SGD = {**RATES, "splits": 3, "rate": 0.1, "momentum": 0.9, "weight_decay": 0.01}
PARAMETERS = [1, 1024, 2500]  # one block that is not full, one that is, several


def flats(P, dtype=torch.float32, device=DEVICE):
    gen = torch.Generator().manual_seed(0)
    return list(torch.randn(6, P, generator=gen, dtype=torch.float64).to(device, dtype).unbind())


@pytest.mark.parametrize("P", PARAMETERS)
@pytest.mark.parametrize("without_hv", [False, True])
@pytest.mark.parametrize("without_total", [False, True])
def test_kernels_are_as_accurate_as_pytorch(P, without_hv, without_total):
    results = []
    for dtype, prefix in ((torch.float32, "_launch_{}"), (torch.float32, "{}_ref"), (torch.float64, "{}_ref")):
        look_ahead, add_split, meta_sgd = (
            getattr(meta_update, prefix.format(name)) for name in ("look_ahead", "add_split", "meta_sgd")
        )
        theta, momentum, total, g, v, hv = flats(P, dtype)
        out, hv = torch.full_like(theta, torch.nan), None if without_hv else hv
        look_ahead(out, theta, g, alpha=0.3)
        add_split(total, g, v, hv, **RATES)
        square = meta_sgd(theta, momentum, None if without_total else total, g, v, hv, **SGD)
        results.append([out, total, theta, momentum, square.sum()])
    for got, ref, truth in zip(*results, strict=True):
        assert_as_accurate(got, ref, truth, 1e-6 * truth.abs().max().item())


def test_a_meta_batch_is_torchs_sgd_on_the_mean_gradient():
    theta, momentum, _, *_ = flats(300_000, device="cpu")  # more than one piece
    splits = [flats(300_000, device="cpu")[3:], flats(300_000, device="cpu")[1:4], flats(300_000, device="cpu")[2:5]]
    parameter = torch.nn.Parameter(theta.clone())
    theirs = torch.optim.SGD([parameter], lr=0.1, momentum=0.9, weight_decay=0.01)
    theirs.state[parameter]["momentum_buffer"] = momentum.clone()
    parameter.grad = sum(0.4 * g + 0.6 * (v - 0.3 * hv) for g, v, hv in splits) / 3
    theirs.step()
    total = torch.zeros_like(theta)
    for split in splits[:-1]:
        meta_update.add_split(total, *split, **RATES)
    norm = meta_update.meta_sgd(theta, momentum, total, *splits[-1], **SGD)
    torch.testing.assert_close(theta, parameter.detach())
    torch.testing.assert_close(momentum, theirs.state[parameter]["momentum_buffer"])
    torch.testing.assert_close(norm, parameter.grad.norm(), rtol=1e-5, atol=0)


def test_errors_name_what_was_given():
    theta, momentum, *_ = flats(10, device="cpu")
    for wrong in (momentum[:5], momentum.double(), momentum.view(2, 5), torch.zeros(20)[::2]):
        with pytest.raises(ValueError, match=r"want flat buffers like the first, torch.float32 \(10,\) on cpu"):
            meta_update.look_ahead(theta, wrong, momentum, 0.1)
