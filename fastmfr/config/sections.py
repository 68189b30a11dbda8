"""The settings of a run: frozen dataclasses, checked when made.

Every class is one section; its fields' docstrings are the `--help`. The defaults are the paper's (arXiv 2003.07733).
"""

from dataclasses import asdict, dataclass, field

import yaml

from fastmfr.config.margins import checked_values
from fastmfr.precision import PRECISIONS


def _require(holds, sentence):
    if not holds:
        raise ValueError(sentence)


def _one_of(name, value, wanted):
    _require(value in wanted, f"want {name} out of {', '.join(map(repr, wanted))}, got {value!r}")


@dataclass(frozen=True)
class Synthetic:
    """How the procedural faces of a path like `synthetic:studio` are made."""

    folder: str = "data/synthetic"
    """where they are kept and found again, by people x images and size"""
    identities: int = 120
    """people in each domain"""
    images: int = 10
    """images of each person"""
    size: int = 112
    """width and height in pixels"""

    def __post_init__(self):
        _require(self.identities >= 2, f"want data.synthetic.identities >= 2, got {self.identities}")
        _require(self.images >= 2, f"want data.synthetic.images >= 2, got {self.images}")
        _require(self.size >= 16, f"want data.synthetic.size >= 16 pixels, got {self.size}")


@dataclass(frozen=True)
class Data:
    """Domains and how their images become tensors."""

    sources: dict[str, str] = field(default_factory=dict)
    """domains to train on, NAME: PATH; a class folder, an InsightFace .rec folder, or synthetic:DOMAIN"""
    targets: dict[str, str] = field(default_factory=dict)
    """domains to score on; one that is a source too has part of its people held out for scoring"""
    holdout: float = 0.5
    """share of the people held out where a domain is both source and target"""
    single: str = "drop"
    """people with one image: 'drop' leaves them out, 'augment' pairs the image with itself"""
    size: int = 120
    """input width and height in pixels"""
    mean: float = 127.5
    """subtracted from the grey level, 0 to 255"""
    std: float = 128.0
    """divides it then; InsightFace's models take 127.5"""
    flip: float = 0.5
    """chance of a mirrored training image"""
    translate: int = 0
    """training images are shifted by up to so many pixels"""
    low_resolution: float = 0.0
    """chance of a training image in cells of 2 to 4 pixels"""
    brightness: float = 0.0
    """training images get up to so many grey levels brighter or darker"""
    contrast: float = 0.0
    """largest relative change of a training image's contrast"""
    decode: str = "auto"
    """decode on the 'cpu', 'mixed' (nvJPEG, on the GPU), or by 'pillow'; 'auto': the faster of DALI's, as measured"""
    vet: bool = True
    """decode each image alone when first met; without, one that cannot be decoded may crash DALI 2.4 and the run"""
    cache: str = "auto"
    """keep decoded images on the 'gpu' or the 'host', 'none', or 'auto': where they fit"""
    threads: int = 2
    """decoding threads"""
    synthetic: Synthetic = field(default_factory=Synthetic)
    """procedural faces"""

    def __post_init__(self):
        _require(0 < self.holdout < 1, f"want data.holdout above 0 and below 1, got {self.holdout}")
        _one_of("data.single", self.single, ("drop", "augment"))
        _require(self.size >= 16, f"want data.size >= 16 pixels, got {self.size}")
        _require(self.std > 0, f"want data.std > 0, got {self.std}")
        _require(0 <= self.flip <= 1, f"want data.flip in [0, 1], got {self.flip}")
        _one_of("data.decode", self.decode, ("auto", "cpu", "mixed", "pillow"))
        _one_of("data.cache", self.cache, ("auto", "gpu", "host", "none"))
        _require(self.threads >= 1, f"want data.threads >= 1, got {self.threads}")


@dataclass(frozen=True)
class Model:
    """The backbone."""

    name: str = "mfr28"
    """mfr28, iresnet18, iresnet34, iresnet50, iresnet100 or iresnet200"""
    embedding: int | None = None
    """outputs; null takes the network's own"""
    width: float = 0.5
    """channels of mfr28, as a multiple of 64 to 512"""
    dropout: float = 0.0
    """before the last layer of an iResNet"""
    weights: str | None = None
    """start from these: .safetensors, or a .pt/.pth state dict such as InsightFace's"""


@dataclass(frozen=True)
class Pretrain:
    """Stage one: margin softmax over all identities of all sources."""

    steps: int = 20_000
    """optimizer steps; 0 skips the stage"""
    batch_identities: int = 128
    """people in a batch, two images of each"""
    margin: str = "cosface"
    """cosface (m), arcface (m), combined (m1, m2, m3), adaface (m, h), magface (low, high, least, most, weight), or
    arcface_insightface, combined_insightface: the same with InsightFace's gradient"""
    margin_values: tuple[float, ...] | None = None
    """all of the margin's numbers; null, or another margin than the recipe's, takes the margin's own"""
    scale: float = 64.0
    """multiplies the cosines"""
    sample_rate: float = 1.0
    """share of the identities that takes part in a step, the batch's own among them; below 1 as in PartialFC"""
    learning_rate: float = 0.1
    """peak; it falls along a cosine"""
    warmup: int = 500
    """steps to the peak"""
    momentum: float = 0.9
    """of SGD"""
    weight_decay: float = 5e-4
    """of SGD"""
    precision: str = "fp32"
    """of convolutions and products: 'fp32'; on a GPU 'tf32' is faster, and 'bf16' faster still, as torch.autocast"""
    cuda_graph: bool = True
    """on a GPU, record forward and backward once and replay them; false runs them operation by operation, to debug"""
    fused: bool = True
    """on a GPU, run each BatchNorm with the PReLU after it as one operation; false runs PyTorch's own, one by one"""

    def __post_init__(self):
        _require(self.steps >= 0, f"want pretrain.steps >= 0, got {self.steps}")
        _require(self.batch_identities >= 2, f"want pretrain.batch_identities >= 2, got {self.batch_identities}")
        object.__setattr__(self, "margin_values", checked_values(self.margin, self.margin_values))
        _require(self.scale > 0, f"want pretrain.scale > 0, got {self.scale}")
        _one_of("pretrain.precision", self.precision, PRECISIONS)
        _require(0 < self.sample_rate <= 1, f"want pretrain.sample_rate above 0 and at most 1, got {self.sample_rate}")


@dataclass(frozen=True)
class Meta:
    """Stage two: MFR. Each step leaves every source domain out once."""

    steps: int = 4000
    """optimizer steps, one a meta-batch; 0 skips the stage"""
    batch_identities: int = 128
    """people in each half of a split, two images of each"""
    per_domain: bool = False
    """batch_identities from each meta-train domain instead of from their union"""
    method: str = "mfr"
    """'mfr': every domain left out once, exact second order; 'first_order': without the Hessian; 'no_meta': without the
    look-ahead, alpha = 0; 'mldg': exact, but one domain left out a step, at random"""
    engine: str = "auto"
    """H v by the R-operator ('rop'), by 'autograd' used twice, or 'auto': the R-operator where it covers the network"""
    memory: str = "auto"
    """of the R-operator: state 'kept' for H v, made again ('streaming'), or 'auto': kept where there is room"""
    sharing: str = "none"
    """'per_domain' takes each domain's gradient once for all splits: faster, but no loss then crosses domains; wants
    batch_norm 'per_domain' or 'frozen', and domain_alignment 0"""
    alpha: float = 4e-4
    """inner step size"""
    beta: float = 4e-4
    """learning rate"""
    gamma: float = 0.5
    """weight of meta-train against meta-test"""
    decay_every: int = 1000
    """steps until alpha and beta halve, tau_p rises by 0.1 and tau_n doubles"""
    tau_p: float = 0.3
    """a genuine pair below this cosine is hard"""
    tau_n: float = 0.04
    """an impostor pair above this cosine is hard"""
    mining: str = "threshold"
    """'threshold' takes tau_p and tau_n, 'share' the hardest share_p and share_n"""
    share_p: float = 0.4
    """part of the genuine pairs taken as hard"""
    share_n: float = 0.01
    """part of the impostor pairs taken as hard"""
    scale: float = 64.0
    """multiplies cosines in soft classification and means in domain alignment"""
    hard_pair: float = 1.0
    """weight of the hard-pair loss"""
    soft_classification: float = 1.0
    """weight of the soft classification loss"""
    domain_alignment: float = 1.0
    """weight of the domain alignment loss; domains that lie far apart want about 1/4096"""
    detach_prototypes: bool = False
    """no gradient through soft classification's prototypes"""
    batch_norm: str = "batch"
    """'batch' statistics, 'frozen' running ones, or batch statistics 'per_domain'"""
    momentum: float = 0.9
    """of SGD"""
    weight_decay: float = 5e-4
    """of SGD"""
    precision: str = "fp32"
    """of the passes for gradients: 'fp32', 'tf32' or 'bf16', as in pretraining; losses and updates are in full"""
    curvature: str | None = None
    """precision of the passes for H v; null takes that of the gradients"""
    cuda_graph: bool = True
    """on a GPU, record a whole step once and replay it; false runs it operation by operation, to debug"""

    def __post_init__(self):
        _require(self.steps >= 0, f"want meta.steps >= 0, got {self.steps}")
        _require(self.batch_identities >= 2, f"want meta.batch_identities >= 2, got {self.batch_identities}")
        _one_of("meta.method", self.method, ("mfr", "first_order", "no_meta", "mldg"))
        _one_of("meta.engine", self.engine, ("auto", "autograd", "rop"))
        _one_of("meta.memory", self.memory, ("auto", "kept", "streaming"))
        _one_of("meta.sharing", self.sharing, ("none", "per_domain"))
        if self.sharing != "none":
            _require(
                self.method != "mldg",
                "want meta.sharing 'none' where meta.method is 'mldg': one split a step has nothing to share",
            )
            _require(
                self.batch_norm != "batch" and not self.domain_alignment,
                "meta.sharing 'per_domain' takes each "
                "domain by itself: want meta.batch_norm 'per_domain' or 'frozen' and meta.domain_alignment 0, got "
                f"{self.batch_norm!r} and {self.domain_alignment:g}",
            )
        _require(self.alpha >= 0 and self.beta >= 0, f"want alpha, beta >= 0, got {self.alpha} and {self.beta}")
        _require(0 <= self.gamma <= 1, f"want meta.gamma in [0, 1], got {self.gamma}")
        _require(self.decay_every >= 1, f"want meta.decay_every >= 1, got {self.decay_every}")
        _one_of("meta.mining", self.mining, ("threshold", "share"))
        for name in ("share_p", "share_n"):
            _require(0 < getattr(self, name) <= 1, f"want meta.{name} above 0 and at most 1, got {getattr(self, name)}")
        _one_of("meta.batch_norm", self.batch_norm, ("batch", "frozen", "per_domain"))
        _one_of("meta.precision", self.precision, PRECISIONS)
        if self.curvature is not None:
            _one_of("meta.curvature", self.curvature, PRECISIONS)


@dataclass(frozen=True)
class Evaluate:
    """How targets are scored."""

    far: tuple[float, ...] = (1e-2, 1e-3, 1e-4)
    """false accept rates to report TAR at"""
    probes_per_identity: int | None = None
    """at most so many probes of a person; null takes all"""
    batch_images: int = 256
    """images embedded at once"""
    every: int = 0
    """steps between scores taken on the way; 0 scores at the end of each stage only"""

    def __post_init__(self):
        _require(self.far and all(0 < f < 1 for f in self.far), f"want evaluate.far in (0, 1), got {self.far}")
        _require(self.batch_images >= 1, f"want evaluate.batch_images >= 1, got {self.batch_images}")


@dataclass(frozen=True)
class Config:
    """A run: everything that decides its result."""

    recipe: str = "mfr"
    """what these settings are called"""
    folder: str = "runs"
    """where the run's own folder is made"""
    seed: int = 2019
    """of weights, batches, held-out people and mirroring"""
    device: str = "auto"
    """auto, cpu or cuda"""
    threads: int = 0
    """CPU threads of the arithmetic; 0 takes all cores"""
    save_every: int = 200
    """steps between checkpoints"""
    data: Data = field(default_factory=Data)
    model: Model = field(default_factory=Model)
    pretrain: Pretrain = field(default_factory=Pretrain)
    meta: Meta = field(default_factory=Meta)
    evaluate: Evaluate = field(default_factory=Evaluate)

    def __post_init__(self):
        _one_of("device", self.device, ("auto", "cpu", "cuda"))
        _require(self.save_every >= 1, f"want save_every >= 1, got {self.save_every}")

    def to_yaml(self) -> str:
        """The whole configuration, as a recipe."""
        return yaml.safe_dump(_plain(asdict(self)), sort_keys=False)


def _plain(value):
    """Tuples become lists: YAML's safe subset knows no tuple."""
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple | list) else value
