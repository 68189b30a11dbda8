"""List every source, put the images in the order of their people, check each, write.

Two passes, because RecordIO wants the images of a person together while tar and Parquet files hold them in any order:
the first lists (person, where) and holds no image bytes, the second reads in the order wanted.
"""

import os
from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, groupby, islice
from pathlib import Path
from tempfile import TemporaryFile

import numpy as np

from .images import ordered_map, prepare
from .sources import Identities, open_source
from .writer import RecordWriter

CHUNK = 64  # images handed to a thread at once


@dataclass
class Packed:
    """What a pack did. `refused`: (key, reason) of every image left out; `sizes`: how many images of (width, height).

    `dropped`: people left out for having fewer good images than asked; `shared`: people found in several sources.
    """

    folder: Path
    images: int = 0
    identities: int = 0
    dropped: int = 0
    shared: int = 0
    refused: list[tuple[str, str]] = field(default_factory=list)
    sizes: Counter = field(default_factory=Counter)


def pack(sources, out, *, resize=None, min_images=1, decode=False, workers=None, progress=None):
    """Pack `sources` (paths, see open_source) into the RecordIO folder `out`; returns what was Packed.

    People are numbered 0, 1, ... by their names in order (as numbers where all are); identities.txt says who is who.
    Images that are refused are left out and listed in refused.txt. `resize`: pixels of the shorter side; `min_images`:
    people with fewer good images are left out; `decode`: decode every image; `workers`: threads (default: the cores);
    `progress` is called with (images done, images in all), first with 0. Whatever stops it, train.rec exists only when
    complete. Raises FileExistsError where `out` holds a train.rec, and FileNotFoundError or ValueError on bad sources.
    """
    for name, value in (("resize", resize), ("min_images", min_images), ("workers", workers)):
        if value is not None and value < 1:
            raise ValueError(f"want {name} of at least 1, got {value}")
    out, packed = Path(out), Packed(Path(out))
    _keep_apart(sources, out)
    with RecordWriter(out) as writer, TemporaryFile(dir=out) as spill:
        identities = Identities()
        listed = [open_source(path, identities, spill) for path in sources]
        packed.refused += chain.from_iterable(source.refused for source in listed)
        packed.shared = _shared(listed, len(identities))
        names, rank = _ranked(identities.names())
        rank_N = rank[np.concatenate([np.array(source.identity, np.int32) for source in listed])]
        job = partial(_prepared, listed, rank_N, short=resize, decode=decode)
        order_N = np.argsort(rank_N, kind="stable")
        good = _good(job, order_N, packed, workers or os.cpu_count() or 1, progress)
        kept = _write(writer, good, min_images)
        packed.images, packed.identities, packed.dropped = writer.images, len(kept), len(names) - len(kept)
        _note(packed.folder / "refused.txt", packed.refused)
        if not kept:
            raise ValueError(_nothing_left(packed, min_images))
        _note(packed.folder / "identities.txt", [(label, names[rank]) for label, rank in enumerate(kept)])
        width, height = packed.sizes.most_common(1)[0][0]
        writer.size = height, width
    return packed


def _keep_apart(sources, out):
    for source in sources:
        if Path(source).is_dir() and out.resolve().is_relative_to(Path(source).resolve()):
            raise ValueError(f"{out} lies within the source {source} and would be packed with it; choose another place")


def _ranked(names):
    """The names in order, and the place in it of each name, int32 (names,)."""
    numbers = all(name.isdecimal() for name in names)
    order = sorted(range(len(names)), key=(lambda k: int(names[k])) if numbers else names.__getitem__)
    rank = np.empty(len(names), np.int32)
    rank[order] = np.arange(len(names))
    return [names[k] for k in order], rank


def _shared(sources, people):
    """How many people have images in more than one source."""
    found = np.zeros(people, np.int64)
    for source in sources:
        found[np.unique(np.array(source.identity, np.int64))] += 1
    return int((found > 1).sum())


def _prepared(sources, rank_N, images, **options):
    """For each image (rank, None, bytes, size), or (rank, key, reason, None) where it is refused.

    `images` are numbered through all sources; rank_N holds the rank of the person of each.
    """
    starts = np.cumsum([0, *(len(source.identity) for source in sources)])
    numbers = np.searchsorted(starts, images, side="right") - 1
    results = []
    for rank, number, image in zip(rank_N[images].tolist(), numbers, (images - starts[numbers]).tolist(), strict=True):
        source = sources[number]
        try:
            results.append((rank, None, *prepare(source.read(image), **options)))
        except (ValueError, OSError) as error:
            results.append((rank, source.key(image), str(error), None))
    return results


def _good(job, order_N, packed, workers, progress):
    """Yield (rank, bytes) of the images that are good, in order; tells `packed` of the others and of the sizes."""
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


def _write(writer, good, min_images):
    """Write the people with enough images; returns their ranks, by label."""
    kept = []
    for rank, group in groupby(good, key=lambda pair: pair[0]):
        encoded = (content for _, content in group)
        first = list(islice(encoded, min_images))  # held back until there are enough
        if len(first) == min_images:
            for content in chain(first, encoded):
                writer.add(len(kept), content)
            kept.append(rank)
    return kept


def _note(path, rows):
    """Write rows of (left, right) as lines with a tab; where there are none, no file."""
    if rows:
        path.write_text("".join(f"{_plain(left)}\t{_plain(right)}\n" for left, right in rows), encoding="utf-8")
    else:
        path.unlink(missing_ok=True)


def _plain(text):
    """`text` on one line, without tabs and what else a stranger's file name may hold."""
    return "".join(c if c.isprintable() else "?" for c in str(text))


def _nothing_left(packed, min_images):
    if not packed.dropped and not packed.refused:
        return "the sources list no image at all, so there is nothing to pack"
    if not packed.refused:
        return f"no one has {min_images} images or more, so there is nothing to pack; ask for fewer by --min-images"
    key, reason = packed.refused[0]
    return (
        f"nothing is left to pack: {len(packed.refused):,} images were refused (see {packed.folder / 'refused.txt'}"
        f"), the first, {key}, because: {reason}"
    )
