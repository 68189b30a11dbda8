"""The calls that the picklers of Python and NumPy write, understood without calling anything; all else is refused.

A name in a file is looked up in a table and stays a name. An array is a type out of another table, and exactly as many
bytes as its shape takes.
"""

import math
from typing import Any

import numpy as np

_CORES = ("numpy.core", "numpy._core")  # before and since NumPy 2
NAMES = {
    **{(f"{core}.multiarray", name): name for core in _CORES for name in ("_reconstruct", "scalar")},
    **{(f"{core}.numeric", "_frombuffer"): "_frombuffer" for core in _CORES},
    ("numpy", "ndarray"): "ndarray",
    ("numpy", "dtype"): "dtype",
    ("_codecs", "encode"): "encode",  # how Python 3 writes bytes for Python 2
    **{(module, name): name for module in ("builtins", "__builtin__") for name in ("bytes", "bytearray")},
}
_ITEMS = {"b1": 1, "i1": 1, "i2": 2, "i4": 4, "i8": 8, "u1": 1, "u2": 2, "u4": 4, "u8": 8, "f4": 4, "f8": 8}
_LATIN_NAMES = ("latin1", "latin-1")


class Array:
    """A NumPy array of numbers or bools as stored in the file, with at most one side that is not 1."""

    __slots__ = ("dtype", "raw")

    def __init__(self):
        """Make an array without content, as a pickle does first."""
        self.dtype = ""
        self.raw: bytes | None = None  # both are filled in when the bytes come

    def numpy(self) -> np.ndarray:
        """Return the numbers, in one dimension, read-only; ValueError if the array has no content or no real bools."""
        if self.raw is None:
            raise ValueError("it has an array without content")
        if self.dtype == "|b1" and self.raw.translate(None, delete=b"\0\1"):
            raise ValueError("it has an array of bools with bytes that are neither 0 nor 1")
        return np.frombuffer(self.raw, self.dtype)


class Name:
    """One of NAMES in a file; it stands for nothing that could be called."""

    __slots__ = ("name",)

    def __init__(self, name: str):
        """Keep the name."""
        self.name = name


class DType:
    """A dtype: its letter and size, and its byte order once the file has stated that."""

    __slots__ = ("built", "code", "order")

    def __init__(self, code: str):
        """Keep the letter and size, such as "f4"."""
        self.code, self.order, self.built = code, "=", False


def make(name: str, given: tuple) -> Any:
    """Return the result of calling `name` with the arguments `given`; None if neither NumPy nor Python writes that."""
    match name, given:
        case (("bytes" | "bytearray"), ()):
            return b""
        case (("bytes" | "bytearray"), (bytes() as raw,)):
            return raw  # nobody writes to the bytes, so no copy is needed
        case (("encode" | "bytearray"), (str() as text, (str() | bytes()) as coding)) if word(coding) in _LATIN_NAMES:
            return text.encode("latin1")
        case "dtype", (code, int(), int()):
            if word(code) not in _ITEMS:
                raise ValueError(f"it has an array of dtype {shown(word(code))}; want numbers or bools")
            return DType(str(word(code)))
        case "_reconstruct", (Name(name="ndarray"), tuple(), (str() | bytes())):
            return Array()
        case "_frombuffer", (raw, dtype, shape, (str() | bytes())):
            return fill(Array(), shape, dtype, raw)
        case "scalar", (dtype, raw):
            return fill(Array(), (), dtype, raw).numpy()[0].item()
    return None


def build(target: Any, state: Any) -> bool:
    """Give an array or a dtype its state; return False if NumPy writes no such state."""
    if type(state) is not tuple:
        return False
    if type(target) is DType and not target.built and len(state) == 8 and word(state[1]) in ("<", ">", "|", "="):
        target.order, target.built = str(word(state[1])), state[2:] == (None, None, None, -1, -1, 0)
        return state[0] == 3 and target.built
    if type(target) is Array and target.raw is None and len(state) == 5 and state[0] == 1:
        fill(target, *state[1:3], state[4])
        return True
    return False


def fill(array: Array, shape: Any, dtype: Any, raw: Any) -> Array:
    """Give an array its bytes and return the array; ValueError unless the shape takes exactly these bytes."""
    if type(dtype) is not DType or type(raw) is not bytes or type(shape) is not tuple or len(shape) > 4:
        raise ValueError("it has an array of something else; want one row of numbers or bools")
    if any(type(side) is not int or side < 0 for side in shape) or sum(side != 1 for side in shape) > 1:
        raise ValueError("it has an array of more than one row; want one row of numbers")
    want = math.prod(shape) * _ITEMS[dtype.code]
    if len(raw) != want:
        raise ValueError(f"it has an array of {want:,} bytes by its shape, but of {len(raw):,} in the file")
    array.dtype, array.raw = (dtype.order if _ITEMS[dtype.code] > 1 else "|") + dtype.code, raw
    return array


def word(value: Any) -> Any:
    """Return a short string as text, from Python 2 or 3; None if `value` is no short string."""
    value = value.decode("latin1") if type(value) is bytes and len(value) < 16 else value
    return value if type(value) is str and len(value) < 16 else None


def shown(text: Any) -> str:
    """Return a stranger's text for a message: at most 80 characters, all printable."""
    return "".join(c if c.isprintable() else "?" for c in str(text)[:80])
