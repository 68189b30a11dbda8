"""How many images are not square, and what becomes of them; and landmarks outside of their image. In sentences."""

from collections import Counter
from typing import NamedTuple

import numpy as np

from fastmfr.config.choices import Fit
from fastmfr.image_set import ImageSet

from .encoded import checked_size

MOST = 2000  # images of a set that are looked at


class Shapes(NamedTuple):
    """What was seen in the headers of images: a sentence on images that are not square, and one on landmarks."""

    fit: str | None = None
    outside: str | None = None

    @property
    def lines(self) -> list[str]:
        """The sentences there are."""
        return [line for line in self if line]


def shapes_of(images: ImageSet, fit: Fit) -> Shapes:
    """Look at the sizes of images, evenly out of all of a set, MOST at most.

    Args:
        images: the set.
        fit: what is done to images that are not square and have no landmarks.
    """
    numbers, outside, sizes = np.linspace(0, images.images - 1, min(images.images, MOST)).astype(int).tolist(), [], []
    landmark_N52, aligned = images.landmark_N52, 0
    for number in numbers:
        try:
            size = checked_size(images.jpeg(number))
        except (ValueError, OSError):  # whoever decodes the image reports it
            continue
        if landmark_N52 is None or np.isnan(landmark_N52[number, 0, 0]):
            sizes.append(size)
            continue
        aligned += 1
        if not any((landmark_N52[number] > -1).all() and (landmark_N52[number] < sides).all() for sides in _both(size)):
            outside.append(number)
    looked = "" if len(numbers) == images.images else " looked at"
    return Shapes(
        fit_line(Counter(sizes), fit, f"images{looked}"),
        f"{len(outside):,} of {aligned:,} images{looked} have landmarks outside of the image, the first "
        f"{images.key(outside[0])}; if this is so for most, the landmarks are of other images"
        if outside
        else None,
    )


def fit_line(sizes: Counter, fit: Fit, images: str = "images") -> str | None:
    """Say which images a policy touches, and how; None if all images are square.

    Args:
        sizes: how many images have each (width, height), in pixels.
        fit: the policy.
        images: what to call them.
    """
    touched = Counter({size: count for size, count in sizes.items() if size[0] != size[1]})
    if not touched:
        return None
    part, all_, ((width, height), often) = touched.total(), sizes.total(), touched.most_common(1)[0]
    if len(touched) > 1:
        what = f"{part:,} of {all_:,} {images} are not square, most often {width} x {height} ({often:,})"
    else:
        what = f"{part:,}{f' of {all_:,}' * (part < all_)} {images} of {width} x {height} pixels"
    return f"{what}; data.fit {fit} {_done(list(touched), fit)}"


def _done(sizes: list[tuple[int, int]], fit: Fit) -> str:
    """What a policy does to images of these sizes, none of them square."""
    shares = [round(100 * (1 - min(size) / max(size))) for size in sizes]
    (width, height), one = sizes[0], len(sizes) == 1
    percent = f"{shares[0]} %" if one else f"{min(shares)} to {max(shares)} %"
    if fit == "stretch":
        ratio = max(max(size) / min(size) for size in sizes)
        side = ("wide" if width < height else "high") if one else "wide or high"
        return f"makes faces {'' if one else 'up to '}{ratio:.2f} times as {side}"
    if not one:
        return f"{'cuts' if fit == 'crop' else 'adds black,'} {percent} of the longer side"
    lines, number = "rows" if (height > width) == (fit == "crop") else "columns", abs(height - width)
    if fit == "crop":
        return f"cuts {number} {lines}, {percent}"
    return f"adds black, {number} {lines}, {percent} of the longer side"


def _both(size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """(width, height) as stored, and as they are if EXIF turns the image by a quarter."""
    return np.array(size), np.array(size[::-1])
