"""The settings of the data: which domains, who of them is for what, and how their images are decoded and kept."""

import math
from dataclasses import dataclass, field
from typing import ClassVar

from fastmfr.config.checks import require, require_at_least, require_choice, require_kinds
from fastmfr.config.choices import Cache, Decoder, Single
from fastmfr.config.images import Preprocess


@dataclass(frozen=True)
class Synthetic:
    """How the procedural faces of a path like `synthetic:studio` are made."""

    prefix: ClassVar[str] = "data.synthetic."

    folder: str = "data/synthetic"
    """where the faces are kept and found again, by people x images, size and shares"""
    identities: int = 120
    """people in each domain"""
    images: int = 10
    """images of each person"""
    size: int = 112
    """width and height in pixels"""
    single: float = 0.0
    """part of the people of whom there is one image, spread evenly over all people"""
    twins: float = 0.0
    """part of the people who are twins, in pairs: nearly the same traits, other moles and freckles; holding people out
    may part twins"""

    def __post_init__(self):
        require_kinds(self)
        require_at_least(self, 2, "identities", "images")
        require(0 <= self.single < 1, f"want data.synthetic.single at least 0 and below 1, got {self.single}")
        require(0 <= self.twins <= 1, f"want data.synthetic.twins from 0 to 1, got {self.twins}")
        require(self.size >= 16, f"want data.synthetic.size >= 16 pixels, got {self.size}")


@dataclass(frozen=True, kw_only=True)
class Data(Preprocess):
    """Domains, and how their images become tensors."""

    prefix: ClassVar[str] = "data."

    sources: dict[str, str] = field(default_factory=dict)
    """domains to train on, NAME: PATH; a class folder, an InsightFace .rec folder, or synthetic:DOMAIN"""
    pretrain: dict[str, str] = field(default_factory=dict)
    """domains of stage one, NAME: PATH, if these are other ones than stage two's: data.sources are then stage two's"""
    targets: dict[str, str] = field(default_factory=dict)
    """domains to score on; if one is a source too, part of its people are held out for scoring"""
    landmarks: dict[str, str] = field(default_factory=dict)
    """files of five points an image, NAME: PATH, of domains and of sets to evaluate whose images are to be aligned;
    'none' leaves the file unused that lies beside a set"""
    holdout: float = 0.5
    """part of the people held out of a domain that is both source and target"""
    new_people: float = 0.0
    """part of the people of each domain of both stages that are kept for stage two; stage two then trains on these
    people alone, whom stage one has not met, as in the paper; 0 trains both stages on all people"""
    validation: float = 0.1
    """part of each source's people that are kept out of training, to choose the model that is handed out; of a source
    where these are fewer than five nobody is kept"""
    weights: dict[str, float] = field(default_factory=dict)
    """how often stage one draws from its domains, NAME: NUMBER, in proportion; domains without a number have 1"""
    temperature: float | None = None
    """stage one draws from each domain in proportion to its people, to the power of 1 / temperature: 1 draws all people
    equally often, 5 leans towards small domains; null draws from all domains equally often"""
    single: Single = "drop"
    """people with one image: 'drop' leaves these people out, 'augment' pairs the image with itself"""
    shared_identities: str = "none"
    """people of several domains: 'none' takes all people of different domains for different people, 'by_name' takes
    people of one folder name for one person; or a list, a file of lines `identity,domain/folder,domain/folder`"""
    decode: Decoder = "auto"
    """decode on the 'cpu', 'mixed' (DALI's nvJPEG, on the GPU), by torchvision's 'nvjpeg' or by 'pillow'; 'auto'
    measures DALI's two, or without DALI the last two, and takes the faster one"""
    vet: bool = True
    """decode each image alone when it is first met; without this, an image that cannot be decoded may crash DALI 2.4"""
    cache: Cache = "auto"
    """keep decoded images on the 'gpu' or the 'host', or 'none'; 'auto' takes the first that has room"""
    threads: int = 2
    """decoding threads"""
    synthetic: Synthetic = field(default_factory=Synthetic)
    """procedural faces"""

    def __post_init__(self):
        require_kinds(self)
        require(self.size >= 16, f"want data.size >= 16 pixels, got {self.size}")  # four halvings leave one pixel
        super().__post_init__()
        require(0 < self.holdout < 1, f"want data.holdout above 0 and below 1, got {self.holdout}")
        require(0 <= self.new_people < 1, f"want data.new_people at least 0 and below 1, got {self.new_people}")
        require(0 <= self.validation < 1, f"want data.validation at least 0 and below 1, got {self.validation}")
        for name, weight in self.weights.items():
            number = isinstance(weight, int | float) and not isinstance(weight, bool) and 0 < weight < math.inf
            require(number, f"want data.weights.{name} above 0 and finite, got {weight!r}")
        warm = self.temperature is None or 0 < self.temperature < math.inf
        require(warm, f"want data.temperature above 0 and finite, or null, got {self.temperature}")
        both = bool(self.weights) and self.temperature is not None
        require(not both, "want data.weights or data.temperature, got both: each says how often domains are drawn")
        require_choice("data.single", self.single, Single)
        require_choice("data.decode", self.decode, Decoder)
        require_choice("data.cache", self.cache, Cache)
        require_at_least(self, 1, "threads")
