"""Synthetic domains on disk: class folders or InsightFace records, of real JPEGs.

Wherever `identities` is asked for, a number means identities 0 to that number less one, a range means itself: ranges
keep people apart, for example range(0, 900) to train on and range(900, 1000) to judge with.
"""

import io
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from PIL import Image

from fastmfr.pack import RecordWriter

from .domains import CATALOG, DOMAINS
from .render import check, render

Mapper = Callable[..., Iterable]

VERSION = 1  # of the look: raised when the same numbers give other pixels, so that old data is not taken for new


def _encode(identity, domain, images, size, seed):
    """The JPEGs (bytes) of images 0..images - 1 of one identity."""
    pixels = render(domain, np.full(images, identity), np.arange(images), size=size, seed=seed)
    encoded = []
    for one in pixels:
        buffer = io.BytesIO()
        Image.fromarray(one).save(buffer, "JPEG", quality=CATALOG[domain].quality)
        encoded.append(buffer.getvalue())
    return encoded


def _people(identities, images):
    """`identities` as a range; refuses an empty one."""
    people = range(identities) if isinstance(identities, int) else identities
    if not isinstance(people, range) or not people or images < 1:
        raise ValueError(
            f"want at least one identity (a number or a range) with at least one image, got {identities} with {images}"
        )
    return people


def _jpegs(domain, identities, images, size, seed, mapper):
    """Yield (identity, its JPEGs); refuses bad arguments before anything is written."""
    people = _people(identities, images)
    check(domain, size, seed)
    job = partial(_encode, domain=domain, images=images, size=size, seed=seed)
    return zip(people, mapper(job, people), strict=True)


def write_folders(path, domain, *, identities, images, size=112, seed=0, mapper: Mapper = map, progress=None):
    """Write `path`/identity/image.jpg, with `images` images of each of `identities`.

    `mapper` is a `map` that may work elsewhere, such as ProcessPoolExecutor.map; `progress` is called with the number
    of images made since its last call. Raises FileExistsError where `path` exists and ValueError on bad arguments.
    """
    jpegs = _jpegs(domain, identities, images, size, seed, mapper)
    path = Path(path)
    path.mkdir(parents=True)
    for identity, encoded in jpegs:
        folder = path / f"{identity:07d}"
        folder.mkdir()
        for number, jpeg in enumerate(encoded):
            (folder / f"{number:04d}.jpg").write_bytes(jpeg)
        if progress:
            progress(len(encoded))


def write_records(path, domain, *, identities, images, size=112, seed=0, mapper: Mapper = map, progress=None):
    """Write train.rec, train.idx and property into the folder `path`; labels count from 0 in the order of `identities`.

    Arguments and errors as for `write_folders`.
    """
    jpegs = _jpegs(domain, identities, images, size, seed, mapper)
    with RecordWriter(path, (size, size)) as writer:
        for label, (_, encoded) in enumerate(jpegs):
            for jpeg in encoded:
                writer.add(label, jpeg)
            if progress:
                progress(len(encoded))


def make(
    root,
    *,
    domains=DOMAINS,
    identities=400,
    images=20,
    size=112,
    seed=0,
    records=DOMAINS[::2],
    progress=None,
    workers=None,
):
    """Make several domains under `root` and return {name: folder}; those named in `records` as records, others folders.

    A domain appears under its name only when complete, with its settings in `root`/name.json; one made before with the
    same settings is reused. `progress` is called with (images done, images in all). More than one of `workers`
    (default: the CPU cores) are processes of their own, so a script calls this under `if __name__ == "__main__":`.
    Raises ValueError where `root` holds a domain of that name made otherwise.
    """
    root, people = Path(root), _people(identities, images)
    settings = {
        "start": people.start,
        "stop": people.stop,
        "step": people.step,
        "images": images,
        "size": size,
        "seed": seed,
        "version": VERSION,
    }
    wanted = {}
    for name in domains:
        check(name, size, seed)
        wanted[name] = settings | {"format": "records" if name in records else "folders"}
    missing = [name for name in wanted if not _reusable(root, name, wanted[name])]
    each = len(people) * images
    done, total = each * (len(wanted) - len(missing)), each * len(wanted)

    def count(made):
        nonlocal done
        done += made
        if progress:
            progress(done, total)

    if done:
        count(0)
    with _mapper(workers or os.cpu_count() or 1, images) as mapper:
        for name in missing:
            write = write_records if name in records else write_folders
            _complete(
                root,
                name,
                wanted[name],
                partial(
                    write,
                    domain=name,
                    identities=people,
                    images=images,
                    size=size,
                    seed=seed,
                    mapper=mapper,
                    progress=count,
                ),
            )
    return {name: root / name for name in wanted}


@contextmanager
def _mapper(workers, images):
    """A `map` over identities that keeps `workers` processes busy; what is still to do when it ends is dropped."""
    if workers == 1:
        yield map
        return
    # spawn: a fork of a process with threads, such as one that has used torch, may hang
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"))
    try:
        yield partial(pool.map, chunksize=max(64 // images, 1))
    finally:
        pool.shutdown(cancel_futures=True)


def _reusable(root, name, settings):
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
        f"{key} {found.get(key)} instead of {settings[key]}" for key in settings if found.get(key) != settings[key]
    )
    raise ValueError(f"{root / name} was made otherwise ({other}); choose another root or delete that folder")


def _complete(root, name, settings, write):
    """Run `write` on a folder apart and give it its name when it is whole."""
    partial_folder = root / f".{name}.{uuid.uuid4().hex[:8]}.partial"
    partial_folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        write(partial_folder)
        (root / f"{name}.json").write_text(json.dumps(settings, indent=1) + "\n")
        try:
            partial_folder.rename(root / name)
        except OSError:  # someone else was faster, which is well if it was the same domain
            if not _reusable(root, name, settings):
                raise
    finally:
        shutil.rmtree(partial_folder, ignore_errors=True)
