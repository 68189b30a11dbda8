"""Read plain values out of pickles from anyone; nothing is imported, called or run.

Python's unpickler calls what a file names; even if a file may name NumPy's functions only, the file can pass them
addresses and sizes of its choice. Here the opcodes work on a plain stack of bytes, text, numbers, lists and tuples.
The names that the picklers of NumPy and Python write are inert, and only calls exactly as they write them are
understood. No value is larger than the file: each length is compared with the bytes left in the file, and text must be
Latin-1.
"""

import codecs
import os
import pickletools
import re
from collections.abc import Callable
from typing import Any, BinaryIO, NoReturn

import numpy as np

from .named import NAMES, Name, build, make, shown

_LATIN_UTF8 = 0xC3  # in UTF-8, characters below 256 have no byte above this
_REPR = re.compile(rb"""(?:[^\\]++|\\(?:[\\'"nrt]|x[0-9a-f]{2}))*+""")  # between the quotes, as Python 2 writes it
_OPCODES, _BYTES_AN_OPCODE = 250_000, 64  # real files have at most one opcode in 90 bytes
_MARKS = 16  # depth of lists and tuples within each other; real files have 6
_INT_BYTES = 9  # what a uint64 takes


def read_plain(file: BinaryIO) -> Any:
    """Read the value pickled in `file`: None, bytes, str, bool, int, float, list, tuple, Array.

    Raises:
        ValueError: the file is damaged, or holds or would run anything else; the message says what was found.
    """
    return _Machine(file).run()


class _Machine:
    """Works off the opcodes of a pickle on a stack.

    `left`: bytes of the file not yet read. `room`: how many more bytes the file may encode by calls.
    """

    def __init__(self, file: BinaryIO):
        self._file = file
        self.size = self.left = self.room = os.fstat(file.fileno()).st_size
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def run(self) -> Any:
        limit = _OPCODES + self.size // _BYTES_AN_OPCODE
        for _ in range(limit):
            opcode = self.take(1)
            if value := _VALUES.get(opcode):
                self.stack.append(value(self))
            elif step := _STEPS.get(opcode):
                step(self)
            elif opcode == b".":
                value = self.pop()
                return value if not (self.stack or self.marks) else self.damaged("values are left over at its end")
            else:
                known = {one.code: f"pickle's {one.name}" for one in pickletools.opcodes}
                what = known.get(chr(opcode[0]), f"0x{opcode.hex()}")
                self.damaged(f"{what} is found, which no list of images needs")
        raise ValueError(f"it takes over {limit:,} steps to read its {self.size:,} bytes, which no list of images does")

    def damaged(self, what: str) -> NoReturn:
        raise ValueError(f"{what}, at byte {self.size - self.left:,} of {self.size:,}")

    def take(self, count: int) -> bytes:
        if count > self.left:
            self.damaged(f"it is cut short or damaged: {count:,} more bytes are wanted")
        got = self._file.read(count)
        if len(got) != count:
            self.damaged("the file has become shorter while it was read")
        self.left -= count
        return got

    def number(self, width: int) -> int:
        return self.take(1)[0] if width == 1 else int.from_bytes(self.take(width), "little")

    def line(self, limit: int | None = None) -> bytes:
        got = self._file.readline(min(limit or self.left, self.left))
        self.left -= len(got)
        if not got.endswith(b"\n"):
            self.damaged("a line is too long, or the file is cut short")
        return got[:-1]

    def pop(self) -> Any:
        return self.last(1)[0]

    def top(self) -> Any:
        if len(self.stack) <= (self.marks[-1] if self.marks else 0):
            self.damaged("a value is wanted where there is none")
        return self.stack[-1]

    def last(self, count: int) -> list[Any]:
        start = len(self.stack) - count
        if start < (self.marks[-1] if self.marks else 0):
            self.damaged("a value is wanted where there is none")
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def mark(self) -> None:
        self.marks.append(len(self.stack))
        if len(self.marks) > _MARKS:
            self.damaged(f"lists lie over {_MARKS} deep in lists")

    def since_mark(self) -> list[Any]:
        if not self.marks:
            self.damaged("a list ends that never began")
        start = self.marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def extend(self, items: list[Any]) -> None:
        target = self.top()
        if type(target) is not list:
            self.damaged(f"values are added to {type(target).__name__}, want a list")
        target.extend(items)

    def put(self, index: int) -> None:
        self.memo[index] = self.top()

    def memoize(self) -> None:
        self.put(len(self.memo))

    def get(self, index: int) -> Any:
        if index not in self.memo:
            self.damaged(f"value {index} is wanted before it is there")
        return self.memo[index]

    def decimal(self) -> int | bool:
        text = self.line(24)
        if text in (b"00", b"01"):  # how bools are written before protocol 2
            return text == b"01"
        if not re.fullmatch(rb"-?[0-9]{1,20}L?", text):
            self.damaged("a line should be a whole number of up to 20 digits")
        return int(text.removesuffix(b"L"))

    def long(self, width: int) -> int:
        count = self.number(width)
        if count > _INT_BYTES:
            self.damaged(f"a whole number has {count:,} bytes, want up to {_INT_BYTES}")
        return self.signed(count)

    def signed(self, width: int) -> int:
        return int.from_bytes(self.take(width), "little", signed=True)

    def decimal_float(self) -> float:
        text = self.line(40)
        if not re.fullmatch(rb"[-+]?[0-9.]+(e[-+]?[0-9]+)?|-?inf|nan", text) or text.count(b".") > 1:
            self.damaged("a line should be a number")
        return float(text)

    def binary_float(self) -> float:
        return float(np.frombuffer(self.take(8), ">f8")[0])

    def text(self, width: int) -> str:
        raw = self.take(self.number(width))
        if np.frombuffer(raw, np.uint8).max(initial=0) > _LATIN_UTF8:  # wider text would take more memory than the file
            self.damaged("text has characters that are no bytes")
        return self.decoded(raw, "utf-8")

    def text_line(self) -> str:
        raw = self.line()
        if raw.count(b"\\") != raw.count(b"\\u00"):
            self.damaged("text has characters that are no bytes")
        return self.decoded(raw, "raw-unicode-escape")

    def decoded(self, raw: bytes, coding: str) -> str:
        try:
            return raw.decode(coding)
        except UnicodeDecodeError as error:
            self.damaged(f"text is no {error.encoding}: {error.reason}")

    def string_line(self) -> bytes:
        text = self.line().rstrip()
        inside = text[1:-1]
        if len(text) < 2 or text[:1] != text[-1:] or text[:1] not in (b"'", b'"') or not _REPR.fullmatch(inside):
            self.damaged("a string is not written as Python 2 writes it")
        return codecs.escape_decode(inside)[0]  # pyright: ignore[reportReturnType, reportAttributeAccessIssue]

    def name(self, module: str, name: str) -> Name:
        if (module, name) not in NAMES:
            raise ValueError(f"it would run {shown(module)}.{shown(name)}, which no list of images needs")
        return Name(NAMES[module, name])

    def name_on_stack(self) -> Name:
        name, module = self.pop(), self.pop()
        if type(name) is not str or type(module) is not str:
            self.damaged("a name is wanted that is no text")
        return self.name(module, name)

    def protocol(self) -> None:
        version = self.number(1)
        if version > 5:
            self.damaged(f"it is pickled by protocol {version}; want 0 to 5")

    def reduce(self) -> Any:
        given, called = self.pop(), self.pop()
        if type(called) is not Name or type(given) is not tuple:
            self.damaged("something is called that is no name")
        if given and type(given[0]) is str:  # one text may be named often, but each is written once
            self.room -= len(given[0])
        if self.room < 0:
            self.damaged("its bytes would be more than the file's")
        made = make(called.name, given)
        if made is None:
            self.damaged(f"{called.name} is given what neither Python nor NumPy gives it")
        return made

    def build(self) -> None:
        state = self.pop()
        if not build(self.top(), state):
            self.damaged("something is given a state that NumPy does not write; want plain numbers or bools")


def _global(machine: _Machine) -> Name:
    return machine.name(machine.line(256).decode("latin1"), machine.line(256).decode("latin1"))


def _sized(width: int) -> Callable[[_Machine], bytes]:
    return lambda machine: machine.take(machine.number(width))


def _last(count: int) -> Callable[[_Machine], tuple]:
    return lambda machine: tuple(machine.last(count))


_VALUES: dict[bytes, Callable[[_Machine], Any]] = {  # each makes a value, which goes onto the stack
    b"N": lambda m: None,
    b"\x88": lambda m: True,
    b"\x89": lambda m: False,
    b"I": _Machine.decimal,
    b"L": _Machine.decimal,
    b"F": _Machine.decimal_float,
    b"G": _Machine.binary_float,
    b"J": lambda m: m.signed(4),
    b"K": lambda m: m.number(1),
    b"M": lambda m: m.number(2),
    b"\x8a": lambda m: m.long(1),
    b"\x8b": lambda m: m.long(4),
    b"U": _sized(1),
    b"T": _sized(4),
    b"C": _sized(1),
    b"B": _sized(4),
    b"\x8e": _sized(8),
    b"\x96": _sized(8),
    b"X": lambda m: m.text(4),
    b"\x8c": lambda m: m.text(1),
    b"\x8d": lambda m: m.text(8),
    b"V": _Machine.text_line,
    b"S": _Machine.string_line,
    b"]": lambda m: [],
    b"l": _Machine.since_mark,
    b")": lambda m: (),
    b"t": lambda m: tuple(m.since_mark()),
    b"\x85": _last(1),
    b"\x86": _last(2),
    b"\x87": _last(3),
    b"c": _global,
    b"\x93": _Machine.name_on_stack,
    b"R": _Machine.reduce,
    b"g": lambda m: m.get(int(m.decimal())),
    b"h": lambda m: m.get(m.number(1)),
    b"j": lambda m: m.get(m.number(4)),
}
_STEPS: dict[bytes, Callable[[_Machine], Any]] = {
    b"(": _Machine.mark,
    b"a": lambda m: m.extend([m.pop()]),
    b"e": lambda m: m.extend(m.since_mark()),
    b"p": lambda m: m.put(int(m.decimal())),
    b"q": lambda m: m.put(m.number(1)),
    b"r": lambda m: m.put(m.number(4)),
    b"\x94": _Machine.memoize,
    b"b": _Machine.build,
    b"\x80": _Machine.protocol,
    b"\x95": lambda m: m.number(8),  # a frame's length: its content is read as it comes
}
