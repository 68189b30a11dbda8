"""The classifier of stage one out of a run's states: its rows in one file, and beside it the list of whose they are.

Shape suffixes: C = people, D = embedding.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import safetensors.torch
import torch
from safetensors import safe_open
from torch import Tensor

from fastmfr import __version__
from fastmfr.atomic import replacing
from fastmfr.classifier_files import COLUMNS, IDENTITIES, WEIGHT, list_beside
from fastmfr.config import Config
from fastmfr.results import BASE, MFR, PRETRAIN
from fastmfr.run_folder import steps_of_weights
from fastmfr.training.checkpoint import FACTS, NAMED_BY_ROWS, NETWORKS, Checkpoints

SUFFIX = ".safetensors"
IN_A_STATE = f"{NETWORKS}head.weight_CD"


def check_classifier(run: Path | str, out: Path | str) -> None:
    """Raise if the classifier of a run cannot be exported to a file, or its list not beside it.

    Args:
        run: the run folder.
        out: the file.

    Raises:
        ValueError, OSError: the run has no classifier or no list; or the file has another suffix or no folder, or is
            one of the run's.
    """
    run, out = Path(run), Path(out)
    if not run.is_dir():
        raise ValueError(f"want a run folder, whose states hold the classifier, got {run}")
    if out.suffix != SUFFIX:
        raise ValueError(f"want --out as a file that ends in {SUFFIX} with --classifier, got {out}")
    if out.is_dir() or not out.parent.is_dir():
        raise ValueError(f"want --out as a file in a folder that is there, got {out}")
    taken = {(run / IDENTITIES).resolve(), *(path.resolve() for path in run.glob(f"*{SUFFIX}"))}
    if taken & {out.resolve(), list_beside(out).resolve()}:
        raise ValueError(f"{out} is a file of the run itself, or its list would be; name another file by --out")
    if _is_something_else(list_beside(out)):
        raise ValueError(
            f"{list_beside(out)}, where the list of people would go, is there and is no such list; name another file "
            "by --out"
        )
    if not Checkpoints(run / "checkpoints", PRETRAIN).newest:
        raise FileNotFoundError(
            f"{run} holds no state of stage one (checkpoints/{PRETRAIN}-*), and only states hold the classifier; want "
            "a run with --pretrain.steps above 0 whose states were not deleted"
        )
    if not (run / IDENTITIES).is_file():
        raise FileNotFoundError(
            f"{run} has no {IDENTITIES}, which says whose the rows are: the run is of an earlier version; "
            f"`python -m fastmfr train --resume {run}` writes the list"
        )


def _is_something_else(path):
    """Whether a file is there that is no list of a classifier's people."""
    if not path.exists():
        return False
    with path.open("rb") as file:
        return file.readline().strip() != ",".join(COLUMNS).encode()


def export_classifier(
    run: Path | str, config: Config, out: Path | str, warn: Callable[[str], None]
) -> tuple[tuple[int, int], str]:
    """Write the rows of the newest whole state of stage one, and the list of who they are of.

    Args:
        run: the run folder, which `check_classifier` has let through.
        config: the run's settings.
        out: the file; the list is FILE.csv.
        warn: shows a sentence on a state that is passed over.

    Returns:
        The people C and the length of an embedding D, and a sentence on which backbone the rows go with.

    Raises:
        ValueError: no state is whole, or a state holds no classifier.
    """
    run, out = Path(run), Path(out)
    name = Checkpoints(run / "checkpoints", PRETRAIN, warn).newest_whole()
    if name is None:
        raise ValueError(f"no state of stage one in {run / 'checkpoints'} is as it was written; the classifier is lost")
    weight_CD = _rows(run / "checkpoints" / name)
    steps = int(name.rsplit("-", 1)[1])
    belongs, base = _belonging(run, steps, config.pretrain.steps)
    metadata = {
        "rows": f"people x embedding, float32; {list_beside(out).name} says whose each row is",
        **_metadata(config, weight_CD),
        "belongs_to": belongs,
        **base,
        "steps": str(steps),
        "run": run.resolve().name,
    }
    with replacing(out) as partial:
        safetensors.torch.save_file({WEIGHT: weight_CD.contiguous()}, partial, metadata)
        partial.chmod(0o644)
    with replacing(list_beside(out)) as partial:
        shutil.copyfile(run / IDENTITIES, partial)
    return (len(weight_CD), weight_CD.shape[1]), belongs


def _metadata(config, weight_CD) -> dict[str, str]:
    """What the settings of the run say of its classifier."""
    settings = config.pretrain
    return {
        "made_by": f"fastmfr {__version__}",
        "people": str(len(weight_CD)),
        "embedding": str(weight_CD.shape[1]),
        "margin": settings.margin,
        "margin_values": ", ".join(f"{value:g}" for value in settings.margin_values or ()),
        "scale": f"{settings.scale:g}",
        "backbone": config.model.name,
        "recipe": config.recipe,
        "seed": str(config.seed),
    }


def _rows(state: Path) -> Tensor:
    """The rows of a state, which one process wrote whole, or several ranks in parts."""
    parts: list[tuple[int, Tensor]] = []
    for file in json.loads((state / FACTS).read_text())["files"]:
        named = NAMED_BY_ROWS.fullmatch(file)
        with safe_open(state / file, "pt") as opened:
            if IN_A_STATE in opened.keys():  # noqa: SIM118  # no dict
                parts.append((int(named[1]) if named else 0, opened.get_tensor(IN_A_STATE)))
    if not parts:
        raise ValueError(f"{state} holds no classifier ({IN_A_STATE})")
    parts.sort(key=lambda part: part[0])
    return (parts[0][1] if len(parts) == 1 else torch.cat([part for _, part in parts])).float()


def _belonging(run, steps, wanted) -> tuple[str, Mapping[str, str]]:
    """(a sentence on the backbone that the rows go with, the base's SHA-256 as metadata)."""
    path = run / f"{BASE}{SUFFIX}"
    if not path.is_file():
        return f"the backbone after {steps} of {wanted} steps of stage one, which has not ended yet", {}
    if steps_of_weights(path) not in (steps, None):
        return f"the backbone after {steps} steps of stage one, and not to {path.name}, which has taken other steps", {}
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    belongs = f"{path.name}, the backbone at the end of stage one"
    if (run / f"{MFR}{SUFFIX}").is_file():
        belongs += f"; stage two has moved the backbone since, so the rows do not go with {MFR}{SUFFIX}"
    return belongs, {"base_sha256": digest}
