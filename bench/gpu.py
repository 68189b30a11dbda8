"""Everything that needs a CUDA device, in one command: `make gpu`. It wants torch, triton, pytest and fastmfr, no more.

Stages run in the order of their worth, each a process with a time limit; every figure is one line of JSON, flushed at
once, so that a kill, a crash or a failed peer costs nothing else. It stops by itself after --seconds and says what it
left out; called again with the same --out it goes on there. `--rehearse` runs the same schedule at toy sizes, on the
CPU where there is no GPU.
"""

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from card import lines

BENCH = Path(__file__).parent
RESULTS = BENCH / "results"
LOGS = Path(tempfile.gettempdir()) / "fastmfr-gpu"  # what the stages print


@dataclass(frozen=True)
class Stage:
    """One process: a module that is run. `limit`: seconds after which it is ended. `alone`: nothing is beside it."""

    name: str
    module: str
    limit: float
    arguments: tuple[str, ...] = ()
    alone: bool = True


STAGES = (
    Stage("ceilings", "card.ceilings", 40),
    Stage("tests", "card.kernel_tests", 150, ("--seconds", "130"), alone=False),
    Stage("whole run", "card.whole_run", 120, alone=False),
    Stage("accuracy", "card.accuracy", 60),
    Stage("margin", "card.margin", 110),
    Stage("meta", "card.meta_step", 100),
    Stage("pretraining", "card.pretraining", 100),
    Stage("decode", "card.decode", 40),
    Stage("processes", "card.processes", 120),
    Stage("operators", "card.operators", 45),
    Stage("ten million", "card.ten_million", 40),
    Stage("profile", "card.profile", 40),
)


def start(stage, figures, rehearse):
    """The stage as a process of its own session, so that all it started ends with it."""
    command = [sys.executable, "-m", stage.module, *stage.arguments]
    command += ["--small"] if rehearse else []
    path = os.pathsep.join(filter(None, [str(BENCH), os.environ.get("PYTHONPATH", "")]))
    environment = os.environ | {lines.FILE: str(figures), "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}
    with open(LOGS / f"{stage.module}.log", "w") as log:  # the process has its own end of it
        return subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)


def end(process):
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def run(stages, figures, seconds, rehearse):
    """Runs the stages; neighbours that are not `alone` side by side. Gives the names of those left out."""
    clock, left_out, queue = time.monotonic(), [], list(stages)
    while queue:
        group = [queue.pop(0)]
        while queue and not group[-1].alone and not queue[0].alone:
            group.append(queue.pop(0))
        running = []
        for stage in group:
            left = seconds - (time.monotonic() - clock)
            if left < min(20, stage.limit):
                left_out.append(stage.name)
                continue
            print(
                f"{time.monotonic() - clock:5.0f} s  {stage.name}, at most {min(left, stage.limit):.0f} s", flush=True
            )
            running.append((stage, start(stage, figures, rehearse), time.monotonic(), min(left, stage.limit)))
        while running:
            for one in list(running):
                stage, process, begin, limit = one
                spent = time.monotonic() - begin
                if process.poll() is None and spent < limit:
                    continue
                ended = {"status": process.returncode} if process.returncode is not None else {"killed_after": limit}
                end(process)
                tail = {}
                if ended.get("status") != 0:
                    tail = {"output": (LOGS / f"{stage.module}.log").read_text()[-2000:]}
                note(figures, stage.name, ended=ended, seconds=round(spent, 1), **tail)
                running.remove(one)
            time.sleep(0.05)
    return left_out


def to_do(stages, figures):
    """The stages that did not come to a good end before, as the file of figures has it."""
    ended = {row["what"]: row["ended"].get("status") for row in lines.read(figures) if row["stage"] == "schedule"}
    return [stage for stage in stages if ended.get(stage.name) != 0]


def note(figures, stage, **figure):
    os.environ[lines.FILE] = str(figures)
    lines.write("schedule", what=stage, **figure)


def table(figures):
    """Lines for people: tests that failed, then every figure beside its peers and as a share of the ceilings."""
    rows = [row for row in figures if "median_seconds" in row]
    best = {row["what"]: row for row in rows if row["stage"] == "ceilings"}
    copy, product = best.get("copy", {}).get("tb_per_second"), best.get("product bf16", {}).get("tflop_per_second")
    tests = [row for row in figures if row["stage"] == "test"]
    failed = [row for row in tests if row["outcome"] == "failed"]
    yield f"tests: {len(tests) - len(failed)} passed or skipped, {len(failed)} failed"
    for row in failed:
        yield f"  FAILED {row['what']}: {row['error'].strip().splitlines()[-1][:160]}"
    for row in figures:
        if "failed" in row:
            yield f"  FAILED {row['stage']}, {row['what']}, {row.get('who', '')}: {row['failed'][:160]}"
    for row in rows:
        size = " ".join(f"{key}={row[key]}" for key in ("B", "C", "shape", "dtype", "parameters") if key in row)
        share = ""
        if "tflop_per_second" in row and product and "product" not in row["what"]:
            share = f"{100 * row['tflop_per_second'] / product:4.0f} % of product"
        if "tb_per_second" in row and copy and row["what"] != "copy":
            share = f"{100 * row['tb_per_second'] / copy:4.0f} % of copy"
        rate = f"{row['images_per_second']:,.0f} images/s" if "images_per_second" in row else ""
        memory = f"{row['peak_bytes'] / 1e6:,.0f} MB" if row.get("peak_bytes") is not None else ""
        yield (
            f"{row['stage']:<12} {row['what'][:34]:<34} {size[:44]:<44} {row['who'][:34]:<34} "
            f"{1e3 * row['median_seconds']:10.3f} ms {row.get('times_ours', 1):7.2f} x {share} {rate} {memory}"
        )
    for row in figures:
        if row["stage"] in ("accuracy", "whole run", "meta", "schedule", "ten million") and "median_seconds" not in row:
            kept = {key: value for key, value in row.items() if key not in ("stage", "at", "output")}
            yield f"{row['stage']}: {kept}"[:400]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=500, help="after which nothing runs any more (default 500)")
    parser.add_argument("--only", default="", help="names of stages, with commas between")
    parser.add_argument("--out", type=Path, help="the file of figures; one that is there is gone on with")
    parser.add_argument("--rehearse", action="store_true", help="toy sizes, on the CPU where there is no GPU")
    options = parser.parse_args()
    names = [stage.name for stage in STAGES]
    only = [name.strip() for name in options.only.split(",") if name.strip()]
    if unknown := set(only) - set(names):
        parser.error(f"there is no stage {', '.join(sorted(unknown))}; want some of {', '.join(names)}")
    if not options.rehearse:
        import torch

        if not torch.cuda.is_available():
            sys.exit(
                "`make gpu` wants a CUDA device and finds none; `make test` and `make bench` need no GPU, and "
                "`python bench/gpu.py --rehearse` runs the same schedule at toy sizes"
            )
    RESULTS.mkdir(exist_ok=True)
    LOGS.mkdir(exist_ok=True)
    figures = (options.out or RESULTS / f"{datetime.now():%Y%m%d-%H%M%S}-gpu.jsonl").resolve()
    figures.parent.mkdir(parents=True, exist_ok=True)
    figures.touch()
    chosen = [stage for stage in STAGES if stage.name in only] if only else to_do(STAGES, figures)
    begin = time.monotonic()
    left_out = run(chosen, figures, options.seconds, options.rehearse)
    found = lines.read(figures)
    print("\n" + "\n".join(table(found)))
    print(f"{time.monotonic() - begin:.0f} seconds; left out: {', '.join(left_out) or 'nothing'}; figures in {figures}")
    bad = [row for row in found if row.get("outcome") == "failed" or "failed" in row or row.get("agree") is False]
    bad += [row for row in found if row["stage"] == "schedule" and row["ended"].get("status") != 0]
    sys.exit(bool(bad or left_out))


if __name__ == "__main__":
    main()
