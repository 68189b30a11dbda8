"""A whole training run on the device, synthetic faces to scores, beside the same run on the CPU: losses step by step.

The first steps must agree within rounding; later ones drift apart, as two CPUs that round differently do.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from . import lines

STEPS = 60, 6
FIRST = 5  # steps whose losses must agree
TOLERANCE = 2e-3


def command(folder, device, small, threads, *more):
    """A run whose rates are low, so that rounding does not grow from step to step as it would near a good rate."""
    pretrain, meta = (3, 3) if small else STEPS
    people, batch = ("12", "4") if small else ("80", "32")
    return [
        sys.executable,
        "-m",
        "fastmfr.train",
        "--device",
        device,
        "--threads",
        str(threads),
        "--data.synthetic.identities",
        people,
        "--data.synthetic.images",
        "6",
        "--pretrain.steps",
        str(pretrain),
        "--pretrain.batch_identities",
        batch,
        "--pretrain.learning_rate",
        "0.002",
        "--meta.steps",
        str(meta),
        "--meta.batch_identities",
        "2" if small else "8",
        "--meta.beta",
        "0.001",
        "--pretrain.precision",
        "fp32",
        "--meta.precision",
        "fp32",
        "--folder",
        str(folder / device),
        *more,
    ]


def losses(run):
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {stage: [row["loss"] for row in rows if row.get("stage") == stage] for stage in ("pretrain", "meta")}


def trained(what, folder, device, options, *more):
    """The run's folder, or None where it failed; both are told."""
    begin = time.monotonic()
    call = command(folder, device, options.small, options.threads, *more)
    done = subprocess.run(call, capture_output=True, text=True, cwd=folder)
    tail = {"output": (done.stdout + done.stderr)[-3000:]} if done.returncode else {}
    spent = round(time.monotonic() - begin, 1)
    lines.write("whole run", what=what, who=device, status=done.returncode, wall_seconds=spent, **tail)
    if done.returncode:
        return None
    (run,) = (folder / device).iterdir()
    results = json.loads((run / "results.json").read_text())
    scores = {
        name: {model: score["auc"] for model, score in row["models"].items()}
        for name, row in results["targets"].items()
    }
    said = [line for line in done.stdout.splitlines() if any(word in line for word in ("decoder", "graph", "engine"))]
    lines.write("whole run", what=f"{what}: told", who=device, auc=scores, seconds=results["seconds"], sentences=said)
    return run


def agreement(stage, runs):
    """Whether the first losses of two runs agree; a line says by how much all do."""
    pairs = list(zip(*(losses(run)[stage] for run in runs), strict=True))
    apart = [abs(one - other) / max(1e-3, abs(one)) for one, other in pairs]
    agree = max(apart[:FIRST]) < TOLERANCE
    lines.write(
        "whole run",
        what=f"losses of {stage}",
        first_cpu=[one for one, _ in pairs[:FIRST]],
        first_cuda=[other for _, other in pairs[:FIRST]],
        apart=apart,
        agree=agree,
    )
    return agree


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--threads", type=int, default=4)
    options = parser.parse_args()
    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "again").mkdir()
        (folder / "again" / "data").symlink_to(folder / "data")  # the same faces
        runs = [trained("training", folder, device, options) for device in devices]
        good = all(runs)
        if good and len(runs) == 2:
            good = agreement("pretrain", runs)
            weights = str(runs[0] / "base.safetensors")  # the second stage, from the same weights on both
            again = ["--pretrain.steps", "0", "--model.weights", weights]
            on_gpu = trained("second stage", folder / "again", "cuda", options, *again)
            good = bool(on_gpu) and agreement("meta", [runs[0], on_gpu]) and good
    sys.exit(not good)


if __name__ == "__main__":
    main()
