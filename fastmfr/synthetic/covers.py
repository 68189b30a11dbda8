"""What lies on a face in an image and belongs to no identity: cosmetics, warmth, spectacles, masks.

A coat is painted on bare skin, before its features and its light: coat(face, u, v, canvas). A cover is painted last,
over skin and hair, and takes the light: cover(face, u, v, light, canvas). Arrays are those of paint.py.
"""

from types import SimpleNamespace as Face  # what identity.describe returns, with what changes.py adds

import numpy as np

from .paint import blend, edge, outline
from .surface import CHEEKS, EYES, band, bump, ramp

LID = np.array([[0.30, 0.14, 0.08], [0.22, 0.10, 0.22], [0.05, 0.10, 0.22], [0.02, 0.02, 0.02]], np.float32)
# surgical blue, white, black, rose
CLOTH = np.array([[0.30, 0.52, 0.66], [0.74, 0.74, 0.72], [0.02, 0.02, 0.022], [0.52, 0.26, 0.28]], np.float32)


def _one_of(colours: np.ndarray, number: np.ndarray) -> np.ndarray:
    """The colour (n, 3, 1, 1) out of `colours` (k, 3) that `number` (n, 1, 1) in [0, 1) falls on."""
    return colours[(number[:, 0, 0] * len(colours)).astype(np.intp)][:, :, None, None]


def cosmetics(face: Face, u: np.ndarray, v: np.ndarray, canvas: np.ndarray) -> None:
    """Paint eye shadow, a drawn lid line, blush on the cheeks and shade below the cheek bones."""
    x, y, upper = band(EYES, u, v, canvas)
    e = np.abs(x) - face.eye_x
    across, up = e / face.eye_width, (y - face.eye_y - face.eye_tilt * e) / face.eye_width
    shadow = bump(((across - 0.15) / 1.5) ** 2 + ((up + 0.55) / 0.85) ** 2)
    line = bump(((up + 0.12 + 0.5 * face.wing * ramp(across - 0.6)) / 0.28) ** 2) * ramp((1.75 - np.abs(across)) / 0.3)
    blend(upper, 0.8 * face.makeup * shadow, _one_of(LID, face.lid_hue))
    blend(upper, 0.8 * face.makeup * line * (np.abs(across) > 0.8), np.float32(0.01))
    x, y, cheeks = band(CHEEKS, u, v, canvas)
    m = np.abs(x)
    blush = bump(((m - 0.42 - 0.25 * (0.16 - y)) / 0.16) ** 2 + ((y - 0.16) / 0.17) ** 2)
    shade = bump(((m - 0.46 + 0.3 * (y - 0.36)) / 0.10) ** 2 + ((y - 0.36) / 0.18) ** 2)
    blend(cheeks, 0.55 * face.makeup * face.blush * blush, np.array([0.66, 0.20, 0.22], np.float32)[:, None, None])
    cheeks *= (1 - 0.22 * face.makeup * shade)[:, None]


def warmth(face: Face, u: np.ndarray, v: np.ndarray, canvas: np.ndarray) -> None:
    """Warm the inner corners of the eyes and the forehead; cool the nose and the cheeks as much as the image says."""
    m = np.abs(u)
    corner = ((m - face.eye_x + 1.05 * face.eye_width) / 0.075) ** 2 + ((v - face.eye_y - 0.01) / 0.085) ** 2
    socket = ((m - face.eye_x) / 0.24) ** 2 + ((v - face.eye_y) / 0.13) ** 2
    forehead = (u / 0.45) ** 2 + ((v + 0.45) / 0.22) ** 2
    nose = (u / (1.5 * face.nose_width)) ** 2 + ((v - face.nose_tip + 0.05) / 0.24) ** 2
    cheek = ((m - 0.40) / 0.24) ** 2 + ((v - 0.22) / 0.26) ** 2
    change = 0.16 * bump(corner) + 0.05 * bump(socket) + 0.07 * face.brow_warm * bump(forehead)
    change -= 0.26 * face.nose_cold * bump(nose) + 0.13 * face.cheek_cold * bump(cheek)
    canvas += change[:, None]


def spectacles(face: Face, u: np.ndarray, v: np.ndarray, light: np.ndarray, canvas: np.ndarray) -> None:
    """Paint the spectacles of an image, not of an identity: frames, bridge, temples, tint and a reflection."""
    u, v, canvas = band(EYES, u, v, canvas)
    size, m = u.shape[-1], np.abs(u)
    x = (m - face.eye_x - 0.005) / (0.205 + 0.012 * face.frame_size)
    y = (v - face.eye_y - 0.03) / (0.150 + 0.018 * face.frame)
    square = np.clip(0.5 + 0.4 * face.frame, 0, 1)
    rim = (1 - square) * (x * x + y * y) + square * (x * x * x * x + y * y * y * y)
    lens = edge(1 - rim, size / 10)
    blend(canvas, lens * np.clip(0.10 + 0.08 * face.tint, 0, 0.3), np.float32(0.10))
    blend(canvas, lens * bump(((x - y * 0.6 + 0.5 * face.light_x) / 0.22) ** 2) * 0.22, np.float32(0.9))
    bridge = edge(0.018 - np.abs(v - face.eye_y + 0.02 - 0.5 * u * u), size / 2) * (m < face.eye_x - 0.19)
    arm = edge(0.020 - np.abs(v - face.eye_y + 0.02), size / 2) * (m > face.eye_x + 0.2) * (m < face.face_width + 0.03)
    frame = edge(0.17 + 0.05 * face.frame_size - np.abs(rim - 1.05), size / 16)
    dark = np.clip(0.06 + 0.06 * face.frame_dark, 0.01, 0.25)[:, None]
    blend(canvas, 0.95 * np.maximum(np.maximum(frame, bridge), arm), dark)


def mask(face: Face, u: np.ndarray, v: np.ndarray, light: np.ndarray, canvas: np.ndarray) -> None:
    """Paint a pleated mask with its loops, or a scarf that also hides the neck, on the images that have one."""
    m, sharp = np.abs(u), u.shape[-1] / 10
    below = v - face.mask_top + 0.06 * bump((u / 0.18) ** 2) - 0.20 * ramp((m - 0.12) / 0.55)
    chin = outline(face, u / 1.02, v * 0.93)
    side = np.minimum(1 - chin, (0.94 * face.face_width - m) * 3)
    wrapped = np.minimum(face.face_width + 0.10 + 0.25 * np.maximum(v - 0.5, 0) - m, np.maximum(1.10 - chin, v - 0.55))
    cloth = np.where(face.scarf, wrapped, side)
    loop = bump(((v - face.nose_tip + 0.10 * (1 - 2 * (v > face.nose_tip + 0.1))) / 0.02) ** 2)
    loops = loop * (m > 0.9 * face.face_width) * (m < face.face_width + 0.03) * ~face.scarf
    fold = (below + 0.06 * u * u) * np.where(face.scarf, 6 + 5 * face.weave, 7.0) + 100
    fold = np.abs(fold - np.floor(fold) - 0.5)
    shaded = light * (1 - np.where(face.scarf, 0.45, 0.22) * bump((fold / 0.22) ** 2)) * (0.86 + 0.14 * ramp(side * 2))
    opacity = face.masked * np.maximum(edge(np.minimum(below * 4, cloth), sharp), 0.8 * loops)
    blend(canvas, opacity, _one_of(CLOTH, face.mask_hue) * shaded[:, None])
