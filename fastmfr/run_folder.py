"""Where a run keeps its weights, settings and commands. Needs no torch, so that a wrong path is answered at once."""

import fcntl
import json
import os
import re
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from fastmfr.atomic import write_text
from fastmfr.results import BASE, CHOSEN, MFR, Command, from_json, to_json

__all__ = [
    "STEPS",
    "begun_before",
    "commands_of",
    "in_use",
    "note_begun",
    "note_command",
    "settings_beside",
    "steps_of_weights",
    "weights_of",
]

_COMMANDS = "commands.jsonl"
STEPS = "steps"  # in the metadata of weights that a stage wrote


def weights_of(run_or_file: Path | str) -> Path:
    """The file of weights: the path itself, or of a run folder the model handed out, else MFR's, else the base's.

    Raises:
        FileNotFoundError: the path is neither a file nor a folder with weights.
    """
    path = Path(run_or_file)
    if path.is_file():
        return path
    names = [f"{model}.safetensors" for model in (CHOSEN, MFR, BASE)]
    for name in names:
        if (path / name).is_file():
            return path / name
    raise FileNotFoundError(
        f"there are no weights at {path}; want a .safetensors, .pt or .pth file, or a run folder with "
        f"{', '.join(names[:-1])} or {names[-1]} in it"
    )


def steps_of_weights(path: Path) -> int | None:
    """The steps after which a stage wrote these weights (safetensors); None if the file does not say."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "np") as file:
            said = (file.metadata() or {}).get(STEPS, "")
    except (SafetensorError, OSError):
        return None
    return int(said) if said.isdecimal() else None


@contextmanager
def in_use(folder: Path) -> Iterator[None]:
    """Within the block no other process can have the run folder in use; a process that is killed has it no longer.

    Raises:
        ValueError: another process has it.
    """
    with (folder / ".lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise ValueError(
                f"{folder} is in use by another process, {file.read(20).strip() or 'unknown'}; wait for its end, stop "
                "it, or name another folder"
            ) from None
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield


def note_command(folder: Path, began: float) -> None:
    """Add the command line of this process to commands.jsonl in a run folder.

    Args:
        folder: the run folder.
        began: when the process began, in seconds since 1970.
    """
    date = datetime.fromtimestamp(began).astimezone().isoformat(" ", "seconds")
    with (folder / _COMMANDS).open("a") as file:
        file.write(json.dumps(to_json(Command(line=shlex.join(sys.orig_argv), began=date))) + "\n")


def commands_of(folder: Path) -> list[Command]:
    """The processes that trained in a run folder, the first one first; lines that cannot be read are left out."""
    found = []
    try:
        lines = (folder / _COMMANDS).read_text(errors="replace").splitlines()
    except OSError:
        return []
    for line in lines:
        try:
            found.append(from_json(Command, json.loads(line)))
        except (ValueError, RecursionError):  # the line a kill cut short
            continue
    return found


def note_begun(folder: Path) -> None:
    """Note, for `begun_before`, that the processes that torchrun has started train in this run folder."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        write_text(_note_of_launcher(folder.parent), str(folder.resolve()))


def begun_before(place: Path) -> Path | None:
    """The run folder that processes of the same torchrun began in `place`, if torchrun has started them again."""
    note = _note_of_launcher(place)
    if os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0" or not note.is_file():
        return None
    folder = Path(note.read_text())
    return folder if folder.is_dir() else None


def _note_of_launcher(place):
    """Without --rdzv-id or --standalone, a torchrun is known by its address and its process number."""
    name = os.environ.get("TORCHELASTIC_RUN_ID", "none")
    if name == "none":
        name = "-".join([os.environ.get("MASTER_ADDR", ""), os.environ.get("MASTER_PORT", ""), str(os.getppid())])
    return place / f".begun-{re.sub(r'[^A-Za-z0-9.-]', '_', name)}"


def settings_beside(weights: Path) -> Path:
    """The config.yaml in the folder of the weights.

    Raises:
        ValueError: there is none.
    """
    beside = weights.parent / "config.yaml"
    if not beside.is_file():
        raise ValueError(
            f"no config.yaml lies beside {weights}; name the model's settings by --config RECIPE, for "
            "InsightFace's for instance --config finetune"
        )
    return beside
