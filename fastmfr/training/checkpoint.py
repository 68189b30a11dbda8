"""States to resume from, each a torch distributed checkpoint of networks and optimizer."""

import shutil
import warnings
from contextlib import contextmanager
from pathlib import Path

import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.optim import Optimizer


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

    def _paths(self):
        return sorted(self._folder.glob(f"{self._stage}-*[0-9]"))

    def save(self, step: int, networks: nn.Module, optimizer: Optimizer) -> None:
        """Write a state under another name and rename it: a kill -9 leaves the older states, and no half one."""
        self._folder.mkdir(parents=True, exist_ok=True)
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

    def resume(self, networks: nn.Module, optimizer: Optimizer) -> int:
        """Fill the networks and the optimizer from the newest state.

        Returns:
            The step to go on with, 0 if there is no state.
        """
        paths = self._paths()
        if not paths:
            return 0
        weights, momentum = get_state_dict(networks, optimizer)
        state = {"networks": weights, "optimizer": momentum}
        with _one_process():
            dcp.load(state, checkpoint_id=paths[-1], no_dist=True)
        set_state_dict(networks, optimizer, model_state_dict=state["networks"], optim_state_dict=state["optimizer"])
        return int(paths[-1].name.rsplit("-", 1)[1])
