"""What ships compiles for every architecture as tests/compile_budget.toml demands; no GPU is needed for that."""

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from conftest import COMPILING, TABLE, compiling

pytestmark = pytest.mark.slow  # some 270 kernels are compiled beside the other tests
BUDGET = tomllib.loads(Path(__file__).with_name("compile_budget.toml").read_text())
SPILLING = """
import json
from compile_table import BF16, compiled, shipped

launch = next(one for one in shipped([90], [(BF16, BF16, 512)]) if one.kernel == "sum_exponentials_kernel")
names = list(launch.signature)
absurd = launch.constants | {(names.index("ROWS"),): 256, (names.index("CLASSES"),): 256}
print(json.dumps(compiled(launch._replace(constants=absurd))))
"""


@pytest.fixture(scope="module")
def rows(request):
    """The whole table; conftest has had it made since the tests were collected."""
    process, folder = request.config.stash[COMPILING]
    assert process.wait() == 0, Path(folder.name, "errors").read_text()
    return json.loads(Path(folder.name, "table.json").read_text())


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


def test_nothing_spills_and_all_stays_within_the_budget(rows):
    over = [(f"{row['kernel']} ({row['case']}) on sm_{row['arch']}", excess(row)) for row in rows if excess(row)]
    assert not over, "\n".join(f"{where}: {', '.join(what)}" for where, what in over)


def test_the_table_covers_every_kernel_on_every_architecture(rows):
    kernels = {f"{module}.{kernel}" for module, one in BUDGET.items() if module != "shared" for kernel in one}
    wanted = {(kernel, int(arch)) for kernel in kernels for arch in BUDGET["shared"]}
    assert {(row["kernel"], row["arch"]) for row in rows} == wanted


def test_a_kernel_that_spills_is_found(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", SPILLING], env=compiling(tmp_path), cwd=TABLE.parent, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    row = json.loads(done.stdout)
    assert row["stack"] > 0
    assert any("bytes of stack" in one for one in excess(row))
