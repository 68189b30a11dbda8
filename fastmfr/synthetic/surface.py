"""The head as a surface: the canonical point of each pixel, its height, and the light on it.

Every operation on pixels here and in paint.py is +, -, *, / or sqrt, which IEEE 754 rounds in one way only, so an image
does not depend on its batch. Arrays are float32 (n, size, size); parameters of a face (n, 1, 1).
"""

from types import SimpleNamespace as Face  # what identity.describe returns

import numpy as np

HEAD = (0.80, 1.10, 0.85)  # semi-axes of the ellipsoid that carries the face

# bands of rows, as fractions of the height, that hold a feature in any pose
EYES, NOSE, MOUTH, EARS = (0.18, 0.70), (0.50, 0.82), (0.52, 1.0), (0.25, 0.82)
FOREHEAD, CHEEKS, NECK, MIDDLE, LOWER = (0.05, 0.66), (0.38, 0.82), (0.72, 1.0), (0.25, 0.85), (0.45, 0.95)


def band(limits: tuple[float, float], *arrays: np.ndarray) -> list[np.ndarray]:
    """Return the rows of `limits` of each array, as views."""
    size = arrays[0].shape[-1]
    rows = slice(int(limits[0] * size), min(int(limits[1] * size) + 1, size))
    return [array[..., rows, :] for array in arrays]


def ramp(x: np.ndarray) -> np.ndarray:
    """Return a smooth step: 0 below 0, 1 above 1."""
    x = np.clip(x, 0, 1)
    y = 3 - 2 * x
    y *= x
    y *= x
    return y


def bump(squared: np.ndarray) -> np.ndarray:
    """Return a smooth hill of height 1 where the squared distance is 0, and 0 from 1 on."""
    x = 1 - squared
    np.maximum(x, 0, out=x)
    x *= x
    return x


def _turn(half_tangent: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cosine and sine of an angle from the tangent of half the angle, without a trigonometric function: exact."""
    square = half_tangent * half_tangent
    return (1 - square) / (1 + square), 2 * half_tangent / (1 + square)


def project(face: Face, size: int) -> tuple[np.ndarray, ...]:
    """Find the canonical point of each pixel.

    Returns:
        Image coordinates (x, y), level with the head; canonical coordinates (u, v); and the depth of the ellipsoid.
    """
    axis = ((np.arange(size, dtype=np.float32) + 0.5) * (2 / size) - 1).astype(np.float32)
    x, y = axis[None, None, :] - face.shift_x, axis[None, :, None] - face.shift_y
    cos, sin = _turn(face.roll)
    x, y = (x * cos + y * sin) / face.zoom, (y * cos - x * sin) / face.zoom
    a, b, _ = HEAD
    p, q = x / a, y / b
    depth = np.sqrt(np.maximum(1 - p * p - q * q, 0.03))
    cos_yaw, sin_yaw = _turn(face.yaw)
    cos_pitch, sin_pitch = _turn(face.pitch)
    # 0.8: an aligned crop follows the middle of the face, not the middle of the head
    pu = p * cos_yaw - (depth - 0.8) * sin_yaw
    turned = p * sin_yaw + depth * cos_yaw
    pu += np.sign(pu) * np.maximum(0.45 - turned, 0)  # round the side of the head: u must go on growing
    pv = q * cos_pitch - (turned - 0.8) * sin_pitch
    u, v = a * pu, b * pv
    nose = bump((u / 0.2) ** 2 + ((v - face.nose_tip + 0.05) / 0.38) ** 2)  # what stands out moves further
    u = u - sin_yaw * face.nose_high * nose
    v = v - sin_pitch * face.nose_high * nose + face.asymmetry * u
    return x, y, u, v, depth


def relief(face: Face, u: np.ndarray, v: np.ndarray, depth: np.ndarray) -> np.ndarray:
    """Return the height of the surface towards the camera, in canonical units."""
    whole, m = HEAD[2] * depth, np.abs(u)
    x, y, height = band(MIDDLE, u, v, whole)
    along = (y - face.eye_y) / (face.nose_tip - face.eye_y)
    width = face.nose_bridge + (face.nose_width - face.nose_bridge) * ramp(along)
    rise = ramp(along * 0.8 + 0.25) * ramp((face.nose_tip + 0.075 - y) / 0.10)
    rise += face.nose_hump * 4 * bump(((along - 0.35) / 0.4) ** 2)
    height += face.nose_high * 0.75 * rise * bump(((x - face.nose_bend * along) / (1.25 * width)) ** 2)
    x, y, height = band(EYES, m, v, whole)
    socket = ((x - face.eye_x) / 0.21) ** 2 + ((y - face.eye_y + 0.02) / 0.15) ** 2
    ball = ((x - face.eye_x) / 0.13) ** 2 + ((y - face.eye_y) / 0.10) ** 2
    height += 0.055 * bump(ball) - 0.09 * (0.6 + 0.8 * face.eye_depth) * bump(socket)
    x, y, height = band(CHEEKS, m, v, whole)
    cheek = ((x - 0.40) / 0.22) ** 2 + ((y - 0.16) / 0.22) ** 2
    wing = ((x - face.nose_width) / 0.055) ** 2 + ((y - face.nose_tip - 0.005) / 0.065) ** 2
    height += 0.05 * (face.cheekbone + 0.35 * face.smile) * bump(cheek) + 0.035 * bump(wing)
    x, y, height = band(MOUTH, u, v, whole)
    lips = (x / 0.30) ** 2 + ((y - face.mouth_y) / 0.17) ** 2
    chin = (x / 0.20) ** 2 + ((y - face.chin_y + 0.11) / 0.13) ** 2
    height += 0.06 * bump(lips) + 0.06 * face.chin_bump * bump(chin)
    return whole


def shade(face: Face, height: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the light on each point, about 1 for points that face the lamp, and the mirror-like part of the light."""
    step = np.float32(size / 4)
    dx, dy = np.zeros_like(height), np.zeros_like(height)
    dx[:, :, 1:-1] = (height[:, :, 2:] - height[:, :, :-2]) * step
    dy[:, 1:-1] = (height[:, 2:] - height[:, :-2]) * step
    scale = 1 / np.sqrt(dx * dx + dy * dy + 1)
    norm = 1 / np.sqrt(face.light_x**2 + face.light_y**2 + 1)
    lamp = np.maximum((1 - dx * face.light_x - dy * face.light_y) * scale * norm, 0)
    half = 1 / np.sqrt((face.light_x / 2) ** 2 + (face.light_y / 2) ** 2 + 1)
    gloss = np.maximum((1 - dx * face.light_x / 2 - dy * face.light_y / 2) * scale * half, 0)
    gloss = gloss * gloss
    gloss = gloss * gloss
    gloss = gloss * gloss
    return face.light * (face.ambient + (1.15 - face.ambient) * lamp), gloss * gloss
