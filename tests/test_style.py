"""What CONTRIBUTING.md asks of every file and a machine can see."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = [path for folder in ("fastmfr", "kernels") for path in sorted((ROOT / folder).rglob("*.py"))]


def public_functions(node, prefix="", derived=False):
    """(dotted name, node, whether its class has bases) of every function that a user may call, but for Triton's."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef) and not child.name.startswith("_"):
            yield from public_functions(child, f"{prefix}{child.name}.", bool(child.bases))
        elif isinstance(child, ast.FunctionDef):
            is_public = not child.name.startswith("_") or child.name in ("__init__", "__call__")
            if is_public and not any("jit" in ast.unparse(decorator) for decorator in child.decorator_list):
                yield f"{prefix}{child.name}", child, derived


def not_annotated(function):
    """The arguments without an annotation, and "return"."""
    arguments = function.args
    named = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg]
    missing = [one.arg for one in named if one and not one.annotation and one.arg not in ("self", "cls")]
    return missing + ["return"] * (function.returns is None and function.name != "__init__")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_public_functions_are_annotated_and_explained(path):
    for name, function, derived in public_functions(ast.parse(path.read_text())):
        assert not not_annotated(function), f"{name}: annotate {', '.join(not_annotated(function))}"
        explained = ast.get_docstring(function) or function.name.startswith("__") or derived  # its base explains it
        assert explained, f"{name} has no docstring"


def test_what_is_not_annotated_is_found():
    (found,) = public_functions(ast.parse("class A:\n    def f(self, x, *y: int): ...\n    def _g(self, x): ..."))
    name, function, derived = found
    assert (name, not_annotated(function), derived) == ("A.f", ["x", "return"], False)


def test_the_formatter_is_never_told_to_look_away():
    mark = "# fmt" + ":"
    files = [path for folder in ("fastmfr", "kernels", "bench", "tests") for path in (ROOT / folder).rglob("*.py")]
    assert [path for path in files if mark in path.read_text()] == []
