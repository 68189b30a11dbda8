"""A .bin is a stranger's pickle: whatever its bytes are, it gives images and flags or a sentence, in bounded memory."""

import io
import os
import pickle
import pickletools
import re
import struct
import tempfile
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastmfr.protocols import read_bin, unpickle

IMAGES = [b"\xff\xd8one\n\\'", b"two\x00\x80\r\x1a", b"", bytes(range(256)) * 2]
FLAGS = [True, False]
MEGABYTE = 2**20
SENTENCE = r"some\.bin .*fetch or make it anew"


def as_array(image):
    return np.frombuffer(image, np.uint8)


def as_column(image):  # how older OpenCV encodes
    return as_array(image).reshape(-1, 1).copy()


def read(data):
    """(images, flags) of a .bin with these bytes."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "some.bin"
        path.write_bytes(data)
        images, pairs = read_bin(path)
    assert len(pairs.first) == len(pairs.second) == len(pairs.is_mate)
    return [bytes(images.jpeg(k)) for k in range(images.images)], pairs.is_mate.tolist()


def refused(data, megabytes=100):
    """The sentence with which it is refused; the bounds on time and memory hold."""
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=SENTENCE) as refusal:
            read(data)
        assert tracemalloc.get_traced_memory()[1] < megabytes * MEGABYTE
    finally:
        tracemalloc.stop()
    assert str(refusal.value).isprintable()
    assert len(str(refusal.value)) < 700
    return str(refusal.value)


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("stored", [bytes, bytearray, as_array, as_column])
@pytest.mark.parametrize(
    "flags",
    [
        list,
        tuple,
        np.array,
        lambda flags: [np.bool_(flag) for flag in flags],
        lambda flags: [int(flag) for flag in flags],
        lambda flags: np.array(flags, ">i8"),
        lambda flags: [np.int64(flag) for flag in flags],
        lambda flags: [np.array([flag]) for flag in flags],
        lambda flags: np.array(flags, np.float32),
        lambda flags: list(map(float, flags)),
    ],
)
def test_reads_what_either_pickler_writes(protocol, stored, flags):
    content = ([stored(image) for image in IMAGES], flags(FLAGS))
    for data in (pickle.dumps(content, protocol), pickletools.optimize(pickle.dumps(content, protocol))):
        assert read(data) == (IMAGES, FLAGS)
        assert protocol > 3 or read(data.replace(b"numpy._core", b"numpy.core")) == (IMAGES, FLAGS)
    slow = io.BytesIO()
    pickle._Pickler(slow, protocol).dump(list(content))
    assert read(slow.getvalue()) == (IMAGES, FLAGS)


@pytest.mark.parametrize("protocol", [4, 5])
def test_reads_arrays_of_numpy_1(protocol):
    data = pickle.dumps(([as_array(image) for image in IMAGES], np.array(FLAGS)), protocol)
    for module in (b"multiarray", b"numeric"):
        name = b"numpy._core." + module
        data = data.replace(bytes([len(name)]) + name, bytes([len(name) - 1]) + name.replace(b"_core", b"core"))
    assert b"_core" not in data
    assert read(data) == (IMAGES, FLAGS)


def test_reads_the_strings_of_python_2():
    binary = b"".join(b"T" + struct.pack("<i", len(image)) + image + b"q\x05" for image in IMAGES)
    assert read(b"\x80\x02]q\x01(" + binary + b"e]q\x02(\x88\x89e\x86q\x03.") == (IMAGES, FLAGS)
    text = b"".join(b"S" + repr(image)[1:].encode() + b"\np5\na" for image in IMAGES)
    assert read(b"((lp1\n" + text + b"(lp2\nI01\naI00\natp3\n.") == (IMAGES, FLAGS)
    # its arrays: str in place of bytes, 0 and 1 in place of False and True
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01K\x02\x85cnumpy\n"
        b"dtype\nU\x02b1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89U\x02\x01\x00tb"
    )
    assert read(b"\x80\x02](" + binary.replace(b"q\x05", b"") + b"e" + array + b"\x86.") == (IMAGES, FLAGS)


class Calls:
    def __init__(self, *reduced):
        self.reduced = reduced

    def __reduce__(self):
        return self.reduced


def in_pair(value):
    return ([value, b""], [True])


RECONSTRUCT = np.zeros(1).__reduce__()[0]
FORGED = [  # what NumPy's own functions would make of it is a crash, or an address of the file's choice
    Calls(RECONSTRUCT, (np.ndarray, (0,), b"b"), (1, (1,), np.dtype("O"), False, b"A" * 8)),
    Calls(np.ndarray, ((1,), np.dtype("O"), b"A" * 8)),
    Calls(np.ndarray, ((10**9,), np.dtype("u1"))),
    Calls(RECONSTRUCT, (np.ndarray, (10**10,), b"b")),
    Calls(RECONSTRUCT, (np.ndarray, (0,), b"b"), (1, (10**12,), np.dtype("u1"), False, b"A" * 8)),
    Calls(RECONSTRUCT, (np.ndarray, (0,), b"b"), (1, (-1,), np.dtype("u1"), False, b"A" * 8)),
    Calls(RECONSTRUCT, (np.ndarray, (0,), b"b"), (1, (1,), np.dtype("u1"), False, [b"A"])),
    Calls(RECONSTRUCT, (np.ndarray, (0,), b"b")),
    Calls(np.dtype, ("u1", False, True), (3, "|", ("u1", (2**40,)), None, None, 2**40, 1, 63)),
    Calls(np.dtype, ("V8", False, True), (3, "|", None, ("a",), {"a": (np.dtype("O"), 0)}, 8, 1, 63)),
    Calls(np.dtype, ("O", False, True)),
    Calls(np.dtype, ("u1,O", False, True)),
    Calls(np.dtype, ([("a", "O")], 0, 1)),
    Calls(bytearray, (6 * 10**9,)),
    Calls(bytes, (6 * 10**9,)),
    Calls(bytearray, ([1],)),
    Calls(os.system, ("true",)),
    np.array([b"a", None], object),
    np.zeros(3, "f4,O"),
    np.zeros((2, 2), np.uint8),
    np.zeros(3, "i4"),
    np.datetime64("2020"),
    np.void(b"a"),
    {"a": 1},
    {1},
    {},
    1 + 2j,
    None,
    5,
    2**70,
    "text",
    "☺",
    [b""],
    (),
    [[[[]]]],
    np.ndarray,
    np.dtype,
    np.dtype("u1"),
    bytes,
    0.5,
    True,
    np.uint8(3),
    np.array(["a"]),
    range(3),
    frozenset(),
]


@pytest.mark.parametrize("value", FORGED)
def test_refuses_whatever_else_a_file_says(value):
    for content in (in_pair(value), ([b"", b""], value), (value, [True]), value, (value,)):
        for protocol in (0, 2, 5):
            refused(pickle.dumps(content, protocol), megabytes=8)
    if not isinstance(value, bool):
        refused(pickle.dumps(([b"", b""], [value])), megabytes=8)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ((5, [True]), "list of encoded images, but in its place it holds int 5"),
        (None, "but it holds NoneType"),
        (([b"", b""], None), "list of flags, but in its place it holds NoneType"),
        (([b"", b""], ["no"]), "flags that are True or False, 1 or 0, but it holds str"),
        (([b"", b""], [2]), "but it holds int 2"),
        (([b"", b""], [float("nan")]), "but it holds float nan"),
        (([b"", b""], np.array([7])), "but it holds int 7"),
        (in_pair(np.zeros(3, "i4")), "encoded images, but it holds an array of <i4"),
        (in_pair(np.zeros((2, 2), np.uint8)), "array of more than one row"),
        (in_pair(np.zeros(1, object)), "array of dtype O8?; want numbers or bools"),
        (in_pair(Calls(bytearray, (6 * 10**9,))), "bytearray is given what neither Python nor NumPy gives it"),
        (in_pair(Calls(os.system, ("true",))), r"it would run (posix|nt)\.system"),
        (in_pair({1: 2}), "pickle's EMPTY_DICT is found"),
    ],
)
def test_says_what_was_found(content, message):
    with pytest.raises(ValueError, match=message):
        read(pickle.dumps(content))


LONG = b"a" * 1_000_000
ENCODED_OFTEN = b"c_codecs\nencode\nq\0X\0\0\4\0" + LONG[: 2**18] + b"X\6\0\0\0latin1\x86q\1" + b"h\0h\1R" * 90_000
BOOLS_OFTEN = (
    b"\x80\2cnumpy\ndtype\nU\2b1K\0K\1\x87Rq\0cnumpy.core.multiarray\n_reconstruct\nq\1cnumpy\nndarray\nK\0"
    b"\x85U\1b\x87q\2(K\1J\0\0\x10\0\x85h\0\x89B\0\0\x10\0" + bytes(2**20) + b"tq\3" + b"h\1h\2Rh\3b" * 2_000
)
BOMBS = {  # for a reader that takes a tenth of the usual steps, and so a tenth of the time and memory
    "lists": b"]" * 100_000,
    "marks": b"(" * 100_000,
    "ints": b"J1234" * 30_000,
    "memos": b"]\x94" * 200_000,
    "deep tuples": b"))" + b"\x85" * 20_000 + b"\x86.",
    "deep lists": b"]" * 12_000 + b"a" * 11_999 + b".",
    "memo far off": b"Nr\xff\xff\xff\xffp99999999\n.",
    "a list in itself": b"]q\0h\0a.",
    "twice itself": b"]q\0(h\0h\0e.",
    "a long int": b"\x8b\xff\xff\xff\x7f" + LONG,
    "a longer int": b"\x8b\x40\x42\x0f\0" + LONG + b".",
    "digits": b"I" + b"9" * 10**6 + b"\n.",
    "long digits": b"L" + b"9" * 10**6 + b"L\n.",
    "exponent": b"F1e999999\n.",
    "no end of line": b"V" + LONG,
    "bytes": b"B\xff\xff\xff\xff.",
    "more bytes": b"\x8e" + b"\xff" * 8,
    "bytearray": b"\x96\0\0\0\0\1\0\0\0a",
    "a frame": b"\x80\x04\x95" + b"\xff" * 8,
    "wide text": b"X" + struct.pack("<I", 10**6 + 4) + LONG + "\N{GRINNING FACE}".encode() + b".",
    "wide line": b"V" + LONG + b"\\U0001f600\n.",
    "no text": b"X\1\0\0\0\x80.",
    "an escape cut": b"V\\u00\n.",
    "text encoded often": ENCODED_OFTEN,
    "bools named often": BOOLS_OFTEN,
    "escapes": b"S'\\q\\400\\x'\n.",
    "quotes": b"S'\n.",
    "a float": b"F1_0\n.",
    "a name to see": b"c\x1b[31mos\n\x07system\n.",
    "inst": b"(ios\nsystem\n.",
    "extension": b"\x82\1.",
    "persistent": b"Pa\n.",
    "newobj": b"cnumpy\ndtype\n)\x81.",
    "nothing": b"",
    "a picture": b"\xff\xd8\xff\xe0",
    "left over": b"NN.",
    "protocol": b"\x80\x06N.",
    "get": b"h\0.",
    "underflow": b"\x87.",
    "below the mark": b"N(\x85.",
    "no mark": b"t.",
    "append to nothing": b"a.",
    "no list": b"NNa.",
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_bomb_is_refused_in_time_and_memory(bomb, monkeypatch):
    monkeypatch.setattr(unpickle, "_OPCODES", unpickle._OPCODES // 10)
    refused(BOMBS[bomb], megabytes=10)


def test_a_bomb_that_takes_all_the_steps_there_may_be_is_refused_in_time_and_memory():
    assert "it takes over 312,500 steps to read its 4,000,000 bytes" in refused(b"]\x94" * 2_000_000)


@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_a_file_cut_anywhere_is_refused(protocol):
    data = pickle.dumps(([as_array(image) for image in IMAGES[:2]], np.array([True])), protocol)
    for end in range(len(data)):
        with pytest.raises(ValueError, match="cannot be read"):
            read(data[:end])


GOOD = [
    pickle.dumps((images, flags), protocol)
    for protocol in (0, 2, 3, 4, 5)
    for images, flags in (
        ([b"one", b"two"], [True]),
        ([as_array(b"one"), bytearray(b"two")], np.array([True])),
        ((b"", b"a"), [np.bool_(False)]),
    )
]
OPCODES = [opcode.code.encode("latin1") for opcode in pickletools.opcodes]


@st.composite
def damaged(draw):
    """A good file after one to four accidents."""
    data = draw(st.sampled_from(GOOD))
    for _ in range(draw(st.integers(1, 4))):
        at, length = draw(st.integers(0, len(data))), draw(st.integers(0, 12))
        other = draw(st.sampled_from(GOOD))
        start = draw(st.integers(0, len(other)))
        put = draw(st.sampled_from(OPCODES) | st.binary(max_size=8) | st.just(other[start : start + 40]))
        data = data[:at] + put + data[at + length :]
    return data


@settings(
    max_examples=120, deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow]
)
@given(damaged() | st.lists(st.sampled_from(OPCODES) | st.binary(max_size=6), max_size=60).map(b"".join))
def test_any_bytes_give_a_value_or_a_sentence(data):
    sentence = "some.bin is read, or: fetch or make it anew"
    tracemalloc.start()
    try:
        images, flags = read(data)
        assert len(images) == 2 * len(flags)
        assert sum(map(len, images)) <= len(data) ** 2
    except ValueError as refusal:
        sentence = str(refusal)
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < MEGABYTE
    assert re.search(SENTENCE, sentence)
