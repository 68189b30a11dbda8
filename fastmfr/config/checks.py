"""Checks of settings; each failure is a ValueError with one sentence."""

from typing import Any, get_args


def require(holds: bool, sentence: str) -> None:
    """Raise ValueError with `sentence` unless `holds` is true."""
    if not holds:
        raise ValueError(sentence)


def require_choice(name: str, value: object, choices: Any) -> None:
    """Raise ValueError unless `value` is one of the strings of `choices`, a typing.Literal."""
    wanted = ", ".join(map(repr, get_args(choices)))
    require(value in get_args(choices), f"want {name} out of {wanted}, got {value!r}")
