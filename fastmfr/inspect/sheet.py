"""Thumbnails of a domain: a row a person, undistorted."""

from pathlib import Path

import numpy as np

from fastmfr.decode.preprocess import upright_rgb
from fastmfr.domains import Domain
from fastmfr.text import printable

from .survey import Survey

PEOPLE, IMAGES, SIDE = 8, 8, 112  # rows, columns, pixels
GREY = (127, 127, 127)
LABEL = 14  # letters that fit beside a row


def draw_sheet(survey: Survey, path: Path | str) -> bool:
    """Write a PNG of people spread over the domain, a row each; return False if none has an image that decodes."""
    from fastmfr.report import contact_sheet  # here, since it imports matplotlib

    rows = {}
    chosen = np.unique(np.linspace(0, survey.domain.identities - 1, PEOPLE).astype(int))
    for identity in chosen.tolist():
        first, end = survey.domain.offsets[identity : identity + 2]
        decoded = (_thumbnail(survey.domain, image) for image in range(first, min(end, first + IMAGES)))
        if pictures := [picture for picture in decoded if picture is not None]:
            name = (
                printable(survey.names[identity]).encode("ascii", "replace").decode()
            )  # the font lacks most other letters
            rows[name if name.isdecimal() else f"{identity}: {name}"[:LABEL]] = np.stack(pictures)
    if rows:
        contact_sheet(rows, path)
    return bool(rows)


def _thumbnail(domain: Domain, image: int) -> np.ndarray | None:
    """uint8 (SIDE, SIDE, 3), padded in grey if the image is not square; None if the image does not decode."""
    from PIL import ImageOps

    try:
        return np.asarray(ImageOps.pad(upright_rgb(domain.jpeg(image)), (SIDE, SIDE), color=GREY))
    except ValueError:  # the survey reports damage; a sheet shows what can be seen
        return None
