"""States to resume from, each a folder of tensors (safetensors) and what they are (JSON), with checksums.

What all ranks have in common the first one writes. Of a tensor whose rows lie with several ranks, each rank writes its
own rows, in a file that is named after them. Any number of ranks can go on from a state: each reads the rows it has.
Nothing in a state is unpickled.
"""

import errno
import hashlib
import json
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.optim import Optimizer

from fastmfr.atomic import of_usual_mode, write_text
from fastmfr.distributed import ALONE, Ranks
from fastmfr.head import MarginHead
from fastmfr.protocols.files import refuse_unless_regular
from fastmfr.training.errors import NonFiniteLoss

TENSORS, FACTS = "state.safetensors", "state.json"
PART = "part-{}.json"  # what a rank but the first has written: {file: checksum}, or why it could not
ROWS = "rows-{}-{}.safetensors"  # the first row, and the one to end before
NAMED_BY_ROWS = re.compile(r"rows-(\d{1,18})-(\d{1,18})\.safetensors")
NETWORKS, OPTIMIZER = "networks.", "optimizer."  # in front of a tensor's name


class DamagedState(ValueError):
    """A state whose files are not as they were written."""


class Checkpoints:
    """The states of one stage in one folder, each named by the step it will go on with; the last two are kept.

    Args:
        folder: where the states of all stages are.
        stage: part of their names.
        warn: shows a person a sentence on a state that is passed over.
        ranks: the processes of the run, which all call `save` and `resume`, and see the same folder.
    """

    KEEP = 2

    def __init__(self, folder: Path, stage: str, warn: Callable[[str], None] = print, ranks: Ranks = ALONE):
        self._folder, self._stage, self._warn, self._ranks = folder, stage, warn, ranks
        self._writing: _Writing | None = None

    def _paths(self):
        """The states' folders, the oldest first."""
        named = self._folder.glob(f"{self._stage}-*")
        return sorted((path for path in named if path.name.removeprefix(f"{self._stage}-").isdecimal()), key=_step_of)

    @property
    def newest(self) -> int:
        """The step of the newest state, 0 if there is none."""
        return max(map(_step_of, self._paths()), default=0)

    def save(self, step: int, networks: nn.Module, optimizer: Optimizer, *, aside: bool = False) -> None:
        """Write a state under another name and rename it: a kill -9 leaves the older states, and no half one.

        Args:
            step: the step to go on with.
            networks: what is trained.
            optimizer: its optimizer.
            aside: copy the state, and write the copy while the caller goes on; `wait` says how that ended.

        Raises:
            NonFiniteLoss: a tensor of the state is NaN or infinite somewhere; nothing is written then.
            OSError: the state, or one before that was written aside, cannot be written; the older ones are as they
                were. OnAllRanks if there are several ranks.
        """
        self.wait()
        tensors = {name: value.detach() for name, value in _tensors_of(networks, optimizer)}
        self._refuse_non_finite(step, tensors)
        own = self._own_files(tensors, rows_of(networks) if self._ranks.world > 1 else {})
        path = self._folder / f"{self._stage}-{step:08d}"
        partial = path.with_suffix(".partial")
        with self._ranks.alike(), self._told(path):
            if self._ranks.is_first:
                for old in (partial, path):
                    shutil.rmtree(old, ignore_errors=True)
                partial.mkdir(parents=True)
        self._writing = _Writing(lambda: self._write(partial, path, own))
        if not aside:
            self.wait()

    def wait(self) -> None:
        """Wait until the state that is written aside, if there is one, is kept.

        Raises:
            OSError: it cannot be written; OnAllRanks if there are several ranks.
        """
        if self._writing:
            writing, self._writing = self._writing, None
            with self._ranks.alike():
                writing.join()

    def _own_files(self, tensors, rows):
        """What this rank writes, {file: {name: a copy}}; `rows` says which rows it has of which tensors."""
        files = {TENSORS: {name: value for name, value in tensors.items() if name not in rows}}
        if not self._ranks.is_first:
            files = {}
        for name, (first, last) in rows.items():
            files.setdefault(ROWS.format(first, last), {})[name] = tensors[name]
        return {file: {name: _copy(value) for name, value in part.items()} for file, part in files.items()}

    def _write(self, partial, path, own):
        """Writes this rank's files; the first rank then waits for the others', and makes a state of all."""
        with self._told(path):
            try:
                for file, part in own.items():
                    _write(partial / file, part)
                checksums = {file: _checksum(partial / file) for file in own}
                if not self._ranks.is_first:
                    write_text(partial / PART.format(self._ranks.number), json.dumps(checksums))
                    return
                for number in range(1, self._ranks.world):
                    checksums |= _part_of(partial / PART.format(number))
                facts = {"stage": self._stage, "step": _step_of(path), "files": checksums}
                (partial / FACTS).write_text(json.dumps(facts))
                partial.rename(path)
            except OSError as error:
                if not self._ranks.is_first:
                    with suppress(OSError):
                        write_text(partial / PART.format(self._ranks.number), json.dumps(error.strerror or str(error)))
                raise
            finally:
                if self._ranks.is_first:
                    shutil.rmtree(partial, ignore_errors=True)
        for old in self._paths()[: -self.KEEP]:
            shutil.rmtree(old)

    @contextmanager
    def _told(self, path):
        """Raises an error of the block again, with the state that cannot be written and the one that is kept."""
        try:
            yield
        except OSError as error:
            reason = error.strerror or error
            raise OSError(
                f"the state at step {_step_of(path)} cannot be written to {path}: {reason}; {self._kept()}"
            ) from None

    def _refuse_non_finite(self, step, tensors):
        real = {name: value for name, value in tensors.items() if value.is_floating_point()}
        is_finite = torch.stack([_is_finite(value) for value in real.values()]).tolist()
        own = [name for name, finite in zip(real, is_finite, strict=True) if not finite]
        if bad := list(dict.fromkeys(name for of_rank in self._ranks.gather(own) for name in of_rank)):
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
        name = self._ranks.of_first(self.newest_whole() if self._ranks.is_first else None)
        if name is None:
            return 0
        path = self._folder / name
        with self._ranks.alike():
            _fill(path, _read(path, rows_of(networks)), networks, optimizer)
        return _step_of(path)

    def newest_whole(self) -> str | None:
        """Return the name of the newest state that is as it was written; a warning for each one that is not."""
        for path in reversed(self._paths()):
            try:
                _check(path)
            except DamagedState as damage:
                self._warn(f"{path} is passed over: {damage}")
                continue
            return path.name
        if self._paths():
            self._warn(f"no state of {self._stage} is whole: the stage begins anew")
        return None


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


class _Writing:
    """A call on a thread of its own, whose error is raised where it is waited for."""

    def __init__(self, call: Callable[[], None]):
        self._call, self._error = call, None
        self._thread = threading.Thread(
            target=self._run
        )  # no daemon: the process does not end before the state is kept
        self._thread.start()

    def _run(self):
        try:
            self._call()
        except BaseException as error:
            self._error = error

    def join(self):
        self._thread.join()
        if self._error:
            raise self._error


def _is_finite(value):
    """Whether no element is NaN or infinite, as a tensor; torch.isfinite would allocate more than the tensor's size."""
    if not value.numel():
        return torch.ones((), dtype=torch.bool, device=value.device)
    return torch.stack(value.aminmax()).isfinite().all()


def _copy(value):
    """A copy in the memory of the host, which goes on as it is while the tensor changes."""
    return value.cpu().contiguous() if value.is_cuda else value.clone(memory_format=torch.contiguous_format)


def _part_of(path):
    """{file: checksum} of what another rank has written, as soon as this rank sees it. Raises OSError."""
    while not path.is_file():
        if not path.parent.is_dir():
            raise OSError(errno.ENOENT, "the folder of the state has gone")
        if not threading.main_thread().is_alive():
            raise OSError(errno.EINTR, "the run has ended meanwhile")
        time.sleep(0.01)
    part = json.loads(path.read_text())
    path.unlink()
    if isinstance(part, str):
        raise OSError(errno.EIO, part)
    return part


def _write(path, tensors):
    """Raises OSError where safetensors has an error of its own."""
    try:
        with of_usual_mode(path):
            safetensors.torch.save_file(tensors, path)
    except SafetensorError as error:
        code = errno.ENOSPC if f"os error {errno.ENOSPC}" in str(error) else errno.EIO
        raise OSError(code, "no space is left on the device" if code == errno.ENOSPC else str(error)) from None


def _checksum(path):
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check(path) -> None:
    """Raises DamagedState unless the files of a state are as they were written."""
    try:
        refuse_unless_regular(path / FACTS)  # a folder may be a stranger's, and reading a pipe never ends
        facts = json.loads((path / FACTS).read_text())
        if not isinstance(facts, dict) or facts.get("step") != _step_of(path):
            raise DamagedState(f"{FACTS} is not of this state")
        files = facts.get("files")
        if not isinstance(files, dict) or TENSORS not in files:
            raise DamagedState(f"{FACTS} names no {TENSORS}")
        for name, checksum in files.items():
            if Path(name).name != name:
                raise DamagedState(f"{FACTS} names a file outside of the state")
            refuse_unless_regular(path / name)
            if checksum != _checksum(path / name):
                raise DamagedState(f"{name} is not as it was written")
    except FileNotFoundError as error:
        raise DamagedState(f"{Path(error.filename).name} is missing") from None
    except OSError as error:
        raise DamagedState(f"it cannot be read: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise error if isinstance(error, DamagedState) else DamagedState(f"{FACTS} cannot be read: {error}") from None


def _read(path, rows) -> dict[str, Tensor]:
    """The tensors of a state; of those in `rows`, {name: (first, last)}, these rows."""
    tensors = safetensors.torch.load_file(path / TENSORS)
    parts = {name: [] for name in rows if name not in tensors}
    for file in sorted((path / name for name in json.loads((path / FACTS).read_text())["files"]), key=_rows_in):
        begin, end = _rows_in(file)
        with safe_open(file, "pt") as opened:
            for name in parts if end else ():
                first, last = rows[name]
                parts[name].append(opened.get_slice(name)[max(first - begin, 0) : max(min(last, end) - begin, 0)])
    tensors |= {name: tensors[name][first:last] for name, (first, last) in rows.items() if name in tensors}
    while parts:  # one tensor after the other, so that no more than one is in memory twice
        name, part = parts.popitem()
        if part:
            tensors[name] = part[0] if len(part) == 1 else torch.cat(part)
    return tensors


def _rows_in(file):
    """(first, last) of the rows in a file of a state, by its name; (0, 0) of the file of whole tensors."""
    found = NAMED_BY_ROWS.fullmatch(file.name)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def rows_of(networks: nn.Module) -> dict[str, tuple[int, int]]:
    """Return {name in a state: (first, last)} of a classifier's tensors, of which this rank has these rows."""
    heads = [(place, module) for place, module in networks.named_modules() if isinstance(module, MarginHead)]
    return {f"{NETWORKS}{place}.{name}": head.rows for place, head in heads for name in head.tensors_by_row}


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
