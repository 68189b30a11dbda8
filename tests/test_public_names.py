"""What Python says of the public names: `__all__` of the modules that users import, and help() of the compiled ones."""

import ast
import importlib
import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from fastmfr import _native

ROOT = Path(__file__).parent.parent
PACKAGES = {"fastmfr": ROOT / "fastmfr", "fastmfr.kernels": ROOT / "kernels"}


def file_of(module):
    """The file of a module or package."""
    package = "fastmfr.kernels" if module.startswith("fastmfr.kernels") else "fastmfr"
    path = PACKAGES[package].joinpath(*module.removeprefix(package).split(".")[1:])
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def public_modules():
    """The modules of the first level, `fastmfr.NAME` and `fastmfr.kernels.NAME`, and deeper ones of the API's pages."""
    found = {"fastmfr.kernels"}
    for package, folder in PACKAGES.items():
        files = [*folder.glob("*.py"), *(path.parent for path in folder.glob("*/__init__.py"))]
        found |= {f"{package}.{path.stem}" for path in files if path.stem != "__init__"}
    pages = "\n".join(page.read_text() for page in (ROOT / "docs/api").glob("*.md"))
    return sorted(found | set(re.findall(r"^::: ([\w.]+)\.\w+$", pages, re.MULTILINE)))


def names_of(tree):
    """(names in __all__ or None, public names that the module defines, but for Triton's kernels and type variables)."""
    listed, defined = None, set()
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            if not any("jit" in ast.unparse(decorator) for decorator in node.decorator_list):
                defined.add(node.name)
        elif isinstance(node, (ast.Assign, ast.AnnAssign)) and node.value:
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names = {part.id for target in targets for part in ast.walk(target) if isinstance(part, ast.Name)}
            if "__all__" in names:
                listed = ast.literal_eval(node.value)
            elif not ast.unparse(node.value).startswith("TypeVar("):
                defined |= names
    return listed, {name for name in defined if not name.startswith("_")}


@pytest.mark.parametrize("module", public_modules())
def test_a_public_module_lists_its_names(module):
    listed, defined = names_of(ast.parse(file_of(module).read_text()))
    assert defined <= set(listed or ()), f"add {', '.join(sorted(defined - set(listed or ())))} to __all__ of {module}"
    if listed:
        found = importlib.import_module(module)
        assert not [name for name in listed if not hasattr(found, name)], f"{module} has not all that it lists"
        assert len(set(listed)) == len(listed)


def test_the_public_modules_are_found():
    modules = public_modules()
    assert {"fastmfr.sampler", "fastmfr.meta", "fastmfr.kernels.margins", "fastmfr.pack.pairs"} <= set(modules)
    assert all(file_of(module).exists() for module in modules)


def test_a_name_that_is_not_listed_is_found():
    text = "__all__ = ['f']\nT = TypeVar('T')\nA, _B = 1, 2\ndef f(): ...\n@triton.jit\ndef kernel(): ...\nclass C: ..."
    assert names_of(ast.parse(text)) == (["f"], {"A", "f", "C"})


def native_names():
    """Every public name of the compiled extension, and of its classes, with what it is."""
    for name, value in vars(_native).items():
        if not name.startswith("_"):
            yield name, value
            if isinstance(value, type) and not issubclass(value, Exception):
                members = {one: part for one, part in vars(value).items() if one == "__init__" or one[0] != "_"}
                yield from ((f"{name}.{one}", part) for one, part in members.items())


NATIVE = dict(native_names())


def words_of(value):
    """The docstring without the signature that pybind11 writes before it."""
    return re.sub(r"^\w+\(.*\) -> .*\n", "", value.__doc__ or "").strip()


def test_the_extension_has_the_names_that_its_types_have():
    stub = ast.parse((ROOT / "fastmfr/_native.pyi").read_text())
    typed = {node.name for node in stub.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    for node in stub.body:
        if isinstance(node, ast.ClassDef):
            typed |= {f"{node.name}.{part.name}" for part in node.body if isinstance(part, ast.FunctionDef)}
    assert set(NATIVE) == typed


@pytest.mark.parametrize("name", NATIVE)
def test_help_says_what_a_compiled_name_is_for(name):
    words = words_of(NATIVE[name])
    assert re.match(r"[A-Z].*[.:]", words), f"{name} has no docstring in csrc/bindings.cpp"
    takes = [one for one in re.findall(r"(\w+): ", (NATIVE[name].__doc__ or "").partition(" -> ")[0]) if one != "self"]
    if "Args:" in words:
        explained = re.findall(r"^    (\w+): ", words.partition("Args:")[2].partition("\n\n")[0], re.MULTILINE)
        assert explained == takes
    else:
        assert len(takes) < 2


def test_a_signature_alone_is_no_help():
    signature = SimpleNamespace(__doc__="dropped(self: fastmfr._native.Sampler, domain: int) -> int\n")
    assert words_of(signature) == ""
