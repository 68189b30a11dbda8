"""The domains: the people photographed, the colours of materials, and the camera.

Colours are linear RGB, float32 (n, 3, 1, 1), of: skin, flush (cheeks), fold, dark (pupils, nostrils), hair, brow,
sclera, iris, lip, teeth, scene and cloth.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np

from . import finish

# from light to dark
SKIN = np.array([[0.78, 0.56, 0.45], [0.60, 0.37, 0.25], [0.33, 0.17, 0.10], [0.13, 0.065, 0.04]], np.float32)
HAIR = np.array([[0.46, 0.33, 0.17], [0.20, 0.11, 0.05], [0.05, 0.03, 0.018], [0.010, 0.009, 0.009]], np.float32)
# dark brown, brown, green, blue
IRIS = np.array([[0.05, 0.025, 0.012], [0.15, 0.10, 0.04], [0.10, 0.16, 0.10], [0.14, 0.24, 0.36]], np.float32)


def _rgb(*values: float) -> np.ndarray:
    return np.array(values, np.float32)[None, :, None, None]


def _gray(value: np.ndarray) -> np.ndarray:
    """A gray of brightness (n, 1, 1)."""
    return value[:, None] * _rgb(1, 1, 1)


def _between(anchors: np.ndarray, t: np.ndarray) -> np.ndarray:
    """The colour at t (n, 1, 1), clipped to [0, 1], on the line through `anchors` (k, 3)."""
    t = np.clip(t, 0, 1)[:, None] * (len(anchors) - 1)
    at = np.minimum(t.astype(np.intp), len(anchors) - 2)
    low, high = (anchors[at[:, 0, 0, 0] + k][:, :, None, None] for k in (0, 1))
    return low + (high - low) * (t - at)


def natural(face: SimpleNamespace) -> SimpleNamespace:
    """Return materials in visible light."""
    skin = _between(SKIN, face.skin_dark) * (1 + (face.skin_warm - 0.5)[:, None] * _rgb(0.10, 0.0, -0.16))
    red = np.maximum(face.hair_red - 0.4, 0)[:, None] * _rgb(1.4, 0.1, -0.4)
    hair = _between(HAIR, face.hair_dark) * (1 + red)
    hair += np.clip(face.gray, 0, 0.85)[:, None] * (_rgb(0.42, 0.42, 0.43) - hair)
    return SimpleNamespace(
        skin=skin,
        flush=skin * _rgb(1.06, 0.74, 0.72),
        fold=skin * _rgb(0.42, 0.34, 0.32),
        dark=skin * 0.03 + _rgb(0.008, 0.006, 0.006),
        hair=hair,
        brow=hair * 0.6 + skin * _rgb(0.05, 0.04, 0.03),
        sclera=skin * 0.1 + _rgb(0.66, 0.62, 0.60),
        iris=_between(IRIS, face.iris_hue),
        lip=skin * _rgb(0.80, 0.42, 0.42) + _rgb(0.05, 0.0, 0.005),
        teeth=_rgb(0.68, 0.65, 0.58),
        scene=_gray(face.scene.clip(0.03)) * (1 + 0.22 * face.scene_hue[:, None] * _rgb(1.0, 0.1, -1.0)),
        cloth=_gray(face.cloth.clip(0.02)) * (1 + 0.40 * face.cloth_hue[:, None] * _rgb(-1.0, 0.0, 1.0)),
    )


def infrared(face: SimpleNamespace) -> SimpleNamespace:
    """Return materials at about 850 nm: skin bright in every tone, hair and iris mid gray, lips like skin."""
    skin = _gray(0.72 - 0.10 * np.clip(face.skin_dark, 0, 1))
    return SimpleNamespace(
        skin=skin,
        flush=skin,
        fold=skin * 0.60,
        dark=_rgb(0.03, 0.03, 0.03),
        hair=_gray(0.24 - 0.12 * np.clip(face.hair_dark, 0, 1)),
        brow=skin * 0.36,
        sclera=_rgb(0.40, 0.40, 0.40),
        iris=_gray(0.20 + 0.10 * np.clip(face.iris_hue, 0, 1)),
        lip=skin * 0.84,
        teeth=_rgb(0.60, 0.60, 0.60),
        scene=_gray(0.04 * face.scene),
        cloth=_gray(0.12 + 0.5 * face.cloth),
    )


def paper(face: SimpleNamespace) -> SimpleNamespace:
    """Return materials as a pencil draws them: skin white, hair and eyes dark."""
    skin = np.broadcast_to(_rgb(0.85, 0.85, 0.85), (len(face.yaw), 3, 1, 1))
    return SimpleNamespace(
        skin=skin,
        flush=skin * 0.96,
        fold=skin * 0.50,
        dark=_rgb(0.02, 0.02, 0.02),
        hair=_gray(0.45 - 0.38 * np.clip(face.hair_dark, 0, 1)),
        brow=_rgb(0.14, 0.14, 0.14),
        sclera=_rgb(0.90, 0.90, 0.90),
        iris=_gray(0.10 + 0.25 * np.clip(face.iris_hue, 0, 1)),
        lip=skin * 0.50,
        teeth=_rgb(0.90, 0.90, 0.90),
        scene=_gray(0.92 + 0 * face.scene),
        cloth=_rgb(0.75, 0.75, 0.75),
    )


@dataclass(frozen=True)
class Domain:
    """One kind of photographs.

    Attributes:
        finish: the camera, finish(face, linear RGB) -> display values.
        colours: colours(face) -> the colours of materials.
        traits: (mean, spread) by name, in place of those in identity.TRAITS.
        conditions: (mean, spread) by name, in place of those in identity.CONDITIONS.
        glasses: whether everyone wears spectacles.
        quality: of the JPEGs.
    """

    finish: Callable[[SimpleNamespace, np.ndarray], np.ndarray]
    colours: Callable[[SimpleNamespace], SimpleNamespace] = natural
    traits: dict[str, tuple[float, float]] = field(default_factory=dict)
    conditions: dict[str, tuple[float, float]] = field(default_factory=dict)
    glasses: bool = False
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
        infrared,
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
        paper,
        conditions={"ambient": (0.55, 0.05), "light_x": (-0.3, 0.35)},
    ),
    "glasses": Domain(
        finish.street,
        traits={"skin_dark": (0.35, 0.17)},
        conditions={"ambient": (0.45, 0.06)},
        glasses=True,
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
}
DOMAINS = tuple(CATALOG)
