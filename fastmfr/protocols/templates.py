"""IJB-style templates: images grouped into media (a video, a photograph), media into templates, templates compared.

A folder holds, itself or in `meta/`, one `*tid_mid.txt` with lines `image template medium` and one
`*template_pair_label.txt` with lines `template template 0|1`, as IJB-B and IJB-C come; the images lie in
`loose_crop/`, `images/` or the folder itself.
Shape suffixes: N images in templates, M media, T templates.
"""

import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from .files import entry_path
from .images import ImageFiles, find_image
from .lists import Numbers, PairList, lines

LISTS = {"images": "*tid_mid.txt", "pairs": "*template_pair_label.txt"}


@dataclass(frozen=True)
class TemplateSet:
    """Images of media, media of templates, and pairs of templates.

    Attributes:
        image: int64 (N,), the number of each image listed.
        medium: int64 (N,), the medium of each image listed.
        template_of_medium: int64 (M,), the template of each medium.
        templates: the number T of templates.
        pairs: pairs of template numbers.
    """

    image: np.ndarray
    medium: np.ndarray
    template_of_medium: np.ndarray
    templates: int
    pairs: PairList

    def without(self, images: Collection[int]) -> "TemplateSet":
        """Return the set without these images, and without the pairs of templates that then have no image."""
        kept = ~np.isin(self.image, np.fromiter(images, np.int64, len(images)))
        held = np.unique(self.template_of_medium[self.medium[kept]])
        empty = np.setdiff1d(np.arange(self.templates), held)
        return replace(self, image=self.image[kept], medium=self.medium[kept], pairs=self.pairs.without(empty.tolist()))


def find_template_lists(folder: str | os.PathLike) -> dict[str, Path] | None:
    """Find {"images": path, "pairs": path} of the lists in `folder` or its `meta/`; None if a list is missing."""
    for place in (Path(folder), Path(folder) / "meta"):
        found = {kind: next(iter(sorted(place.glob(pattern))), None) for kind, pattern in LISTS.items()}
        lists = {kind: path for kind, path in found.items() if path}
        if len(lists) == len(LISTS):
            return lists
    return None


def read_templates(folder: str | os.PathLike, name: str | None = None) -> tuple[ImageFiles, TemplateSet]:
    """Read the images and templates of a folder.

    Args:
        folder: the folder.
        name: what reports call the set; by default the name of the folder.

    Raises:
        ValueError: a list is missing, or a line is not as wanted (the message shows the line).
    """
    folder = Path(folder)
    found = find_template_lists(folder)
    if not found:
        raise ValueError(f"{folder} holds no templates: looked for {' and '.join(LISTS.values())}, also in meta/")
    images, templates, media = Numbers(), Numbers(), Numbers()
    image, medium = [], []
    for entry, template, of in _rows(found["images"], "image template medium"):
        image.append(images[entry_path(entry)])
        medium.append(media[templates[template], of])
    first, second, is_mate = [], [], []
    for a, b, flag in _rows(found["pairs"], "template template 0|1"):
        if a not in templates or b not in templates or flag not in ("0", "1"):
            raise ValueError(
                f"{found['pairs']} compares {a} with {b} ({flag}); want templates of {found['images'].name}, and 0 or 1"
            )
        first.append(templates[a])
        second.append(templates[b])
        is_mate.append(flag == "1")
    places = (folder / "loose_crop", folder / "images", folder)
    root = next((place for place in places if find_image(place, next(iter(images)))), folder)
    pairs = PairList(np.array(first), np.array(second), np.array(is_mate))
    listed = ImageFiles(name or folder.resolve().name, root, list(images))
    return listed, TemplateSet(
        np.array(image), np.array(medium), np.array([template for template, _ in media]), len(templates), pairs
    )


def _rows(path: Path, wanted: str) -> Iterator[list[str]]:
    """The three columns of each line; ValueError if a line has others, or there is no line."""
    empty = True
    for number, line in lines(path):
        columns = line.split()
        if len(columns) != 3:
            raise ValueError(f"line {number} of {path} is not `{wanted}`: {line[:100]!r}")
        empty = False
        yield columns
    if empty:
        raise ValueError(f"{path} has no line `{wanted}`")
