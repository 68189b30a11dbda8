"""The scripts in bench/, most of which no other test runs: each can be imported, and predictions are of what ships."""

import runpy
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

BENCH = Path(__file__).parent.parent / "bench"
SCRIPTS = sorted({*BENCH.glob("*.py")} - {BENCH / "conftest.py"})


@pytest.fixture(autouse=True)
def _scripts_find_each_other(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCH))


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_can_be_imported(path, monkeypatch):
    spec = spec_from_file_location("conftest", BENCH / "conftest.py")
    monkeypatch.setitem(sys.modules, "conftest", module_from_spec(spec))  # the tests have another of that name
    spec.loader.exec_module(sys.modules["conftest"])
    assert runpy.run_path(str(path), run_name="imported")["__doc__"]


def test_predictions_of_margin_softmax_lie_near_what_came_on_the_card(capsys):
    runpy.run_path(str(BENCH / "predicted.py"), run_name="__main__")
    _, rows = capsys.readouterr().out.split("|---|", 1)
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in rows.splitlines()[1:]]
    both = [(float(row[6]), float(row[9])) for row in rows if row[9]]
    assert len(rows) == 30
    assert len(both) >= 10
    assert all(0.85 < came / predicted < 3 for predicted, came in both)


@pytest.mark.parametrize(
    ("across", "warps", "rows", "times"),
    [(64, 4, 64, 1), (32, 4, 64, 1.5), (32, 8, 128, 1.5), (32, 8, 64, 2.5)],  # 2 n / (64 + n), n columns a group
)
def test_a_narrow_product_waits_for_shared_memory(across, warps, rows, times):
    assert runpy.run_path(str(BENCH / "predicted.py"))["slowed"](100, across, warps, rows) == pytest.approx(100 * times)
