"""A classifier as files: a safetensors file with a row for each person, and beside it the list of who each row is of.

FILE.safetensors, FILE.pt, FILE.pth or FILE.npy     `weight` (people, embedding), or such a tensor by itself
FILE.csv                                            columns row, domain, name; one line for each domain of a person

InsightFace's partial FC calls its rows `weight` too. Shape suffixes: C = people, D = embedding.
"""

import csv
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from fastmfr.atomic import replacing
from fastmfr.domains import Joint
from fastmfr.protocols.files import refuse_unless_regular
from fastmfr.protocols.shared_people import names_of
from fastmfr.weights import UNREADABLE, is_pointer

__all__ = [
    "COLUMNS",
    "IDENTITIES",
    "OF_CHECKPOINTS",
    "READ_AT_ONCE",
    "SUFFIXES",
    "WEIGHT",
    "Classifier",
    "list_beside",
    "open_classifier",
    "write_identities",
]

IDENTITIES = "identities.csv"  # in a run folder: who each row of stage one's classifier is of
COLUMNS = ["row", "domain", "name"]
WEIGHT = "weight"  # the tensor's name
SUFFIXES = (".safetensors", ".pt", ".pth", ".npy")
OF_CHECKPOINTS = "state_dict_softmax_fc"  # InsightFace's checkpoints have the classifier under this key
READ_AT_ONCE = 1 << 16  # rows


@dataclass(frozen=True)
class Classifier:
    """The rows of a classifier, in a file that is read when they are wanted.

    Attributes:
        path: the file.
        shape: people C and length of an embedding D.
        listed: the row of each (domain, name), as the list beside the file says.
    """

    path: Path
    shape: tuple[int, int]
    listed: Mapping[tuple[str, str], int]
    _read: Callable[[int, int], Tensor]

    def rows(self, row_C: np.ndarray) -> Iterator[tuple[np.ndarray, Tensor]]:
        """Yield parts of the rows asked for, as (their places in `row_C`, float32 (part, D)); the file is read once.

        Args:
            row_C: numbers of rows, int64; -1 asks for none.

        Raises:
            ValueError: a row is NaN or infinite somewhere.
        """
        for first in range(0, self.shape[0], READ_AT_ONCE):
            places = np.flatnonzero((row_C >= first) & (row_C < first + READ_AT_ONCE))
            if not len(places):
                continue
            block_CD = self._read(first, min(first + READ_AT_ONCE, self.shape[0])).float()
            wanted_CD = block_CD[torch.from_numpy(row_C[places] - first)]
            if not wanted_CD.isfinite().all():
                raise ValueError(
                    f"{self.path} holds rows that are NaN or infinite; want the classifier of a run that "
                    "did not diverge"
                )
            yield places, wanted_CD

    def row_of(self, sources: Joint) -> np.ndarray:
        """Return the row of each label of joined domains by (domain, name), int64 (labels,); -1 for people without one.

        Of a person with several rows, who is in several domains, the row that is met first is taken.
        """
        row_C = np.full(sources.identities, -1, np.int64)
        for label, domain, name in reversed(list(_people(sources))):
            if (row := self.listed.get((domain, name))) is not None:
                row_C[label] = row
        return row_C


def list_beside(path: Path) -> Path:
    """The list of who the rows of a file are of."""
    return path.with_suffix(".csv")


def write_identities(path: Path, sources: Joint) -> None:
    """Write the list of who each row of a classifier over joined domains is of, in the order of the rows.

    Args:
        path: a .csv file. A byte of a name that is no UTF-8 is written as it is.
        sources: the domains of stage one.
    """
    people = sorted(_people(sources), key=itemgetter(0))
    with (
        replacing(path) as partial,
        partial.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file,
    ):
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        writer.writerows(people)


def open_classifier(path: Path | str, embedding: int | None = None) -> Classifier:
    """Open a classifier; nothing that is pickled in the file is run.

    Args:
        path: a .safetensors, .pt, .pth or .npy file; the list lies beside it.
        embedding: the length that rows must have; None takes any.

    Raises:
        FileNotFoundError: there is no such file, or no list beside it.
        ValueError: the file holds no classifier, or one of another length; or its list is wrong, and the sentence says
            in which line.
    """
    path = Path(path)
    kinds = ", ".join(SUFFIXES)
    if not path.is_file() or path.suffix not in SUFFIXES:
        raise FileNotFoundError(
            f"want a classifier as a file that ends in {kinds}, got {path}; `python -m fastmfr export RUN --classifier "
            "--out FILE.safetensors` writes the one of a run"
        )
    if not list_beside(path).is_file():
        raise FileNotFoundError(
            f"want a list of lines {','.join(COLUMNS)} at {list_beside(path)}, which says whose the "
            f"rows of {path.name} are; there is none"
        )
    refuse_unless_regular(path)
    try:
        shape, dtype, read = _opened(path)
    except UNREADABLE as error:
        hint = "; it is a pointer of Git LFS: fetch the file by `git lfs pull`" if is_pointer(path) else ""
        raise ValueError(f"{path} cannot be read as a classifier ({type(error).__name__}){hint}") from None
    if len(shape) != 2 or not dtype.is_floating_point:
        raise ValueError(f"want {WEIGHT} in {path} as numbers (people, embedding), got {dtype} {tuple(shape)}")
    if embedding is not None and shape[1] != embedding:
        raise ValueError(
            f"the rows in {path} have {shape[1]} numbers, and the embeddings of this backbone {embedding}; want the "
            f"classifier of such a backbone, or --model.embedding {shape[1]}"
        )
    return Classifier(path, (shape[0], shape[1]), _listed(list_beside(path), shape[0]), read)


def _listed(path, people) -> dict[tuple[str, str], int]:
    """{(domain, name): row} of a list of rows below `people`."""
    found = dict[tuple[str, str], int]()
    refuse_unless_regular(path)
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        lines = csv.reader(file)
        if next(lines, None) != COLUMNS:
            raise ValueError(f"want {','.join(COLUMNS)} as the first line of {path}, got another one")
        for line in filter(None, lines):  # blank lines are passed over
            if len(line) != len(COLUMNS) or not line[0].isdecimal() or int(line[0]) >= people:
                raise ValueError(
                    f"line {lines.line_num} of {path} is not `row,domain,name` with a row below {people}, "
                    f"got {','.join(line)[:100]!r}"
                )
            person, row = (line[1], line[2]), int(line[0])
            if found.setdefault(person, row) != row:
                raise ValueError(
                    f"line {lines.line_num} of {path} gives {line[2]!r} of the domain {line[1]!r} the row {row}, and a "
                    f"line before it the row {found[person]}; want one row for each domain and name"
                )
    return found


def _opened(path) -> tuple[Any, torch.dtype, Callable[[int, int], Tensor]]:
    """(shape, dtype, a function: the rows first .. last - 1). Raises one of UNREADABLE."""
    if path.suffix == ".safetensors":
        with safe_open(path, "pt") as file:
            part = file.get_slice(WEIGHT)
            return part.get_shape(), part[:0].dtype, lambda first, last: _slice(path, first, last)
    if path.suffix == ".npy":
        whole_CD = np.load(path, mmap_mode="r", allow_pickle=False)
        dtype = torch.from_numpy(np.empty(0, whole_CD.dtype)).dtype
        return whole_CD.shape, dtype, lambda first, last: torch.from_numpy(np.array(whole_CD[first:last]))
    found = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    for key in (OF_CHECKPOINTS, WEIGHT):
        found = found[key] if isinstance(found, dict) and key in found else found
    if not isinstance(found, Tensor):
        raise TypeError(type(found))
    whole_CD = found.detach()
    return whole_CD.shape, whole_CD.dtype, lambda first, last: whole_CD[first:last]


def _slice(path, first, last):
    with safe_open(path, "pt") as file:
        return file.get_slice(WEIGHT)[first:last]


def _people(sources: Joint) -> Iterator[tuple[int, str, str]]:
    """(label, domain, name) of every identity."""
    for number, domain in enumerate(sources.domains):
        label_C = sources.label(np.full(domain.identities, number), np.arange(domain.identities))
        for label, name in zip(label_C.tolist(), names_of(domain), strict=True):
            yield label, domain.name, name
