"""The colours of materials, by what is seen: visible light, near infrared, heat, pencil on paper, paint.

Colours are linear RGB, float32 (n, 3, 1, 1), of: skin, flush (cheeks), fold, dark (pupils, nostrils), hair, brow,
sclera, iris, lip, teeth, scene and cloth.
"""

from types import SimpleNamespace

import numpy as np

# from light to dark
SKIN = np.array([[0.78, 0.56, 0.45], [0.60, 0.37, 0.25], [0.33, 0.17, 0.10], [0.13, 0.065, 0.04]], np.float32)
HAIR = np.array([[0.46, 0.33, 0.17], [0.20, 0.11, 0.05], [0.05, 0.03, 0.018], [0.010, 0.009, 0.009]], np.float32)
# dark brown, brown, green, blue
IRIS = np.array([[0.05, 0.025, 0.012], [0.15, 0.10, 0.04], [0.10, 0.16, 0.10], [0.14, 0.24, 0.36]], np.float32)
# nude, pink, red, plum
LIPSTICK = np.array([[0.50, 0.26, 0.20], [0.62, 0.16, 0.22], [0.50, 0.02, 0.03], [0.16, 0.01, 0.05]], np.float32)


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


def heat(face: SimpleNamespace) -> SimpleNamespace:
    """Return how warm materials are, from 0 to 1: eyes and openings warm, hair and clothes cool, the scene cold."""
    skin = _gray(0.62 + 0.05 * face.warm)
    return SimpleNamespace(
        skin=skin,
        flush=skin * 0.94,
        fold=skin * 1.14,
        dark=skin * (0.98 - 0.30 * face.breath)[:, None],
        hair=_gray(0.42 - 0.10 * face.hair_volume / 0.11),
        brow=skin * 0.76,
        sclera=skin * 0.90,
        iris=skin * 0.84,
        lip=skin * 1.03,
        teeth=skin * 0.80,
        scene=_gray(0.10 + 0.06 * face.scene),
        cloth=_gray(0.30 + 0.35 * face.cloth),
    )


def poster(face: SimpleNamespace) -> SimpleNamespace:
    """Return materials as a caricaturist paints them: purer colours, blushing cheeks, a pale ground."""
    colours = natural(face)
    for name in ("skin", "hair", "lip", "iris"):
        colour = getattr(colours, name)
        gray = colour.mean(1, keepdims=True)
        setattr(colours, name, np.maximum(gray + 1.35 * (colour - gray), 0.004))
    colours.brow = colours.hair * 0.5
    colours.flush = colours.skin * _rgb(1.05, 0.60, 0.58)
    colours.scene = (0.62 + 0.2 * face.scene)[:, None] * (1 + 0.14 * face.scene_hue[:, None] * _rgb(1.0, 0.2, -1.0))
    return colours


def cosmetic(face: SimpleNamespace) -> SimpleNamespace:
    """Return materials in visible light under the cosmetics of an image: powdered skin, lipstick, drawn brows."""
    colours, amount = natural(face), face.makeup[:, None]
    colours.skin = colours.skin * (1 + 0.10 * amount)
    colours.lip += 0.9 * amount * (_between(LIPSTICK, face.lip_hue) - colours.lip)
    colours.brow = colours.brow * (1 - 0.5 * amount)
    return colours
