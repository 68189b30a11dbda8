"""The shape of results.json, typed, and the names of stages and models.

A run fills `Results`, evaluation makes the `Scores` in it, and the report reads both by attribute.
"""

import json
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from fastmfr.atomic import write_text

__all__ = [
    "BASE",
    "CHOSEN",
    "EMA",
    "FAR",
    "LAST",
    "MEAN",
    "META",
    "MFR",
    "MODEL_OF_STAGE",
    "PRETRAIN",
    "Accuracy",
    "Candidate",
    "Choice",
    "Command",
    "DomainGap",
    "HardestPair",
    "HardestPairs",
    "Results",
    "RocBand",
    "RocPoints",
    "Scores",
    "TarAtFar",
    "TargetResult",
    "base_of",
    "from_json",
    "model_of",
    "to_json",
]

PRETRAIN, META = "pretrain", "meta"  # the stages
BASE, MFR = "base", "mfr"  # the model that a stage leaves
MODEL_OF_STAGE = {PRETRAIN: BASE, META: MFR}
CHOSEN = "chosen"  # the model that a run hands out
LAST, EMA, MEAN = "last", "ema", "mean"  # the weights of a candidate to be handed out
FAR = (1e-2, 1e-3, 1e-4)  # false accept rates reported by default

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class TarAtFar:
    """The true accept rate at one false accept rate, or why the rate was refused.

    `tar`, `std` (over folds) and `far` (as realised) are shares in [0, 1]. `threshold` is the cosine from which pairs
    are accepted. `interval` [low, high] is the 95 % interval of `tar` over the people scored.
    """

    tar: float | None = None
    threshold: float | None = None
    std: float | None = None
    far: float | None = None
    interval: list[float] | None = None
    refused: str | None = None


@dataclass(frozen=True, kw_only=True)
class RocBand:
    """The 95 % interval of TAR, from `low` to `high`, at some of the FARs of a curve; shares in [0, 1]."""

    far: list[float]
    low: list[float]
    high: list[float]


@dataclass(frozen=True, kw_only=True)
class RocPoints:
    """Points of a ROC curve for plots, by rising FAR; shares in [0, 1]. `band` is of the draws of the people."""

    far: list[float]
    tar: list[float]
    band: RocBand | None = None


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """Accuracy over the folds of a list of pairs: mean, standard deviation and 95 % interval, as shares in [0, 1]."""

    mean: float
    std: float
    interval: list[float] | None = None


@dataclass(frozen=True, kw_only=True)
class Scores:
    """The scores of one model on one target or set; a figure that was not measured is None.

    `tar_at_far` is by FAR as text ("0.01"). The rates auc, eer, rank1 and rank5 are shares in [0, 1]; `genuine` to
    `identities` and `images` are counts. `exact` is False if scores were counted into bins. `rank1_std` and `folds` are
    of sets with several gallery and probe lists, `accuracy` (by grid of thresholds) of sets of pairs. `bad_images`
    holds the reason for each image that could not be decoded. `draws`, which is not written to a file, holds TAR,
    rank-1, auc, called as in `rates`, and eer for one draw of the people scored after the other.
    """

    tar_at_far: dict[str, TarAtFar] = field(default_factory=dict)
    auc: float | None = None
    eer: float | None = None
    auc_interval: list[float] | None = None
    eer_interval: list[float] | None = None
    genuine: int | None = None
    impostors: int | None = None
    roc: RocPoints | None = None
    rank1: float | None = None
    rank1_interval: list[float] | None = None
    rank1_std: float | None = None
    rank5: float | None = None
    gallery: int | None = None
    probes: int | None = None
    probes_without_mate: int | None = None
    identities: int | None = None
    exact: bool | None = None
    accuracy: dict[str, Accuracy] | None = None
    folds: "list[Scores] | None" = None
    images: int | None = None
    mirror: str | None = None
    bad_images: dict[str, str] | None = None
    draws: dict[str, list[float]] = field(default_factory=dict, compare=False, repr=False, metadata={"kept": False})

    def rate(self, far: str) -> TarAtFar:
        """Return TAR at a FAR given as text; all fields are None if the FAR was not asked for."""
        return self.tar_at_far.get(far, TarAtFar())

    @property
    def rates(self) -> dict[str, float]:
        """The rates that were measured, by the name that records and curves have: rank1, auc, tar_at_far_0.01, ..."""
        rates = {"rank1": self.rank1, "auc": self.auc}
        rates |= {f"tar_at_far_{far}": at.tar for far, at in self.tar_at_far.items()}
        return {name: rate for name, rate in rates.items() if rate is not None}


@dataclass(frozen=True, kw_only=True)
class HardestPair:
    """A gallery and a probe image, by number, key and person in their domain, and the cosine between them."""

    cosine: float
    gallery: int
    probe: int
    gallery_key: str = ""
    gallery_identity: str = ""
    probe_key: str = ""
    probe_identity: str = ""


@dataclass(frozen=True, kw_only=True)
class HardestPairs:
    """The pairs of a target that `model` gets most wrong, the worst pair first."""

    model: str
    genuine: list[HardestPair]
    impostor: list[HardestPair]


@dataclass(frozen=True, kw_only=True)
class DomainGap:
    """How far apart one model keeps N domains, as `fastmfr.evaluate.domain_gap` measures it.

    Attributes:
        domains: (N,) names.
        people: (N,) how many people were embedded of each domain.
        images: (N,) how many images were embedded of each domain.
        distance: (N, N) between the means of unit embeddings, in [0, 2].
        distance_by_chance: (N, N) root mean square of the distance between two draws, each of as many people of one
            domain.
        told: Share of images nearest to the mean of their own domain, in [0, 1], as a mean over domains. The means that
            an image is compared with hold the other half of the people.
        told_by_chance: 1 / N.
        far: The share of all impostor pairs that is accepted: the largest up to the rate asked for, or the smallest
            there is.
        threshold: The cosine from which pairs are accepted.
        impostors: How many impostor pairs all domains together have.
        false_accepts: How many of the impostor pairs are accepted.
        across_of_all: Share of the impostor pairs that are of two domains, in [0, 1].
        across: Share of the false accepts that are of two domains. Domains are apart if it is below `across_of_all`.
        false_accepts_of: (N, N) false accepts by the domains of the two people; 0 below the diagonal.
        unseen: (N,) whether each domain was never seen in training.
    """

    domains: list[str]
    people: list[int]
    images: list[int]
    distance: list[list[float]]
    distance_by_chance: list[list[float]]
    told: float
    told_by_chance: float
    far: float
    threshold: float
    impostors: int
    false_accepts: int
    across_of_all: float
    across: float
    false_accepts_of: list[list[int]]
    unseen: list[bool]


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A model that a run could hand out, and its scores on the people kept for validation.

    Attributes:
        of_stage: The stage that made it.
        steps: After how many steps of the stage.
        weights: "last" for the weights after the last of these steps, "ema" for their moving average, "mean" for the
            mean over the later part of the stage.
        model: What the scores call the model that the stage leaves.
        score: What candidates are compared by, in [0, 1]: the mean of `together` and of the mean over `within`.
        together: TAR over all pairs, a mean over FAR 1e-2 and 1e-3.
        within: The same over the pairs of one domain, by domain.
    """

    of_stage: str
    steps: int
    weights: str
    score: float
    together: float
    within: dict[str, float]
    model: str = ""

    @property
    def name(self) -> str:
        """What the scores call the model that the stage leaves; of older runs, which did not keep it, by the stage."""
        return self.model or MODEL_OF_STAGE.get(self.of_stage, self.of_stage)

    @property
    def key(self) -> tuple[str, int, str]:
        """What names the candidate in its run."""
        return self.of_stage, self.steps, self.weights

    def __str__(self):
        if not self.steps:
            return "the weights that the run began with"
        kind = {EMA: "moving average of ", MEAN: "mean of the weights of "}.get(self.weights, "")
        return f"{kind}{self.name} after {self.steps:,} steps"


@dataclass(kw_only=True)
class Choice:
    """Which model a run hands out.

    Attributes:
        candidates: All models that were scored, in the order of training.
        people: How many people are kept for validation.
        images: How many images of these people are scored.
        ended: Stages that were ended early, by name: [after this many steps, of this many].
        why: The choice in a sentence.
    """

    candidates: list[Candidate] = field(default_factory=list)
    people: int = 0
    images: int = 0
    ended: dict[str, list[int]] = field(default_factory=dict)
    why: str | None = None

    def last_of(self, stage: str) -> "Candidate | None":
        """Return the last of a stage's weights that are no average; None if there is none."""
        lasts = (candidate for candidate in self.candidates if (candidate.of_stage, candidate.weights) == (stage, LAST))
        return max(lasts, key=lambda candidate: candidate.steps, default=None)

    @property
    def best(self) -> Candidate | None:
        """The candidate with the highest score; of equal ones the last. None if there is none."""
        best = None
        for candidate in self.candidates:
            if best is None or candidate.score >= best.score:
                best = candidate
        return best


@dataclass(kw_only=True)
class TargetResult:
    """The scores of every model on one target domain; `unseen` if the domain is not among the sources.

    `gains` are the 95 % intervals of the gains over the base, as shares, by model and figure, called as in
    `Scores.draws`; the same people are drawn for both models.
    """

    unseen: bool = False
    models: dict[str, Scores] = field(default_factory=dict)
    gains: dict[str, dict[str, list[float]]] | None = None
    hardest: HardestPairs | None = None


@dataclass(frozen=True, kw_only=True)
class Command:
    """A process that trained in a run folder: its command line, and when it began, by ISO 8601."""

    line: str
    began: str


@dataclass(kw_only=True)
class Results:
    """The content of results.json: what one run found.

    `targets` is by name, `gap` by model (None if fewer than two domains could be compared), `seconds` by stage.
    `commands` are the run's processes, the first one first; `wall_seconds` how long the last one took in all.
    `bad_images` holds the reason for each image that could not be decoded; `summary` are sentences for the report;
    `choice` says which model is handed out, None if nobody is kept for validation.
    """

    recipe: str = ""
    sources: list[str] = field(default_factory=list)
    targets: dict[str, TargetResult] = field(default_factory=dict)
    gap: dict[str, DomainGap | None] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    commands: list[Command] | None = None
    wall_seconds: float | None = None
    bad_images: dict[str, str] = field(default_factory=dict)
    summary: list[str] | None = None
    choice: Choice | None = None

    @classmethod
    def load(cls, path: Path | str) -> "Results":
        """Read results.json.

        Raises:
            OSError: the file cannot be read.
            ValueError: the file is no JSON, or a value in it has the wrong type.
        """
        path = Path(path)
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path} cannot be read as JSON: {error}") from None
        return from_json(cls, content, path.stem)

    def save(self, path: Path | str) -> None:
        """Write results.json; a process killed while it writes leaves the file that was there."""
        write_text(Path(path), json.dumps(to_json(self), indent=1))

    @property
    def scored(self) -> dict[str, TargetResult]:
        """The targets on which at least one model was scored, by name."""
        return {name: target for name, target in self.targets.items() if target.models}


def model_of(stage: str, method: str) -> str:
    """Return what the scores call the model that a stage leaves: after stage two, the method of the stage.

    Args:
        stage: The stage.
        method: The setting meta.method.
    """
    return method if stage == META else MODEL_OF_STAGE[stage]


def base_of(models: Mapping[str, Scores]) -> str:
    """Return the name of the model that gains are counted from."""
    return BASE if BASE in models else next(iter(models))


def to_json(value: Any) -> Any:
    """Turn one of the dataclasses above, or lists and dicts of them, into plain data for `json.dumps`.

    A field that is None is left out; a None in a dict becomes {}.
    """
    if is_dataclass(value):
        held = {each.name: getattr(value, each.name) for each in fields(value) if each.metadata.get("kept", True)}
        return {name: to_json(each) for name, each in held.items() if each is not None}
    if isinstance(value, Mapping):
        return {name: {} if each is None else to_json(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(each) for each in value]
    return value


def from_json(kind: type[T], data: object, where: str = "results") -> T:
    """Make an object of the dataclass `kind` out of plain data, the inverse of `to_json`.

    Args:
        kind: One of the dataclasses above.
        data: What `json.loads` returned. Keys that `kind` lacks are ignored; missing keys take their default.
        where: The name that error messages give the data; the keys within follow it, each after a point.

    Raises:
        ValueError: a value has the wrong type, or a key without default is missing; the message names the key.
    """
    if not isinstance(data, dict):
        raise _wrong_type(where, "an object", data)
    types, values = get_type_hints(kind), {}
    for each in fields(kind):  # pyright: ignore[reportArgumentType] of a dataclass, which `type` cannot say
        if each.name in data:
            values[each.name] = _read(types[each.name], data[each.name], f"{where}.{each.name}")
        elif each.default is MISSING and each.default_factory is MISSING:
            raise ValueError(f"{where} should hold the key {each.name!r}, but holds {', '.join(data) or 'none'}")
    return kind(**values)


def _read(kind: Any, data: Any, where: str) -> Any:
    """`data` as the annotation `kind`: a dataclass, dict, list, number, bool or str, or one of them or None."""
    if isinstance(kind, UnionType):
        kind = get_args(kind)[0]
        if data is None or (data == {} and is_dataclass(kind)):
            return None
    if is_dataclass(kind):
        return from_json(kind, data, where)  # pyright: ignore[reportArgumentType] a class, for `kind` is an annotation
    if get_origin(kind) is dict:
        if not isinstance(data, dict):
            raise _wrong_type(where, "an object", data)
        return {name: _read(get_args(kind)[1], value, f"{where}.{name}") for name, value in data.items()}
    if get_origin(kind) is list:
        if not isinstance(data, list):
            raise _wrong_type(where, "a list", data)
        return [_read(get_args(kind)[0], value, f"{where}[{place}]") for place, value in enumerate(data)]
    name, allowed = _SCALARS[kind]
    if not isinstance(data, allowed) or (isinstance(data, bool) and kind is not bool):
        raise _wrong_type(where, name, data)
    return data


_SCALARS: dict[type, tuple[str, tuple[type, ...]]] = {
    float: ("a number", (float, int)),
    int: ("a whole number", (int,)),
    bool: ("true or false", (bool,)),
    str: ("a text", (str,)),
}


def _wrong_type(where: str, wanted: str, data: object) -> ValueError:
    return ValueError(f"{where} should be {wanted}, got {str(data)[:60]!r}")
