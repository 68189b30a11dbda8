"""Weights of backbones: saved, loaded, and opened as a model that embeds images.

Shape suffixes: N images, D embedding.
"""

import pickle
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor, nn

from fastmfr.atomic import replacing
from fastmfr.backbone import build_backbone
from fastmfr.config import Config, load_config, narrowed
from fastmfr.config.choices import Device, Mirror
from fastmfr.decode import Preprocess
from fastmfr.decode.align import aligned, alignment_maps
from fastmfr.decode.preprocess import fitted, upright_rgb
from fastmfr.evaluate import embed
from fastmfr.external import HEAD
from fastmfr.run_folder import STEPS, settings_beside, weights_of
from fastmfr.runtime import device_for, to_channels_last

EMBEDDED_AT_ONCE = 256  # images
WRAPPERS = ("state_dict", "model", "backbone", "network", "model_state_dict")  # keys around a state dict
PREFIXES = ("module.", "_orig_mod.", "module.")  # in front of every name
UNREADABLE = (  # what torch.load and safetensors raise for files that are none, OSError for seeking out of a cut one
    *(pickle.UnpicklingError, SafetensorError, EOFError, RuntimeError, ValueError, KeyError, TypeError, OSError),
    *(AttributeError, IndexError, OverflowError, AssertionError),
)
LFS = b"version https://git-lfs"
MOST_SAID = 400  # characters of a reason: a wrong depth names hundreds of parameters


def save_weights(network: nn.Module, path: Path, *, steps: int | None = None) -> None:
    """Write the network's parameters and buffers as safetensors; the file is complete or not there at all.

    Args:
        network: The network.
        path: Where the file is written.
        steps: The steps of the stage that trained them, kept in the file's metadata.
    """
    tensors = {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}
    with replacing(path) as partial:
        safetensors.torch.save_file(tensors, partial, {} if steps is None else {STEPS: str(steps)})


def load_weights(network: nn.Module, path: Path | str) -> str:
    """Fill the network from .safetensors, or from a .pt/.pth state dict such as InsightFace's.

    A state dict may stand within a checkpoint, under one of the keys WRAPPERS, and its names may begin with "module."
    or "_orig_mod.", as DataParallel and torch.compile have them. Nothing that is pickled in the file is run.

    A network of timm also takes weights that timm released: their classifier is left out.

    Returns:
        A sentence on what keeps its fresh weights, or "".

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file's names or shapes are not the network's; the sentence lists them.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there are no weights at {path}; want a .safetensors, .pt or .pth file")
    with path.open("rb") as file:
        if file.read(len(LFS)) == LFS:
            raise ValueError(
                f"{path} is a pointer of Git LFS, not the weights themselves; fetch them by `git lfs pull`"
            )
    try:
        state, note = _without_classifier(network, _state_of(path), path)
        network.load_state_dict(state)
        return note
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"the weights in {path} are not of this backbone; check model.name and its options: {reason[:MOST_SAID]}"
            f"{' ...' if len(reason) > MOST_SAID else ''}"
        ) from None


def _without_classifier(network, state, path):
    """(the state, a sentence or ""): a released network's without its classifier, if this network has another layer."""
    head = getattr(network, HEAD, None)
    if head is None or f"{head}.weight" not in state:
        return state, ""
    rest = {name: value for name, value in state.items() if name not in (f"{head}.weight", f"{head}.bias")}
    own = {name: value for name, value in network.state_dict().items() if name.startswith(f"{head}.")}
    return rest | own, f"the classifier in {path} was left out: the layer to the embedding begins with fresh weights"


def _state_of(path) -> dict[str, Tensor]:
    """The tensors of a file by name. Raises ValueError for a file that is none, and runs nothing in it."""
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
    state = _unwrapped(state)
    if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
        raise ValueError(f"{path} holds {type(state).__name__}, no state dict; save the network's state_dict()")
    return state


def _unwrapped(state):
    """The state dict in what other trainers save around it, its names without what DataParallel and compile prepend."""
    for _ in range(2):
        inner = [state[name] for name in WRAPPERS if isinstance(state, dict) and isinstance(state.get(name), dict)]
        state = inner[0] if len(inner) == 1 else state
    if isinstance(state, dict) and all(isinstance(name, str) for name in state):
        for prefix in PREFIXES:
            if state and all(name.startswith(prefix) for name in state):
                state = {name.removeprefix(prefix): value for name, value in state.items()}
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
        config: the settings of the model; None reads the config.yaml beside the weights.
        device: "auto" takes a GPU if there is one.
        code: whether a backbone package.module:factory that config.yaml names may be imported and called.

    Returns:
        The model, with `.backbone`, `.preprocess` and `.embed(images)`.

    Raises:
        FileNotFoundError: there are no weights.
        ImportError: the backbone is of timm, and timm is missing.
        ValueError: no settings lie beside the weights, or the weights are of another backbone.
    """
    weights = weights_of(run_or_file)
    config = config or load_config(settings_beside(weights), code=code)
    where = device_for(device) if isinstance(device, str) else device
    backbone = build_backbone(config)
    if note := load_weights(backbone, weights):
        raise ValueError(f"{note}; want weights that were trained with --model.name {config.model.name}")
    look = narrowed(config.data, Preprocess).plain()
    return Model(to_channels_last(backbone, where).eval(), look, config, weights, where)
