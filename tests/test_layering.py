"""Who may import whom (DESIGN: the order of the code is the order of the data), read from the imports themselves."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
GROUND = {
    "atomic",
    "config",
    "distributed",
    "precision",
    "profiling",
    "progress",
    "results",
    "run_folder",
    "runtime",
    "stopping",
    "text",
    "watch",
}
DATA = {
    *("domains", "image_set", "sampler", "reference_sampler", "decode", "synthetic", "pack", "protocols"),
    *("native", "_native", "batch_sampler"),
}
MATHS = {
    *("architecture", "backbone", "cuda_graph", "external", "flat", "freezing", "fused", "head", "losses", "rop"),
    *("kernels", "margin_losses"),
}
ABOVE = {"meta", "evaluate", "weights", "embedding", "classifier_files"}
MAY = {
    **{name: GROUND for name in GROUND},
    **{name: GROUND | DATA | {"kernels"} for name in DATA},
    **{name: GROUND | MATHS for name in MATHS},
    **{name: GROUND | DATA | MATHS | ABOVE for name in ABOVE},
    "report": GROUND,
    "inspect": GROUND | DATA | {"report"},
    "training": GROUND | DATA | MATHS | ABOVE | {"report"},
    "prove": GROUND | DATA | MATHS | ABOVE | {"report", "training"},
    "export": GROUND | DATA | MATHS | ABOVE | {"report", "training"},
    "commands": GROUND | DATA | MATHS | ABOVE | {"report", "inspect", "training", "prove", "export"},
    "train": GROUND | DATA | MATHS | ABOVE | {"report", "training", "commands"},
    "__main__": {"commands", "train"},
    "__init__": set(),
}
FILES = sorted((ROOT / "fastmfr").rglob("*.py"))


def module_of(path):
    return path.relative_to(ROOT / "fastmfr").parts[0].removesuffix(".py")


def imports(path):
    """(dotted module, the names taken from it) of every import of a file, wherever the import stands."""
    package = path.relative_to(ROOT).with_suffix("").parts[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, []) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            yield ".".join([*above, *filter(None, [node.module])]), [alias.name for alias in node.names]


def imported(path):
    """The fastmfr modules that a file names in its imports."""
    for module, names in imports(path):
        whole = [module, *(f"{module}.{name}" for name in names)] if module == "fastmfr" else [module]
        named = (name.split(".")[1] for name in whole if name.startswith("fastmfr."))
        yield from (name for name in named if name != "__version__")  # the package's own, of no module


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down(path):
    module = module_of(path)
    assert module in MAY, f"{module} has no place in the layers yet; give it one here and in CONTRIBUTING.md"
    wrong = {name for name in imported(path) if name != module and name not in MAY[module]}
    assert not wrong, f"{path.name} imports {', '.join(sorted(wrong))}, which {module} may not"


def test_kernels_and_csrc_know_nothing_of_fastmfr_but_the_compiled_extension():
    kernels = list((ROOT / "kernels").rglob("*.py"))
    assert len(kernels) > 20
    for path in kernels:
        assert not [name for name in imported(path) if name not in ("kernels", "native")], path
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


def modules_imported(path):
    """Dotted names of the modules of this repository that a file imports: the submodule where a name is one."""
    for module, names in imports(path):
        for dotted in [f"{module}.{name}" for name in names] or [module]:
            inside = ROOT / dotted.replace(".", "/")
            is_module = inside.with_suffix(".py").is_file() or (inside / "__init__.py").is_file()
            yield dotted if is_module else module


def circles(root):
    """Modules that import each other, in a circle of any length; a package's __init__ is the package."""
    files = [path for folder in ("fastmfr", "kernels") for path in (root / folder).rglob("*.py")]
    names = {path: ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__") for path in files}
    graph = {name: set(modules_imported(path)) & set(names.values()) - {name} for path, name in names.items()}
    reach = {}
    for name in graph:
        reach[name], waiting = set(), list(graph[name])
        while waiting:
            other = waiting.pop()
            if other not in reach[name]:
                reach[name].add(other)
                waiting.extend(graph[other])
    return sorted(name for name in graph if name in reach[name])


def test_no_modules_import_each_other_in_a_circle():
    assert circles(ROOT) == []


def test_a_circle_would_be_noticed(tmp_path, monkeypatch):
    (tmp_path / "fastmfr" / "pack").mkdir(parents=True)
    (tmp_path / "kernels").mkdir()
    (tmp_path / "fastmfr" / "pack" / "a.py").write_text("from .b import f")
    (tmp_path / "fastmfr" / "pack" / "b.py").write_text("def f():\n    from fastmfr.pack import a")
    monkeypatch.setattr(f"{__name__}.ROOT", tmp_path)
    assert circles(tmp_path) == ["fastmfr.pack.a", "fastmfr.pack.b"]
