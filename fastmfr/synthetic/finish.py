"""Cameras: from linear RGB (n, 3, size, size) to display values from 0 to 1 of the same shape."""

from types import SimpleNamespace as Face  # what identity.describe returns

import numpy as np

from .identity import draws


def blur(image: np.ndarray, radius: int) -> np.ndarray:
    """Blur by a box over the last two axes, edges repeated; by shifts and sums in an order that no batch changes."""
    for axis in (-1, -2):
        pad = [(0, 0)] * image.ndim
        pad[axis] = (radius, radius)
        wide = np.pad(image, pad, mode="edge")
        length = image.shape[axis]
        total = np.zeros_like(image)
        for k in range(2 * radius + 1):
            total += wide[..., k : k + length] if axis == -1 else wide[..., k : k + length, :]
        image = total / (2 * radius + 1)
    return image


def noise(face: Face, shape: tuple[int, ...]) -> np.ndarray:
    """Draw uniform noise (n, *shape) of mean 0 and variance 1, float32, from each image's own generator."""
    return np.stack([rng.random(shape, np.float32) for rng in face.rng]) * np.float32(12**0.5) - np.float32(3**0.5)


def _develop(
    face: Face, image: np.ndarray, gains: tuple[float, ...], grain: float, lift: float = 0.0, contrast: float = 1.0
) -> np.ndarray:
    """White balance, gamma 2, contrast around mid gray and grain."""
    size = image.shape[-1]
    warm = 1 + face.tint[:, None] * np.array([0.08, 0.0, -0.08], np.float32)[:, None, None]
    gains = np.array(gains, np.float32)[:, None, None] * warm * face.gain[:, None]
    out = np.sqrt(np.maximum(image * gains, 0))
    out *= contrast
    out += (grain * noise(face, (size, size)) + (0.5 - 0.5 * contrast + lift))[:, None]
    return out


def studio(face: Face, image: np.ndarray) -> np.ndarray:
    """Photograph softly and neutrally."""
    return _develop(face, image, (0.98, 1.0, 1.04), 0.012)


def street(face: Face, image: np.ndarray) -> np.ndarray:
    """Photograph in daylight: cool shadows, strong contrast, more noise."""
    return _develop(face, image, (0.95, 1.03, 1.12), 0.028, contrast=1.12)


def tungsten(face: Face, image: np.ndarray) -> np.ndarray:
    """Photograph by a warm lamp in a dark room."""
    return _develop(face, image, (1.45, 0.92, 0.42), 0.035)


def nir(face: Face, image: np.ndarray) -> np.ndarray:
    """Photograph by an infrared lamp beside the lens: gray, soft, darker towards the rim."""
    size = image.shape[-1]
    axis = ((np.arange(size, dtype=np.float32) + 0.5) * (2 / size) - 1) ** 2
    fall = 1 / (1 + 0.45 * (axis[:, None] + axis[None, :]))
    return _develop(face, np.broadcast_to(blur(image[:, :1], 1), image.shape) * fall, (1.15, 1.15, 1.15), 0.022)


def surveillance(face: Face, image: np.ndarray) -> np.ndarray:
    """Photograph from afar: about 38 pixels across, washed out, noisy, enlarged again."""
    size = image.shape[-1]
    factor = max(round(size / 38), 1)
    small = blur(image, factor // 2)[:, :, factor // 2 :: factor, factor // 2 :: factor]
    gray = (small[:, :1] + small[:, 1:2] + small[:, 2:]) / 3
    small = np.sqrt(np.maximum(gray + 0.35 * (small - gray), 0))
    small = small + 0.045 * noise(face, small.shape[1:])
    wide = np.repeat(np.repeat(small, factor, 2), factor, 3)[:, :, :size, :size]
    missing = size - wide.shape[-1]
    wide = np.pad(wide, [(0, 0), (0, 0), (0, missing), (0, missing)], mode="edge")
    cast = np.array([0.96, 1.02, 0.98], np.float32)[:, None, None]
    return 0.14 + 0.72 * cast * face.gain[:, None] * blur(wide, max(factor // 3, 1))


def sketch(face: Face, image: np.ndarray) -> np.ndarray:
    """Draw in pencil: lines where brightness bends, hatching in the shadows, paper grain."""
    size = image.shape[-1]
    tone = np.sqrt(np.maximum(image[:, 0], 0))
    line = np.clip(1 - 7 * np.maximum(blur(tone, max(size // 40, 1)) - tone - 0.01, 0), 0, 1)
    across = np.arange(size, dtype=np.float32)
    hatch = (across[:, None] + across[None, :]) * (37 / size)
    hatch = np.abs(hatch - np.floor(hatch) - 0.5) * 2
    dark = np.clip(0.80 - tone, 0, 1)
    hatched = 1 - np.clip(dark * 2.2 - 1.1 * hatch + 0.1, 0, 0.6)
    grain = noise(face, (size, size))
    drawn = 0.95 * line * hatched * (1 - 0.45 * dark) + 0.045 * grain * (0.4 + dark)
    return drawn[:, None] * np.array([1.0, 0.985, 0.95], np.float32)[None, :, None, None]


def aged(face: Face, image: np.ndarray) -> np.ndarray:
    """Photograph on an old print: high contrast, faded to brown."""
    gray = 0.35 * image[:, :1] + 0.5 * image[:, 1:2] + 0.15 * image[:, 2:]
    return _develop(face, gray + 0.45 * (image - gray), (1.16, 1.0, 0.80), 0.022, lift=0.03, contrast=1.20)


def snapshot(face: Face, image: np.ndarray) -> np.ndarray:
    """Photograph by a telephone's flash indoors: warm, soft, brightest in the middle."""
    size = image.shape[-1]
    axis = ((np.arange(size, dtype=np.float32) + 0.5) * (2 / size) - 1) ** 2
    fall = 1.12 / (1 + 0.55 * (axis[:, None] + axis[None, :]))
    soft = (0.4 * image + 0.6 * blur(image, size // 100)) * fall
    return _develop(face, soft, (1.10, 1.0, 0.86), 0.030, lift=0.02)


def thermal(face: Face, image: np.ndarray) -> np.ndarray:
    """Film heat: soft, gray, no lamp; the sensor's columns differ and its contrast follows the warmth in sight."""
    size = image.shape[-1]
    soft = blur(blur(image[:, 0], max(size // 64, 1)), max(size // 80, 1))
    columns = np.stack([rng.random(size, np.float32) for rng in face.rng])[:, None] - np.float32(0.5)
    soft = (soft - 0.55) * (1.5 * face.gain) + 0.52 + 0.06 * face.tint
    soft += 0.05 * columns + 0.022 * noise(face, (size, size))
    return np.repeat(soft[:, None], 3, axis=1)


def newsprint(face: Face, image: np.ndarray) -> np.ndarray:
    """Print in a newspaper: gray, hard, in dots on a screen turned by 45 degrees, on yellowed paper."""
    size = image.shape[-1]
    gray = 0.35 * image[:, 0] + 0.5 * image[:, 1] + 0.15 * image[:, 2]
    tone = (np.sqrt(np.maximum(gray * face.gain, 0)) - 0.5) * 1.25 + 0.52
    ruling, start, other = draws(face, 3)
    pitch = np.maximum(size / (27 + 9 * ruling), 2.9)
    axis = np.arange(size, dtype=np.float32)
    place = (axis[None, :, None] + axis[None, None, :]) / pitch + start, (axis[:, None] - axis) / pitch + other + size
    waves = [np.abs(w - np.floor(w) - 0.5) * 4 - 1 for w in place]  # from -1 to 1, and back
    spot = 0.5 + 0.25 * (waves[0] + waves[1])
    paper = np.clip((tone - spot) * 3.0 + 0.5, 0, 1)
    paper = 0.12 + 0.76 * (0.6 * paper + 0.4 * blur(paper, 1)) + 0.035 * noise(face, (size, size))
    return paper[:, None] * np.array([1.0, 0.97, 0.88], np.float32)[None, :, None, None]


def caricature(face: Face, image: np.ndarray) -> np.ndarray:
    """Paint in a few flat colours, with ink where brightness bends."""
    size = image.shape[-1]
    (pen,) = draws(face, 1)
    tone = np.sqrt(np.maximum(image, 0))
    gray = 0.35 * tone[:, 0] + 0.5 * tone[:, 1] + 0.15 * tone[:, 2]
    near = blur(gray, max(size // 40, 1))
    ink = np.clip((near - gray - 0.02) * (9 + 8 * pen), 0, 1)
    smooth = blur(gray, max(size // 56, 1))
    level = smooth * 5
    low = np.floor(level)
    flat = (low + 0.5 + np.clip((level - low - 0.5) * 8, -0.5, 0.5)) / 5
    out = blur(tone, max(size // 56, 1)) * (1.06 * flat / np.maximum(smooth, 0.02) * (1 - 0.92 * ink))[:, None]
    return out + 0.008 * noise(face, (size, size))[:, None]
