"""Colours on the head: skin, eyes, brows, mouth, hair, and what is behind.

A canvas is linear RGB, float32 (n, 3, rows, size), changed in place; a mask is (n, rows, size) in [0, 1]; a colour
is (n, 3, 1, 1); u and v are canonical coordinates, (n, rows, size). Features that exist twice are painted once, in |u|.
Folds and dark openings are collected as masks over the whole face, `fold` and `dark`, and painted together, since
blending three planes takes most of the time.
"""

from types import SimpleNamespace as Colours  # of materials, see domains.py
from types import SimpleNamespace as Face  # what identity.describe returns

import numpy as np

from .identity import TEXELS
from .surface import CHEEKS, EARS, FOREHEAD, LOWER, MOUTH, NECK, band, bump, ramp


def blend(canvas: np.ndarray, mask: np.ndarray, colour: np.ndarray | np.float32) -> None:
    """Blend `colour` into the canvas; `mask` is its opacity."""
    change = colour - canvas
    change *= mask[:, None]
    canvas += change


def edge(distance: np.ndarray, sharp: np.ndarray | np.floating | float) -> np.ndarray:
    """Return an antialiased mask: 1 for a `distance` well above 0, 0 well below."""
    mask = distance * sharp
    mask += 0.5
    return np.clip(mask, 0, 1, out=mask)


def texture(table: np.ndarray, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Bilinear look-up of a table (n, TEXELS, TEXELS) that covers the canonical square."""
    x, y = (np.clip((w + 1) * ((TEXELS - 1) / 2), 0, TEXELS - 1.01) for w in (u, v))
    column, row = x.astype(np.intp), y.astype(np.intp)
    x -= column
    y -= row
    at = row * TEXELS + column + (np.arange(len(table)) * TEXELS**2)[:, None, None]
    top, top_right, low, low_right = (table.take(at + k) for k in (0, 1, TEXELS, TEXELS + 1))
    top += x * (top_right - top)
    low += x * (low_right - low)
    return top + y * (low - top)


def _strands(face: Face, across: np.ndarray) -> np.ndarray:
    """Hair strands: streaks in [-1, 1] that change along `across` and stay along the hair."""
    at = (across * 46 + 460).astype(np.intp) & 255
    at += (np.arange(len(face.streaks)) * 256)[:, None, None]
    return face.streaks.take(at)


def outline(face: Face, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Return values below 1 inside the face and 1 on its edge: round skull and cheeks, jaw tapering to the chin."""
    low = np.maximum(v - face.cheek_y, 0) / (face.chin_y - face.cheek_y)
    high = np.maximum(face.cheek_y - v, 0) / (face.cheek_y + 0.93)
    low, high = low * low, high * high
    half = face.face_width * (1 - face.jaw_taper * low)
    return (u / half) ** 2 + low * (1 - face.jaw_square + face.jaw_square * low) + high * high


def backdrop(face: Face, colours: Colours, x: np.ndarray, y: np.ndarray, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Paint what is behind the face, (n, 3, size, size): scene, hair, neck, clothes, ears."""
    sharp = np.float32(x.shape[-1] / 5)
    blob = bump(((x - face.light_x) / 1.3) ** 2 + ((y - 0.5 * face.scene_hue) / 1.5) ** 2)
    canvas = colours.scene * (0.65 + 0.7 * blob)[:, None]
    blend(canvas, hair_behind(face, u, v), colours.hair * 0.5)
    x, y, below = band(NECK, np.abs(x), y, canvas)
    neck = 0.37 + 0.35 * np.maximum(y - 0.80, 0) ** 2 + 0.1 * (face.jaw_square - 0.5)
    shadow = 0.30 + 0.35 * ramp((y - face.chin_y + 0.05) / 0.5)
    blend(below, edge(neck - x, sharp), colours.skin * shadow[:, None])
    collar = y - 0.98 + 0.16 * ramp((x - 0.25) / 0.25) - 0.12 * bump((x / 0.5) ** 2)
    blend(below, edge(collar, sharp), colours.cloth)
    u, v, beside = band(EARS, u, v, canvas)
    m = np.abs(u) - face.face_width
    ear = ((m - face.ear_out + 0.01) / 0.085) ** 2 + ((v - 0.08 + 0.25 * m) / face.ear_size) ** 2
    blend(beside, edge(1 - ear, sharp / 3), colours.skin * (0.50 + 0.35 * ramp(ear))[:, None])
    return canvas


def skin(face: Face, colours: Colours, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Paint the albedo of bare skin: the identity's pigment, red of the cheeks and nose, beard."""
    canvas = colours.skin * (1 - np.clip(texture(face.pigment, u, v), -0.3, 0.8))[:, None]
    x, y, cheeks = band(CHEEKS, u, v, canvas)
    flush = ((np.abs(x) - 0.36) / 0.27) ** 2, ((y - 0.22) / 0.25) ** 2, (x / 0.13) ** 2, ((y - 0.25) / 0.12) ** 2
    blend(cheeks, np.minimum(0.25 * (bump(flush[0] + flush[1]) + bump(flush[2] + flush[3])), 0.3), colours.flush)
    x, y, jaw = band(MOUTH, u, v, canvas)
    beard = ramp((y - 0.27 - 0.45 * (0.5 - np.abs(x))) / 0.22) + bump((x / 0.24) ** 2 + ((y - 0.40) / 0.075) ** 2)
    blend(jaw, np.clip(face.beard + face.shave, 0, 0.75) * np.minimum(beard, 1), colours.hair)
    return canvas


def wrinkles(face: Face, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Return a mask of folds: forehead, between the brows, crow's feet, under the eyes, beside the mouth."""
    age, m, fold = np.maximum(face.wrinkles, 0), np.abs(u), np.zeros_like(u)
    beside, at, lower = band(LOWER, m, v, fold)
    nasal = beside - face.nose_width - 0.045 - 0.42 * (at - face.nose_tip) * (1 + 0.5 * face.smile)
    deep = 0.55 * age + 0.22 * np.maximum(face.smile, 0)
    lower += deep * bump((nasal / 0.035) ** 2) * bump(((at - face.nose_tip - 0.12) / 0.19) ** 2)
    u, v, m, upper = band(FOREHEAD, u, v, m, fold)
    eye = m - face.eye_x
    bag = bump(((v - face.eye_y - 0.115 + 1.8 * eye**2) / 0.022) ** 2) * bump((eye / 0.15) ** 2)
    wave = (v + 0.62 + 0.10 * u * u) * 13 + 100
    wave = np.abs(wave - np.floor(wave) - 0.5)
    forehead = bump((wave / 0.22) ** 2) * bump((u / 0.42) ** 2) * bump(((v + 0.46) / 0.16) ** 2)
    fan = np.abs(v - face.eye_y) * 16 / (1 + 4 * np.maximum(eye - face.eye_width, 0)) + 100.2
    fan = np.abs(fan - np.floor(fan) - 0.5)
    feet = bump(((eye - face.eye_width - 0.07) / 0.07) ** 2 + ((v - face.eye_y) / 0.10) ** 2)
    frown = bump(((m - 0.035) / 0.014) ** 2) * bump(((v - face.brow_y - 0.01) / 0.08) ** 2)
    upper += age * (0.5 * bag + 0.5 * frown + 0.7 * feet * bump((fan / 0.25) ** 2))
    upper += (0.75 * age + 8 * np.maximum(face.brow_raise, 0)) * forehead
    return fold


def brows(face: Face, colours: Colours, u: np.ndarray, v: np.ndarray, canvas: np.ndarray) -> None:
    """Paint the brows: an arch, thick inside and thin outside, raised by expression."""
    sharp = np.float32(u.shape[-1] / 2)
    along = (np.abs(u) - face.eye_x - face.brow_gap - 0.01) / face.brow_length
    square = along * along
    middle = face.brow_y - face.brow_raise + face.brow_slope * 0.3 * along + 0.045 * face.brow_arch * (square - 0.4)
    thick = face.brow_thick * np.maximum(1 - 0.35 * along - 0.55 * square * square, 0.02)
    mask = edge(thick - np.abs(v - middle), sharp * 0.6) * edge(1.02 - np.abs(along), sharp * 0.15)
    blend(canvas, mask * face.brow_dark * (0.9 + 0.1 * _strands(face, u * 3 + v * 2)), colours.brow)


def eyes(
    face: Face, colours: Colours, u: np.ndarray, v: np.ndarray, canvas: np.ndarray, fold: np.ndarray, dark: np.ndarray
) -> np.ndarray:
    """Paint the eyes, with lids, lashes and pupils; return the glint of the lamp, (n, rows, size)."""
    e = np.abs(u) - face.eye_x
    x, y = e / face.eye_width, (v - face.eye_y - face.eye_tilt * e) / face.eye_width
    sharp = u.shape[-1] / 2 * face.eye_width
    lens = 1 - x * x
    arch = 1.1 * face.eye_open * face.lid * (1 - face.eye_skew * x)
    upper = y + arch * lens
    lower = face.eye_open * (0.75 - 0.15 * np.maximum(face.smile, 0)) * lens - y
    opened = edge(np.minimum(upper, lower), sharp)
    blend(canvas, opened, colours.sclera)
    square = (x - face.gaze_x * np.sign(u)) ** 2 + (y + 0.06 - face.gaze_y) ** 2
    ring = square / face.iris_size
    iris = np.minimum(0.55 + 0.6 * ring / face.iris_size, 1.1)
    blend(canvas, opened * edge(face.iris_size - ring, sharp / 2), colours.iris * iris[:, None])
    pupil = edge(face.iris_size * 0.42 - ring / 0.42, sharp / 2)
    lid_shadow = 0.5 * bump((np.minimum(upper, 0.35) / 0.35) ** 2)
    wide = lens + 0.15
    lash = edge(0.09 - np.abs(y + arch / 1.1 * wide), sharp) * (wide > 0.03) * face.lash
    dark += np.maximum(opened * np.maximum(pupil, lid_shadow), lash)
    fold += 0.28 * bump(((lower + 0.05) / 0.10) ** 2) * (lens > 0)
    fold += 0.45 * bump(((upper + face.lid_crease) / 0.12) ** 2) * np.maximum(lens + 0.2, 0)
    glint = (x * np.sign(u) - face.light_x * 0.25) ** 2 + (y + 0.16 - 0.2 * face.light_y) ** 2
    return opened * bump(glint / 0.035)


def nose(face: Face, u: np.ndarray, v: np.ndarray, fold: np.ndarray, dark: np.ndarray) -> None:
    """Paint the nostrils, the wings, and the shadow under the tip."""
    m = np.abs(u)
    hole = ((m / face.nose_width - 0.52) / 0.36) ** 2 + ((v - face.nose_tip - 0.055 + 0.12 * m) / 0.028) ** 2
    dark += (0.7 + 0.9 * face.nostril) * bump(hole)
    fold += 0.35 * bump((u / (face.nose_width * 1.25)) ** 2 + ((v - face.nose_tip - 0.075) / 0.05) ** 2)
    fold += 0.35 * bump(((m - face.nose_width - 0.028) / 0.022) ** 2 + ((v - face.nose_tip - 0.01) / 0.06) ** 2)


def mouth(
    face: Face, colours: Colours, u: np.ndarray, v: np.ndarray, canvas: np.ndarray, fold: np.ndarray, dark: np.ndarray
) -> None:
    """Paint lips on a line that a smile bends and widens, and teeth between parted lips."""
    sharp = np.float32(u.shape[-1] / 2)
    t = u / (face.mouth_width * (1 + 0.14 * face.smile))
    m, square = np.abs(t), t * t
    arch = np.maximum(1 - square, 0)
    gap = 0.12 * np.maximum(face.mouth_gap, 0)
    bend = face.smile * 0.055 + face.lip_bend
    line = v - face.mouth_y - face.lip_bend * 0.3 + bend * (np.minimum(square, 1.3) - 0.3)
    bow = 1 - face.lip_bow * (bump((t / 0.28) ** 2) - 0.3 * bump(((m - 0.3) / 0.3) ** 2))
    top = (face.lip_upper * bow + 0.4 * gap) * arch
    low = (face.lip_lower * (1.25 - 0.25 * square) + gap) * arch
    within = edge(1.02 - m, sharp * 0.2)
    lips = edge(np.minimum(line + top, low - line), sharp * 0.5) * within
    blend(canvas, lips * (0.35 + 0.6 * face.lip_red), colours.lip)
    teeth = edge(np.minimum(line + gap * 0.35 * arch, gap * 0.45 * arch - line), sharp) * edge(0.7 - m, 8)
    teeth *= gap > 0.012
    blend(canvas, 0.85 * teeth, colours.teeth)
    parted = edge(np.minimum(line + gap * arch * 0.4, gap * arch - line), sharp) * (gap > 0.004)
    closed = bump((line / 0.017) ** 2) * np.maximum(0.75 - 4 * gap, 0)
    dark += np.maximum(parted * (1 - teeth), closed) * within
    fold += 0.55 * bump(((m - 1.02) / 0.09) ** 2 + (line / 0.03) ** 2)
    fold += 0.30 * bump((t / 0.6) ** 2 + ((line - low - 0.028) / 0.03) ** 2)


def _skull(face: Face, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return (u / (face.face_width + face.hair_volume)) ** 2 + ((v + 0.12) / (0.82 + face.hair_volume)) ** 2


def hair_behind(face: Face, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Return a mask of the hair around the head: a cap that ends above the ears, or long hair beside the face."""
    length = face.hair_long + face.hair_fall
    width = face.face_width + face.hair_volume * (1 + 0.25 * np.minimum(length, 1))
    end = 0.35 + 0.9 * np.maximum(length, 0)
    skull = _skull(face, u, v)
    falling = (u / width) ** 2 + ((np.maximum(v, 0) / end) ** 2) ** 2
    inside = np.where(length > 0, np.where(v < -0.1, skull, falling), skull + 4 * ramp(v + 0.2))
    return edge(1 - inside, u.shape[-1] / 10)


def hair_front(face: Face, u: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return a mask of the hair over forehead and temples, and the brightness of its strands."""
    t = u / face.face_width
    m = np.abs(t)
    away = np.minimum((1.2 * (t - face.hair_part)) ** 2, 1)
    line = face.hair_line + face.hair_move + face.hair_peak * bump((t / 0.3) ** 2) - 0.10 * (1 - away)
    beside = 0.25 + 0.8 * (face.hair_long + face.hair_fall > 0)
    line = line + face.hair_temple * ramp((m - 0.62) / 0.42) + beside * ramp((m - 0.93) / 0.12)
    streak = _strands(face, (u - 0.3 * face.hair_part) * (1.3 - v))
    size = u.shape[-1]
    return edge(line + 0.03 * streak - v, size / 8) * edge(1 - _skull(face, u, v), size / 10), 0.75 + 0.3 * streak
