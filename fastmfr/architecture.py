"""Which backbone a state dict is of, read off its names and shapes, and what does not fit, in one sentence."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor

from fastmfr.backbone import IRESNET_BLOCKS, build
from fastmfr.config.choices import AUTO, Backbone
from fastmfr.config.model_settings import Model

__all__ = [
    "COUNTER",
    "OTHERS",
    "SHOWN",
    "Architecture",
    "State",
    "architecture_of",
    "check_fits",
    "difference",
    "read_off",
]

State = Mapping[str, Tensor]
SHOWN = 3  # names in a sentence
COUNTER = "num_batches_tracked"  # of BatchNorm; files of old versions of torch have none
OTHERS = (  # names that other networks have, and what to say of them
    (r"(^|\.)(blocks|patch_embed|pos_embed)(\.|$)", "a transformer, which no backbone here is"),
    (r"^(input_layer|body)\.", "the IR network of face.evoLVe, AdaFace or TFace, whose layers are other ones"),
    (r"\.(se|fc1|fc2)\.", "a network with squeeze-and-excitation, which no backbone here has"),
    (r"^layer1\.0\.conv3\.", "torchvision's ResNet with bottleneck blocks, which no backbone here has"),
    (r"^layer1\.0\.relu|^layer1\.0\.conv1", "a ResNet without the PReLU of InsightFace's iResNets"),
    (r"conv_(dw|sep|23)|depthwise", "a MobileFaceNet, which no backbone here is"),
    (r"^(weight|kernel|weight_CD)$", "a classifier alone, without its backbone"),
)


@dataclass(frozen=True)
class Architecture:
    """What names and shapes say of a backbone.

    Attributes:
        name: One of `fastmfr.backbone.NAMES`, or what the network is in words if no backbone here has its depth.
        embedding: Outputs D.
        width: Channels of mfr28, as a multiple of 64 to 512; None for an iResNet.
        image_size: Width and height in pixels that an iResNet's last layer fits; None for mfr28, which takes any.
    """

    name: str
    embedding: int
    width: float | None = None
    image_size: int | None = None

    @property
    def is_ours(self) -> bool:
        """Whether `fastmfr.backbone` can build it."""
        return self.name == "mfr28" or self.name in IRESNET_BLOCKS


def architecture_of(state: State) -> Architecture | None:
    """Return what the names and shapes of a state dict say, or None for neither an iResNet nor mfr28."""
    if {"conv1.weight", "prelu.weight", "layer1.0.prelu.weight", "fc.weight", "features.weight"} <= state.keys():
        blocks = tuple(_blocks(state, rf"^layer{stage}\.(\d+)\.") for stage in (1, 2, 3, 4))
        name = next((name for name, each in IRESNET_BLOCKS.items() if each == blocks), None)
        outputs, inputs = (*state["fc.weight"].shape, 0)[:2]
        side = math.isqrt(inputs // 512)
        name = name or f"iresnet with {', '.join(map(str, blocks[:-1]))} and {blocks[-1]} blocks"
        return Architecture(name, outputs, image_size=16 * side)
    if {"stem.0.weight", "stages.3.0.conv1.weight", "bn.weight"} <= state.keys():
        last = state["bn.weight"].numel()
        embedding = len(state["fc.weight"]) if "fc.weight" in state else last
        return Architecture("mfr28", embedding, width=last / 512)
    return None


def _blocks(state, pattern):
    """How many blocks a stage has, by the numbers in its names."""
    found = (re.match(pattern, name) for name in state)
    return 1 + max((int(number[1]) for number in found if number), default=-1)


def read_off(model: Model, state: State) -> Model:
    """Return the settings of a model whose name is "auto" with name, embedding and width as the state dict has them.

    Args:
        model: The settings. Another name than "auto" is kept, and so are an embedding and a width that were typed.
        state: The state dict.

    Raises:
        ValueError: No backbone here is the state dict's.
    """
    if model.name != AUTO:
        return model
    found = architecture_of(state)
    if found is None:
        raise ValueError(f"they are of no backbone that fastmfr has{_guess(state)}; their names begin {_some(state)}")
    if not found.is_ours:
        raise ValueError(f"they are an {found.name}; want one of {', '.join(IRESNET_BLOCKS)}")
    typed = model.width != Model.width
    width = model.width if typed or found.width is None else found.width
    embedding = found.embedding if model.embedding is None else model.embedding
    return replace(model, name=cast(Backbone, found.name), embedding=embedding, width=width)


def check_fits(state: State, model: Model, image_size: int) -> None:
    """Check that a state dict fits the backbone that the settings name; no random number is used up.

    Args:
        state: The state dict.
        model: The settings; the name is not "auto".
        image_size: Width and height of the images in pixels.

    Raises:
        ValueError: What does not fit, as `difference` says it.
    """
    with torch.random.fork_rng(devices=[]):  # the device "meta" would draw no numbers, but its import takes seconds
        network = build(model.name, model.embedding, width=model.width, image_size=image_size)
    if found := difference(state, network.state_dict()):
        raise ValueError(found)


def difference(state: State, wanted: State) -> str:
    """Say how a state dict differs from that of the network that is to be filled; "" if it fits.

    Args:
        state: The state dict of a file.
        wanted: The network's own state dict; only names and shapes are read.
    """
    missing = [name for name in wanted if name not in state and not name.endswith(COUNTER)]
    foreign = [name for name in state if name not in wanted]
    misshapen = [name for name in wanted if name in state and state[name].shape != wanted[name].shape]
    if not (missing or foreign or misshapen):
        return ""
    theirs, ours = architecture_of(state), architecture_of(wanted)
    if theirs and ours and (words := _in_settings(theirs, ours)):
        return words
    if misshapen and not missing:
        name = misshapen[0]
        shapes = f"{name} has the shape {tuple(state[name].shape)}, and the backbone's has {tuple(wanted[name].shape)}"
        return f"check model.name and its options: {shapes}; so differ {len(misshapen)} of {len(wanted)} names"
    lacks = f"{len(missing)} of the backbone's {len(wanted)} names are missing, such as {_some(missing, 2)}"
    has = f"{len(foreign)} names are not the backbone's, such as {_some(foreign, 1)}"
    said = "; ".join(words for words, there in ((lacks, missing), (has, foreign)) if there)
    return f"check model.name and its options: {said}{_guess(state)}"


def _in_settings(theirs: Architecture, ours: Architecture) -> str:
    """The settings in which two networks differ, or "" if names and shapes do not tell."""
    if theirs.name != ours.name:
        return f"the weights are an {theirs.name}, model.name asks for {ours.name}"
    told = []
    if theirs.width != ours.width:
        told.append(f"the weights are of width {theirs.width:g}, model.width asks for {ours.width:g}")
    if theirs.image_size != ours.image_size:
        told.append(f"the weights are for images of {theirs.image_size} px, data.size asks for {ours.image_size}")
    if theirs.embedding != ours.embedding:
        told.append(f"the weights have {theirs.embedding} outputs, model.embedding asks for {ours.embedding}")
    return "; ".join(told)


def _some(names, most=SHOWN):
    shown = list(names)[:most]
    return f"{', '.join(shown)}{' ...' if len(names) > most else ''}"


def _guess(state):
    """What the names look like, behind a semicolon, or ""."""
    found = next((words for pattern, words in OTHERS if any(re.search(pattern, name) for name in state)), "")
    return f"; they look like {found}" if found else ""
