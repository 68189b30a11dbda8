"""The settings of a run: frozen dataclasses, checked when made.

Every class is one section; the docstrings of its fields are the `--help`. The defaults are the paper's (arXiv
2003.07733). What a component computes with is declared beside it in this folder and inherited here.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

import yaml

from fastmfr.config.checks import require, require_at_least, require_choice, require_kinds
from fastmfr.config.choices import (
    Auto,
    Compile,
    Device,
    FreezableStatistics,
    Margin,
    Method,
    Precision,
)
from fastmfr.config.choose_settings import Choose
from fastmfr.config.data_settings import Data
from fastmfr.config.margins import checked_values
from fastmfr.config.meta_settings import GradientSettings, LossSettings
from fastmfr.config.model_settings import Model
from fastmfr.config.profile_settings import Profile
from fastmfr.results import FAR

DOMAINS = (  # settings whose names are the user's
    *("data.pretrain", "data.sources", "data.targets", "data.landmarks", "data.weights"),
)
PEOPLE = 128  # in a batch, and in each half of a split, where the domains allow as many


def _check_sgd(section, *rates):
    """Checks the learning rates, the momentum and the weight decay of a stage."""
    for name in (*rates, "weight_decay"):
        value = getattr(section, name)
        require(0 <= value < math.inf, f"want {section.prefix}{name} >= 0 and finite, got {value}")
    momentum = section.momentum
    require(0 <= momentum < 1, f"want {section.prefix}momentum at least 0 and below 1, got {momentum}")


@dataclass(frozen=True)
class Pretrain:
    """Stage one: margin softmax over all identities of all sources."""

    prefix: ClassVar[str] = "pretrain."

    steps: int = 20_000
    """optimizer steps; 0 skips the stage"""
    batch_identities: int | None = None
    """people in a batch of all processes together, two images of each; null takes 128, or fewer where a domain is too
    small"""
    margin: Margin = "cosface"
    """cosface (m), arcface (m), combined (m1, m2, m3), adaface (m, h), magface (low, high, least, most, weight), or
    arcface_insightface, combined_insightface: the same with InsightFace's gradient"""
    margin_values: tuple[float, ...] | None = None
    """all of the margin's numbers; null, or another margin than the recipe's, takes the margin's own numbers"""
    scale: float = 64.0
    """multiplies the cosines"""
    classifier: str | None = None
    """begin from this classifier, .safetensors, .pt or .npy with the list of its people beside it, as `export
    --classifier` writes them: people found there by domain and name begin with their rows, others with fresh ones"""
    sample_rate: float = 1.0
    """part of the identities in each step, the batch's own among them; below 1 as in PartialFC"""
    learning_rate: float = 0.1
    """peak of the learning rate, which falls along a cosine"""
    backbone_multiplier: float = 1.0
    """learning rate of the backbone as a multiple of learning_rate, which is the classifier's"""
    warmup: int = 500
    """steps to the peak"""
    momentum: float = 0.9
    """momentum of SGD"""
    weight_decay: float = 5e-4
    """weight decay of SGD"""
    batch_norm: FreezableStatistics = "batch"
    """BatchNorm uses the statistics of the 'batch', or the 'frozen' running ones, which then stay as they are"""
    precision: Precision = "fp32"
    """precision of convolutions and matrix products: on a GPU 'tf32' is faster than 'fp32', and 'bf16', as
    torch.autocast, faster still"""
    cuda_graph: bool = True
    """on a GPU, record forward and backward once and replay them; false runs them operation by operation, to debug"""
    sync_batch_norm: bool = True
    """with several processes, take BatchNorm's statistics over the images of all of them, as one process would; false
    takes those of each process's own images, with fewer messages and another result"""
    fused: bool | None = None
    """run each BatchNorm and the PReLU after it as one operation; false runs PyTorch's own, one by one; null fuses them
    on a CPU in fp32, and on a GPU if steps are replayed, for launched one by one the kernels keep the host busy"""
    compile: Compile = "off"
    """run the backbone through torch.compile, which takes minutes to begin; 'auto' times steps with and without it, if
    the stage is long enough, keeps the faster and says which. For networks of others: where ours were measured, their
    fused operations are faster"""

    def __post_init__(self):
        require_kinds(self)
        require_at_least(self, 0, "steps", "warmup")
        require_at_least(self, 2, "batch_identities")
        object.__setattr__(self, "margin_values", checked_values(self.margin, _tuple(self.margin_values)))
        require(0 < self.scale < math.inf, f"want pretrain.scale > 0 and finite, got {self.scale}")
        unused = f"pretrain.classifier {self.classifier} is of a stage without steps; want pretrain.steps above 0"
        require(self.classifier is None or self.steps > 0, unused)
        require_choice("pretrain.precision", self.precision, Precision)
        require(0 < self.sample_rate <= 1, f"want pretrain.sample_rate above 0 and at most 1, got {self.sample_rate}")
        require_choice("pretrain.batch_norm", self.batch_norm, FreezableStatistics)
        require_choice("pretrain.compile", self.compile, Compile)
        both = "pretrain.fused true excludes pretrain.compile on, for torch.compile makes operations of its own"
        require(not (self.fused and self.compile == "on"), f"{both}; want one of the two")
        _check_sgd(self, "learning_rate", "backbone_multiplier")

    @property
    def people(self) -> int:
        """People in a batch: batch_identities, or PEOPLE if no number is given."""
        return PEOPLE if self.batch_identities is None else self.batch_identities


@dataclass(frozen=True)
class Meta(LossSettings, GradientSettings):
    """Stage two: MFR. Each step leaves every source domain out once."""

    prefix: ClassVar[str] = "meta."

    may_be_auto: ClassVar[tuple[str, ...]] = ("domain_alignment",)

    steps: int = 4000
    """optimizer steps, one for each meta-batch; 0 skips the stage"""
    domain_alignment: float | Auto = 1.0  # pyright: ignore[reportIncompatibleVariableOverride]  a run makes it a number
    """weight of the domain alignment loss; domains that lie far apart want about 1/4096; 'auto' measures the gradients
    of the first meta-batch and takes the weight at which domain alignment supplies a tenth"""
    batch_identities: int | None = None
    """people in each half of a split, two images of each, of all processes together; null takes 128, or fewer where a
    domain is too small"""
    per_domain: bool = False
    """take batch_identities from each meta-train domain instead of from their union"""
    method: Method = "mfr"
    """'mfr': every domain left out once, exact second order; 'first_order': without the Hessian; 'no_meta': without the
    look-ahead, alpha = 0; 'mldg': exact, but one domain left out in each step, at random"""
    alpha: float = 4e-4
    """inner step size"""
    beta: float = 4e-4
    """learning rate"""
    decay_every: int = 1000
    """steps after which alpha and beta halve, tau_p rises by 0.1 and tau_n doubles"""
    momentum: float = 0.9
    """momentum of SGD"""
    weight_decay: float = 5e-4
    """weight decay of SGD"""
    precision: Precision = "fp32"
    """precision of the passes for gradients, as in pretraining; losses and updates are in full precision"""
    cuda_graph: bool = True
    """on a GPU, record a whole step once and replay it; false runs the step operation by operation, to debug"""

    def __post_init__(self):
        require_kinds(self)
        one_split = "want meta.sharing 'none' with meta.method 'mldg': one split a step has nothing to share"
        require(self.sharing == "none" or self.method != "mldg", one_split)
        LossSettings.__post_init__(self)
        GradientSettings.__post_init__(self)
        require_at_least(self, 0, "steps")
        require_at_least(self, 2, "batch_identities")
        require_at_least(self, 1, "decay_every")
        require_choice("meta.method", self.method, Method)
        self.check(self.alpha, self)
        for name in ("tau_p", "tau_n"):
            value = getattr(self, name)
            require(-1 <= value <= 1, f"want the cosine meta.{name} in [-1, 1], got {value}")
        _check_sgd(self, "alpha", "beta")

    @property
    def people(self) -> int:
        """People in each half of a split: batch_identities, or PEOPLE if no number is given."""
        return PEOPLE if self.batch_identities is None else self.batch_identities


@dataclass(frozen=True)
class Evaluate:
    """How targets are scored."""

    prefix: ClassVar[str] = "evaluate."

    far: tuple[float, ...] = FAR
    """false accept rates at which TAR is reported"""
    probes_per_identity: int | None = None
    """most probes of a person; null takes all"""
    batch_images: int = 256
    """images embedded at once"""
    every: int = 0
    """steps between scores taken during training; 0 scores at the end of each stage only"""

    def __post_init__(self):
        require_kinds(self)
        object.__setattr__(self, "far", _tuple(self.far))
        require(bool(self.far) and all(0 < f < 1 for f in self.far), f"want evaluate.far in (0, 1), got {self.far}")
        require_at_least(self, 1, "batch_images", "probes_per_identity")
        require_at_least(self, 0, "every")


@dataclass(frozen=True)
class Config:
    """A run: everything that decides its result."""

    prefix: ClassVar[str] = ""

    recipe: str = "mfr"
    """what these settings are called"""
    folder: str = "runs"
    """where the run's folder is made"""
    seed: int = 2019
    """seed of weights, batches, held-out people and mirroring"""
    device: Device = "auto"
    """'auto' takes a GPU if there is one"""
    threads: int = 0
    """CPU threads of the arithmetic; 0 takes all cores"""
    save_every: int = 200
    """steps between checkpoints"""
    data: Data = field(default_factory=Data)
    model: Model = field(default_factory=Model)
    pretrain: Pretrain = field(default_factory=Pretrain)
    meta: Meta = field(default_factory=Meta)
    choose: Choose = field(default_factory=Choose)
    evaluate: Evaluate = field(default_factory=Evaluate)
    profile: Profile = field(default_factory=Profile)

    def __post_init__(self):
        require_kinds(self)
        require_choice("device", self.device, Device)
        require_at_least(self, 1, "save_every")
        require_at_least(self, 0, "threads", "seed")
        require(self.seed < 2**63, f"want seed below 2^63, got {self.seed}")
        name = self.recipe
        plain = name and "/" not in name and name not in (".", "..")
        require(bool(plain), f"want recipe as a name that can be part of a folder's, got {name!r}")

    def to_yaml(self) -> str:
        """Return all settings as a recipe."""
        return yaml.safe_dump(plain(asdict(self)), sort_keys=False)

    def by_dotted_name(self) -> dict[str, Any]:
        """Return all settings by dotted name, as JSON has them; the domains' own names stay inside."""
        return flattened(plain(asdict(self)))


def flattened(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested settings: {"meta": {"order": 1}} -> {"meta.order": 1}; the domains' own names stay inside."""
    flat = {}
    for name, value in content.items():
        if isinstance(value, dict) and f"{prefix}{name}" not in DOMAINS:
            flat |= flattened(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def plain(value: Any) -> Any:
    """Turn tuples into lists, at every depth: YAML's safe subset and JSON know no tuple."""
    if isinstance(value, dict):
        return {name: plain(item) for name, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, tuple | list) else value


def _tuple(value: Any) -> Any:
    """A number as a tuple of one, for a user who types one where several may stand."""
    if isinstance(value, int | float):
        return (float(value),)
    return tuple(value) if isinstance(value, list) else value
