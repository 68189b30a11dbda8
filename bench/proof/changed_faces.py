"""Changed copies of domains, and who is whom: `python bench/proof/changed_faces.py NAME=PATH ... --out FOLDER`.

A copy holds the same people, image by image, as a class folder FOLDER/NAME_changed. Every other copy is `turned` (grey,
and tones above a level folded back), the others are `cast` (a colour cast and another gamma). Each image draws its own
strength. FOLDER/people.csv says for data.shared_identities that a person and its copy are one person.
"""

import argparse
import io
from pathlib import Path

import numpy as np
from PIL import Image

from fastmfr.domains import Domain, open_domain

CHANGED = "_changed"  # ends the name of a copy
QUALITY = 90  # of the JPEGs


def turned(pixels_HW3: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Grey, with tones above a level between 0.5 and 0.65 turned back, as in a solarised print; all in [0, 1]."""
    grey_HW = pixels_HW3 @ np.array([0.299, 0.587, 0.114])
    level = rng.uniform(0.5, 0.65)
    folded_HW = np.where(grey_HW > level, 2 * level - grey_HW, grey_HW).clip(0) / level
    return np.repeat(folded_HW[..., None], 3, axis=2)


def cast(pixels_HW3: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A gamma between 1.6 and 2.4; red at about 0.4, green at 0.75, blue at 1.1 of what they were; all in [0, 1]."""
    gains_3 = np.array([0.4, 0.75, 1.1]) + rng.normal(0, 0.05, 3)
    return (pixels_HW3 ** rng.uniform(1.6, 2.4) * gains_3).clip(0, 1)


KINDS = (turned, cast)


def write_copy(domain: Domain, kind: int, out: Path) -> list[str]:
    """Write the copy of a domain.

    Args:
        domain: the domain.
        kind: a place in KINDS.
        out: where the copy's folder is made.

    Returns:
        A line of people.csv for each person.
    """
    name = f"{domain.name}{CHANGED}"
    lines = []
    for person in range(domain.identities):
        own = domain.identity_name(person)
        folder = out / name / own
        folder.mkdir(parents=True)
        for image in range(*domain.offsets[person : person + 2]):
            with Image.open(io.BytesIO(domain.jpeg(image).tobytes())) as opened:
                pixels_HW3 = np.asarray(opened.convert("RGB"), np.float64) / 255
            changed = KINDS[kind](pixels_HW3, np.random.default_rng([kind, image]))
            made = Image.fromarray((changed * 255).round().astype(np.uint8))
            made.save(folder / f"{image - domain.offsets[person]:04d}.jpg", quality=QUALITY)
        lines.append(f"{domain.name} {own},{domain.name}/{own},{name}/{own}")
    return lines


def main() -> None:
    """Write a copy of each domain, and people.csv."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("domains", nargs="+", metavar="NAME=PATH", help="a class folder or a RecordIO folder")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="where copies and people.csv go")
    options = parser.parse_args()
    lines = []
    for number, word in enumerate(options.domains):
        name, _, path = word.partition("=")
        lines += write_copy(open_domain(path, name), number % len(KINDS), options.out)
    (options.out / "people.csv").write_text("".join(f"{line}\n" for line in lines))


if __name__ == "__main__":
    main()
