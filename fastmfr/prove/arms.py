"""What is compared: arms that go on from one base, matched in optimizer steps and in images; and their controls."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import yaml

from fastmfr.config import Config, Meta
from fastmfr.results import BASE, CHOSEN, EMA, MEAN, MFR

COSFACE = "cosface"
TOGETHER = "together"
NO_META = "no_meta"
OF_AN_ARM = {  # models that an arm makes beside its last weights
    MEAN: "mean of the weights",
    EMA: "moving average",
    CHOSEN: "the model chosen",
}
AT_FOUR_FIFTHS = 0.1  # a cosine from 1 to 0, four fifths of its way: more of the same, and no shock


@dataclass(frozen=True)
class Arm:
    """One way to go on from the base.

    Attributes:
        title: what tables call it.
        kind: "base" trains no further; "cosface" and "hard_pair" train on the images of the splits without a meta step;
            "together" is stage one on the people of both stages, from fresh weights; "meta" is stage two; "beside"
            takes, after each step of stage two, one of "cosface" on the same images; "balanced" and "triplets" have
            another loss in place of the hard pairs' (see successors.py).
        meta: settings of the section `meta` that differ from those given.
    """

    title: str
    kind: str = "meta"
    meta: Mapping[str, Any] = field(default_factory=dict)


ARMS = {
    BASE: Arm("base", "base"),
    COSFACE: Arm("more of stage one", "cosface"),
    TOGETHER: Arm("stage one on everybody from the start", "together"),
    "hard_pair": Arm("hard pairs alone, no meta step", "hard_pair"),
    NO_META: Arm("all losses, no look-ahead", meta={"method": "no_meta"}),
    "first_order": Arm("MFR, first order", meta={"method": "first_order"}),
    MFR: Arm("MFR", meta={"method": "mfr"}),
    "beside": Arm("MFR, with stage one's loss beside it", "beside"),
    "balanced": Arm("MFR, hard pairs balanced over domains", "balanced", {"cuda_graph": False}),
    "triplets": Arm("MFR, triplets across domains", "triplets", {"cuda_graph": False}),
    "mldg": Arm("MLDG, one random split a step", meta={"method": "mldg"}),
    "no_hard_pair": Arm("MFR without hard pairs", meta={"hard_pair": 0.0}),
    "no_classification": Arm("MFR without soft classification", meta={"soft_classification": 0.0}),
    "no_alignment": Arm("MFR without domain alignment", meta={"domain_alignment": 0.0}),
    "batch": Arm("MFR, BatchNorm on batch statistics", meta={"batch_norm": "batch"}),
    "frozen": Arm("MFR, BatchNorm frozen", meta={"batch_norm": "frozen"}),
}
_DEFAULT = (BASE, COSFACE, TOGETHER, "hard_pair", NO_META, "first_order", MFR, f"{MFR}:{MEAN}", f"{MFR}:{CHOSEN}")


def trained_arm(name: str) -> str:
    """The arm whose training makes the model `name`: "mfr" of "mfr" and of "mfr:mean"."""
    return name.partition(":")[0]


def title_of(name: str, arms: Mapping[str, Arm]) -> str:
    """What tables call a model."""
    arm, _, model = name.partition(":")
    return f"{arms[arm].title}: {OF_AN_ARM[model]}" if model else arms[arm].title


def arms_of(own: Sequence[str]) -> dict[str, Arm]:
    """ARMS and the user's own arms.

    Args:
        own: of each own arm "NAME=SETTING=VALUE ...", with settings of the section `meta` under their names; a word
            that is an arm's name, as in "NAME=beside SETTING=VALUE", begins from that arm.

    Raises:
        ValueError: no name or a name that is taken, no setting, or no such setting or arm.
    """
    arms, known = dict(ARMS), [part.name for part in fields(Meta)]
    for word in own:
        name, _, changes = word.partition("=")
        start, pairs = Arm(name), []
        for change in changes.split():
            if change in arms:
                start = arms[change]
            else:
                pairs.append(change.partition("=")[::2])
        settings = {setting.removeprefix("meta."): _value(value) for setting, value in pairs}
        if not name or not settings or not set(settings) <= set(known) or not name.replace("_", "").isalnum():
            raise ValueError(
                f'want --arm "NAME=SETTING=VALUE ..." with settings out of {", ".join(known)}; got {word!r}'
            )
        if name in arms:
            raise ValueError(f"there is an arm {name!r} already; give yours another name")
        arms[name] = Arm(name, start.kind, {**start.meta, **settings})
    return arms


def _value(text: str) -> Any:
    """A typed value: a number, true, false, null or text. YAML takes 1e-4 for text."""
    try:
        return float(text) if "e" in text.lower() else yaml.safe_load(text)
    except (ValueError, yaml.YAMLError):
        return text


def by_default(config: Config) -> list[str]:
    """The models that are compared if none are asked for: those that the settings allow.

    With nobody new in stage two, the base has met everybody, and `together` would be more of the same.
    """
    is_new = bool(config.data.new_people or config.data.pretrain)
    left_out = set(refused(_DEFAULT, ARMS, config)) | (set() if is_new else {TOGETHER})
    return [name for name in _DEFAULT if name not in left_out]


def refused(names: Iterable[str], arms: Mapping[str, Arm], config: Config) -> dict[str, str]:
    """What the settings do not allow among the models: {name: reason}."""
    reasons = {}
    for name in names:
        if not config.pretrain.steps and arms[trained_arm(name)].kind in ("cosface", "together", "beside"):
            reasons[name] = "needs the classifier of stage one; want --pretrain.steps above 0, or other --arms"
        elif not config.data.validation and name.endswith(f":{CHOSEN}"):
            reasons[name] = "is chosen on people kept for it; want --data.validation above 0, or other --arms"
    return reasons


def models_of(wanted: Sequence[str], arms: Mapping[str, Arm]) -> list[str]:
    """The models to compare in the order in which they are made: the base, then each arm with its averages.

    Raises:
        ValueError: there is no such arm, or an arm has no such model.
    """
    for name in wanted:
        arm, colon, model = name.partition(":")
        if arm not in arms or (colon and model not in OF_AN_ARM):
            raise ValueError(
                f"want arms out of {', '.join(arms)}, each alone or with one of :{', :'.join(OF_AN_ARM)} behind it; "
                f"got {name!r}"
            )
    order = [f"{arm}{model}" for arm in arms for model in ("", *(f":{model}" for model in OF_AN_ARM))]
    return [name for name in order if name == BASE or name in wanted]


def as_stage_one(meta: Meta, config: Config, typed: Collection[str] = ()) -> Meta:
    """Settings of stage two with which its loop takes steps of stage one as the run's stage one takes them.

    Args:
        meta: the settings; which images are drawn stays as they say.
        config: of the run.
        typed: names of settings that stay too.

    Raises:
        ValueError: a typed setting does not go with the others.
    """
    own = {name: getattr(config.pretrain, name) for name in ("momentum", "weight_decay", "precision", "batch_norm")}
    if own["batch_norm"] == "batch" and meta.sharing != "none":
        own["batch_norm"] = "per_domain"  # the loop only asks whether they are frozen, and "batch" is refused here
    own |= {"beta": AT_FOUR_FIFTHS * config.pretrain.learning_rate, "curvature": None}
    return replace(meta, **{name: value for name, value in own.items() if name not in typed})


def config_of(name: str, arm: Arm, config: Config) -> Config:
    """The run's settings as an arm has them, matched in steps and images.

    More of stage one trains as stage one does, at a tenth of its highest learning rate. MLDG's one split a step has as
    many people as the splits of the other arms together. No arm ends early.

    Raises:
        ValueError: a setting of the arm has a wrong value, or does not go with the others.
    """
    try:
        meta = replace(config.meta, **arm.meta)
        if arm.kind == "cosface":
            meta = as_stage_one(meta, config, arm.meta)
    except (ValueError, TypeError) as error:
        raise ValueError(f"arm {name!r}: {error}") from None
    if meta.method == "mldg":
        meta = replace(meta, batch_identities=meta.people * len(config.data.sources))
    return replace(config, meta=meta, choose=replace(config.choose, patience=0))
