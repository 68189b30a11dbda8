"""The domains: how each one's people look, and how its camera sees them."""

from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np

from . import finish

SKIN = np.array([[0.78, 0.56, 0.45], [0.60, 0.37, 0.25], [0.33, 0.17, 0.10], [0.13, 0.065, 0.04]], np.float32)
IRIS = np.array([[0.05, 0.025, 0.012], [0.15, 0.10, 0.04], [0.10, 0.16, 0.10], [0.14, 0.24, 0.36]], np.float32)
HAIR = np.array([[0.46, 0.33, 0.17], [0.20, 0.11, 0.05], [0.05, 0.03, 0.018], [0.010, 0.009, 0.009]], np.float32)


def _between(anchors, t):
    """Colour (n, 3, 1, 1) at t (n, 1, 1) in [0, 1] on the line through `anchors` (k, 3)."""
    t = np.clip(t, 0, 1)[:, None] * (len(anchors) - 1)
    at = np.minimum(t.astype(np.int32), len(anchors) - 2)
    low, high = (anchors[at[:, 0, 0, 0] + k][:, :, None, None] for k in (0, 1))
    return low + (high - low) * (t - at)


def _rgb(*values):
    return np.array(values, np.float32)[None, :, None, None]


def natural(face):
    """Colours of materials in visible light, linear RGB."""
    one = lambda value: value[:, None]  # noqa: E731
    warm = one(face.skin_warm) - 0.5
    skin = _between(SKIN, face.skin_dark) * (1 + warm * _rgb(0.10, 0.0, -0.16))
    hair = _between(HAIR, face.hair_dark) * (1 + np.maximum(one(face.hair_red) - 0.4, 0) * _rgb(1.4, 0.1, -0.4))
    gray = np.clip(one(face.gray), 0, 0.85)
    hair = hair + gray * (_rgb(0.42, 0.42, 0.43) - hair)
    hue, cloth = one(face.scene_hue), one(face.cloth_hue)
    return SimpleNamespace(
        skin=skin, flush=skin * _rgb(1.06, 0.74, 0.72), fold=skin * _rgb(0.42, 0.34, 0.32), hair=hair,
        brow=hair * 0.6 + skin * _rgb(0.05, 0.04, 0.03), dark=_rgb(0.008, 0.006, 0.006) + 0.03 * skin,
        sclera=_rgb(0.66, 0.62, 0.60) + 0.1 * skin, iris=_between(IRIS, face.iris_hue),
        lip=skin * _rgb(0.80, 0.42, 0.42) + _rgb(0.05, 0.0, 0.005), teeth=_rgb(0.68, 0.65, 0.58),
        scene=one(face.scene).clip(0.03) * (1 + 0.22 * hue * _rgb(1.0, 0.1, -1.0)),
        cloth=one(face.cloth).clip(0.02) * (1 + 0.40 * cloth * _rgb(-1.0, 0.0, 1.0)),
    )  # fmt: skip


def infrared(face):
    """Gray of materials under a lamp at 850 nm: skin bright whatever its tone, hair mid gray, iris pale, no lip colour."""
    def gray(value):
        return np.broadcast_to(np.float32(value), face.yaw.shape)[:, None] * _rgb(1, 1, 1)
    skin = gray(0.72 - 0.10 * np.clip(face.skin_dark, 0, 1))
    return SimpleNamespace(
        skin=skin, flush=skin, fold=skin * 0.60, hair=gray(0.24 - 0.12 * np.clip(face.hair_dark, 0, 1)), brow=skin * 0.36,
        dark=gray(0.03), sclera=gray(0.40), iris=gray(0.20 + 0.10 * np.clip(face.iris_hue, 0, 1)),
        lip=skin * 0.84, teeth=gray(0.6), scene=gray(0.04 * face.scene), cloth=gray(0.12 + 0.5 * face.cloth),
    )  # fmt: skip


def paper(face):
    """Gray of materials as someone with a pencil values them: skin white, hair and eyes dark."""
    def gray(value):
        return np.broadcast_to(np.float32(value), face.yaw.shape)[:, None] * _rgb(1, 1, 1)
    skin = gray(0.85)
    return SimpleNamespace(
        skin=skin, flush=skin * 0.96, fold=skin * 0.50, hair=gray(0.45 - 0.38 * np.clip(face.hair_dark, 0, 1)),
        brow=gray(0.14), dark=gray(0.02), sclera=gray(0.9), iris=gray(0.10 + 0.25 * np.clip(face.iris_hue, 0, 1)),
        lip=skin * 0.50, teeth=gray(0.9), scene=gray(0.92), cloth=gray(0.75),
    )  # fmt: skip


@dataclass(frozen=True)
class Domain:
    """Statistics of a domain's people (`traits`) and images (`conditions`), its colours and its camera (`finish`)."""

    finish: finish.Finish
    traits: dict = field(default_factory=dict)
    conditions: dict = field(default_factory=dict)
    colours: object = natural
    glasses: bool = False
    quality: int = 92


CATALOG = {
    "studio": Domain(
        finish.studio, {"skin_dark": (0.22, 0.16), "hair_dark": (0.55, 0.27)},
        {"ambient": (0.50, 0.05), "scene": (0.55, 0.10), "scene_hue": (-0.5, 0.3), "light_x": (0.0, 0.35)}),
    "street": Domain(
        finish.street, {"skin_dark": (0.72, 0.15), "hair_dark": (0.93, 0.08), "iris_hue": (0.05, 0.08), "lip_upper": (0.058, 0.012)},
        {"ambient": (0.30, 0.06), "light_x": (0.0, 0.80), "light": (1.25, 0.15), "scene_hue": (-1.4, 0.8), "yaw": (0.0, 0.13)}),
    "tungsten": Domain(
        finish.tungsten, {"skin_dark": (0.38, 0.12), "hair_dark": (0.88, 0.10), "iris_hue": (0.10, 0.15), "skin_warm": (0.8, 0.2)},
        {"ambient": (0.26, 0.05), "light": (0.85, 0.12), "light_y": (-0.7, 0.2), "scene": (0.16, 0.08), "scene_hue": (1.2, 0.5)}),
    "nir": Domain(
        finish.nir, {}, {"light_x": (0.0, 0.15), "light_y": (-0.05, 0.15), "ambient": (0.10, 0.04)}, infrared),
    "surveillance": Domain(
        finish.surveillance, {"skin_dark": (0.45, 0.25)},
        {"pitch": (0.09, 0.05), "light_y": (-0.8, 0.2), "scene": (0.28, 0.12), "yaw": (0.0, 0.13), "zoom": (0.95, 0.04)}, quality=70),
    "sketch": Domain(finish.sketch, {"skin_dark": (0.2, 0.1)}, {"light_x": (-0.3, 0.35), "ambient": (0.55, 0.05)}, paper),
    "glasses": Domain(finish.street, {"skin_dark": (0.35, 0.22)}, {"ambient": (0.45, 0.06)}, glasses=True),
    "aged": Domain(
        finish.aged, {"wrinkles": (0.95, 0.25), "gray": (0.75, 0.25), "skin_dark": (0.30, 0.18), "hair_line": (-0.68, 0.06),
                      "jaw_square": (0.62, 0.18), "jaw_taper": (0.22, 0.06), "eye_open": (0.36, 0.05)},
        {"ambient": (0.30, 0.06), "light_x": (0.0, 0.60)}),
}  # fmt: skip
DOMAINS = tuple(CATALOG)
