"""Pack a list of pairs and its images into one InsightFace .bin: a pickle of (2 N encoded images, N flags same or not).

InsightFace's verification and `fastmfr.protocols.read_bin` read such a file. Images 2 k and 2 k + 1 are pair k, and
there are ten folds in order.
"""

import os
import pickle
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from fastmfr.atomic import replacing
from fastmfr.image_set import ImageSet
from fastmfr.protocols.lists import PairList, read_pairs

from .images import ordered_map, prepare

__all__ = ["CHUNK", "FOLDS", "PROTOCOL", "PackedPairs", "pack_pairs"]

PROTOCOL = 4  # of the pickle: the newest one that every Python 3 of today reads
FOLDS = 10  # that a .bin is read in
CHUNK = 64  # images handed to a thread at once


@dataclass
class PackedPairs:
    """What was packed.

    Attributes:
        path: the .bin file.
        pairs: the number of pairs.
        mates: how many of them show one person.
        sizes: the number of images of each (width, height), in pixels.
        notes: sentences on what is unusual in the list.
    """

    path: Path
    pairs: int
    mates: int
    sizes: Counter = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)


def pack_pairs(
    listing: str | os.PathLike,
    root: str | os.PathLike,
    out: str | os.PathLike,
    *,
    resize: int | None = None,
    decode: bool = False,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> PackedPairs:
    """Write the images of a list of pairs into the file `out`, which appears only when complete.

    Args:
        listing: the list, as `read_pairs` reads it: LFW's pairs.txt, or lines `path path 0|1 [fold]`.
        root: the folder that the paths in the list are relative to.
        out: the file to write, whose name ends in .bin. Pairs with folds are written in the order of their folds.
        resize: the shorter side in pixels; None keeps all images as they are.
        decode: whether to decode every image, to find damage that the markers do not show.
        workers: the number of threads; by default one a core.
        progress: called with (images done, images in all), first with 0 done.

    Raises:
        FileExistsError: `out` is there.
        FileNotFoundError: there is no list, or no folder `root`.
        ValueError: a line is no pair, `out` is no .bin, a number is below 1, or images of pairs cannot be used.
    """
    out = Path(out)
    _check(Path(root), out, resize=resize, workers=workers)
    images, pairs = read_pairs(listing, root=root)
    order_N = np.arange(len(pairs.first)) if pairs.fold is None else np.argsort(pairs.fold, kind="stable")
    packed = PackedPairs(out, len(order_N), int(pairs.is_mate.sum()), notes=[*images.notes, *_notes(pairs)])
    wanted = np.stack([pairs.first[order_N], pairs.second[order_N]], 1).ravel()
    job = partial(_prepared, images, partial(prepare, short=resize, decode=decode))
    encoded = _encoded(job, wanted, packed, workers or os.cpu_count() or 1, progress)
    with replacing(out) as partial_file, partial_file.open("wb") as file:
        pickle.dump((encoded, pairs.is_mate[order_N].tolist()), file, PROTOCOL)
    return packed


def _check(root: Path, out: Path, **numbers: int | None) -> None:
    for name, value in numbers.items():
        if value is not None and value < 1:
            raise ValueError(f"want {name} of at least 1, got {value}")
    if not root.is_dir():
        raise FileNotFoundError(f"there is no folder {root}; want the one that the paths of the pairs are relative to")
    if out.suffix != ".bin":
        raise ValueError(f"want a file that ends in .bin to write pairs to, got {out}")
    if out.exists():
        raise FileExistsError(f"{out} is there already; choose another name or delete it first")


def _encoded(
    job: Callable[[np.ndarray], list[tuple]],
    wanted: np.ndarray,
    packed: PackedPairs,
    workers: int,
    progress: Callable[[int, int], None] | None,
) -> list[bytes]:
    """The bytes of the images `wanted`; their sizes go to `packed`. Raises ValueError if some cannot be used."""
    encoded, refused, done = [], {}, 0
    chunks = (wanted[at : at + CHUNK] for at in range(0, len(wanted), CHUNK))
    if progress:
        progress(0, len(wanted))
    for results in ordered_map(job, chunks, workers):
        for key, content, size in results:
            if size is None:
                refused[key] = content
            else:
                encoded.append(content)
                packed.sizes[size] += 1
        done += len(results)
        if progress:
            progress(done, len(wanted))
    if refused:
        raise ValueError(_refusal(refused))
    return encoded


def _prepared(images: ImageSet, prepared: Callable[[bytes], tuple], numbers: np.ndarray) -> list[tuple]:
    """(key, bytes, size) of each image, or (key, reason, None) if the image cannot be used."""
    results = []
    for number in numbers.tolist():
        try:
            results.append((images.key(number), *prepared(bytes(images.jpeg(number)))))
        except (ValueError, OSError) as error:
            results.append((images.key(number), str(error), None))
    return results


def _notes(pairs: PairList) -> list[str]:
    """A sentence if the ten folds in order that a .bin is read in are not those of the list."""
    number = len(pairs.first)
    folds = FOLDS if pairs.fold is None else len(np.unique(pairs.fold))
    sizes = [number // FOLDS] if pairs.fold is None else np.unique(pairs.fold, return_counts=True)[1].tolist()
    if folds == FOLDS and number % FOLDS == 0 and len(set(sizes)) == 1:
        return []
    return [
        f"{number:,} pairs in {folds} folds: a .bin holds no folds, and is read as {FOLDS} equal ones in order, so its "
        "accuracy is over other folds than the list's"
    ]


def _refusal(refused: dict[str, str]) -> str:
    key, reason = next(iter(refused.items()))
    return (
        f"{len(refused):,} images of the pairs cannot be used, the first, {key}, because: {reason}. A .bin needs both "
        "images of every pair: put these images in place, or remove their pairs from the list"
    )
