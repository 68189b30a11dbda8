"""Saving and resuming: the whole state as a torch distributed checkpoint, weights to hand on as safetensors."""

import shutil
import warnings
from contextlib import contextmanager
from pathlib import Path

import safetensors.torch
import torch
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict


def save_weights(network: nn.Module, path: Path):
    """The network's parameters and buffers as safetensors; complete or not there at all."""
    tensors = {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}
    partial = path.with_suffix(".partial")
    safetensors.torch.save_file(tensors, partial)
    partial.replace(path)


def load_weights(network: nn.Module, path) -> None:
    """Fills the network from .safetensors, or from a .pt/.pth state dict such as InsightFace's.

    Nothing pickled in a file is run. Raises ValueError with the names that do not fit, FileNotFoundError if there is
    no such file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there are no weights at {path}; model.weights wants a .safetensors, .pt or .pth file")
    if path.suffix == ".safetensors":
        state = safetensors.torch.load_file(path)
    else:
        state = torch.load(path, map_location="cpu", weights_only=True)
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"the weights in {path} are not of this backbone; check model.name and its options: {reason}"
        ) from None


@contextmanager
def _one_process():
    """torch warns that it saves or loads in a single process, which is what is meant here."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield


class Checkpoints:
    """The states of one stage in one folder, each named by the step it will go on with; the last two are kept."""

    KEEP = 2

    def __init__(self, folder: Path, stage: str):
        self._folder, self._stage = folder, stage
        folder.mkdir(parents=True, exist_ok=True)

    def _paths(self):
        return sorted(self._folder.glob(f"{self._stage}-*[0-9]"))

    def save(self, step, networks: nn.Module, optimizer):
        """Writes under another name and renames, so that a kill -9 leaves the older states and nothing half."""
        path = self._folder / f"{self._stage}-{step:08d}"
        partial = path.with_suffix(".partial")
        for old in (partial, path):
            shutil.rmtree(old, ignore_errors=True)
        weights, momentum = get_state_dict(networks, optimizer)
        with _one_process():
            dcp.save({"networks": weights, "optimizer": momentum}, checkpoint_id=partial, no_dist=True)
        partial.rename(path)
        for old in self._paths()[: -self.KEEP]:
            shutil.rmtree(old)

    def resume(self, networks: nn.Module, optimizer) -> int:
        """Fills the networks and the optimizer from the newest state; the step to go on with, 0 if there is none."""
        paths = self._paths()
        if not paths:
            return 0
        weights, momentum = get_state_dict(networks, optimizer)
        state = {"networks": weights, "optimizer": momentum}
        with _one_process():
            dcp.load(state, checkpoint_id=paths[-1], no_dist=True)
        set_state_dict(networks, optimizer, model_state_dict=state["networks"], optim_state_dict=state["optimizer"])
        return int(paths[-1].name.rsplit("-", 1)[1])
