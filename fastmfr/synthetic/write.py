"""Synthetic domains on disk: class folders or InsightFace records, of real JPEGs.

`identities` is a number, for the identities 0 to that number less one, or a range of them. Ranges keep people apart,
for example range(0, 900) to train on and range(900, 1000) to score.
"""

import io
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from fastmfr.pack import RecordWriter

from .domains import CATALOG, DOMAINS
from .identity import is_single
from .render import check, render

Mapper = Callable[..., Iterable]

VERSION = 1  # of the look: raised if the same numbers make other pixels, so that old data is not taken for new


def _encode(identity: int, domain: str, images: int, size: int, seed: int, single: float, twins: float) -> list[bytes]:
    """The JPEGs of one identity: images 0..images - 1, or image 0 of a person with a single image."""
    from PIL import Image

    number = images_of(identity, images, single)
    pixels = render(domain, np.full(number, identity), np.arange(number), size=size, seed=seed, twins=twins)
    encoded = []
    for one in pixels:
        buffer = io.BytesIO()
        Image.fromarray(one).save(buffer, "JPEG", quality=CATALOG[domain].quality)
        encoded.append(buffer.getvalue())
    return encoded


def images_of(identity: int, images: int, single: float) -> int:
    """Return how many images there are of an identity: `images`, or 1 of a share `single` of all identities."""
    return 1 if is_single(identity, single) else images


def _people(identities: int | range, images: int) -> range:
    """`identities` as a range; ValueError if it is empty."""
    people = range(identities) if isinstance(identities, int) else identities
    if not isinstance(people, range) or not people or images < 1:
        raise ValueError(
            f"want at least one identity (a number or a range) with at least one image, got {identities} with {images}"
        )
    return people


def _jpegs(
    domain: str,
    identities: int | range,
    images: int,
    size: int,
    seed: int,
    single: float,
    twins: float,
    mapper: Mapper,
) -> Iterable[tuple[int, list[bytes]]]:
    """(identity, its JPEGs) of all identities; ValueError for bad arguments, before anything is written."""
    people = _people(identities, images)
    check(domain, size, seed, single, twins)
    job = partial(_encode, domain=domain, images=images, size=size, seed=seed, single=single, twins=twins)
    return zip(people, mapper(job, people), strict=True)


def write_folders(
    path: str | os.PathLike,
    domain: str,
    *,
    identities: int | range,
    images: int,
    size: int = 112,
    seed: int = 0,
    single: float = 0.0,
    twins: float = 0.0,
    mapper: Mapper = map,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Write a synthetic domain as a class folder, `path`/identity/image.jpg.

    Args:
        path: the folder to make.
        domain: a name in DOMAINS.
        identities: how many identities, or a range of them.
        images: how many images of each identity.
        size: pixels a side, at least 32.
        seed: an integer >= 0.
        single: the share of identities with one image, from 0 to 1.
        twins: the share of identities that are twins, from 0 to 1.
        mapper: a `map` that may work elsewhere, such as ProcessPoolExecutor.map.
        progress: called with the number of images made since its last call.

    Raises:
        FileExistsError: `path` exists.
        ValueError: an argument is out of range.
    """
    jpegs = _jpegs(domain, identities, images, size, seed, single, twins, mapper)
    path = Path(path)
    path.mkdir(parents=True)
    for identity, encoded in jpegs:
        folder = path / f"{identity:07d}"
        folder.mkdir()
        for number, jpeg in enumerate(encoded):
            (folder / f"{number:04d}.jpg").write_bytes(jpeg)
        if progress:
            progress(len(encoded))


def write_records(
    path: str | os.PathLike,
    domain: str,
    *,
    identities: int | range,
    images: int,
    size: int = 112,
    seed: int = 0,
    single: float = 0.0,
    twins: float = 0.0,
    mapper: Mapper = map,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Write a synthetic domain as train.rec, train.idx and property into the folder `path`.

    Labels count from 0 in the order of `identities`. Arguments and errors are those of `write_folders`; an existing
    folder is refused if it holds a train.rec.
    """
    jpegs = _jpegs(domain, identities, images, size, seed, single, twins, mapper)
    with RecordWriter(path, (size, size)) as writer:
        for label, (_, encoded) in enumerate(jpegs):
            for jpeg in encoded:
                writer.add(label, jpeg)
            if progress:
                progress(len(encoded))


def make(
    root: str | os.PathLike,
    *,
    domains: Sequence[str] = DOMAINS,
    identities: int | range = 400,
    images: int = 20,
    size: int = 112,
    seed: int = 0,
    single: float = 0.0,
    twins: float = 0.0,
    records: Sequence[str] = DOMAINS[::2],
    progress: Callable[[int, int], object] | None = None,
    workers: int | None = None,
) -> dict[str, Path]:
    """Make synthetic domains under `root`, and reuse those made before with the same settings.

    A domain gets its name when complete, with its settings in `root`/name.json. Worker processes import the script
    that calls this, so the script calls it under `if __name__ == "__main__":`.

    Args:
        root: the folder of all domains.
        domains: names in DOMAINS.
        identities: as for `write_folders`, and so are images, size, seed, single and twins.
        records: the domains to write as RecordIO folders; the others are class folders.
        progress: called with (images done, images in all), first of all with those that are there.
        workers: the number of processes; by default one a core.

    Returns:
        {name: folder}.

    Raises:
        ValueError: an argument is out of range, or `root` holds a domain of that name with other settings.
    """
    root, people = Path(root), _people(identities, images)
    wanted = {name: _settings(name, people, images, size, seed, single, twins, name in records) for name in domains}
    missing = [name for name in wanted if not _reusable(root, name, wanted[name])]
    each = sum(images_of(identity, images, single) for identity in people)
    count = _counter(progress, each, len(wanted) - len(missing), len(wanted))
    with _mapper(workers or os.cpu_count() or 1, images) as mapper:
        for name in missing:
            _make_one(root, name, wanted[name], people, mapper, count)
    return {name: root / name for name in wanted}


def _settings(
    name: str, people: range, images: int, size: int, seed: int, single: float, twins: float, records: bool
) -> dict[str, Any]:
    """All that decides about the files of a domain; ValueError if a number is out of range."""
    check(name, size, seed, single, twins)
    shares = {"single": single, "twins": twins}
    return {
        "start": people.start,
        "stop": people.stop,
        "step": people.step,
        "images": images,
        "size": size,
        "seed": seed,
        "version": VERSION,
        "format": "records" if records else "folders",
        **{key: share for key, share in shares.items() if share},  # faces made before there were shares have no note
    }


def _counter(
    progress: Callable[[int, int], object] | None, images_a_domain: int, reused: int, domains: int
) -> Callable[[int], None]:
    """A function count(images made) that calls `progress`; reused domains count as made."""
    done, total = images_a_domain * reused, images_a_domain * domains

    def count(made: int) -> None:
        nonlocal done
        done += made
        if progress:
            progress(done, total)

    count(0)
    return count


def _make_one(
    root: Path, name: str, settings: dict[str, Any], people: range, mapper: Mapper, count: Callable[[int], None]
) -> None:
    """Write one domain in a folder apart; the folder gets the domain's name when complete."""
    write = write_records if settings["format"] == "records" else write_folders
    numbers = {key: settings[key] for key in ("images", "size", "seed", "single", "twins") if key in settings}
    _complete(
        root, name, settings, partial(write, domain=name, identities=people, mapper=mapper, progress=count, **numbers)
    )


@contextmanager
def _mapper(workers: int, images: int) -> Iterator[Mapper]:
    """A `map` over identities that keeps `workers` processes busy; unfinished work is dropped at the end."""
    if workers == 1:
        yield map
        return
    # spawn: a fork of a process with threads, such as one that has used torch, may hang
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"))
    try:
        yield partial(pool.map, chunksize=max(64 // images, 1))
    finally:
        pool.shutdown(cancel_futures=True)


def _reusable(root: Path, name: str, settings: dict[str, Any]) -> bool:
    """Whether `root` holds this domain, made with these settings."""
    note = root / f"{name}.json"
    if not (root / name).exists():
        return False
    if not note.exists():
        raise ValueError(f"{root / name} is not a synthetic domain ({note.name} is missing); choose another root")
    found = json.loads(note.read_text())
    if found == settings:
        return True
    other = ", ".join(
        f"{key} {found.get(key, 0)} instead of {settings.get(key, 0)}"
        for key in {**settings, **found}
        if found.get(key) != settings.get(key)
    )
    raise ValueError(f"{root / name} was made otherwise ({other}); choose another root or delete that folder")


def _complete(root: Path, name: str, settings: dict[str, Any], write: Callable[[Path], None]) -> None:
    """Call `write` on a new folder, and give the folder its name when complete."""
    partial_folder = root / f".{name}.{uuid.uuid4().hex[:8]}.partial"
    partial_folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        write(partial_folder)
        (root / f"{name}.json").write_text(json.dumps(settings, indent=1) + "\n")
        try:
            partial_folder.rename(root / name)
        except OSError:  # another process was faster, which is fine for the same domain
            if not _reusable(root, name, settings):
                raise
    finally:
        shutil.rmtree(partial_folder, ignore_errors=True)
