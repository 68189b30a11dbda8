"""What ships compiles for every architecture as tests/compile_budget.toml demands; no GPU is needed for that.

What a launch compiles to is kept in tests/compile_table.jsonl. Compiled here are the launches that the record lacks,
because a kernel or Triton has changed, and one launch of each module.
"""

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
TABLE = Path(__file__).parent.parent / "bench/compile_table.py"
BUDGET = tomllib.loads(Path(__file__).with_name("compile_budget.toml").read_text())


def compiled(cache):
    """The table of what ships; it is made in a process in which kernels are compiled, not interpreted."""
    kept = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment = kept | {"TRITON_CACHE_DIR": str(cache), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, TABLE, "--check"], env=environment, cwd=TABLE.parent, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def excess(row):
    """What a row of the table has too much or too little of, in words."""
    module, kernel = row["kernel"].split(".")
    budget, shared = BUDGET[module][kernel], BUDGET["shared"][str(row["arch"])]
    found = [f"{row[name]} bytes of {name}" for name in ("stack", "local") if row[name]]
    if row["registers"] > budget["registers"]:
        found.append(f"{row['registers']} registers, at most {budget['registers']} are wanted")
    if row["shared"] > shared:
        found.append(f"{row['shared']} bytes of shared memory, at most {shared} are wanted")
    if row["resident"] < budget["resident"]:
        found.append(f"room for {row['resident']} programs, at least {budget['resident']} are wanted")
    # Kept exponentials stand in for the product whose cosines a chunk's gradients are made of.
    without_product = row["kernel"] == "by_chunks.make_gradient" and row["case"].endswith("kept")
    wanted = budget["tensor_core"] and not row["case"].startswith("fp32") and not without_product
    if wanted and not row["tensor core"]:
        found.append("no tensor core instruction")
    return found


def test_what_ships_stays_within_the_budget_on_every_architecture(tmp_path):
    rows, fresh, before, spilling = compiled(tmp_path)
    over = [(f"{row['kernel']} ({row['case']}) on sm_{row['arch']}", excess(row)) for row in rows if excess(row)]
    assert not over, "\n".join(f"{where}: {', '.join(what)}" for where, what in over)

    kernels = {f"{module}.{kernel}" for module, one in BUDGET.items() if module != "shared" for kernel in one}
    wanted = {(kernel, int(arch)) for kernel in kernels for arch in BUDGET["shared"]}
    assert {(row["kernel"], row["arch"]) for row in rows} == wanted

    assert {row["kernel"].split(".")[0] for row in fresh} == BUDGET.keys() - {"shared"}
    for row, known in zip(fresh, before, strict=True):
        assert known in (None, row), "a row of compile_table.jsonl is not what its launch compiles to"

    assert spilling["stack"] > 0
    assert any("bytes of stack" in one for one in excess(spilling))
