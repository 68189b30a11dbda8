"""The README's tree says of every file what the file says of itself."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
FOLDERS = ("fastmfr", "kernels", "csrc", "bench")
COMMENT = {".cpp": "//", ".hpp": "//", ".yaml": "#"}
ROW = "{:<24} {}"


def caption(path):
    """The first sentence of a file, in its docstring or the comment it starts with; of a folder, of its __init__."""
    if path.is_dir():
        path = path / "__init__.py"
    if path.suffix == ".py":
        text = ast.get_docstring(ast.parse(path.read_text())) or ""
    else:
        mark = COMMENT[path.suffix]
        text = ""
        for line in path.read_text().splitlines():
            if not line.startswith(mark):
                break
            text += line.removeprefix(mark) + "\n"
    paragraph = " ".join(text.strip().split("\n\n")[0].split())
    return re.split(r"(?<=[.?])\s(?=[A-Z])|(?<=[a-z)]);\s", paragraph)[0].rstrip(".;:")


def tree():
    lines = []
    for folder in FOLDERS:
        lines.append(f"{folder}/")
        for path in sorted((ROOT / folder).iterdir(), key=lambda path: (path.is_dir(), path.name)):
            if path.is_dir() and (path / "__init__.py").exists():
                lines.append(ROW.format(f"  {path.name}/", caption(path)))
            elif path.suffix == ".hpp" and path.with_suffix(".cpp").exists():
                continue  # told with its .cpp
            elif path.with_suffix(".hpp").exists() and path.suffix == ".cpp":
                lines.append(ROW.format(f"  {path.stem}.hpp .cpp", caption(path.with_suffix(".hpp"))))
            elif path.suffix in (".py", ".cpp", ".hpp") and path.name != "__init__.py":
                lines.append(ROW.format(f"  {path.name}", caption(path)))
        if folder == "fastmfr":
            for path in sorted((ROOT / folder / "recipes").glob("*.yaml")):
                lines.append(ROW.format(f"  recipes/{path.name}", caption(path)))
    return "\n".join([*lines, ROW.format("tests/", "one file a module; CPU only unless marked gpu")])


def test_the_tree_is_true():
    assert tree() in (ROOT / "README.md").read_text(), f"the README's tree should be:\n\n{tree()}\n"


def test_every_file_in_the_tree_has_a_caption():
    for line in tree().splitlines():
        if line.startswith("  "):
            assert len(line.split(None, 1)) == 2, f"{line.strip()} has no docstring or first comment"


def test_the_commands_it_names_exist():
    text = (ROOT / "README.md").read_text()
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.M))
    assert set(re.findall(r"`make (\w+)`", text)) <= targets
    assert re.findall(r"`make (\w+)`", text)
