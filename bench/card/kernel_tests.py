"""The kernels' tests on the device, spread over processes: compilation takes all cores, and a crash takes one share.

Every test writes its line at once; what did not come to an end is named.
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

from . import lines

ROOT = Path(__file__).parent.parent.parent


def collected(files, keyword):
    """Names of the tests marked kernel or gpu in these files; files that cannot be collected are named in a line."""
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-m", "gpu or kernel", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, *(["-k", keyword] if keyword else []), *files], cwd=ROOT, capture_output=True, text=True
    )
    names = [line for line in done.stdout.splitlines() if "::" in line and not line.startswith("ERROR")]
    if done.returncode not in (0, 5):
        lines.write("tests", what="collection", failed=(done.stdout + done.stderr)[-3000:])
    return names


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true", help="one quick test file")
    parser.add_argument("--seconds", type=float, default=150, help="after which processes are ended")
    parser.add_argument("--processes", type=int, default=max(2, (os.cpu_count() or 2) - 2))
    parser.add_argument("-k", dest="keyword", default="", help="pytest's -k")
    options = parser.parse_args()
    marked = ("mark.gpu", "mark.kernel")
    files = [
        path for path in sorted((ROOT / "tests").glob("test_*.py")) if any(mark in path.read_text() for mark in marked)
    ]
    if options.small:
        files = [path for path in files if path.stem == "test_sgd_rows"]
    names = collected(map(str, files), options.keyword)
    begin = time.monotonic()
    shares = [names[start :: options.processes] for start in range(options.processes)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    running = []
    for share in filter(None, shares):
        command = [sys.executable, "-m", "pytest", "-q", "-p", "card.lines", "-p", "no:cacheprovider", *share]
        environment["PYTHONPATH"] = os.pathsep.join(
            filter(None, [str(ROOT / "bench"), os.environ.get("PYTHONPATH", "")])
        )
        running.append(
            (
                share,
                subprocess.Popen(
                    command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
                ),
            )
        )
    for number, (share, process) in enumerate(running):
        try:
            output, _ = process.communicate(timeout=max(1, options.seconds - (time.monotonic() - begin)))
        except subprocess.TimeoutExpired:
            process.kill()
            output, _ = process.communicate()
            lines.write("tests", what="time over", process=number, tests=len(share), output=output[-500:])
        if process.returncode not in (0, 1, 5):
            lines.write("tests", what="process", process=number, status=process.returncode, output=output[-1500:])
    lines.write(
        "tests", what="all", tests=len(names), processes=len(running), seconds=round(time.monotonic() - begin, 1)
    )


if __name__ == "__main__":
    main()
