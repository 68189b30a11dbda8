"""Surveys and overlaps in words: a table, sentences, and lists for files."""

from collections import Counter
from collections.abc import Iterator, Sequence, Sized

import numpy as np
from rich.table import Table

from fastmfr.config.choices import Fit
from fastmfr.decode.shapes import fit_line
from fastmfr.protocols.shared_people import hint
from fastmfr.text import printable

from .overlap import MOST_PEOPLE, Overlap
from .survey import Survey

FIRST = 20  # entries of a list that are shown on the screen
BAR = 30  # letters of the longest bar
TAB = "\t"


def table(surveys: Sequence[Survey], common: Overlap) -> Table:
    """Make a table with a row for each domain.

    People, images and single are those of the whole domain, the other columns those of the images that were read.
    """
    grid = Table(title="domains (images a person: least / median / most)")
    for head in ("domain", "people", "images", "a person", "single", "JPEG", "broken", "copies"):
        grid.add_column(head, justify="left" if head == "domain" else "right")
    for found, repeated in zip(surveys, common.repeated, strict=True):
        counts, read = found.counts, sum(found.formats.values())
        grid.add_row(
            printable(found.domain.name),
            f"{found.domain.identities:,}",
            f"{found.domain.images:,}",
            f"{counts.min():,} / {np.median(counts):g} / {counts.max():,}",
            f"{found.domain.single:,}",
            f"{100 * found.formats['JPEG'] / read:.0f} %" if read else "-",
            f"{len(found.broken):,}",
            f"{repeated:,}",
        )
    return grid


def of_domain(found: Survey, fit: Fit = "crop") -> Iterator[str]:
    """Yield lines on one domain: what was passed over, a histogram of images a person, sizes, what is broken.

    Args:
        found: the domain.
        fit: what will be done to images that are not square.
    """
    name, single = printable(found.domain.name), found.domain.single
    yield from map(printable, found.domain.notes)
    yield f"\n{name}: people by how many images they have"
    yield from _histogram(found.counts)
    if found.sampled:
        yield (
            f"{name}: a sample of {len(found.image_N):,} of {found.domain.images:,} images was read; sizes, damage "
            "and copies are those of the sample, and most copies in the rest go unseen"
        )
    if found.sizes:
        yield f"{name}: width x height {_sizes(found.sizes)}"
    if line := fit_line(found.sizes, fit):
        yield f"{name}: {line}"
    if single:
        yield f"{name}: people with a single image, of which no pair can be made: {single:,}"
    if found.broken:
        yield f"{name}: broken images: {_number(found.broken)}"
        yield from (f"  {printable(key)}: {printable(reason)}" for key, reason in found.broken[:FIRST])


def of_overlap(surveys: Sequence[Survey], common: Overlap) -> Iterator[str]:
    """Yield lines on what domains have in common and on people who may have two labels."""
    yield ""
    for (one, other), count in sorted(common.images.items()):
        names = (printable(surveys[domain].domain.name) for domain in (one, other))
        yield f"images in {' and in '.join(names)}, byte for byte: {count:,}"
    if common.placeholders:
        yield f"images under more than {MOST_PEOPLE} people each, placeholders and not faces: {common.placeholders:,}"
    if common.people:
        pairs = _by_count(common.people)
        yield f"pairs of people with the same images, likely one person under two labels: {_number(pairs)}"
        yield from (f"  {_pair(surveys, pair)} ({count:,})" for pair, count in pairs[:FIRST])
    if common.names:
        yield f"names in two domains, likely the same person: {_number(common.names)}"
        yield from (f"  {_pair(surveys, pair)}" for pair in common.names[:FIRST])
        yield from map(printable, _hints(surveys, common))
    if len(surveys) > 1 and not (common.images or common.names):
        yield "no image and no name was found in two domains"
    if len(surveys) > 1:
        yield "names that are bare numbers were not compared: they mean someone else in each data set"
    for (one, other), count in sorted(common.numbers.items()):
        names = (surveys[domain].domain.name for domain in (one, other))
        yield printable(
            f"{' and '.join(names)} have {count:,} folder names in common that are bare numbers; if these are the same "
            "people here, train with --data.shared_identities by_name"
        )


def _hints(surveys: Sequence[Survey], common: Overlap) -> Iterator[str]:
    """Yield what to do about the names in common of every two domains."""
    counts = Counter((one[0], other[0]) for one, other in common.names)
    first = {(one[0], other[0]): surveys[one[0]].names[one[1]] for one, other in reversed(common.names)}
    for (one, other), count in sorted(counts.items()):
        yield hint(surveys[one].domain.name, surveys[other].domain.name, count, first[one, other])


def lists(surveys: Sequence[Survey], common: Overlap) -> dict[str, list[str]]:
    """Return {file name: lines} of every broken image, group of copies and pair of people; tabs between fields."""
    return {
        "broken.txt": [
            "\t".join(map(printable, (found.domain.name, key, reason)))
            for found in surveys
            for key, reason in found.broken
        ],
        "copies.txt": [
            "\t".join(
                printable(f"{surveys[domain].domain.name}:{surveys[domain].domain.key(image)}")
                for domain, image in group
            )
            for group in common.groups
        ],
        "people.txt": [
            f"{_pair(surveys, pair, between=TAB)}\t{count} same images" for pair, count in _by_count(common.people)
        ]
        + [f"{_pair(surveys, pair, between=TAB)}\tsame name" for pair in common.names],
    }


def _pair(surveys: Sequence[Survey], pair: Sequence[tuple[int, int]], between: str = " = ") -> str:
    return between.join(
        printable(f"{surveys[domain].domain.name}:{surveys[domain].names[identity]}") for domain, identity in pair
    )


def _by_count(people: Counter) -> list:
    return sorted(people.items(), key=lambda item: (-item[1], item[0]))


def _number(items: Sized) -> str:
    return f"{len(items):,}" + (f" (the first {FIRST} below, all of them with --out)" if len(items) > FIRST else "")


def _sizes(sizes: Counter) -> str:
    """The range of widths and heights, and the most common sizes."""
    if len(sizes) == 1:
        ((width, height),) = sizes
        return f"{width} x {height}"
    widths, heights = zip(*sizes, strict=True)
    common = ", ".join(f"{width} x {height} ({count:,})" for (width, height), count in sizes.most_common(5))
    return f"{min(widths)}-{max(widths)} x {min(heights)}-{max(heights)}, most often {common}"


def _histogram(counts: np.ndarray) -> Iterator[str]:
    """A line for 1, 2 to 3, 4 to 7, ... images a person, with the number of such people."""
    powers = np.floor(np.log2(counts)).astype(int)
    people = np.bincount(powers)
    for power in range(powers.min(), len(people)):
        low, high = 2**power, 2 ** (power + 1) - 1
        span = f"{low:,}" if low == high else f"{low:,}-{high:,}"
        bar = "#" * -(-BAR * int(people[power]) // int(people.max()))
        yield f"  {span:>15} {int(people[power]):>10,} {bar}".rstrip()
