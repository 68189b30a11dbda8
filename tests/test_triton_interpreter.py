"""Triton's interpreter as tests/triton_interpreter.py repairs it: what a kernel may not do, and how numbers round."""

import operator

import pytest
import torch
import triton
import triton.language as tl
import triton_interpreter
from helpers import DEVICE
from triton.runtime.errors import InterpreterError

pytestmark = [pytest.mark.kernel, pytest.mark.skipif(DEVICE != "cpu", reason="is about the interpreter on the CPU")]
if DEVICE == "cpu":
    triton_interpreter.repair()
SIZE = 16
EDGES = torch.iinfo(torch.int32)


@triton.jit
def combine_kernel(x_ptr, y_ptr, out_ptr, OPERATION: tl.constexpr, SIZE: tl.constexpr):
    offset = tl.arange(0, SIZE)
    x, y = tl.load(x_ptr + offset), tl.load(y_ptr + offset)
    tl.store(out_ptr + offset, OPERATION(x, y))


@triton.jit
def multiply_kernel(x_ptr, y_ptr, out_ptr, SIZE: tl.constexpr):
    offset = tl.arange(0, SIZE)[:, None] * SIZE + tl.arange(0, SIZE)[None, :]
    tl.store(out_ptr + offset, tl.dot(tl.load(x_ptr + offset), tl.load(y_ptr + offset)))


def combined(operation, x, y, dtype=torch.int32, size=SIZE):
    x, y = (torch.full((SIZE,), value, dtype=dtype) for value in (x, y))
    out = torch.empty_like(x)
    combine_kernel[(1,)](x, y, out, operation, size)
    return out.unique().tolist()


@pytest.mark.parametrize(
    ("operation", "x", "holds", "passes"),
    [
        (operator.add, EDGES.max, 0, 1),
        (operator.add, EDGES.min, 0, -1),
        (operator.sub, EDGES.max, 0, -1),
        (operator.sub, EDGES.min, 0, 1),
        (operator.mul, 2**15, 2**16 - 1, 2**16),
        (operator.mul, 2**15, -(2**16), -(2**16) - 1),
    ],
)
def test_whole_numbers_may_reach_the_edges_of_their_type_but_not_pass_them(operation, x, holds, passes):
    assert combined(operation, x, holds) == [operation(x, holds)]
    with pytest.raises(InterpreterError, match="int32 overflow detected for operation"):
        combined(operation, x, passes)
    assert combined(operation, x, passes, torch.int64) == [operation(x, passes)]


def test_refuses_a_block_that_is_no_power_of_two_after_one_that_is():
    assert combined(operator.add, 1, 2) == [3]
    with pytest.raises(InterpreterError, match="power of 2"):
        combined(operator.add, 1, 2, size=SIZE - 1)


def test_rounds_to_bfloat16_as_pytorch_does_and_back():
    ties = torch.tensor([1 + 2**-8, 1 + 3 * 2**-8, -1 - 2**-8])  # halfway, to even: down, up, up
    x = torch.cat([ties, torch.randn(11, generator=torch.Generator().manual_seed(0)), torch.tensor([0.0, torch.inf])])
    narrow = torch.empty(SIZE, dtype=torch.bfloat16)
    combine_kernel[(1,)](x, torch.zeros(SIZE), narrow, operator.add, SIZE)
    assert torch.equal(narrow, x.bfloat16())
    wide = torch.empty(SIZE)
    combine_kernel[(1,)](narrow, torch.ones(SIZE), wide, operator.mul, SIZE)
    assert torch.equal(wide, narrow.float())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_multiplies_numbers_and_not_their_bits(dtype):
    x, y = torch.randn(2, SIZE, SIZE, generator=torch.Generator().manual_seed(0)).to(dtype)
    out = torch.empty(SIZE, SIZE)
    multiply_kernel[(1,)](x, y, out, SIZE)
    torch.testing.assert_close(out, x.float() @ y.float())
