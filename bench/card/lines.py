"""Figures as lines of JSON, appended to one file and flushed at once: a run that is cut keeps what it had.

Also a pytest plugin (`-p card.lines`): one line a test, with the reason where it failed.
"""

import json
import os
import time

FILE = "FASTMFR_FIGURES"  # the environment variable that names the file; without it lines go to the screen alone


def write(stage, **figure):
    """Appends one figure of a stage, values of plain types, and prints it."""
    line = json.dumps({"stage": stage, "at": round(time.time(), 1), **figure})
    print(line, flush=True)
    if path := os.environ.get(FILE):
        with open(path, "a") as file:  # one write a line, at the end of the file: several processes may share it
            file.write(line + "\n")


def reason(error):
    """An exception in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:900]}"


def read(path):
    """All figures of a file; a last line that was cut is left out."""
    figures = []
    with open(path) as file:
        for line in file:
            try:
                figures.append(json.loads(line))
            except json.JSONDecodeError:
                continue
    return figures


def pytest_runtest_logreport(report):
    if report.when == "call" or report.failed:
        failed = {}
        if report.failed:
            text = str(report.longrepr)
            failed = {"error": text[-3000:]}
        write("test", what=report.nodeid, outcome=report.outcome, seconds=round(report.duration, 3), **failed)
