"""Divide the people of a domain at random into train, gallery and probe lists; the same settings draw the same lists.

A hash of (seed, fold, name) decides about each person and image: neither the order of files on disk nor the machine
matters. Nobody who is trained on is looked up. The lists are text files of lines `path<TAB>identity`, with paths
relative to the list, below a header that says how the lists were made.
"""

import os
import shlex
from dataclasses import dataclass
from fnmatch import fnmatch
from hashlib import sha256
from pathlib import Path

from fastmfr.domains import Domain


@dataclass(frozen=True)
class ListSettings:
    """How people and their images are drawn into lists.

    Attributes:
        scored: the people to look up; a fraction of all people if below 1, else their number. All others are trained
            on.
        gallery: how many images of each person looked up are enrolled.
        probes: the most images of each person that are looked up; None looks up all images not enrolled.
        gallery_like: a pattern such as "*VIS*" that the file names of gallery images match.
        probe_like: a pattern that the file names of probe images match.
        folds: how many times the lists are drawn, each time independently; 0 draws them once, without a fold number.
        seed: another seed draws other lists.

    Raises:
        ValueError: a number is out of range.
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
            raise ValueError(f"want scored as a fraction below 1 or a whole number of people, got {self.scored:g}")
        for name, value, least in (("gallery", self.gallery, 1), ("probes", self.probes, 1), ("folds", self.folds, 0)):
            if value is not None and value < least:
                raise ValueError(f"want {name} of at least {least}, got {value}")


@dataclass(frozen=True)
class DrawnLists:
    """The lists of one fold.

    Attributes:
        images: the image numbers of each list, by its name: train, gallery, probe.
        people: the number of people in each list.
    """

    images: dict[str, list[int]]
    people: dict[str, int]


def draw_lists(domain: Domain, settings: ListSettings, fold: int = 0) -> DrawnLists:
    """Draw the lists of one fold.

    Raises:
        ValueError: the domain has too few people with the images asked for.
    """
    names = {domain.identity_name(person): person for person in range(domain.identities)}
    drawn = {name: _gallery_and_probes(domain, person, settings, fold) for name, person in names.items()}
    fit = [name for name, (gallery, probe) in drawn.items() if gallery and probe]
    wanted = round(settings.scored * domain.identities) if settings.scored < 1 else int(settings.scored)
    if not 2 <= wanted <= len(fit):
        raise ValueError(
            f"{wanted:,} of the {domain.identities:,} people of {domain.path} were to be scored, and "
            f"{len(fit):,} have {_needs(settings)}; ask for 2 to {len(fit):,} by --scored"
        )
    scored = sorted(sorted(fit, key=lambda name: _drawn_rank(settings, fold, name))[:wanted])
    train = [name for name in sorted(names) if name not in set(scored)]
    images = {"train": [image for name in train for image in _images(domain, names[name])]}
    for place, kind in enumerate(("gallery", "probe")):
        images[kind] = [image for name in scored for image in drawn[name][place]]
    return DrawnLists(images, {"train": len(train), "gallery": len(scored), "probe": len(scored)})


def _gallery_and_probes(domain: Domain, person: int, settings: ListSettings, fold: int) -> tuple[list[int], list[int]]:
    """(gallery, probe) image numbers of a person, sorted; a list is empty if the person has too few images."""
    name = domain.identity_name(person)
    keys = {image: domain.key(image) for image in _images(domain, person)}
    drawn = sorted(keys, key=lambda image: _drawn_rank(settings, fold, name, keys[image]))
    like = lambda image, pattern: fnmatch(keys[image].rpartition("/")[2], pattern)  # noqa: E731
    gallery = [image for image in drawn if like(image, settings.gallery_like)][: settings.gallery]
    if len(gallery) < settings.gallery:
        return [], []
    others = [image for image in drawn if like(image, settings.probe_like) and image not in set(gallery)]
    return sorted(gallery), sorted(others[: settings.probes])


def _images(domain: Domain, person: int) -> range:
    return range(int(domain.offsets[person]), int(domain.offsets[person + 1]))


def _drawn_rank(settings: ListSettings, fold: int, *names: str) -> bytes:
    """The bytes that a name is sorted by, a function of the seed, the fold and the name alone."""
    return sha256("\0".join([str(settings.seed), str(fold), *names]).encode(errors="surrogateescape")).digest()


def _needs(settings: ListSettings) -> str:
    images = {"gallery": (settings.gallery, settings.gallery_like), "probe": (1, settings.probe_like)}
    return " and ".join(
        f"{count} {kind} image{'s'[: count > 1]}{'' if like == '*' else ' like ' + like}"
        for kind, (count, like) in images.items()
    )


def write_lists(domain: Domain, settings: ListSettings, out: Path) -> list[DrawnLists]:
    """Write train.txt, gallery.txt and probe.txt, or train_1.txt ... of each fold, into the folder `out`.

    Lists that are there already with the same content are kept.

    Returns:
        The lists of each fold.

    Raises:
        ValueError: a list is there with other content, the name of a file cannot stand in a list, the domain is a
            RecordIO folder, or too few people have the images asked for.
    """
    if domain.has_records:
        raise ValueError(f"{domain.path} is a RecordIO folder, and lists name files; give the one it was packed from")
    folds = range(1, settings.folds + 1) or (0,)
    drawn = [draw_lists(domain, settings, fold) for fold in folds]
    files = {}
    for number, lists in enumerate(drawn, start=1):
        for kind, images in lists.images.items():
            path = out / (f"{kind}_{number}.txt" if settings.folds else f"{kind}.txt")
            files[path] = _header(domain, settings, kind, lists, number) + _lines(domain, images, out)
    other = [path for path, text in files.items() if path.exists() and path.read_text(encoding="utf-8") != text]
    if other:
        raise ValueError(f"{other[0]} is there and holds something else; remove it, or name another folder by --out")
    out.mkdir(parents=True, exist_ok=True)
    for path, text in files.items():
        path.write_text(text, encoding="utf-8")
    return drawn


def _header(domain: Domain, settings: ListSettings, kind: str, lists: DrawnLists, number: int) -> str:
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
        f"# {kind}{fold}: {lists.people[kind]:,} people, {len(lists.images[kind]):,} images; path<TAB>identity\n"
        f"# python -m fastmfr split {shlex.join([str(domain.path), *typed])}\n"
    )


def _lines(domain: Domain, images: list[int], out: Path) -> str:
    root = os.path.relpath(domain.path.resolve(), out.resolve())
    text = []
    for image in images:
        key = domain.key(image)
        if not key.isprintable():
            raise ValueError(f"the name {key!r} below {domain.path} cannot stand in a list; rename it")
        text.append(f"{root}/{key}\t{key.partition('/')[0]}\n")
    return "".join(text)
