"""What tests look at in a PNG."""

import numpy as np
from PIL import Image


def picture(path):
    """int (H, W, 3) of a picture's pixels."""
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def pixels_of(path, colour):
    """How many pixels of a picture have about the colour "#rrggbb"."""
    want = [int(colour[at : at + 2], 16) for at in (1, 3, 5)]
    return int((np.abs(picture(path) - want).max(2) < 12).sum())
