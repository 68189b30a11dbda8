"""Files from anywhere: whatever the bytes, a reader gives a value or one of our sentences, within time and memory.

Each target writes a good file, the bytes are damaged at random, and the reader reads on. `make fuzz` takes minutes,
with other draws; here a target takes half a second. See also test_recordio_fuzz.py and test_unpickle.py.
"""

import json
import os
import resource
import shutil
import signal
import time
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from evaluation_fakes import class_folder, face, lfw_bin
from pack_fakes import parquet_of, tar_of
from recordio_files import native, write
from small_runs import trained
from test_protocols_lists import ijb

from fastmfr.config import load_config
from fastmfr.domains import open_domain
from fastmfr.pack.source import Identities
from fastmfr.pack.sources import open_source
from fastmfr.protocols import read_bin, read_folds, read_pairs, read_templates
from fastmfr.report.folder import read
from fastmfr.results import Results, TargetResult
from fastmfr.training.checkpoint import Checkpoints, DamagedState
from fastmfr.training.logbook import Logbook
from fastmfr.training.resuming import MadeWith
from fastmfr.weights import load_weights, save_weights

SECONDS = float(os.environ.get("FASTMFR_FUZZ_SECONDS", 0.4))  # of a target
SEED = int(os.environ.get("FASTMFR_FUZZ_SEED", 0))
OURS = (ValueError, OSError, FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, DamagedState)
LONGEST, MOST = 5, 1 << 30  # seconds and bytes that one file may take to read
TOKENS = [
    *(
        b"",
        b"\0",
        b"\xff" * 8,
        b"\n",
        b"\r\n",
        b"\t",
        b"," * 50,
        b"[" * 3000,
        b"{" * 3000,
        b'"',
        b"\\",
        b"\xef\xbb\xbf",
    ),
    *(b"-1", b"0", b"1e999", b"NaN", b"9" * 400, b"18446744073709551616", b"../" * 20, b"/dev/zero", b"%s%n", b"null"),
    *(b"&a *a", b"!!python/object/apply:os.system", b"<<: *a", b"\xed\xa0\x80", "\u202e\u0000ß".encode(), b"\x1b[2J"),
    *((1 << k).to_bytes(8, "little") for k in (7, 15, 31, 32, 33, 62, 63)),
    *((2**32 - 1).to_bytes(4, "little"), (2**64 - 1).to_bytes(8, "little"), (2**31).to_bytes(4, "big")),
]


NETWORK, _ = STATE = trained(1, seed=1)


def rows():
    """(encoded image, label) of three people."""
    return [(face(k, 0), k % 3) for k in range(5)]


def of_list(folder):
    """A list of images and labels, as pack reads it."""
    for k in range(4):
        (folder / f"{k}.jpg").write_bytes(face(k, 0))
    (folder / "list.txt").write_text("".join(f"{k}.jpg\tp{k // 2}\n" for k in range(4)))


def of_gallery(folder):
    class_folder(folder, people=4)
    for name, image in (("gallery", 0), ("probe", 1)):
        (folder / f"{name}.txt").write_text("".join(f"p{k:02}/{image}.jpg\n" for k in range(4)))


def of_pairs(folder):
    class_folder(folder, people=4)
    (folder / "pairs.txt").write_text(
        "".join(f"p{k:02}/0.jpg p{(k + j) % 4:02}/1.jpg {1 - j} {k}\n" for k in range(4) for j in (0, 1))
    )


def of_run(folder):
    (folder / "config.yaml").write_text("data:\n  sources: {a: b}\n")
    (folder / "metrics.jsonl").write_text(
        "".join(json.dumps({"stage": "meta", "step": k, "loss": 1.5}) + "\n" for k in range(4))
    )
    (folder / "bad_images.tsv").write_text("a/1.jpg\tempty\nb\tcut\n")
    Results(targets={"a": TargetResult(unseen=True)}, sources=["b"], seconds={"meta": 3.0}).save(
        folder / "results.json"
    )
    (folder / "made_with.json").write_text(
        json.dumps({"settings": {"seed": 1}, "data": {"a": {"people": 3, "images": 4}}})
    )


def of_state(folder):
    Checkpoints(folder, "meta").save(1, *trained(1))


def of_recipe(folder):
    shutil.copy(Path(__file__).parent.parent / "fastmfr/recipes/mfr.yaml", folder / "mine.yaml")


def read_records(folder):
    domain = open_domain(folder)
    for image in range(domain.images):
        domain.jpeg(image), domain.key(image)


def read_source(path):
    with open(os.devnull, "w+b") as spill:
        source = open_source(path, Identities(), spill)
        for image in range(len(source.identity)):
            source.key(image)


def read_run(folder):
    read(folder)
    MadeWith(folder)
    with Logbook(folder) as logbook:
        logbook.rewind("meta", 2)


# name: (writes the good files into a folder, the files that are damaged, reads them)
TARGETS = {
    "bin": (lambda folder: lfw_bin(folder / "a.bin"), ["a.bin"], lambda folder: read_bin(folder / "a.bin")),
    "pairs": (of_pairs, ["pairs.txt"], lambda folder: read_pairs(folder / "pairs.txt")),
    "gallery": (of_gallery, ["gallery.txt", "probe.txt"], read_folds),
    "templates": (ijb, None, read_templates),
    "list": (of_list, ["list.txt"], lambda folder: read_source(folder / "list.txt")),
    "tar": (lambda folder: tar_of(folder, rows()), ["a.tar"], lambda folder: read_source(folder / "a.tar")),
    "parquet": (
        lambda folder: parquet_of(folder, rows()),
        ["a.parquet"],
        lambda folder: read_source(folder / "a.parquet"),
    ),
    "records": (lambda folder: write(folder, native([2, 3, 1])), ["train.rec", "train.idx"], read_records),
    "weights": (
        lambda folder: save_weights(trained(0)[0], folder / "w.safetensors"),
        ["w.safetensors"],
        lambda folder: load_weights(NETWORK, folder / "w.safetensors"),
    ),
    "pth": (
        lambda folder: torch.save(trained(0)[0].state_dict(), folder / "w.pth"),
        ["w.pth"],
        lambda folder: load_weights(NETWORK, folder / "w.pth"),
    ),
    "state": (of_state, None, lambda folder: Checkpoints(folder, "meta", lambda text: None).resume(*STATE)),
    "run": (of_run, None, read_run),
    "recipe": (of_recipe, ["mine.yaml"], lambda folder: load_config(folder / "mine.yaml")),
}


class TooMuch(Exception):
    """A reader took longer, or more memory, than it may."""


def damaged(rng, content):
    """The bytes with one to four changes: bits, cuts, insertions of what readers trip over, parts moved."""
    content = bytearray(content)
    for _ in range(rng.integers(1, 5)):
        at, length = int(rng.integers(len(content) + 1)), int(rng.geometric(0.05))
        match rng.integers(7):
            case 0 if content:
                content[at % len(content)] ^= 1 << int(rng.integers(8))
            case 1:
                del content[at:]
            case 2:
                del content[at : at + length]
            case 3:
                content[at:at] = TOKENS[rng.integers(len(TOKENS))]
            case 4:
                token = TOKENS[rng.integers(len(TOKENS))]
                content[at : at + len(token)] = token
            case 5:
                content[at:at] = content[at // 2 : at // 2 + length]
            case _:
                content[at : at + length] = rng.bytes(length)
    return bytes(content)


def within_bounds(call):
    """Calls it with a limit on time and address space; TooMuch if it goes beyond."""

    def late(number, frame):
        raise TooMuch(f"more than {LONGEST} s")

    before, limits = signal.signal(signal.SIGALRM, late), resource.getrlimit(resource.RLIMIT_AS)
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    signal.setitimer(signal.ITIMER_REAL, LONGEST)
    resource.setrlimit(resource.RLIMIT_AS, (size + MOST, limits[1]))
    try:
        return call()
    except MemoryError:
        raise TooMuch(f"more than {MOST >> 20} MiB") from None
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.filterwarnings("ignore")  # what a library warns of in damaged files is its own affair
@pytest.mark.parametrize("name", TARGETS)
def test_any_bytes_give_a_value_or_one_of_our_sentences(name, tmp_path):
    make, damage, reader = TARGETS[name]
    (tmp_path / "good").mkdir()
    make(tmp_path / "good")
    files = {
        path.relative_to(tmp_path / "good"): path.read_bytes()
        for path in (tmp_path / "good").rglob("*.*")
        if path.is_file()
    }
    victims = [path for path in files if damage is None or str(path) in damage]
    victims = [path for path in victims if path.suffix != ".jpg"]
    reader(tmp_path / "good")
    place, outcomes, end, number = tmp_path / "bad", Counter(), time.monotonic() + SECONDS, 0
    longest, memory = 0.0, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    while number < 5 or time.monotonic() < end:
        rng = np.random.default_rng([SEED, number])
        victim = victims[rng.integers(len(victims))]
        content = damaged(rng, files[victim])
        for path, good in files.items():
            (place / path).parent.mkdir(parents=True, exist_ok=True)
            (place / path).write_bytes(content if path == victim else good)
        begin = time.monotonic()
        outcome = outcome_of(partial(reader, place))
        longest = max(longest, time.monotonic() - begin)
        named = f"{victim}, FASTMFR_FUZZ_SEED={SEED}, number {number}, kept in {place}"
        assert outcome is None or type(outcome) in OURS, f"{named}: {outcome!r}"
        outcomes[type(outcome).__name__] += 1
        shutil.rmtree(place)
        number += 1
    memory = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory) / 1024
    bounds = f"{longest:.2f} s at most, peak up {memory:.0f} MiB"
    print(f"{name}: {number} files, {dict(outcomes)}; NoneType is a value; {bounds}")


def outcome_of(call):
    """The error that reading ends with, or None."""
    try:
        within_bounds(call)
    except Exception as error:
        return error
    return None


def test_a_reader_that_takes_too_much_is_found():
    with pytest.raises(TooMuch, match="1024 MiB"):
        within_bounds(lambda: bytearray(2 * MOST))
