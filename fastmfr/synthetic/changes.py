"""What an image does to the numbers of a face before anything is painted: an artist's exaggeration, cosmetics, a mask.

change(face, table) sets numbers of `face`, which identity.describe returned, by each image's own generator. `table` has
(mean, spread) of every trait of the domain. New numbers are float32 or bool (n, 1, 1).
"""

from collections.abc import Mapping
from types import SimpleNamespace as Face

import numpy as np

from .finish import blur
from .identity import draws

Table = Mapping[str, tuple[float, float]]

SHAPES = (
    *("face_width", "jaw_taper", "jaw_square", "chin_y", "chin_bump", "cheekbone", "eye_x", "eye_width", "eye_open"),
    *("eye_tilt", "brow_y", "brow_arch", "brow_slope", "brow_thick", "brow_gap", "nose_tip", "nose_width", "nose_high"),
    *("nose_bend", "nose_hump", "mouth_y", "mouth_width", "lip_upper", "lip_lower", "lip_bow", "hair_line"),
    *("hair_temple", "hair_peak", "hair_volume", "ear_size", "ear_out"),
)
MOST = 3.6  # spreads from the mean: beyond, features would leave the face


def exaggerate(face: Face, table: Table) -> None:
    """Move every shape away from the mean face, by a factor from 1.4 to 2.6 that changes from drawing to drawing."""
    (strength,) = draws(face, 1)
    for name in SHAPES:
        mean, spread = (np.float32(number) for number in table[name])
        far = (1.4 + 1.2 * strength) * (getattr(face, name) - mean)
        setattr(face, name, mean + np.clip(far, -MOST * spread, MOST * spread))


def make_up(face: Face, table: Table) -> None:
    """Put cosmetics on two images of three: powder hides the pigment, lips and lashes gain, brows are drawn anew."""
    worn, amount, face.lip_hue, face.lid_hue, face.blush, face.wing, brow = draws(face, 7)
    amount = (worn > 0.33) * (0.55 + 0.45 * amount)
    face.makeup = amount
    face.pigment = face.pigment * (1 - 0.9 * amount)
    face.lip_red = np.minimum(face.lip_red + 0.7 * amount, 1.05)
    face.lip_upper = face.lip_upper + 0.012 * amount
    face.lash = np.minimum(face.lash + 0.5 * amount, 1)
    face.brow_dark = np.minimum(face.brow_dark + 0.3 * amount, 1)
    face.brow_thick = face.brow_thick + 0.012 * amount * (2 * brow - 1)
    face.brow_arch = face.brow_arch + 0.4 * amount


def warm_up(face: Face, table: Table) -> None:
    """Give an image its warmth: of the room, the nose, the cheeks and the breath; vessels instead of pigment."""
    face.warm, face.nose_cold, face.cheek_cold, face.brow_warm, face.breath = draws(face, 5)
    face.pigment = -2.4 * blur(np.clip(face.pigment, -0.08, 0.08), 1)  # moles and freckles are as warm as skin


def put_mask_on(face: Face, table: Table) -> None:
    """Cover two images of three, of these one of eight below the nose and one of six by a scarf; half are blue."""
    worn, low, scarf, height, hue, face.weave = draws(face, 6)
    face.masked, face.scarf, face.mask_hue = worn < 0.667, scarf < 0.167, hue * hue
    face.mask_top = np.where(low < 0.125, face.nose_tip + 0.10, face.eye_y + 0.20 + 0.06 * height)
