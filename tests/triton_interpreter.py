"""Repairs of Triton's interpreter, 3.6 to 3.9: tests that run kernels on the CPU import this first.

It multiplies the bit patterns of bfloat16 in `tl.dot` (triton issue 11584), and cuts float32 off to bfloat16 where
a GPU rounds to the nearest. It also replaces all of `triton.language` each time a kernel calls a function, although
the kernel's launch has done so.
"""

import numpy as np
import triton.language as tl
from triton.runtime.interpreter import InterpretedFunction, InterpreterBuilder, TensorHandle

_dot, _cast = InterpreterBuilder.create_dot, InterpreterBuilder.cast_impl
_call = InterpretedFunction.__call__


def _wide(handle):
    if handle.dtype.scalar != tl.bfloat16:
        return handle
    return TensorHandle((handle.data.astype(np.uint32) << 16).view(np.float32), tl.float32)


def _rounded_cast(self, handle, dtype):
    if handle.dtype.scalar == tl.float32 and dtype.scalar == tl.bfloat16:
        bits = np.ascontiguousarray(handle.data).view(np.uint32)
        nearest = bits + np.uint32(0x7FFF) + ((bits >> 16) & 1)  # to even; what lies above infinity is not used
        return TensorHandle((nearest >> 16).astype(np.uint16), tl.bfloat16)
    return _cast(self, handle, dtype)


def _call_as_patched(self, *args, **kwargs):
    if any(value is tl.core for value in self.fn.__globals__.values()):  # one of Triton's own, which see another module
        return _call(self, *args, **kwargs)
    return self.rewrite()(*args, **kwargs)


def repair():
    InterpreterBuilder.create_dot = lambda self, a, b, *rest: _dot(self, _wide(a), _wide(b), *rest)
    InterpreterBuilder.cast_impl = _rounded_cast
    InterpretedFunction.__call__ = _call_as_patched
