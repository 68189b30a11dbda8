"""Who is seen and how: the numbers behind a procedural face.

A face lives in canonical coordinates: u to the right and v down, the face between -1 and 1, the nose ridge at u = 0.
A trait belongs to an identity and never changes; a condition belongs to one image. Both are drawn as
mean + spread * normal, the normal clipped to [-2, 2], from generators keyed by seed, domain, identity and, for
conditions, image, so that an image depends on nothing else.

Of a share of people, numbers 2 k and 2 k + 1 are twins: the second has the traits of the first, changed by a quarter of
a spread, and a pigment drawn apart. Of another share of people there is one image. The number of a person decides who
belongs to a share, without a draw: the fractional parts of the multiples of an irrational number spread evenly over
[0, 1).
"""

from collections.abc import Mapping, Sequence
from types import SimpleNamespace

import numpy as np

TEXELS = 48  # the skin texture is TEXELS x TEXELS over the canonical square; a mole is about one texel

TRAITS = {  # name: (mean, spread)
    # outline
    "face_width": (0.645, 0.024),
    "cheek_y": (0.03, 0.04),
    "jaw_taper": (0.27, 0.06),
    "jaw_square": (0.50, 0.18),
    "chin_y": (0.845, 0.024),
    "chin_bump": (0.5, 0.28),
    "cheekbone": (0.5, 0.28),
    "asymmetry": (0.0, 0.0096),
    # eyes
    "eye_x": (0.283, 0.015),
    "eye_y": (-0.10, 0.013),
    "eye_width": (0.128, 0.0088),
    "eye_open": (0.42, 0.052),
    "eye_tilt": (-0.05, 0.052),
    "eye_skew": (0.0, 0.24),
    "eye_depth": (0.5, 0.20),
    "lid_crease": (0.24, 0.08),
    "iris_size": (0.43, 0.024),
    "iris_hue": (0.5, 0.28),
    "lash": (0.55, 0.16),
    # brows
    "brow_y": (-0.285, 0.019),
    "brow_arch": (0.9, 0.44),
    "brow_slope": (0.02, 0.068),
    "brow_thick": (0.040, 0.0088),
    "brow_length": (0.185, 0.016),
    "brow_gap": (0.0, 0.018),
    "brow_dark": (0.62, 0.14),
    # nose
    "nose_tip": (0.275, 0.026),
    "nose_width": (0.118, 0.013),
    "nose_bridge": (0.060, 0.01),
    "nose_high": (0.21, 0.032),
    "nose_bend": (0.0, 0.0096),
    "nostril": (0.5, 0.18),
    "nose_hump": (0.0, 0.018),
    # mouth
    "mouth_y": (0.515, 0.018),
    "mouth_width": (0.235, 0.019),
    "lip_upper": (0.050, 0.0096),
    "lip_lower": (0.064, 0.012),
    "lip_bow": (0.35, 0.18),
    "lip_bend": (0.005, 0.024),
    "lip_red": (0.55, 0.16),
    # hair, ears, skin
    "hair_line": (-0.60, 0.045),
    "hair_temple": (0.42, 0.14),
    "hair_part": (0.0, 0.16),
    "hair_peak": (0.0, 0.05),
    "hair_volume": (0.11, 0.028),
    "hair_long": (0.0, 0.75),
    "hair_dark": (0.70, 0.17),
    "hair_red": (0.35, 0.20),
    "ear_size": (0.18, 0.018),
    "ear_out": (0.035, 0.018),
    "beard": (-0.12, 0.32),
    "skin_dark": (0.40, 0.20),
    "skin_warm": (0.5, 0.25),
    "freckles": (-0.15, 0.38),
    "moles": (0.9, 1.10),
    "blotch": (0.4, 0.15),
    "wrinkles": (0.18, 0.15),
    "gray": (0.0, 0.10),
}

CONDITIONS = {  # name: (mean, spread); angles are tangents of the half angle, 0.13 is 15 degrees
    "yaw": (0.0, 0.125),
    "pitch": (0.0, 0.062),
    "roll": (0.0, 0.03),
    "shift_x": (0.0, 0.028),
    "shift_y": (0.0, 0.028),
    "zoom": (1.0, 0.035),
    "smile": (0.32, 0.36),
    "mouth_gap": (-0.10, 0.26),
    "brow_raise": (0.004, 0.022),
    "lid": (0.98, 0.17),
    "gaze_x": (0.0, 0.18),
    "gaze_y": (0.0, 0.08),
    "shave": (0.0, 0.12),
    "hair_fall": (0.0, 0.30),
    "hair_move": (0.0, 0.035),
    "gain": (1.0, 0.12),
    "light_x": (0.0, 0.55),
    "light_y": (-0.40, 0.25),
    "light": (1.0, 0.10),
    "ambient": (0.42, 0.08),
    "tint": (0.0, 1.0),
    "scene": (0.5, 0.25),
    "scene_hue": (0.0, 1.0),
    "cloth": (0.35, 0.20),
    "cloth_hue": (0.0, 1.0),
    "frame": (0.0, 1.0),
    "frame_size": (0.0, 1.0),
    "frame_dark": (0.0, 1.0),
}


LIKE_TWIN, OWN = 0.97, 0.243  # parts of a second twin's deviations; their squares sum to 1, which keeps the spread


def is_single(identity: int, share: float) -> bool:
    """Whether there is one image of a person, of whom there are `share` among all, from 0 to 1."""
    return (identity + 1) * 5**0.5 % 1 < share


def is_twin(identity: int, share: float) -> bool:
    """Whether a person is one of two twins, of whom there are `share` among all people, from 0 to 1."""
    return (identity // 2 + 1) * 2**0.5 % 1 < share


def generator(*key: int) -> np.random.Generator:
    """Make a random generator that depends on the non-negative integers of `key` alone."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(key)))


def _draw(table: dict, changes: Mapping[str, tuple[float, float]], rng: np.random.Generator) -> np.ndarray:
    """One number per entry of `table`; `changes` replaces (mean, spread) by name."""
    mean, spread = np.array(list({**table, **changes}.values())).T
    return mean + spread * np.clip(rng.standard_normal(len(table)), -2, 2)


def draws(face: SimpleNamespace, count: int) -> list[np.ndarray]:
    """Draw `count` more uniform numbers of each image from the image's own generator, each float32 (n, 1, 1)."""
    values = np.stack([rng.random(count, np.float32) for rng in face.rng])
    return [values[:, k, None, None] for k in range(count)]


def _pigment(rng: np.random.Generator, traits: dict[str, float]) -> np.ndarray:
    """Skin texture of an identity, (TEXELS, TEXELS) float32; above 0 darker than plain: blotches, freckles, moles."""
    coarse = rng.standard_normal((TEXELS // 4, TEXELS // 4), np.float32)
    texture = 0.05 * traits["blotch"] * np.kron(coarse, np.ones((4, 4), np.float32))
    texture[1:-1] = (texture[:-2] + 2 * texture[1:-1] + texture[2:]) / 4
    texture[:, 1:-1] = (texture[:, :-2] + 2 * texture[:, 1:-1] + texture[:, 2:]) / 4
    speck = rng.random((TEXELS, TEXELS), np.float32) < 0.16
    band = slice(TEXELS * 4 // 10, TEXELS * 7 // 10)
    texture[band] += 0.28 * max(traits["freckles"], 0) * speck[band] * rng.random((TEXELS, TEXELS), np.float32)[band]
    place = rng.integers((TEXELS * 3 // 10, TEXELS * 5 // 20), (TEXELS * 9 // 10, TEXELS * 15 // 20), (4, 2))
    for y, x in place[: max(round(traits["moles"]), 0)]:
        texture[y, x] = 0.6
    return texture


def _stack(tables: list[dict[str, float]]) -> dict[str, np.ndarray]:
    """A list of {name: number} as {name: float32 (n, 1, 1)}."""
    values = np.array([list(table.values()) for table in tables], np.float32)
    return {name: values[:, i, None, None] for i, name in enumerate(tables[0])}


def describe(
    seed: int,
    domain: int,
    identities: Sequence[int],
    images: Sequence[int],
    traits: Mapping[str, tuple[float, float]],
    conditions: Mapping[str, tuple[float, float]],
    twins: float = 0.0,
) -> SimpleNamespace:
    """Draw the traits and conditions of n images.

    Args:
        seed: an integer >= 0.
        domain: the number of the domain.
        identities: the identity number of each image.
        images: the number of each image within its identity.
        traits: (mean, spread) by name, in place of those in TRAITS.
        conditions: (mean, spread) by name, in place of those in CONDITIONS.
        twins: the share of people who are twins, from 0 to 1.

    Returns:
        Every trait and condition by name, float32 (n, 1, 1); `pigment`, (n, TEXELS, TEXELS); `streaks` of hair in
        [-1, 1], (n, 256); and `rng`, a list of n generators for the other random parts of the images.
    """
    known, faces, shots, rngs = {}, [], [], []
    for identity, image in zip(identities, images, strict=True):
        if identity not in known:
            rng = generator(seed, domain, identity)
            numbers = _draw(TRAITS, traits, rng)
            if identity % 2 and is_twin(identity, twins):
                mean = np.array([mean for mean, _ in {**TRAITS, **traits}.values()])
                first = _draw(TRAITS, traits, generator(seed, domain, identity - 1))
                numbers = mean + LIKE_TWIN * (first - mean) + OWN * (numbers - mean)
            face = dict(zip(TRAITS, numbers, strict=True))
            known[identity] = face, _pigment(rng, face)
        faces.append(known[identity])
        rngs.append(generator(seed, domain, identity, image, 1))
        shots.append(dict(zip(CONDITIONS, _draw(CONDITIONS, conditions, rngs[-1]), strict=True)))
    stacked = _stack([face for face, _ in faces]) | _stack(shots)
    streaks = np.stack([rng.random(256, np.float32) for rng in rngs]) * 2 - 1
    pigment = np.stack([pigment for _, pigment in faces])
    return SimpleNamespace(**stacked, pigment=pigment, streaks=streaks, rng=rngs)
