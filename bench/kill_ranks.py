"""Whether a run over processes survives a kill of one of them: `python bench/kill_ranks.py` kills small ones.

torchrun starts two processes and starts them again after each kill -9 of a random one at a random moment. The run must
end with the very weights of a run over as many processes that was left in peace. It takes about ten minutes on two
cores.
"""

import argparse
import hashlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from fastmfr import synthetic

DOMAINS = ("studio", "street", "nir")
WORLD = 2
STEPS = 60 + 30  # of both stages


def main() -> int:
    """The command line; the exit status is 1 if the weights differ or the run did not end."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10, help="kill -9 at random moments (default 10)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the moments and of who is killed")
    options = parser.parse_args()
    rng = np.random.default_rng(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        faces = synthetic.make(place / "faces", domains=DOMAINS, identities=24, images=4, size=32, workers=1)
        begin = time.monotonic()
        wanted = trained(place / "peace", faces, [], rng)
        print(f"left in peace: {time.monotonic() - begin:.0f} s", flush=True)
        moments = sorted(rng.choice(np.arange(1, STEPS), options.kills, replace=False).tolist())
        found = trained(place / "killed", faces, moments, rng)
    held = found == wanted
    print(f"{'held' if held else 'FAILED'}: weights {' '.join(found)}, wanted {' '.join(wanted)}")
    return 0 if held else 1


def trained(place: Path, faces: dict, moments: list[int], rng: np.random.Generator) -> list[str]:
    """Checksums of both models of a run that one torchrun brings to its end; it is killed after `moments` steps."""
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(WORLD)),
        *("--max-restarts", str(3 * len(moments)), "-m", "fastmfr.train", f"--folder={place}"),
        *(f"--data.sources.{name}={faces[name]}" for name in DOMAINS[:2]),
        f"--data.targets.nir={faces['nir']}",
        *("--threads=1", "--data.threads=1", "--data.size=32", "--data.decode=pillow", "--model.width=0.125"),
        *("--pretrain.steps=60", "--pretrain.batch_identities=8", "--pretrain.warmup=2"),
        *("--meta.steps=30", "--meta.batch_identities=6", "--save_every=3", "--data.validation=0.25"),
    ]
    place.mkdir()
    killed = 0
    with (place / "said.txt").open("w") as said:
        torchrun = subprocess.Popen(command, stdout=said, stderr=said, start_new_session=True)
        try:
            while torchrun.poll() is None:
                time.sleep(rng.uniform(0.05, 0.3))
                ranks = _processes_of(torchrun.pid)
                if killed < len(moments) and len(ranks) == WORLD and _records(place) >= moments[killed]:
                    os.kill(ranks[rng.integers(WORLD)], signal.SIGKILL)
                    killed += 1
                    print(f"killed {killed}", flush=True)
                    time.sleep(2)  # until torchrun has noticed
        finally:
            if torchrun.poll() is None:
                os.killpg(torchrun.pid, signal.SIGKILL)
    runs = list(place.glob("quickstart-*"))
    if torchrun.returncode or len(runs) != 1:
        sys.exit(
            f"torchrun ended with {torchrun.returncode}, {len(runs)} runs:\n{(place / 'said.txt').read_text()[-3000:]}"
        )
    starts = (place / "said.txt").read_text().count("run folder")
    print(f"{killed} kills, training began {starts} times", flush=True)
    files = [runs[0] / f"{model}.safetensors" for model in ("base", "mfr")]
    return [hashlib.sha256(file.read_bytes()).hexdigest()[:12] for file in files]


def _records(place: Path) -> int:
    """How many steps the run in a folder has recorded."""
    return sum(file.read_bytes().count(b"\n") for file in place.glob("quickstart-*/metrics.jsonl"))


def _processes_of(parent: int) -> list[int]:
    """The numbers of the processes that a process has started."""
    return [int(number) for number in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]


if __name__ == "__main__":
    sys.exit(main())
