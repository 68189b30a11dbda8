"""A run that torchrun started beside the same run by itself: one process over NCCL, and two that have one GPU.

The first must make the losses of the run by itself; the second must be refused in a sentence, not hang.
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
from .whole_run import command

TOLERANCE = 1e-3
FIRST = 5


def run(what, folder, device, small, processes):
    call = command(folder, device, small, 4)
    if processes:
        torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        call = [sys.executable, *torchrun, *call[1:]]
    begin = time.monotonic()
    try:
        done = subprocess.run(call, capture_output=True, text=True, cwd=folder, timeout=60)
        status, output = done.returncode, done.stdout + done.stderr
    except subprocess.TimeoutExpired as error:
        status, output = "killed after 60 seconds", str(error.output)
    told = {"output": output[-2000:]} if status else {}
    lines.write("processes", what=what, status=status, wall_seconds=round(time.monotonic() - begin, 1), **told)
    found = sorted((folder / device).glob("*/metrics.jsonl"))
    rows = [json.loads(line) for line in found[-1].read_text().splitlines()] if found and not status else []
    return [row["loss"] for row in rows if row.get("stage") == "pretrain"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true")
    options = parser.parse_args()
    if options.small:  # tests/test_ranks_runs.py has several processes on CPUs
        return
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with tempfile.TemporaryDirectory() as root:
        alone, one = (Path(root) / name for name in ("alone", "one"))
        alone.mkdir()
        one.symlink_to(alone)  # the same faces
        plain = run("by itself", alone, device, False, 0)
        joined = run("one process of torchrun", one, device, False, 1)
        apart = [abs(a - b) / max(1e-3, abs(a)) for a, b in zip(plain, joined, strict=True)]
        agree = bool(apart) and max(apart[:FIRST]) < TOLERANCE
        lines.write("processes", what="losses of one process of torchrun", apart=apart, agree=agree)
        if device == "cuda" and torch.cuda.device_count() == 1:
            run("two processes, one GPU", alone, device, False, 2)
    sys.exit(not agree)


if __name__ == "__main__":
    main()
