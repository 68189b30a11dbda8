"""How large the proof is and why; which seeds and domains serve for tuning and which are reported."""

from dataclasses import dataclass, fields, replace
from pathlib import Path

import yaml

from fastmfr.config import Config, Data, Evaluate, Meta, Model, Pretrain, Synthetic
from fastmfr.protocols import leave_one_out

# Whoever changes a setting looks at the first pool only. The two share no domain and no seed; street and tungsten were
# trained on, though never scored, when the settings of the recipe quickstart were chosen.
POOLS = {
    "tuning": ("studio", "glasses", "aged", "surveillance"),
    "reported": ("street", "tungsten", "nir", "sketch"),
}
FIRST_SEED = {"tuning": 1, "reported": 101}
FAR = (1e-2, 1e-3)


@dataclass(frozen=True)
class Settings:
    """What all arms share. The defaults are of `--scale cpu`."""

    identities: int = 200
    """people a domain, as in quickstart: enough that 96 of one domain fit in MLDG's larger batch"""
    images: int = 10
    """of each person; one is enrolled and nine are looked up: 358,200 impostor pairs, 358 of them at FAR 1e-3"""
    drawn: int = 64
    """pixels of a face as made; it is scaled down once, as photographs are"""
    size: int = 48
    """pixels the network sees: at 48 two cores train 1,500 images/s, which is what an hour is made of"""
    width: float = 0.25
    """of the 28-layer network, for the same reason"""
    pretrain_steps: int = 850
    """its cosine ends at rate 0, quickstart's loss being flat by then: while CosFace still learns, more CosFace wins"""
    pretrain_identities: int = 64
    """two images of each make the 128 of a batch"""
    learning_rate: float = 0.05
    """peak of pretraining"""
    warmup: int = 50
    """steps to the peak, 6 % of pretraining"""
    meta_steps: int = 30
    """optimizer steps of every arm; three splits of 128 images each, a tenth of what pretraining saw"""
    meta_identities: int = 32
    """in each half of a split"""
    alpha: float = 0.3
    """inner step; alpha |Hv| / |v| was then about 0.2, where the second order matters without overwhelming the first"""
    beta: float = 0.05
    """rate of the meta arms and of hard pairs alone: a tenth of it moves little in 30 steps"""
    agg_rate: float = 0.005
    """of more CosFace: what pretraining's cosine gives at four fifths of its way, so more of the same and no shock"""
    batch_norm: str = "frozen"
    """of hard pairs alone and the meta arms. With batch statistics nothing that looks ahead gained anything (tuning)"""
    scale: float = 16.0
    """of soft classification; at 64 it is saturated on these faces"""
    domain_alignment: float = 0.004
    """near 1/256: the domains lie far apart, and at 1 nothing else would count"""
    probes: int | None = None
    """of a person at most; None looks all up"""
    targets: tuple[str, ...] | None = ("nir", "sketch")
    """left out in turn where --targets says nothing; None takes the whole pool"""
    base_seconds: float = 80.0
    """until the first rows are there: quickstart's pretraining took 58 to 75 s on two cores"""
    arm_seconds: float = 19.0
    """the same of an arm: quickstart's 30 steps of second order took 18 s, those of first order take half"""


SCALES = {
    "toy": Settings(
        identities=24,
        images=4,
        drawn=32,
        size=32,
        width=0.125,
        pretrain_steps=6,
        pretrain_identities=8,
        warmup=2,
        meta_steps=2,
        meta_identities=4,
        targets=None,
        base_seconds=2.0,
        arm_seconds=1.0,
    ),
    "cpu": Settings(),
    # 11 times the work an image, 4.7 times the images; its seconds are a guess, for nothing has run there yet.
    "gpu": Settings(
        identities=1000,
        images=12,
        drawn=112,
        size=80,
        width=0.5,
        pretrain_steps=2000,
        pretrain_identities=128,
        warmup=120,
        meta_steps=72,
        meta_identities=64,
        probes=4,
        base_seconds=20.0,
        arm_seconds=3.0,
    ),
}


def changed(settings: Settings, words: list[str]) -> Settings:
    """The settings with each NAME=VALUE of `words`. Raises ValueError where there is no setting of that name."""
    named = dict(word.split("=", 1) for word in words if "=" in word)
    known = [part.name for part in fields(Settings)]
    if len(named) < len(words) or not set(named) <= set(known):
        raise ValueError(f"want NAME=VALUE of the settings {', '.join(known)}; got {' '.join(words)}")
    return replace(settings, **{name: yaml.safe_load(value) for name, value in named.items()})


def targets_of(settings: Settings, pool: str, wanted: list[str] | None) -> list[str]:
    """Domains to leave out in turn. Raises ValueError for one that is not in the pool."""
    domains = POOLS[pool]
    chosen = wanted or [name for name in settings.targets or domains if name in domains] or list(domains)
    if strange := [name for name in chosen if name not in domains]:
        raise ValueError(f"want targets out of the pool {pool!r}, {', '.join(domains)}; got {', '.join(strange)}")
    return list(dict.fromkeys(chosen))


def config_of(settings: Settings, pool: str, seed: int, left_out: str, real: str | None, faces: Path) -> Config:
    """The run of one seed and left-out domain, second order; `real`: a folder of faces scored beside the domain."""
    made = {name: f"synthetic:{name}" for name in POOLS[pool]}
    protocol = leave_one_out(made, left_out)
    targets = protocol.targets | ({Path(real).resolve().name: real} if real else {})
    return Config(
        recipe="proof",
        seed=seed,
        save_every=settings.pretrain_steps,  # one state: the finished base, with the classifier that more CosFace needs
        data=Data(
            sources=protocol.sources,
            targets=targets,
            validation=0.0,  # the arms are compared as they end
            size=settings.size,
            synthetic=Synthetic(str(faces), settings.identities, settings.images, settings.drawn),
        ),
        model=Model(width=settings.width),
        pretrain=Pretrain(
            steps=settings.pretrain_steps,
            batch_identities=settings.pretrain_identities,
            margin_values=(0.3,),
            scale=32.0,
            learning_rate=settings.learning_rate,
            warmup=settings.warmup,
        ),
        meta=Meta(
            steps=settings.meta_steps,
            batch_identities=settings.meta_identities,
            alpha=settings.alpha,
            beta=settings.beta,
            mining="share",
            scale=settings.scale,
            domain_alignment=settings.domain_alignment,
            batch_norm=settings.batch_norm,
        ),
        evaluate=Evaluate(far=FAR, probes_per_identity=settings.probes),
    )
