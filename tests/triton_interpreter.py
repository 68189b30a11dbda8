"""Repairs of Triton's interpreter, 3.6 to 3.9: tests that run kernels on the CPU import this first.

The interpreter multiplies the bit patterns of bfloat16 in `tl.dot` (triton issue 11584), and cuts float32 off to
bfloat16 where a GPU rounds to the nearest. Both are repaired.

The interpreter spends most of its time on bookkeeping. What is replaced for speed computes the same to the bit in a
third of the time; tests/test_triton_interpreter.py holds what the replaced functions check.
"""

import functools
import math
from types import SimpleNamespace

import numpy as np
import triton.language as tl
from triton.runtime import interpreter
from triton.runtime.interpreter import InterpretedFunction, InterpreterBuilder, TensorHandle

_dot, _cast, _init_block = InterpreterBuilder.create_dot, InterpreterBuilder.cast_impl, tl.block_type.__init__
_patch_lang, _np_dtype = interpreter._patch_lang, interpreter._get_np_dtype
_EXACT = {"add": np.add, "sub": np.subtract, "mul": np.multiply}
_np_dtypes, _blocks = {}, {}


def _wide(handle):
    if handle.dtype.scalar != tl.bfloat16:
        return handle
    return TensorHandle((handle.data.astype(np.uint32) << 16).view(np.float32), tl.float32)


def _rounded_cast(self, handle, dtype):
    source, target = handle.dtype.scalar, dtype.scalar
    if source == tl.float32 and target == tl.bfloat16:
        bits = np.ascontiguousarray(handle.data).view(np.uint32)
        nearest = bits + np.uint32(0x7FFF) + ((bits >> 16) & 1)  # to even; what lies above infinity is not used
        return TensorHandle((nearest >> 16).astype(np.uint16), tl.bfloat16)
    if source == tl.bfloat16 and target == tl.float32:
        return _wide(handle)
    return _cast(self, handle, dtype)


@functools.cache
def _patch_for_good():
    """Replace the functions of `triton.language`, which the interpreter does at each launch and most calls."""
    _patch_lang(SimpleNamespace(__globals__={"tl": tl, "core": tl.core}))
    return SimpleNamespace(restore=lambda: None)


def _call_function(self, *args, **kwargs):
    return self.rewrite()(*args, **kwargs)


def _known_np_dtype(dtype):
    if dtype.name not in _np_dtypes:
        _np_dtypes[dtype.name] = _np_dtype(dtype)
    return _np_dtypes[dtype.name]


def _known_block(self, element_type, shape):
    key = element_type.name, *(getattr(size, "value", size) for size in shape)
    if key not in _blocks:
        _init_block(self, element_type, shape)
        _blocks[key] = dict(vars(self))
    vars(self).update(_blocks[key])


@functools.cache
def _known_shape(*sizes):
    return tl.constexpr(math.prod(sizes)), tl.tuple([tl.constexpr(size) for size in sizes])


def _new_tensor(self, handle, type):
    self.handle, self.type, self.dtype = handle, type, type.scalar
    self.numel, self.shape = _known_shape(*(type.shape if type.is_block() else ()))


def _refuse_overflow(lhs, rhs, operation):
    """Refuse a sum, difference or product of whole numbers that their type does not hold."""
    dtype, name = lhs.type.scalar, operation.__name__
    if dtype.int_bitwidth < 64:
        exact = _EXACT[name](lhs.handle.data, rhs.handle.data, dtype=np.int64)
        fits = (exact >= dtype.get_int_min_value()) & (exact <= dtype.get_int_max_value())
        assert fits.all(), f"int{dtype.int_bitwidth} overflow detected for operation {name}"


def repair():
    InterpreterBuilder.create_dot = lambda self, a, b, *rest: _dot(self, _wide(a), _wide(b), *rest)
    InterpreterBuilder.cast_impl = _rounded_cast
    InterpretedFunction.__call__ = _call_function
    interpreter._patch_lang = lambda function: _patch_for_good()
    interpreter._get_np_dtype = _known_np_dtype
    interpreter.interpreter_semantic.binary_op_sanitize_overflow_impl = _refuse_overflow
    tl.block_type.__init__ = _known_block
    tl.tensor.__init__ = _new_tensor
