"""People shared out into train, gallery and probe lists, always the same.

Who goes where is decided by a hash of (seed, fold, name): neither the order of files on disk nor the machine plays a
part. No one is on both sides. The lists are text files of lines `path<TAB>identity`, paths relative to the list, below
a header that says how they were made.
"""

import os
import shlex
from dataclasses import dataclass
from fnmatch import fnmatch
from hashlib import sha256
from pathlib import Path

from fastmfr.domains import Domain


@dataclass(frozen=True)
class Settings:
    """How people and their images are shared out; checked when made.

    `scored`: people to look up, below 1 as a share of all, else their number. `gallery`: images of each that are
    enrolled; `probes`: at most so many looked up, None for all others. `gallery_like`, `probe_like`: patterns such as
    "*VIS*" that the images' names must match. `folds`: 0 for one split, else so many, each drawn anew.
    """

    scored: float = 0.5
    gallery: int = 1
    probes: int | None = None
    gallery_like: str = "*"
    probe_like: str = "*"
    folds: int = 0
    seed: int = 2019

    def __post_init__(self):
        if self.scored <= 0 or (self.scored >= 1 and self.scored != int(self.scored)):
            raise ValueError(f"want scored as a share below 1 or a whole number of people, got {self.scored:g}")
        for name, value, least in (("gallery", self.gallery, 1), ("probes", self.probes, 1), ("folds", self.folds, 0)):
            if value is not None and value < least:
                raise ValueError(f"want {name} of at least {least}, got {value}")


@dataclass(frozen=True)
class Split:
    """Image numbers of one fold, by list, and how many people are trained on and looked up."""

    images: dict[str, list[int]]  # train, gallery, probe
    people: dict[str, int]


def draw(domain: Domain, settings: Settings, fold: int = 0) -> Split:
    """One split of a domain's people. Raises ValueError where it does not have the people or the images asked for."""
    names = {domain.identity_name(person): person for person in range(domain.identities)}
    shares = {name: _shares(domain, person, settings, fold) for name, person in names.items()}
    fit = [name for name, (gallery, probe) in shares.items() if gallery and probe]
    wanted = round(settings.scored * domain.identities) if settings.scored < 1 else int(settings.scored)
    if not 2 <= wanted <= len(fit):
        raise ValueError(
            f"{wanted:,} of the {domain.identities:,} people of {domain.path} were to be scored, and "
            f"{len(fit):,} have {_needs(settings)}; ask for 2 to {len(fit):,} by --scored"
        )
    scored = sorted(sorted(fit, key=lambda name: _drawn(settings, fold, name))[:wanted])
    train = [name for name in sorted(names) if name not in set(scored)]
    images = {"train": [image for name in train for image in _images(domain, names[name])]}
    for place, kind in enumerate(("gallery", "probe")):
        images[kind] = [image for name in scored for image in shares[name][place]]
    return Split(images, {"train": len(train), "gallery": len(scored), "probe": len(scored)})


def _shares(domain, person, settings, fold):
    """(gallery, probe) image numbers of a person, sorted; empty ones where the person has too few."""
    name = domain.identity_name(person)
    keys = {image: domain.key(image) for image in _images(domain, person)}
    drawn = sorted(keys, key=lambda image: _drawn(settings, fold, name, keys[image]))
    like = lambda image, pattern: fnmatch(keys[image].rpartition("/")[2], pattern)  # noqa: E731
    gallery = [image for image in drawn if like(image, settings.gallery_like)][: settings.gallery]
    if len(gallery) < settings.gallery:
        return [], []
    others = [image for image in drawn if like(image, settings.probe_like) and image not in set(gallery)]
    return sorted(gallery), sorted(others[: settings.probes])


def _images(domain, person):
    return range(int(domain.offsets[person]), int(domain.offsets[person + 1]))


def _drawn(settings, fold, *names):
    """What a name is sorted by: it depends on the seed, the fold and the name, and on nothing else."""
    return sha256("\0".join([str(settings.seed), str(fold), *names]).encode(errors="surrogateescape")).digest()


def _needs(settings):
    images = {"gallery": (settings.gallery, settings.gallery_like), "probe": (1, settings.probe_like)}
    return " and ".join(
        f"{count} {kind} image{'s'[: count > 1]}{'' if like == '*' else ' like ' + like}"
        for kind, (count, like) in images.items()
    )


def write_lists(domain: Domain, settings: Settings, out: Path) -> list[Split]:
    """Write train.txt, gallery.txt and probe.txt, or train_1.txt ... of each fold, into the folder `out`.

    Lists that are there already and equal these are left alone. Raises ValueError where they differ, where a file's
    name cannot stand in a list, or as `draw` does.
    """
    if (domain.path / "train.rec").is_file():
        raise ValueError(f"{domain.path} is a RecordIO folder, and lists name files; give the one it was packed from")
    splits = [draw(domain, settings, fold) for fold in range(1, settings.folds + 1)] or [draw(domain, settings)]
    files = {}
    for number, split in enumerate(splits, start=1):
        for kind, images in split.images.items():
            path = out / (f"{kind}_{number}.txt" if settings.folds else f"{kind}.txt")
            files[path] = _header(domain, settings, kind, split, number) + _lines(domain, images, out)
    other = [path for path, text in files.items() if path.exists() and path.read_text(encoding="utf-8") != text]
    if other:
        raise ValueError(f"{other[0]} is there and holds something else; remove it, or name another folder by --out")
    out.mkdir(parents=True, exist_ok=True)
    for path, text in files.items():
        path.write_text(text, encoding="utf-8")
    return splits


def _header(domain, settings, kind, split, number):
    options = {
        "scored": f"{settings.scored:g}",
        "gallery": settings.gallery,
        "probes": settings.probes,
        "gallery-like": settings.gallery_like,
        "probe-like": settings.probe_like,
        "folds": settings.folds,
        "seed": settings.seed,
    }
    given = {name: str(value) for name, value in options.items() if value not in (None, "*", 0)}
    typed = [word for name, value in given.items() for word in (f"--{name}", value)]
    fold = f", fold {number} of {settings.folds}" if settings.folds else ""
    return (
        f"# {kind}{fold}: {split.people[kind]:,} people, {len(split.images[kind]):,} images; path<TAB>identity\n"
        f"# python -m fastmfr split {shlex.join([str(domain.path), *typed])}\n"
    )


def _lines(domain, images, out):
    root = os.path.relpath(domain.path.resolve(), out.resolve())
    text = []
    for image in images:
        key = domain.key(image)
        if not key.isprintable():
            raise ValueError(f"the name {key!r} below {domain.path} cannot stand in a list; rename it")
        text.append(f"{root}/{key}\t{key.partition('/')[0]}\n")
    return "".join(text)
