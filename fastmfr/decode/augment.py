"""Draw which images of a batch are changed, and how; fastmfr.kernels.gather_images then changes the pixels.

The draws are counter-based (Philox, https://doi.org/10.1145/2063384.2063405). The changes of slot b of batch k are a
function of the seed, k and b alone: a resumed run draws the same, and each kind of change has draws of its kind only.
Shape suffixes: B = images of a batch, 2 = (down, right).
"""

from typing import NamedTuple

import numpy as np

from fastmfr.config import Augment

BLOCKS = (2, 4)  # pixels: the least and the largest side of the cells that a low resolution is made of
_MID_GREY = 127.5  # contrast turns around it
_MIRROR, _DOWN, _RIGHT, _LOW_RESOLUTION, _BLOCK, _BRIGHTNESS, _CONTRAST = range(7)  # the order fixes the draws


class Changes(NamedTuple):
    """The changes to each image of a batch, as gather_images takes them; None for a kind of change that is off."""

    mirror_B: np.ndarray | None = None  # bool
    shift_B2: np.ndarray | None = None  # int32, pixels
    block_B: np.ndarray | None = None  # int32, pixels; 1 leaves an image as it is
    gain_B: np.ndarray | None = None  # float32
    offset_B: np.ndarray | None = None  # float32, grey levels


def mirror_flags(seed: int, number: int, images: int, flip: float) -> np.ndarray:
    """Draw which of the `images` slots of batch `number` are mirrored, bool (images,): each with probability `flip`."""
    return _uniform(seed, number, images, _MIRROR) < flip


def changes(augment: Augment, seed: int, number: int, images: int) -> Changes:
    """Draw the changes to the `images` slots of batch `number`; the number of slots does not change a slot's draws."""

    def drawn(kind):
        return _uniform(seed, number, images, kind)

    def within(limit, kind):
        return limit * (2 * drawn(kind) - 1)

    shift_B2 = block_B = gain_B = offset_B = None
    if augment.translate:
        steps = 2 * augment.translate + 1
        shift_B2 = np.stack([np.floor(steps * drawn(kind)) for kind in (_DOWN, _RIGHT)], axis=1) - augment.translate
        shift_B2 = shift_B2.astype(np.int32)
    if augment.low_resolution:
        least, largest = BLOCKS
        block_B = least + np.floor((largest - least + 1) * drawn(_BLOCK))
        block_B = np.where(drawn(_LOW_RESOLUTION) < augment.low_resolution, block_B, 1).astype(np.int32)
    if augment.brightness:
        offset_B = within(augment.brightness, _BRIGHTNESS).astype(np.float32)
    if augment.contrast:
        gain_B = (1 + within(augment.contrast, _CONTRAST)).astype(np.float32)
        about_mid_grey_B = _MID_GREY * (1 - gain_B)
        offset_B = about_mid_grey_B if offset_B is None else offset_B + about_mid_grey_B
    mirror_B = mirror_flags(seed, number, images, augment.flip) if augment.flip else None
    return Changes(mirror_B, shift_B2, block_B, gain_B, offset_B)


def _uniform(seed: int, number: int, images: int, kind: int) -> np.ndarray:
    """Uniform draws from [0, 1), one for each slot of the batch."""
    # A counter of 256 bits: the lowest 32 count the draws of one kind, the next the kinds, those above 64 the batches.
    counter = (number << 64) + (kind << 32)
    return np.random.Generator(np.random.Philox(key=seed, counter=counter)).random(images)
