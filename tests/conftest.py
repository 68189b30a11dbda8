"""Settings of the whole suite: one thread less to fight over, so that small tensors stay fast."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch

if not torch.cuda.is_available():  # kernels then run in Triton's interpreter; it must be set before they are imported
    os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    torch.set_num_threads(1)


COMPILING = pytest.StashKey()
TABLE = Path(__file__).parent.parent / "bench/compile_table.py"


def pytest_collection_modifyitems(items):
    """The compile gate last: its compilers work on the core that the other tests leave free."""
    items.sort(key=lambda item: item.path.stem == "test_compile_gate")


def pytest_collection_finish(session):
    if session.config.option.collectonly or not any(item.path.stem == "test_compile_gate" for item in session.items):
        return
    folder = tempfile.TemporaryDirectory()
    with open(f"{folder.name}/table.json", "w") as table, open(f"{folder.name}/errors", "w") as errors:
        process = subprocess.Popen(
            [sys.executable, TABLE, "--json"], env=compiling(folder.name), cwd=TABLE.parent, stdout=table, stderr=errors
        )
    session.config.stash[COMPILING] = process, folder


def pytest_unconfigure(config):
    if COMPILING in config.stash:
        process, folder = config.stash[COMPILING]
        process.kill()
        process.wait()
        folder.cleanup()


def compiling(cache):
    """The environment of a process in which kernels are compiled, not interpreted, with nothing left from before."""
    kept = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    return kept | {"TRITON_CACHE_DIR": f"{cache}/triton", "OMP_NUM_THREADS": "1"}
