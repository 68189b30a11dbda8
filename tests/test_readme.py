"""What the README and CONTRIBUTING.md say of files, layers and commands is true."""

import importlib.util
import re
from pathlib import Path

from test_layering import MAY

ROOT = Path(__file__).parent.parent


def docs_module(name):
    """A module of docs/, which is no package."""
    spec = importlib.util.spec_from_file_location(name, ROOT / f"docs/{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


tree = docs_module("tree")


def test_the_list_of_files_says_what_the_files_say_of_themselves():
    page = tree.PAGE.read_text()
    assert tree.tree() in page, "write the list of files again: python docs/tree.py"
    assert tree.with_tree(page) == page


def test_every_file_in_the_list_has_a_caption():
    for line in tree.tree().splitlines():
        if line.startswith("  "):
            assert len(line.split(None, 1)) == 2, f"{line.strip()} has no docstring or first comment"


def test_the_table_of_layers_names_every_module():
    table = "".join(line for line in tree.PAGE.read_text().splitlines() if line.startswith("|"))
    missing = [name for name in MAY if not name.startswith("_") and not re.search(rf"\b{name}\b", table)]
    assert not missing, f"the table of layers in CONTRIBUTING.md does not name {', '.join(missing)}"


def test_the_make_targets_it_names_exist():
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page in ("README.md", "CONTRIBUTING.md"):
        named = set(re.findall(r"`?\bmake (\w+)`", (ROOT / page).read_text()))
        assert named, page
        assert named <= targets, page


def test_a_newcomer_reads_the_two_commands_to_type():
    text = (ROOT / "README.md").read_text()
    assert "make train" in text
    assert "`make test`" in text
