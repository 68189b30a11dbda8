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


def command(folder, device, small, threads):
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
        "--pretrain.warmup",
        "2",
        "--meta.steps",
        str(meta),
        "--meta.batch_identities",
        "8" if not small else "2",
        "--pretrain.precision",
        "fp32",
        "--meta.precision",
        "fp32",
        "--folder",
        str(folder / device),
    ]


def losses(folder):
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {stage: [row["loss"] for row in rows if row.get("stage") == stage] for stage in ("pretrain", "meta")}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--seconds", type=float, default=0)
    parser.add_argument("--threads", type=int, default=4)
    options = parser.parse_args()
    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    found, agree = {}, True
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for device in devices:
            begin = time.monotonic()
            done = subprocess.run(
                command(folder, device, options.small, options.threads), capture_output=True, text=True, cwd=folder
            )
            tail = {} if not done.returncode else {"output": (done.stdout + done.stderr)[-3000:]}
            lines.write(
                "whole run",
                what="training",
                who=device,
                status=done.returncode,
                wall_seconds=round(time.monotonic() - begin, 1),
                **tail,
            )
            if not done.returncode:
                (run,) = (folder / device).iterdir()
                found[device] = losses(run)
                results = json.loads((run / "results.json").read_text())
                scores = {
                    target: {
                        model: score["tar_at_far"].get("0.01", {}).get("tar") for model, score in row["models"].items()
                    }
                    for target, row in results["targets"].items()
                }
                lines.write("whole run", what="scores", who=device, tar_at_far_1e_2=scores, seconds=results["seconds"])
                said = [
                    line
                    for line in done.stdout.splitlines()
                    if "decoder" in line or "CUDA graph" in line or "engine" in line
                ]
                lines.write("whole run", what="said", who=device, sentences=said)
    if len(found) == 2:
        for stage in ("pretrain", "meta"):
            pairs = list(zip(found["cpu"][stage], found["cuda"][stage], strict=True))
            apart = [abs(one - other) / max(1e-3, abs(one)) for one, other in pairs]
            lines.write(
                "whole run",
                what=f"losses of {stage}",
                first_cpu=[one for one, _ in pairs[:FIRST]],
                first_cuda=[other for _, other in pairs[:FIRST]],
                largest_of_first=max(apart[:FIRST]),
                largest=max(apart),
                agree=max(apart[:FIRST]) < TOLERANCE,
            )
            agree = agree and max(apart[:FIRST]) < TOLERANCE
    sys.exit(not agree or len(found) < len(devices))


if __name__ == "__main__":
    main()
