"""What is looked at before any work: that every domain left out leaves enough people to train every arm."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from rich.console import Console

from fastmfr.config import Config
from fastmfr.prove.arms import Arm, config_of
from fastmfr.prove.cell import leaving_out
from fastmfr.results import CHOSEN
from fastmfr.training import Logbook
from fastmfr.training.batch_sizes import check_batches
from fastmfr.training.people import Target, open_people
from fastmfr.training.resuming import Held, data_of

MOST_PAIRS = 200_000_000  # of a target: a gigabyte of scores, and half a minute of sorting


def check_data(
    config: Config, arms: Mapping[str, Arm], left_out: Iterable[str], folder: Path, console: Console
) -> tuple[dict[str, Held], bool]:
    """Open the domains and draw a batch of every arm for every domain left out; make procedural faces.

    Args:
        config: the settings.
        arms: the arms to train, by name.
        left_out: the domains to leave out in turn.
        folder: of the comparison.
        console: warnings about the data go there, each once.

    Returns:
        What each domain that is scored holds, and whether people are kept for choosing a model in every case.

    Raises:
        ValueError, OSError: what cannot work, in a sentence.
    """
    logbook, held, can_choose = _Warnings(folder, console), {}, True
    for name in left_out:
        cell = leaving_out(config, name, config.seed)
        people = open_people(cell, logbook)
        _check_pairs(people.targets)
        held |= data_of({target_name: target.domain for target_name, target in people.targets.items()})
        can_choose = can_choose and bool(people.validation)
        for arm_name, arm in arms.items():
            try:
                check_batches(people.sources, config_of(arm_name, arm, cell))
            except ValueError as error:
                raise ValueError(f"with {name} left out: {error}") from None
    return held, can_choose


def without_chosen(names: list[str], *, asked: bool, console: Console) -> list[str]:
    """Return the models without those that are chosen on people kept for it, of whom there are none.

    Raises:
        ValueError: the models were asked for by name.
    """
    chosen = [name for name in names if name.endswith(f":{CHOSEN}")]
    if not chosen:
        return names
    why = f"{', '.join(chosen)}: no source has five people to keep for choosing a model; raise --data.validation"
    if asked:
        raise ValueError(f"{why}, or leave {'it' if len(chosen) == 1 else 'them'} out of --arms")
    console.print(f"not compared: {why} to have it compared")
    return [name for name in names if name not in chosen]


def _check_pairs(targets: Mapping[str, Target]) -> None:
    """Raises ValueError for a target with more pairs than are scored at once."""
    for name, target in targets.items():
        probes, people = len(target.pairs.probe), len(target.pairs.gallery)
        if probes * people > MOST_PAIRS:
            most = MOST_PAIRS // people // people
            instead = f"--evaluate.probes_per_identity {most}" if most else "fewer people in it"
            raise ValueError(
                f"{name} has {probes:,} images to look up among {people:,} people, more than {MOST_PAIRS:,} pairs; "
                f"want {instead}"
            )


class _Warnings(Logbook):
    """Says warnings, each once, and nothing else."""

    def __init__(self, folder: Path, console: Console):
        super().__init__(folder, console)
        self._said: set[str] = set()

    def say(self, text: str) -> None:
        """Drop a line."""

    def warn(self, text: str) -> None:
        """Print a line that has not been printed."""
        if text not in self._said:
            self._said.add(text)
            super().warn(text)
