"""What classes of settings share: checks, whose failure is a ValueError with one sentence, and narrowing."""

from dataclasses import fields
from numbers import Real
from types import UnionType
from typing import Any, TypeVar, get_args, get_type_hints

T = TypeVar("T")


def require(holds: bool, sentence: str) -> None:
    """Raise ValueError with `sentence` unless `holds` is true."""
    if not holds:
        raise ValueError(sentence)


def require_choice(name: str, value: object, choices: Any) -> None:
    """Raise ValueError unless `value` is one of the strings of `choices`, a typing.Literal."""
    wanted = ", ".join(map(repr, get_args(choices)))
    require(value in get_args(choices), f"want {name} out of {wanted}, got {value!r}")


def require_at_least(section: Any, least: int, *names: str) -> None:
    """Raise ValueError unless these settings of a section are whole numbers of at least `least`, or None."""
    for name in names:
        value = getattr(section, name)
        whole = value is None or (isinstance(value, int) and value >= least)
        require(whole, f"want {section.prefix}{name} >= {least}, as a whole number, got {value!r}")


def require_kinds(section: Any) -> None:
    """Raise ValueError unless every bool of a section of settings is True or False, and every number a number."""
    for name, kind in get_type_hints(type(section)).items():
        kinds, value = get_args(kind) if isinstance(kind, UnionType) else (kind,), getattr(section, name)
        for wanted, admitted, words in _KINDS:
            if wanted in kinds and not (value is None and type(None) in kinds):
                fits = isinstance(value, admitted) and isinstance(value, bool) == (wanted is bool)
                require(fits, f"want {section.prefix}{name} as {words}, got {value!r}")


_KINDS = ((bool, bool, "True or False"), (float, Real, "a number"), (int, Real, "a whole number"))


def narrowed(section: object, kind: type[T], **changes: Any) -> T:
    """Make the settings of a component out of a section of a recipe, which inherits them.

    Args:
        section: the section; it has every field of `kind` that `changes` does not give.
        kind: the component's dataclass of settings.
        changes: fields that are not to be as in the section.
    """
    names = [part.name for part in fields(kind)]  # pyright: ignore[reportArgumentType] of a dataclass, `type` says less
    return kind(**({name: getattr(section, name) for name in names if name not in changes} | changes))
