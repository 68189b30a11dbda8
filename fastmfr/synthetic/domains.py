"""The domains: the people photographed, the colours of materials, what is on their faces, and the camera."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np

from . import changes, covers, finish, materials


@dataclass(frozen=True)
class Domain:
    """One kind of pictures.

    Attributes:
        finish: the camera, finish(face, linear RGB) -> display values.
        colours: colours(face) -> the colours of materials.
        traits: (mean, spread) by name, in place of those in identity.TRAITS.
        conditions: (mean, spread) by name, in place of those in identity.CONDITIONS.
        change: changes the numbers of a face from image to image, see changes.py.
        coat: painted on bare skin, see covers.py.
        cover: painted over the whole face, see covers.py.
        shine: whether skin and eyes mirror the lamp.
        quality: of the JPEGs.
    """

    finish: Callable[[SimpleNamespace, np.ndarray], np.ndarray]
    colours: Callable[[SimpleNamespace], SimpleNamespace] = materials.natural
    traits: dict[str, tuple[float, float]] = field(default_factory=dict)
    conditions: dict[str, tuple[float, float]] = field(default_factory=dict)
    change: Callable[[SimpleNamespace, Mapping[str, tuple[float, float]]], None] | None = None
    coat: Callable[[SimpleNamespace, np.ndarray, np.ndarray, np.ndarray], None] | None = None
    cover: Callable[[SimpleNamespace, np.ndarray, np.ndarray, np.ndarray, np.ndarray], None] | None = None
    shine: bool = True
    quality: int = 92


CATALOG = {
    "studio": Domain(
        finish.studio,
        traits={"skin_dark": (0.22, 0.10), "hair_dark": (0.60, 0.20)},
        conditions={
            "ambient": (0.50, 0.05),
            "light_x": (0.0, 0.50),
            "gain": (1.08, 0.10),
            "tint": (0.0, 0.5),
            "scene": (0.55, 0.10),
            "scene_hue": (-0.5, 0.3),
        },
    ),
    "street": Domain(
        finish.street,
        traits={
            "skin_dark": (0.72, 0.15),
            "hair_dark": (0.93, 0.08),
            "iris_hue": (0.05, 0.08),
            "lip_upper": (0.058, 0.012),
        },
        conditions={
            "ambient": (0.30, 0.06),
            "light_x": (0.0, 0.80),
            "light": (1.25, 0.15),
            "scene_hue": (-1.4, 0.8),
            "yaw": (0.0, 0.145),
        },
    ),
    "tungsten": Domain(
        finish.tungsten,
        traits={
            "skin_dark": (0.38, 0.12),
            "skin_warm": (0.8, 0.2),
            "hair_dark": (0.88, 0.10),
            "iris_hue": (0.10, 0.15),
        },
        conditions={
            "ambient": (0.26, 0.05),
            "light": (0.85, 0.12),
            "light_y": (-0.7, 0.2),
            "scene": (0.16, 0.08),
            "scene_hue": (1.2, 0.5),
        },
    ),
    "nir": Domain(
        finish.nir,
        materials.infrared,
        conditions={"tint": (0.0, 0.0), "ambient": (0.10, 0.04), "light_x": (0.0, 0.15), "light_y": (-0.05, 0.15)},
    ),
    "surveillance": Domain(
        finish.surveillance,
        traits={"skin_dark": (0.45, 0.20)},
        conditions={
            "light_y": (-0.8, 0.2),
            "pitch": (0.09, 0.05),
            "yaw": (0.0, 0.145),
            "zoom": (0.95, 0.04),
            "scene": (0.28, 0.12),
            "gain": (1.15, 0.12),
        },
        quality=70,
    ),
    "sketch": Domain(
        finish.sketch,
        materials.paper,
        conditions={"ambient": (0.55, 0.05), "light_x": (-0.3, 0.35)},
    ),
    "glasses": Domain(
        finish.street,
        traits={"skin_dark": (0.35, 0.17)},
        conditions={"ambient": (0.45, 0.06)},
        cover=covers.spectacles,
    ),
    "aged": Domain(
        finish.aged,
        traits={
            "wrinkles": (0.95, 0.25),
            "gray": (0.75, 0.25),
            "skin_dark": (0.30, 0.14),
            "hair_line": (-0.68, 0.06),
            "jaw_square": (0.62, 0.18),
            "jaw_taper": (0.22, 0.06),
            "eye_open": (0.36, 0.05),
        },
        conditions={"tint": (0.5, 0.4), "ambient": (0.36, 0.06), "gain": (1.1, 0.12)},
    ),
    "caricature": Domain(
        finish.caricature,
        materials.poster,
        traits={"skin_dark": (0.30, 0.14), "lip_red": (0.75, 0.12), "brow_dark": (0.85, 0.08)},
        conditions={
            "ambient": (0.70, 0.05),
            "light_x": (0.3, 0.3),
            "smile": (0.40, 0.45),
            "tint": (0.0, 0.0),
            "zoom": (0.98, 0.03),
        },
        change=changes.exaggerate,
    ),
    "thermal": Domain(
        finish.thermal,
        materials.heat,
        conditions={
            "ambient": (0.90, 0.03),
            "light_x": (0.0, 0.0),
            "light_y": (0.0, 0.0),
            "light": (0.95, 0.02),
        },
        change=changes.warm_up,
        coat=covers.warmth,
        shine=False,
    ),
    "newsprint": Domain(
        finish.newsprint,
        traits={"skin_dark": (0.34, 0.16), "hair_dark": (0.80, 0.14)},
        conditions={"ambient": (0.32, 0.06), "light_x": (0.1, 0.55), "scene": (0.45, 0.25)},
        quality=85,
    ),
    "masked": Domain(
        finish.street,
        traits={"skin_dark": (0.42, 0.20)},
        conditions={"ambient": (0.40, 0.07), "scene_hue": (0.3, 0.9), "yaw": (0.0, 0.135)},
        change=changes.put_mask_on,
        cover=covers.mask,
    ),
    "makeup": Domain(
        finish.studio,
        materials.cosmetic,
        traits={
            "skin_dark": (0.30, 0.18),
            "face_width": (0.628, 0.024),
            "jaw_square": (0.38, 0.16),
            "eye_open": (0.46, 0.052),
            "lip_upper": (0.056, 0.010),
            "hair_long": (0.7, 0.5),
            "hair_volume": (0.13, 0.028),
            "beard": (-1.0, 0.0),
        },
        conditions={"ambient": (0.46, 0.05), "light_x": (0.0, 0.35), "gain": (1.10, 0.12), "scene": (0.35, 0.2)},
        change=changes.make_up,
        coat=covers.cosmetics,
    ),
    "children": Domain(
        finish.snapshot,
        traits={
            "face_width": (0.668, 0.020),
            "cheek_y": (0.10, 0.03),
            "jaw_taper": (0.20, 0.045),
            "jaw_square": (0.34, 0.12),
            "chin_y": (0.775, 0.022),
            "chin_bump": (0.2, 0.16),
            "cheekbone": (0.75, 0.20),
            "eye_x": (0.292, 0.013),
            "eye_y": (-0.055, 0.012),
            "eye_width": (0.142, 0.0080),
            "eye_open": (0.53, 0.050),
            "iris_size": (0.52, 0.024),
            "brow_y": (-0.250, 0.017),
            "brow_thick": (0.028, 0.0070),
            "brow_dark": (0.42, 0.12),
            "nose_tip": (0.245, 0.022),
            "nose_width": (0.104, 0.011),
            "nose_high": (0.145, 0.024),
            "nose_hump": (-0.010, 0.010),
            "mouth_y": (0.470, 0.017),
            "mouth_width": (0.205, 0.017),
            "hair_dark": (0.58, 0.24),
            "beard": (-1.0, 0.0),
            "moles": (0.2, 0.60),
            "wrinkles": (0.0, 0.0),
            "ear_out": (0.048, 0.018),
        },
        conditions={
            "ambient": (0.46, 0.06),
            "light_x": (0.05, 0.20),
            "light_y": (-0.10, 0.15),
            "smile": (0.50, 0.42),
            "mouth_gap": (0.05, 0.32),
            "gaze_x": (0.0, 0.24),
            "yaw": (0.0, 0.145),
            "roll": (0.0, 0.045),
            "shave": (0.0, 0.0),
        },
    ),
}
DOMAINS = tuple(CATALOG)
