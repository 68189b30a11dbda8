"""The margins of pretraining by name: what their numbers are called, are by default, and may be."""

import math
from typing import get_args

from fastmfr.config.choices import Margin

MARGINS = {
    "cosface": {"m": 0.35},
    "arcface": {"m": 0.5},
    "combined": {"m1": 1.0, "m2": 0.3, "m3": 0.2},
    "adaface": {"m": 0.4, "h": 0.333},
    "magface": {"low": 10.0, "high": 110.0, "least": 0.45, "most": 0.8, "weight": 35.0},
}
MARGINS |= {f"{name}_insightface": MARGINS[name] for name in ("arcface", "combined")}
ANGLES = {"arcface": ("m",), "combined": ("m2",), "magface": ("least", "most")}  # in radians, [0, pi)
COSINES = {"cosface": ("m",), "combined": ("m3",), "adaface": ("m",)}  # [0, 2)


def checked_values(name: str, values: tuple[float, ...] | None = None) -> tuple[float, ...]:
    """All numbers of the margin `name`: `values`, or the margin's own if there are none.

    Raises:
        ValueError: no margin of that name, too few or too many numbers, or a number out of its range.
    """
    if name not in MARGINS:
        raise ValueError(f"want pretrain.margin out of {', '.join(map(repr, get_args(Margin)))}, got {name!r}")
    own = MARGINS[name]
    if values and len(values) != len(own):
        raise ValueError(
            f"pretrain.margin {name!r} has {len(own)} number{'s'[: len(own) > 1]}, ({', '.join(own)}): "
            f"want pretrain.margin_values [{', '.join(map(str, own.values()))}] or {len(own)} others, or "
            f"null for these, got {list(values)}"
        )
    for number, value in zip(own, values or own.values(), strict=True):
        _check_range(name, number, value)
    return tuple(values or own.values())


def _check_range(name, number, value):
    plain = name.removesuffix("_insightface")
    angle, cosine = number in ANGLES.get(plain, ()), number in COSINES.get(plain, ())
    high = math.pi if angle else 2 if cosine else math.inf
    if 0 <= value < high:
        return
    within = "radians in [0, pi)" if angle else f"a number in [0, {high:g})"
    degrees = f", which looks like degrees: in radians it is {math.radians(value):.3g}" if 4 < value < 360 else ""
    raise ValueError(
        f"pretrain.margin {name!r} wants {number} as {within}, got pretrain.margin_values with "
        f"{number} {value:g}{degrees if angle else ''}"
    )
