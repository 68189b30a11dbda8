"""Weights of backbones: saved, loaded, and opened as a model that embeds images.

Shape suffixes: N images, D embedding.
"""

import pickle
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor, nn

from fastmfr.architecture import check_fits, difference, read_off
from fastmfr.atomic import of_usual_mode, replacing
from fastmfr.backbone import build_backbone
from fastmfr.config import Config, load_config, narrowed
from fastmfr.config.choices import AUTO, Device, Mirror
from fastmfr.decode import Preprocess
from fastmfr.decode.align import aligned, alignment_maps
from fastmfr.decode.preprocess import fitted, upright_rgb
from fastmfr.evaluate import embed
from fastmfr.external import HEAD, is_external
from fastmfr.run_folder import STEPS, settings_beside, weights_of
from fastmfr.runtime import device_for, to_channels_last

__all__ = [
    "EMBEDDED_AT_ONCE",
    "LFS",
    "OF_BACKBONES",
    "PREFIXES",
    "UNREADABLE",
    "WRAPPERS",
    "Model",
    "is_pointer",
    "load_weights",
    "open_model",
    "read_state",
    "save_weights",
    "settled",
]

EMBEDDED_AT_ONCE = 256  # images
WRAPPERS = ("state_dict", "model", "backbone", "network", "model_state_dict", "state_dict_backbone")  # keys around one
PREFIXES = ("module.", "_orig_mod.", "backbone.", "model.", "network.")  # in front of every name
OF_BACKBONES = ("backbone.", "model.")  # in front of a backbone's names, where a classifier's stand beside them
UNREADABLE = (  # what torch.load and safetensors raise for files that are none, OSError for seeking out of a cut one
    *(pickle.UnpicklingError, SafetensorError, EOFError, RuntimeError, ValueError, KeyError, TypeError, OSError),
    *(AttributeError, IndexError, OverflowError, AssertionError),
)
LFS = b"version https://git-lfs"


def save_weights(network: nn.Module, path: Path, *, steps: int | None = None) -> None:
    """Write the network's parameters and buffers as safetensors; the file is complete or not there at all.

    Args:
        network: The network.
        path: Where the file is written.
        steps: The steps of the stage that trained them, kept in the file's metadata.
    """
    tensors = {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}
    with replacing(path) as partial, of_usual_mode(partial):
        safetensors.torch.save_file(tensors, partial, {} if steps is None else {STEPS: str(steps)})


def load_weights(network: nn.Module, path: Path | str) -> str:
    """Fill the network from .safetensors, or from a .pt/.pth state dict such as InsightFace's, read by `read_state`.

    A network of timm or torchvision also takes weights that these released: their classifier is left out.

    Returns:
        A sentence on what keeps its fresh weights, or "".

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file's names or shapes are not the network's; the sentence says how they differ.
    """
    state, note = _without_classifier(network, read_state(path), path)
    _fill(network, state, path)
    return note


def _without_classifier(network, state, path):
    """(the state, a sentence or ""): a released network's without its classifier, if this network has another layer."""
    head = getattr(network, HEAD, None)
    if head is None or f"{head}.weight" not in state:
        return state, ""
    rest = {name: value for name, value in state.items() if name not in (f"{head}.weight", f"{head}.bias")}
    own = {name: value for name, value in network.state_dict().items() if name.startswith(f"{head}.")}
    return rest | own, f"the classifier in {path} was left out: the layer to the embedding begins with fresh weights"


def _fill(network, state, path):
    if found := difference(state, network.state_dict()):
        raise _not_of_this_backbone(path, found)
    network.load_state_dict(state)


def _not_of_this_backbone(path, sentence):
    return ValueError(f"the weights in {path} are not of this backbone: {sentence}")


def settled(config: Config, weights: Path | None) -> Config:
    """Return the settings of a run that begins from these weights, once it is certain that they fit.

    Where model.name is "auto", name, embedding and width are those of the weights.

    Args:
        config: the settings.
        weights: the file; None for fresh weights.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the weights do not fit, or "auto" has no weights to be read off.
    """
    if weights is None:
        if config.model.name == AUTO:
            raise ValueError(
                "model.name 'auto' is read off the weights to start from, and there are none; want --model.weights "
                "FILE, or the name of a backbone as --model.name"
            )
        _refuse_holding_fresh_weights(config)
        return config
    state = read_state(weights)
    if is_external(config.model.name):  # fits or not when the weights are loaded: names and shapes are not known here
        return config
    config = _named(config, state, weights)
    try:
        check_fits(state, config.model, config.data.size)
    except ValueError as error:
        raise _not_of_this_backbone(weights, error) from None
    return config


def _refuse_holding_fresh_weights(config):
    """Raises ValueError if what was never trained would be held."""
    freezes = config.pretrain.steps and config.pretrain.batch_norm == "frozen"
    for setting, holds in (("model.freeze", config.model.freeze), ("pretrain.batch_norm 'frozen'", freezes)):
        if holds:
            raise ValueError(f"{setting} would hold what was never trained; want --model.weights FILE with it")


def _named(config, state, weights) -> Config:
    """The settings with a backbone that has a name."""
    try:
        return replace(config, model=read_off(config.model, state))
    except ValueError as error:
        raise ValueError(f"model.name 'auto' cannot be read off the weights in {weights}: {error}") from None


def read_state(path: Path | str) -> dict[str, Tensor]:
    """Read the tensors of a file by name. Nothing that is pickled in the file is run.

    A state dict may stand within a checkpoint, under one of the keys WRAPPERS. Its names may begin with one of
    PREFIXES, as DataParallel, torch.compile and Lightning have them. If some begin with one of OF_BACKBONES, the other
    ones, such as a classifier's, are left out.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is no state dict.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there are no weights at {path}; want a .safetensors, .pt or .pth file")
    if is_pointer(path):
        raise ValueError(f"{path} is a pointer of Git LFS, not the weights themselves; fetch them by `git lfs pull`")
    try:
        if path.suffix == ".safetensors":
            state = safetensors.torch.load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except UNREADABLE as error:
        raise ValueError(
            f"{path} cannot be read as weights ({type(error).__name__}): want .safetensors, or a .pt or .pth file that "
            "torch.save wrote of a state dict; a file that holds code or is cut short is not read"
        ) from None
    return _state_in(state, path)


def is_pointer(path: Path) -> bool:
    """Return whether a file is what Git LFS leaves in the place of one that was not fetched."""
    with path.open("rb") as file:
        return file.read(len(LFS)) == LFS


def _state_in(content, path) -> dict[str, Tensor]:
    """The state dict in the content of a file. Raises ValueError."""
    state = content
    for _ in range(2):
        inner = [state[name] for name in WRAPPERS if isinstance(state, dict) and isinstance(state.get(name), dict)]
        state = inner[0] if len(inner) == 1 else state
    if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
        raise ValueError(f"{path} holds {type(state).__name__}, no state dict; save the network's state_dict()")
    if other := next((name for name, value in state.items() if not isinstance(value, Tensor)), None):
        raise ValueError(
            f"{path} holds no state dict: {other} is {type(state[other]).__name__}, no tensor; save the network's "
            f"state_dict(), by itself or under one of the keys {', '.join(WRAPPERS)}"
        )
    return _without_prefixes(state)


def _without_prefixes(state):
    """The state dict by the names that the backbone has by itself."""
    found = True
    while found:
        found = next((prefix for prefix in PREFIXES if state and all(name.startswith(prefix) for name in state)), None)
        found = found or next((p for p in OF_BACKBONES if any(name.startswith(p) for name in state)), None)
        if found:
            state = {name.removeprefix(found): value for name, value in state.items() if name.startswith(found)}
    return state


@dataclass(frozen=True)
class Model:
    """A trained backbone and what it was trained to see.

    Attributes:
        backbone: image_B3HW, normalised -> embedding_BD.
        preprocess: the size and the grey levels of its images.
        config: the settings it was trained with.
        weights: the file it came from.
        device: where it is.
    """

    backbone: nn.Module
    preprocess: Preprocess
    config: Config
    weights: Path
    device: torch.device

    def embed(
        self,
        images: Sequence[bytes | Path | str | np.ndarray],
        *,
        mirror: Mirror = "concat",
        landmarks: np.ndarray | None = None,
    ) -> Tensor:
        """Embed aligned face crops, or align faces and embed them.

        Args:
            images: each an encoded image as bytes, a path, or RGB pixels, uint8 (height, width, 3). Each is
                brought to the model's size by its `preprocess.fit`.
            mirror: "concat" puts the embedding of the mirror image beside each embedding, "sum" adds it, "none" leaves
                it out.
            landmarks: five points of each image, (N, 5, 2), to align it by, in the order of
                `fastmfr.decode.align.POINTS`; None for crops.

        Returns:
            Unit rows, float32 (N, D), or (N, 2 D) with "concat", on the model's device.

        Raises:
            ValueError: an image cannot be decoded, or there is none; or landmarks are not as wanted.
        """
        maps_N23 = [None] * len(images)
        if landmarks is not None:
            if np.shape(landmarks) != (len(images), 5, 2):
                raise ValueError(f"want landmarks ({len(images)}, 5, 2), got {np.shape(landmarks)}")
            maps_N23 = alignment_maps(np.asarray(landmarks), self.preprocess.size)
            if np.isnan(maps_N23).any():
                raise ValueError("want landmarks that are finite and of five different points, got others")
        return embed(self.backbone, self._batches(images, maps_N23), self.device, mirror=mirror)

    def _batches(self, images, maps_N23) -> Iterable[Tensor]:
        look = self.preprocess
        for start in range(0, len(images), EMBEDDED_AT_ONCE):
            part = slice(start, start + EMBEDDED_AT_ONCE)
            pixel_NHW3 = np.stack(list(map(partial(_pixels, look), images[part], maps_N23[part])))
            image_N3HW = torch.from_numpy(pixel_NHW3).permute(0, 3, 1, 2).float()
            yield (image_N3HW - look.mean) / look.std


def _pixels(look, image, map_23) -> np.ndarray:
    """uint8 (size, size, 3), RGB; aligned if there is a map."""
    picture = _picture(image)
    if map_23 is None:
        return fitted(picture, look.size, look.fit)
    return aligned(np.asarray(picture), map_23, look.size)


def _picture(image) -> Image.Image:
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
            raise ValueError(f"want pixels as uint8 (height, width, 3), got {image.dtype} {image.shape}")
        return Image.fromarray(image)
    if not isinstance(image, bytes | Path | str):
        raise ValueError(f"want an image as bytes, a path or an array of pixels, got {type(image).__name__}")
    encoded = image if isinstance(image, bytes) else Path(image).read_bytes()
    try:
        return upright_rgb(encoded)
    except ValueError as error:
        name = f"these {len(encoded)} bytes" if isinstance(image, bytes) else image
        raise ValueError(f"{name} cannot be decoded as an image: {error}") from error


def open_model(
    run_or_file: Path | str,
    config: Config | None = None,
    *,
    device: torch.device | Device = "auto",
    code: bool = False,
) -> Model:
    """Open a trained model.

    Args:
        run_or_file: a run folder, or a .safetensors, .pt or .pth file.
        config: the settings of the model; None reads the config.yaml beside the weights. Where model.name is "auto",
            name, embedding and width are read off the weights.
        device: "auto" takes a GPU if there is one.
        code: whether a backbone package.module:factory that config.yaml names may be imported and called.

    Returns:
        The model, with `.backbone`, `.preprocess` and `.embed(images)`.

    Raises:
        FileNotFoundError: there are no weights.
        ImportError: the backbone is of timm or torchvision, which is missing.
        ValueError: no settings lie beside the weights, or the weights are of another backbone.
    """
    weights = weights_of(run_or_file)
    config = config or load_config(settings_beside(weights), code=code)
    where = device_for(device) if isinstance(device, str) else device
    state = read_state(weights)
    config = _named(config, state, weights)
    backbone = build_backbone(config)
    state, note = _without_classifier(backbone, state, weights)
    if note:
        raise ValueError(f"{note}; want weights that were trained with --model.name {config.model.name}")
    _fill(backbone, state, weights)
    look = narrowed(config.data, Preprocess).plain()
    return Model(to_channels_last(backbone, where).eval(), look, config, weights, where)
