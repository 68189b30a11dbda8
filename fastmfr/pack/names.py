"""Names of people in identities.txt: one line each, whatever characters a name holds, and read back as they were."""

import os
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from fastmfr.protocols.files import list_text
from fastmfr.text import printable

NAMES = "identities.txt"
_ESCAPE = re.compile(r"\\(?:\\|[tnr]|x[0-9a-f]{2}|u[0-9a-f]{4}|U00(?:0[0-9a-f]|10)[0-9a-f]{4})")
_LETTERS = {"\\\\": "\\", "\\t": "\t", "\\n": "\n", "\\r": "\r"}


def escaped(name: str) -> str:
    """Return `name` on one line, and every backslash doubled, so that different names stay different."""
    return printable(name.replace("\\", "\\\\"))


def unescaped(text: str) -> str:
    """Return the name that `escaped` turned into `text`; a backslash that begins no escape stands for itself."""
    return _ESCAPE.sub(lambda found: _LETTERS.get(found[0]) or chr(int(found[0][2:], 16)), text)


def known_names(folder: str | os.PathLike) -> dict[str, str]:
    """Read {label: name}, both text, of the identities.txt in a packed folder; empty if that file is missing.

    Raises:
        ValueError: the file is no text.
    """
    path = Path(folder) / NAMES
    try:
        text = list_text(path)
    except FileNotFoundError:
        return {}
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text; save it as UTF-8, or remove it: labels are then names") from error
    parts = (line.partition("\t") for line in text.split("\n"))
    return {label: unescaped(name) for label, tab, name in parts if tab}


def kept_apart(names: dict[str, str]) -> dict[str, str]:
    """Return `names`, {label: name}, with the label added to each name that several labels have."""
    count = Counter(names.values())
    if len(count) == len(names):
        return names
    apart = {label: name if count[name] == 1 else f"{name} (label {label})" for label, name in names.items()}
    return kept_apart(apart)  # someone may have such a name already


def alike(names: Iterable[str]) -> list[str]:
    """Return the names that differ from another name in blanks around them only, sorted."""
    names = list(names)
    count = Counter(name.strip() for name in names)
    return sorted(name for name in names if count[name.strip()] > 1)
