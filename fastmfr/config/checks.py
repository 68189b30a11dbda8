"""What classes of settings share: checks, whose failure is a ValueError with one sentence, and narrowing."""

from dataclasses import fields
from typing import Any, TypeVar, get_args

T = TypeVar("T")


def require(holds: bool, sentence: str) -> None:
    """Raise ValueError with `sentence` unless `holds` is true."""
    if not holds:
        raise ValueError(sentence)


def require_choice(name: str, value: object, choices: Any) -> None:
    """Raise ValueError unless `value` is one of the strings of `choices`, a typing.Literal."""
    wanted = ", ".join(map(repr, get_args(choices)))
    require(value in get_args(choices), f"want {name} out of {wanted}, got {value!r}")


def narrowed(section: object, kind: type[T], **changes: Any) -> T:
    """Make the settings of a component out of a section of a recipe, which inherits them.

    Args:
        section: the section; it has every field of `kind` that `changes` does not give.
        kind: the component's dataclass of settings.
        changes: fields that are not to be as in the section.
    """
    names = [part.name for part in fields(kind)]  # pyright: ignore[reportArgumentType] of a dataclass, `type` says less
    return kind(**({name: getattr(section, name) for name in names if name not in changes} | changes))
