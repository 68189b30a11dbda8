"""What runs are called beside each other: the settings that set them apart, else their folders."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..tables import listed

MOST_SETTINGS = 3  # in a name; more are read in the table of settings
LONGEST = 40  # characters of a value


def folder_names(paths: Sequence[Path]) -> list[str]:
    """Return the folders' own names, with as many of the folders above as it takes to tell them apart.

    Raises:
        ValueError: there are fewer than two folders, or one is given twice.
    """
    whole = [path.resolve() for path in paths]
    if len(whole) < 2:
        raise ValueError(f"want two runs or more to compare, got {len(whole)}; give the folders of several runs")
    if twice := [str(path) for path in dict.fromkeys(whole) if whole.count(path) > 1]:
        raise ValueError(f"want every run once, got {listed(twice)} several times; leave the repeated ones out")
    depth = 1
    while len({path.parts[-depth:] for path in whole}) < len(whole):
        depth += 1
    return [os.sep.join(path.parts[-depth:]) for path in whole]


def names_by_settings(folders: Sequence[str], differing: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """Return the name of the run in each folder: its values of the settings that differ.

    Of more than MOST_SETTINGS settings, as few are taken as tell the runs apart. A run keeps its folder's name if its
    settings are not known, or if nothing differs; runs of equal settings have the folder behind the settings.

    Args:
        folders: The names of the folders.
        differing: By dotted setting, its value by folder; a folder whose run lacks the setting is left out.
    """
    known = {folder for values in differing.values() for folder in values}
    taken = _taken(folders, differing)
    more = len(differing) - len(taken)
    names = {folder: folder for folder in folders}
    for folder in known if taken else ():
        said = [_said(name, differing[name].get(folder)) for name in taken]
        names[folder] = listed([*said, *([f"{more} more"] if more else [])])
    everyone = list(names.values())
    return {folder: name if everyone.count(name) == 1 else f"{name} ({folder})" for folder, name in names.items()}


def _taken(folders: Sequence[str], differing: Mapping[str, Mapping[str, str]]) -> list[str]:
    """The settings that a name holds: all if they are few, else one after the other that tells more runs apart."""
    if len(differing) <= MOST_SETTINGS:
        return list(differing)
    taken: list[str] = []
    for name in differing:
        if len(taken) < MOST_SETTINGS and _kinds(folders, differing, [*taken, name]) > _kinds(
            folders, differing, taken
        ):
            taken.append(name)
    return taken


def _kinds(folders: Sequence[str], differing: Mapping[str, Mapping[str, str]], taken: Sequence[str]) -> int:
    """How many groups of runs these settings tell apart."""
    return len({tuple(differing[name].get(folder) for name in taken) for folder in folders})


def _said(name: str, value: str | None) -> str:
    if value is None:
        return f"no {name}"
    return f"{name} {value if len(value) <= LONGEST else value[: LONGEST - 1] + '…'}"
