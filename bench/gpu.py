"""Everything that needs a CUDA device, in one command: `make gpu`. It wants torch, triton, pytest and fastmfr, no more.

First the tests of the kernels and those marked gpu, then the bench suites, as many as begin before the time is over;
what is not installed, such as DALI, is skipped with a line. Ends with a short table; bench/results gets one file.
"""

import argparse
import importlib.util
import json
import subprocess
import sys
import time
from pathlib import Path

import torch

ROOT = Path(__file__).parent.parent


def files(pattern, *words):
    """The files with one of these words that can run here: what decodes wants DALI."""
    for path in sorted(ROOT.glob(pattern)):
        text = path.read_text()
        if not any(word in text for word in words):
            continue
        if "fastmfr.decode" in text and not find_spec("nvidia.dali"):
            print(f"skipped: {path.relative_to(ROOT)}, for DALI is not installed")
            continue
        yield path.relative_to(ROOT)


def find_spec(name):
    try:
        return importlib.util.find_spec(name)
    except ModuleNotFoundError:  # not even the package around it
        return None


def pytest(*arguments):
    command = [sys.executable, "-m", "pytest", "-q", *map(str, arguments)]
    print("\n$", *command[1:], flush=True)
    return subprocess.run(command, cwd=ROOT).returncode


def newest_results(since):
    files = [path for path in (ROOT / "bench/results").glob("*.json") if path.stat().st_mtime >= since]
    return max(files, key=lambda path: path.stat().st_mtime, default=None)


def table(rows):
    """Lines: what, median time, beside each peer, share of the ceilings measured in the same run."""
    ceiling = {}
    for row in rows:
        info, seconds = row["extra_info"], row["stats"]["median"]
        if row["fullname"].split("/")[-1].startswith("bench_ceilings"):
            ceiling |= {unit: info[unit] / seconds for unit in ("bytes", "flops") if unit in info}
    for unit, name, scale in (("bytes", "copy", "TB/s"), ("flops", "product", "TFLOP/s")):
        if unit in ceiling:
            yield f"{name:<64} {ceiling[unit] / 1e12:9.2f} {scale}"
    for row in rows:
        info = row["extra_info"]
        ours = info.get("ours") or info.get("ordinary")
        if row["fullname"].split("/")[-1].startswith("bench_ceilings") or not ours:
            continue
        shares = [
            f"{100 * info[unit] / ours['median_seconds'] / ceiling[unit]:.0f} % of {name}"
            for unit, name in (("bytes", "copy"), ("flops", "product"))
            if unit in info and unit in ceiling
        ]
        beside = [f"{name} {value['times_ours']:.2f}x" for name, value in info.items()
                  if value is not ours and isinstance(value, dict) and "times_ours" in value]  # fmt: skip
        yield f"{row['name']:<64} {1e3 * ours['median_seconds']:9.3f} ms   {', '.join(shares + beside)}"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=500, help="no bench begins after so many (default 500)")
    parser.add_argument("--select", default="", help="pytest's -k for the bench suites")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("`make gpu` wants a CUDA device and finds none; `make test` and `make bench` need no GPU")
    begin, clock = time.time(), time.monotonic()
    failed = pytest("-m", "gpu or kernel", *files("tests/test_*.py", "mark.gpu", "mark.kernel"))
    left = arguments.seconds - (time.monotonic() - clock)
    failed |= pytest(f"--deadline={left:.0f}", "-k", arguments.select, *files("bench/bench_*.py", "compare"))
    if results := newest_results(begin):
        print("\n" + "\n".join(table(json.loads(results.read_text())["benchmarks"])))
        print(f"results in {results}")
    print(f"{time.monotonic() - clock:.0f} seconds; {'something failed, see above' if failed else 'all passed'}")
    sys.exit(failed)


if __name__ == "__main__":
    main()
