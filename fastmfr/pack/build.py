"""List every source, put the images in the order of their people, check each, write.

Two passes, because RecordIO stores the images of a person together while tar and Parquet files hold images in any
order: the first pass lists (person, place) without image bytes, the second reads the images in the order of people.
"""

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, groupby, islice
from pathlib import Path
from tempfile import TemporaryFile
from typing import BinaryIO

import numpy as np

from fastmfr.image_set import part_of

from .aligner import Aligner
from .images import align, ordered_map, prepare
from .names import NAMES, alike, escaped, printable
from .source import Identities, Reading, Source
from .sources import open_source
from .writer import RecordWriter

CHUNK = 64  # images handed to a thread at once


@dataclass
class Packed:
    """What was packed and what was left out.

    Attributes:
        folder: the RecordIO folder.
        images: the number of images packed.
        identities: the number of people packed.
        dropped: the number of people left out, who have fewer good images than asked.
        shared: the number of people found in several sources.
        refused: (key, reason) of every bad image.
        sizes: the number of images of each (width, height), in pixels.
        notes: sentences on what was passed over or is unusual in the sources.
    """

    folder: Path
    images: int = 0
    identities: int = 0
    dropped: int = 0
    shared: int = 0
    refused: list[tuple[str, str]] = field(default_factory=list)
    sizes: Counter = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)


def pack(
    sources: Sequence[str | os.PathLike],
    out: str | os.PathLike,
    *,
    resize: int | None = None,
    min_images: int = 1,
    decode: bool = False,
    landmarks: Sequence[str | os.PathLike] = (),
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    reading: Reading | None = None,
) -> Packed:
    """Pack images of people into the RecordIO folder `out`, whose train.rec appears only when complete.

    identities.txt lists the people, numbered in the order of names; refused.txt lists the bad images, left out.

    Args:
        sources: paths, as `open_source` takes them. The same name in two sources is one person.
        out: the folder to write, outside the sources.
        resize: the shorter side in pixels; None keeps all images as they are. With landmarks, the side of the crops;
            None takes 112.
        min_images: people with fewer good images are left out.
        decode: whether to decode every image, to find damage that the markers do not show.
        landmarks: files of five points an image, by which images are aligned: one for all sources, or one for each. An
            image without landmarks is refused.
        workers: the number of threads; by default one a core.
        progress: called with (images done, images in all), first with 0 done.
        reading: names of columns and members that are not the usual ones.

    Raises:
        FileExistsError: `out` holds a train.rec.
        FileNotFoundError: a source is missing.
        ValueError: a source is damaged or no source, no image is left to pack, or a number is below 1.
        ImportError: a source is Parquet, and pyarrow is missing.
    """
    out, packed = Path(out), Packed(Path(out))
    _check(sources, out, resize=resize, min_images=min_images, workers=workers)
    aligner = Aligner(landmarks, len(sources), resize) if landmarks else None
    with RecordWriter(out) as writer, TemporaryFile(dir=out) as spill:
        listed, names, rank_N = _listed(sources, packed, spill, reading)
        job = partial(_prepared, listed, rank_N, partial(prepare, short=resize, decode=decode), aligner)
        order_N = np.argsort(rank_N, kind="stable")
        good = _good(job, order_N, packed, workers or os.cpu_count() or 1, progress)
        _write(writer, good, names, packed, min_images)
    packed.notes += aligner.notes() if aligner else []
    return packed


def _listed(
    sources: Sequence[str | os.PathLike], packed: Packed, spill: BinaryIO, reading: Reading | None
) -> tuple[list[Source], list[str], np.ndarray]:
    """The sources, the names of all people in order, and the place in that order of each image's person, (N,)."""
    identities = Identities()
    listed = [open_source(path, identities, spill, reading) for path in sources]
    packed.refused += chain.from_iterable(source.refused for source in listed)
    packed.notes += chain.from_iterable(source.notes for source in listed)
    if similar := alike(identities.names()):
        packed.notes.append(
            f"{len(similar):,} names differ from another only in the blanks around them, and stay different people: "
            f"{', '.join(map(repr, similar[:4]))}"
        )
    shared_K = _shared(listed, len(identities))
    packed.shared = len(shared_K)
    numbers = [name for name in map(identities.names().__getitem__, shared_K.tolist()) if name.isdecimal()]
    if numbers:
        packed.notes.append(
            f"{len(numbers):,} labels in several sources are bare numbers (as {numbers[0]}), which mean someone else "
            "in most data sets; they were packed as one person each: if that is wrong, pack the sources one by one"
        )
    names, rank = _ranked(identities.names())
    return listed, names, rank[np.concatenate([np.array(source.identity, np.int32) for source in listed])]


def _check(sources: Sequence[str | os.PathLike], out: Path, **numbers: int | None) -> None:
    for name, value in numbers.items():
        if value is not None and value < 1:
            raise ValueError(f"want {name} of at least 1, got {value}")
    for source in sources:
        if Path(source).is_dir() and out.resolve().is_relative_to(Path(source).resolve()):
            raise ValueError(f"{out} lies within the source {source} and would be packed with it; choose another place")


def _ranked(names: list[str]) -> tuple[list[str], np.ndarray]:
    """The names in order, and the place of each name in that order, int32 (names,)."""
    numbers = all(name.isdecimal() for name in names)
    order = sorted(range(len(names)), key=(lambda k: int(names[k])) if numbers else names.__getitem__)
    rank = np.empty(len(names), np.int32)
    rank[order] = np.arange(len(names))
    return [names[k] for k in order], rank


def _shared(sources: list[Source], people: int) -> np.ndarray:
    """The numbers of the people who have images in more than one source, int64 (K,)."""
    found = np.zeros(people, np.int64)
    for source in sources:
        found[np.unique(np.array(source.identity, np.int64))] += 1
    return np.flatnonzero(found > 1)


def _prepared(
    sources: list[Source],
    rank_N: np.ndarray,
    prepared: Callable[[bytes], tuple],
    aligner: Aligner | None,
    images: np.ndarray,
) -> list[tuple]:
    """For each image (rank, None, bytes, size), or (rank, key, reason, None) if the image is refused.

    `images` are numbers over all sources, one source after the other; rank_N holds the rank of each image's person.
    """
    starts = np.cumsum([0, *(len(source.identity) for source in sources)])
    numbers = part_of(starts, images)
    results = []
    for rank, number, image in zip(rank_N[images].tolist(), numbers, (images - starts[numbers]).tolist(), strict=True):
        source = sources[number]
        try:
            made = _aligned(aligner, source, number, image) if aligner else prepared(source.read(image))
            results.append((rank, None, *made))
        except (ValueError, OSError) as error:
            results.append((rank, source.key(image), str(error), None))
    return results


def _aligned(aligner: Aligner, source: Source, number: int, image: int) -> tuple[bytes, tuple[int, int]]:
    """The aligned crop of an image of source `number`, and its (width, height)."""
    key = source.key(image)
    landmark_52 = aligner.landmarks_of(number, image, key)
    crop, size = align(source.read(image), landmark_52, aligner.size)
    aligner.note_size(number, image, key, landmark_52, size)
    return crop, (aligner.size, aligner.size)


def _good(
    job: Callable[[np.ndarray], list[tuple]],
    order_N: np.ndarray,
    packed: Packed,
    workers: int,
    progress: Callable[[int, int], None] | None,
) -> Iterator[tuple[int, bytes]]:
    """Yield (rank, bytes) of the good images, in order; note the bad images and all sizes in `packed`."""
    chunks = (order_N[at : at + CHUNK] for at in range(0, len(order_N), CHUNK))
    done = 0
    if progress:
        progress(0, len(order_N))
    for results in ordered_map(job, chunks, workers):
        for rank, key, content, size in results:
            if size is None:
                packed.refused.append((key, content))
            else:
                packed.sizes[size] += 1
                yield rank, content
        done += len(results)
        if progress:
            progress(done, len(order_N))


def _write(
    writer: RecordWriter, good: Iterable[tuple[int, bytes]], names: list[str], packed: Packed, min_images: int
) -> None:
    """Write the people with enough good images, and the lists beside the images."""
    kept = _write_people(writer, good, min_images)
    packed.images, packed.identities, packed.dropped = writer.images, len(kept), len(names) - len(kept)
    _note(packed.folder / "refused.txt", [(printable(key), printable(reason)) for key, reason in packed.refused])
    if not kept:
        raise ValueError(_nothing_left(packed, min_images))
    _note(packed.folder / NAMES, [(str(label), escaped(names[rank])) for label, rank in enumerate(kept)])
    width, height = packed.sizes.most_common(1)[0][0]
    writer.size = height, width


def _write_people(writer: RecordWriter, good: Iterable[tuple[int, bytes]], min_images: int) -> list[int]:
    """Write the people with enough good images; return their ranks, by label."""
    kept = []
    for rank, group in groupby(good, key=lambda pair: pair[0]):
        encoded = (content for _, content in group)
        first = list(islice(encoded, min_images))  # held back until there are enough
        if len(first) == min_images:
            for content in chain(first, encoded):
                writer.add(len(kept), content)
            kept.append(rank)
    return kept


def _note(path: Path, rows: Sequence[tuple[str, str]]) -> None:
    """Write rows of (left, right) as lines with a tab; without rows, remove the file."""
    if rows:
        path.write_text("".join(f"{left}\t{right}\n" for left, right in rows), encoding="utf-8")
    else:
        path.unlink(missing_ok=True)


def _nothing_left(packed: Packed, min_images: int) -> str:
    if not packed.dropped and not packed.refused:
        return "the sources list no image at all, so there is nothing to pack"
    if not packed.refused:
        return f"no one has {min_images} images or more, so there is nothing to pack; ask for fewer by --min-images"
    key, reason = packed.refused[0]
    return (
        f"nothing is left to pack: {len(packed.refused):,} images were refused (see {packed.folder / 'refused.txt'}"
        f"), the first, {key}, because: {reason}"
    )
