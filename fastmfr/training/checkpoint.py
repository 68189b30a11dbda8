"""States to resume from, each a folder of tensors (safetensors) and what they are (JSON), with a checksum.

Nothing in a state is unpickled.
"""

import errno
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.optim import Optimizer

from fastmfr.protocols.files import refuse_unless_regular
from fastmfr.training.errors import NonFiniteLoss

TENSORS, FACTS = "state.safetensors", "state.json"
NETWORKS, OPTIMIZER = "networks.", "optimizer."  # in front of a tensor's name


class DamagedState(ValueError):
    """A state whose files are not as they were written."""


class Checkpoints:
    """The states of one stage in one folder, each named by the step it will go on with; the last two are kept.

    Args:
        folder: where the states of all stages are.
        stage: part of their names.
        warn: shows a person a sentence on a state that is passed over.
    """

    KEEP = 2

    def __init__(self, folder: Path, stage: str, warn: Callable[[str], None] = print):
        self._folder, self._stage, self._warn = folder, stage, warn

    def _paths(self):
        """The states' folders, the oldest first."""
        named = self._folder.glob(f"{self._stage}-*")
        return sorted((path for path in named if path.name.removeprefix(f"{self._stage}-").isdecimal()), key=_step_of)

    @property
    def newest(self) -> int:
        """The step of the newest state, 0 if there is none."""
        return max(map(_step_of, self._paths()), default=0)

    def save(self, step: int, networks: nn.Module, optimizer: Optimizer) -> None:
        """Write a state under another name and rename it: a kill -9 leaves the older states, and no half one.

        Raises:
            NonFiniteLoss: a tensor of the state is NaN or infinite somewhere; nothing is written then.
            OSError: the state cannot be written; the older states are as they were.
        """
        tensors = {name: value.detach() for name, value in _tensors_of(networks, optimizer)}
        self._refuse_non_finite(step, tensors)
        path = self._folder / f"{self._stage}-{step:08d}"
        partial = path.with_suffix(".partial")
        for old in (partial, path):
            shutil.rmtree(old, ignore_errors=True)
        try:
            partial.mkdir(parents=True)
            _write(partial / TENSORS, {name: value.cpu().contiguous() for name, value in tensors.items()})
            facts = {"stage": self._stage, "step": step, "sha256": _checksum(partial / TENSORS)}
            (partial / FACTS).write_text(json.dumps(facts))
            partial.rename(path)
        except OSError as error:
            reason = error.strerror or error
            raise OSError(f"the state at step {step} cannot be written to {path}: {reason}; {self._kept()}") from None
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        for old in self._paths()[: -self.KEEP]:
            shutil.rmtree(old)

    def _refuse_non_finite(self, step, tensors):
        real = {name: value for name, value in tensors.items() if value.is_floating_point()}
        is_finite = torch.stack([value.isfinite().all() for value in real.values()]).tolist()
        bad = [name for name, finite in zip(real, is_finite, strict=True) if not finite]
        if bad:
            raise NonFiniteLoss(
                f"the update of {self._stage} step {step - 1} has made {len(bad)} of {len(real)} tensors NaN or "
                f"infinite, {bad[0]} first; {self._kept()}. Lower the learning rate"
            )

    def _kept(self):
        newest = self.newest
        return f"the state at step {newest} is kept" if newest else "there is no earlier state of this stage"

    def resume(self, networks: nn.Module, optimizer: Optimizer) -> int:
        """Fill the networks and the optimizer from the newest state that is as it was written.

        Returns:
            The step to go on with, 0 if there is no such state.

        Raises:
            ValueError: the newest whole state is of other networks.
        """
        for path in reversed(self._paths()):
            try:
                tensors = _read(path)
            except DamagedState as damage:
                self._warn(f"{path} is passed over: {damage}")
                continue
            _fill(path, tensors, networks, optimizer)
            return _step_of(path)
        if self._paths():
            self._warn(f"no state of {self._stage} is whole: the stage begins anew")
        return 0


def _step_of(path):
    return int(path.name.rsplit("-", 1)[1])


def _tensors_of(networks: nn.Module, optimizer: Optimizer) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) of everything that a state holds."""
    for name, value in networks.state_dict().items():
        yield NETWORKS + name, value
    for name, parameter in networks.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor):
                yield f"{OPTIMIZER}{name}.{key}", value


def _write(path, tensors):
    """Raises OSError where safetensors has an error of its own."""
    try:
        safetensors.torch.save_file(tensors, path)
    except SafetensorError as error:
        code = errno.ENOSPC if f"os error {errno.ENOSPC}" in str(error) else errno.EIO
        raise OSError(code, "no space is left on the device" if code == errno.ENOSPC else str(error)) from None


def _checksum(path):
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read(path) -> dict[str, Tensor]:
    """The tensors of a state. Raises DamagedState."""
    try:
        for name in (TENSORS, FACTS):  # a folder may be a stranger's, and reading a pipe never ends
            refuse_unless_regular(path / name)
        facts = json.loads((path / FACTS).read_text())
        if not isinstance(facts, dict) or facts.get("step") != _step_of(path):
            raise DamagedState(f"{FACTS} is not of this state")
        if facts.get("sha256") != _checksum(path / TENSORS):
            raise DamagedState(f"{TENSORS} is not as it was written")
        return safetensors.torch.load_file(path / TENSORS)
    except FileNotFoundError as error:
        raise DamagedState(f"{Path(error.filename).name} is missing") from None
    except OSError as error:
        raise DamagedState(f"it cannot be read: {error.strerror or error}") from None
    except (ValueError, RecursionError, SafetensorError) as error:
        raise error if isinstance(error, DamagedState) else DamagedState(f"{FACTS} cannot be read: {error}") from None


def _fill(path, tensors, networks, optimizer):
    """Raises ValueError if the tensors are of other networks."""
    try:
        own = {name.removeprefix(NETWORKS): value for name, value in tensors.items() if name.startswith(NETWORKS)}
        networks.load_state_dict(own)
    except RuntimeError as error:
        raise ValueError(f"{path} is of another network: {' '.join(str(error).split())[:300]}") from None
    for name, parameter in networks.named_parameters():
        begin = f"{OPTIMIZER}{name}."
        for key in [key for key in tensors if key.startswith(begin)]:
            like = (
                torch.empty_like(parameter) if tensors[key].shape == parameter.shape else torch.empty_like(tensors[key])
            )
            optimizer.state[parameter][key.removeprefix(begin)] = like.copy_(tensors[key])
