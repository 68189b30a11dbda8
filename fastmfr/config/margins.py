"""The margins of pretraining by name, and what their numbers are called and are unless given."""

MARGINS = {
    "cosface": {"m": 0.35},
    "arcface": {"m": 0.5},
    "combined": {"m1": 1.0, "m2": 0.3, "m3": 0.2},
    "adaface": {"m": 0.4, "h": 0.333},
    "magface": {"low": 10.0, "high": 110.0, "least": 0.45, "most": 0.8, "weight": 35.0},
}
MARGINS |= {f"{name}_insightface": MARGINS[name] for name in ("arcface", "combined")}


def checked_values(name, values=None) -> tuple[float, ...]:
    """All numbers of the margin `name`: `values`, or its own where there are none; ValueError for too few or many."""
    if name not in MARGINS:
        raise ValueError(f"want pretrain.margin out of {', '.join(map(repr, MARGINS))}, got {name!r}")
    own = MARGINS[name]
    if values and len(values) != len(own):
        raise ValueError(
            f"pretrain.margin {name!r} has {len(own)} number{'s'[: len(own) > 1]}, ({', '.join(own)}): "
            f"want pretrain.margin_values [{', '.join(map(str, own.values()))}] or others as many, or "
            f"null for these, got {list(values)}"
        )
    return tuple(values or own.values())
