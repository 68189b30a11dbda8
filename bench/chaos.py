"""Whether a run survives what happens to runs: `python bench/chaos.py` kills, damages, fills and doubles small ones.

One run is left in peace. Every other run must end with its very weights, or with a sentence and the older states whole.
It takes about ten minutes on two cores, and ends with a table. Without `unshare` (Linux) the full disk is left out.
"""

import argparse
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from fastmfr import synthetic
from fastmfr.training.checkpoint import FACTS, TENSORS

TRAIN = (sys.executable, "-m", "fastmfr.train")
DOMAINS = ("studio", "street", "nir")
STEPS = 60 + 30  # of both stages
DAMAGE = {
    "tensors cut in half": (TENSORS, lambda content: content[: len(content) // 2]),
    "tensors emptied": (TENSORS, lambda content: b""),
    "50 bits of the tensors flipped": (TENSORS, lambda content: _flipped(content, 50)),
    "1 bit of the tensors flipped": (TENSORS, lambda content: _flipped(content, 1)),
    "tensors missing": (TENSORS, None),
    "facts missing": (FACTS, None),
    "facts emptied": (FACTS, lambda content: b""),
}
STATUS = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}


def main() -> int:
    """The command line; the exit status is 1 if any row of the table failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="kill -9 at random moments (default 20)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the moments and the damage")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        chaos = Chaos(Path(folder), np.random.default_rng(options.seed))
        rows = []
        for row in chaos.rows(options.kills):
            rows.append(row)
            print(f"{'held' if row[2] else 'FAILED'}: {row[0]}: {row[1]}", flush=True)
    print("\n| what | seen | held |\n|---|---|---|")
    for what, seen, held in rows:
        print(f"| {what} | {seen} | {'yes' if held else 'NO'} |")
    return 0 if all(held for *_, held in rows) else 1


class Chaos:
    """Small runs in a folder, and the weights that all of them must end with."""

    def __init__(self, folder: Path, rng: np.random.Generator):
        self._folder, self._rng = folder, rng
        faces = synthetic.make(folder / "faces", domains=DOMAINS, identities=24, images=4, size=32, workers=1)
        self._settings = [
            *(f"--data.sources.{name}={faces[name]}" for name in DOMAINS[:2]),
            f"--data.targets.nir={faces['nir']}",
            *("--threads=1", "--data.threads=1", "--data.size=32", "--data.decode=pillow", "--model.width=0.25"),
            *("--pretrain.steps=60", "--pretrain.batch_identities=8", "--pretrain.warmup=2"),
            *("--meta.steps=30", "--meta.batch_identities=6", "--save_every=3"),
            *("--data.validation=0.25", "--choose.every=15"),
        ]
        begin = time.monotonic()
        self._peace = self._whole("peace")
        self._wanted = weights(self._peace)
        self._seconds = time.monotonic() - begin

    def rows(self, kills: int) -> Iterator[tuple[str, str, bool]]:
        """(what was done, what was seen, whether it held)."""
        yield "left in peace", f"{self._seconds:.0f} s", True
        yield self._killed(kills)
        for number in STATUS:
            yield self._asked_to_end(number)
        stopped = self._stopped("stopped")
        for name, (file, damage) in DAMAGE.items():
            yield self._damaged(stopped, name, file, damage)
        yield self._two_at_once()
        if shutil.which("unshare"):
            yield self._full_disk()

    def _start(self, name: str) -> subprocess.Popen:
        """A new run in a folder of this name."""
        argv = [*TRAIN, *self._settings, f"--folder={self._folder / name}"]
        return _process(argv)

    def _resume(self, run: Path) -> subprocess.Popen:
        return _process([*TRAIN, "--resume", str(run)])

    def _whole(self, name: str) -> Path:
        process = self._start(name)
        said, _ = process.communicate()
        if process.returncode:
            raise RuntimeError(f"the run in peace failed: {said[-2000:]}")
        return only(self._folder / name)

    def _stopped(self, name: str) -> Path:
        """A run that was asked to end in its first stage, with two states."""
        process = self._start(name)
        run = self._at_step(process, name, 10)
        process.send_signal(signal.SIGTERM)
        process.communicate()
        return run

    def _at_step(self, process: subprocess.Popen, name: str, step: int) -> Path:
        """The run's folder, once so many steps are recorded in it."""
        while process.poll() is None:
            for metrics in (self._folder / name).glob("*/metrics.jsonl"):
                if metrics.read_bytes().count(b"\n") > step:
                    return metrics.parent
            time.sleep(0.002)
        return only(self._folder / name)

    def _ends_as_wanted(self, run: Path) -> tuple[bool, str]:
        """(Whether a run that is resumed ends with the wanted weights, what it said)."""
        process = self._resume(run)
        said, _ = process.communicate()
        return process.returncode == 0 and weights(run) == self._wanted, said

    def _killed(self, kills: int) -> tuple[str, str, bool]:
        """kill -9 at random steps of both stages, every third of them while a state is written."""
        within, stages, same, done, count = 0, {"pretrain": 0, "meta": 0}, True, 0, 0
        while done < kills:
            name, process = f"killed-{count}", self._start(f"killed-{count}")
            count += 1
            moments = sorted(self._rng.integers(1, STEPS, 3).tolist())
            for moment in moments[: kills - done]:
                run = self._at_step(process, name, moment)
                if done % 3 == 2:
                    within += wait_for_partial(run, process)
                else:
                    time.sleep(self._rng.uniform(0, 0.05))
                process.kill()
                process.communicate()
                stages["meta" if (run / "base.safetensors").is_file() else "pretrain"] += 1
                done += 1
                process = self._resume(run)
            process.communicate()
            same &= process.returncode == 0 and weights(run) == self._wanted
        seen = (
            f"{stages['pretrain']} in pretraining, {stages['meta']} in meta-training, {within} inside a state's writing"
        )
        return f"{done} x kill -9", f"{seen}; weights {'equal' if same else 'DIFFER'} in all {count} runs", same

    def _asked_to_end(self, number: signal.Signals) -> tuple[str, str, bool]:
        name, process = f"asked-{number}", self._start(f"asked-{number}")
        run = self._at_step(process, name, int(self._rng.integers(1, STEPS)))
        begin = time.monotonic()
        process.send_signal(number)
        said, _ = process.communicate()
        seconds, status = time.monotonic() - begin, process.returncode
        same, _ = self._ends_as_wanted(run)
        held = same and status == STATUS[number] and "go on with:" in said
        return signal.Signals(number).name, f"status {status} after {seconds:.1f} s; weights equal: {same}", held

    def _damaged(self, stopped: Path, name: str, file: str, damage: Callable | None) -> tuple[str, str, bool]:
        run = self._folder / name.replace(" ", "-") / stopped.name
        shutil.copytree(stopped, run)
        path = sorted((run / "checkpoints").iterdir())[-1] / file
        if damage is None:
            path.unlink()
        else:
            path.write_bytes(damage(path.read_bytes()))
        same, said = self._ends_as_wanted(run)
        told = "is passed over" in " ".join(said.split())
        return f"newest state: {name}", f"named: {told}; weights equal from the older state: {same}", same and told

    def _two_at_once(self) -> tuple[str, str, bool]:
        process = self._start("two")
        run = self._at_step(process, "two", 5)
        second = self._resume(run)
        said, _ = second.communicate()
        process.communicate()
        refused = second.returncode == 1 and "is in use by another run" in " ".join(said.split())
        same = process.returncode == 0 and weights(run) == self._wanted
        return (
            "two processes in one folder",
            f"second refused: {refused}; first ends as wanted: {same}",
            refused and same,
        )

    def _full_disk(self) -> tuple[str, str, bool]:
        """On a file system that has no room for the third state."""
        disk, kept = self._folder / "disk", self._folder / "kept"
        disk.mkdir()
        before = ("domains.png", "metrics.jsonl", "config.yaml", "environment.json", "made_with.json", "tensorboard")
        room = sum(size(self._peace / name) for name in before) + 5 * size(last_state(self._peace / "checkpoints")) // 2
        inner = f"mount -t tmpfs -o size={room} none {disk} && {' '.join(map(str, TRAIN))} {' '.join(self._settings)} "
        inner += f"--folder={disk}; status=$?; cp -r {disk} {kept}; exit $status"
        done = subprocess.run(["unshare", "-rm", "sh", "-c", inner], capture_output=True, text=True)
        said = " ".join((done.stdout + done.stderr).split())
        if not kept.is_dir():
            return "disk full", f"could not be tried here: {said[-100:]}", True
        told = done.returncode == 1 and "no space" in said.lower() and "Traceback" not in said
        (run,) = kept.iterdir()
        states = len(list((run / "checkpoints").glob("*[0-9]")))
        same, _ = self._ends_as_wanted(run)
        held = told and states > 0 and same
        return "disk full", f"told: {told}; states intact: {states}; weights equal once there is room: {same}", held


def _process(argv: list[str]) -> subprocess.Popen:
    """A process that listens to all signals, even if this one is a shell's background job, which ignores some."""

    def listen() -> None:
        for number in STATUS:
            signal.signal(number, signal.SIG_DFL)

    return subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, preexec_fn=listen)


def weights(run: Path) -> list[str]:
    """The digests of a run's models."""
    paths = [run / f"{model}.safetensors" for model in ("base", "mfr", "chosen")]
    return [hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "" for path in paths]


def size(path: Path) -> int:
    """Bytes of a file or of all files in a folder, in blocks of a file system."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(-(-file.stat().st_size // 4096) * 4096 for file in files if file.is_file())


def last_state(states: Path) -> Path:
    """The folder of the last pretraining state, the larger kind: it has the classifier too."""
    return max(path for path in states.iterdir() if path.name.startswith("pretrain"))


def only(folder: Path) -> Path:
    """The one run in a folder."""
    (run,) = folder.iterdir()
    return run


def wait_for_partial(run: Path, process: subprocess.Popen) -> bool:
    """Wait until a state is being written; whether one was seen before the process ended."""
    while process.poll() is None:
        with os.scandir(run) as found:
            if any(entry.name == "checkpoints" for entry in found) and any((run / "checkpoints").glob("*.partial")):
                return True
    return False


def _flipped(content: bytes, bits: int) -> bytes:
    damaged = bytearray(content)
    for at in np.random.default_rng(0).integers(0, 8 * len(content), bits):
        damaged[at // 8] ^= 1 << at % 8
    return bytes(damaged)


if __name__ == "__main__":
    raise SystemExit(main())
