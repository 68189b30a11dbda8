"""The update of weight rows against torch.optim.SGD, and its kernel against its reference."""

import pytest
import torch
from fastmfr.kernels import sgd_rows
from fastmfr.kernels.sgd_rows import _launch_sgd_rows, sgd_rows_ref
from helpers import DEVICE, assert_as_accurate

pytestmark = pytest.mark.kernel
SETTINGS = {"rate": 0.1, "momentum": 0.9, "weight_decay": 5e-4}
# D: below, at and above a power of two; C: one row, rows past the last whole program, several programs
SIZES = [(1, 5), (37, 16), (300, 33)]


def arrays(C, D, rows=None, device=DEVICE, dtype=torch.float32):
    gen = torch.Generator().manual_seed(0)
    weight, momentum = torch.randn(2, C, D, generator=gen, dtype=torch.float64).unbind()
    row = None if rows is None else torch.randperm(C, generator=gen)[:rows].to(device)
    grad = torch.randn(C if rows is None else rows, D, generator=gen, dtype=torch.float64)
    inverse_norm = torch.full((C,), torch.nan)
    return *(value.to(device, dtype) for value in (weight, grad, momentum, inverse_norm)), row


@pytest.mark.parametrize(("C", "D"), SIZES)
def test_on_the_cpu_it_is_torchs_sgd_to_the_bit(C, D):
    weight, _, momentum, inverse_norm, _ = arrays(C, D, device="cpu")
    parameter = torch.nn.Parameter(weight.clone())
    momentum.zero_()
    theirs = torch.optim.SGD([parameter], lr=0.1, momentum=0.9, weight_decay=5e-4)
    for step in range(3):
        parameter.grad = torch.randn(C, D, generator=torch.Generator().manual_seed(step))
        theirs.step()
        sgd_rows(weight, parameter.grad, momentum, inverse_norm, **SETTINGS)
    assert torch.equal(weight, parameter)
    assert torch.equal(momentum, theirs.state[parameter]["momentum_buffer"])
    torch.testing.assert_close(inverse_norm, 1 / weight.norm(dim=1))


@pytest.mark.parametrize("rows", [None, 1, 30])
@pytest.mark.parametrize(("C", "D"), SIZES)
def test_the_kernel_is_as_accurate_as_pytorch(C, D, rows):
    rows = rows and min(rows, C)
    got, ref, truth = arrays(C, D, rows), arrays(C, D, rows), arrays(C, D, rows, dtype=torch.float64)
    _launch_sgd_rows(*got, **SETTINGS)
    sgd_rows_ref(*ref, **SETTINGS)
    sgd_rows_ref(*truth, **SETTINGS)
    touched = slice(None) if rows is None else got[4]
    for mine, theirs, exact in zip(got[:4], ref[:4], truth[:4], strict=True):
        assert_as_accurate(*(value[touched] if len(value) == C else value for value in (mine, theirs, exact)), 1e-6)


def test_rows_that_are_not_named_stay_as_they_are():
    for update in (_launch_sgd_rows, sgd_rows_ref):
        got, before = arrays(7, 5, 3), arrays(7, 5, 3)
        update(*got, **SETTINGS)
        still = [row for row in range(7) if row not in got[4].tolist()]
        for mine, old in zip((got[0], got[2], got[3]), (before[0], before[2], before[3]), strict=True):
            torch.testing.assert_close(mine[still], old[still], rtol=0, atol=0, equal_nan=True)


def test_no_rows_are_fine():
    for update in (_launch_sgd_rows, sgd_rows_ref):
        got, before = arrays(7, 5, 0), arrays(7, 5, 0)
        update(*got, **SETTINGS)
        assert torch.equal(got[0], before[0])


def test_errors_name_what_was_given():
    weight, grad, momentum, inverse_norm, row = arrays(5, 4, 2, "cpu")
    with pytest.raises(ValueError, match=r"want grad_ND torch.float32 \(5, 4\), contiguous, on cpu; got .* \(2, 4\)"):
        sgd_rows(weight, grad, momentum, inverse_norm, **SETTINGS)
    with pytest.raises(ValueError, match=r"want row_N torch.int64 \(2,\)"):
        sgd_rows(weight, grad, momentum, inverse_norm, row.int(), **SETTINGS)
    with pytest.raises(ValueError, match=r"want momentum_CD .* got torch.float64"):
        sgd_rows(weight, grad, momentum.double(), inverse_norm, row, **SETTINGS)
