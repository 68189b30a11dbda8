"""Who may import whom (DESIGN: the order of the code is the order of the data), read from the imports themselves."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
GROUND = {"config", "distributed", "precision", "progress", "results", "runtime"}
DATA = {"domains", "image_set", "sampler", "decode", "synthetic", "pack", "protocols", "native", "_native"}
MATHS = {"backbone", "cuda_graph", "flat", "fused", "head", "losses", "rop", "weights", "kernels"}
ABOVE = {"meta", "evaluate"}
MAY = {
    **{name: GROUND for name in GROUND},
    **{name: GROUND | DATA | {"kernels"} for name in DATA},
    **{name: GROUND | MATHS for name in MATHS},
    **{name: GROUND | DATA | MATHS | ABOVE for name in ABOVE},
    "report": GROUND,
    "inspect": GROUND | DATA | {"report"},
    "training": GROUND | DATA | MATHS | ABOVE | {"report"},
    "commands": GROUND | DATA | MATHS | ABOVE | {"report", "inspect", "training"},
    "train": GROUND | DATA | MATHS | ABOVE | {"report", "training", "commands"},
    "__main__": {"commands", "train"},
    "__init__": set(),
}
FILES = sorted((ROOT / "fastmfr").rglob("*.py"))


def module_of(path):
    return path.relative_to(ROOT / "fastmfr").parts[0].removesuffix(".py")


def imported(path):
    """The fastmfr modules that a file names in its imports, wherever they stand in it."""
    package = path.relative_to(ROOT).with_suffix("").parts[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            whole = ".".join(part for part in (base, node.module) if part)
            names = [whole, *(f"{whole}.{alias.name}" for alias in node.names)] if whole == "fastmfr" else [whole]
        else:
            continue
        yield from (name.split(".")[1] for name in names if name.startswith("fastmfr."))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down(path):
    module = module_of(path)
    assert module in MAY, f"{module} has no place in the layers yet; give it one here and in CONTRIBUTING.md"
    wrong = {name for name in imported(path) if name != module and name not in MAY[module]}
    assert not wrong, f"{path.name} imports {', '.join(sorted(wrong))}, which {module} may not"


def test_kernels_and_csrc_know_nothing_of_fastmfr():
    for path in (ROOT / "kernels").rglob("*.py"):
        assert not [name for name in imported(path) if name != "kernels"], path
    for path in (ROOT / "csrc").iterdir():
        if path.name != "bindings.cpp":
            assert "pybind11" not in path.read_text(), f"{path.name}: pybind11 belongs to the edge, bindings.cpp"


def test_the_test_would_notice(tmp_path, monkeypatch):
    (tmp_path / "fastmfr").mkdir()
    bad = tmp_path / "fastmfr" / "losses.py"
    lines = ["def f():", "    from .domains import open_domain", "from fastmfr import sampler", "import fastmfr.decode"]
    bad.write_text("\n".join(lines))
    monkeypatch.setattr(f"{__name__}.ROOT", tmp_path)
    assert set(imported(bad)) == {"domains", "sampler", "decode"}


def test_importing_the_package_imports_nothing():
    assert set(imported(ROOT / "fastmfr" / "__init__.py")) == set()
