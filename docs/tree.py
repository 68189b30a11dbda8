"""Write the list of files in CONTRIBUTING.md out of what the files say of themselves: `python docs/tree.py`."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "CONTRIBUTING.md"
FOLDERS = ("fastmfr", "kernels", "csrc", "bench", "docs")
COMMENT = {".cpp": "//", ".hpp": "//", ".yaml": "#"}
ROW = "{:<24} {}"


def caption(path: Path) -> str:
    """Return the first sentence of a file: of its docstring or of its first comment; for a folder, of its __init__."""
    if path.is_dir():
        path = path / "__init__.py"
    if path.suffix == ".py":
        text = ast.get_docstring(ast.parse(path.read_text())) or ""
    else:
        text = _first_comment(path.read_text(), COMMENT[path.suffix])
    paragraph = " ".join(text.strip().split("\n\n")[0].split())
    return re.split(r"(?<=[.?])\s(?=[A-Z])|(?<=[a-z)]);\s", paragraph)[0].rstrip(".;:")


def tree() -> str:
    """Return the whole list, one line for each file or package of FOLDERS."""
    lines = []
    for folder in FOLDERS:
        lines += [f"{folder}/", *_rows(ROOT / folder)]
    return "\n".join([*lines, ROW.format("tests/", "one file a module; CPU only unless marked gpu")])


def with_tree(page: str) -> str:
    """Return the text of CONTRIBUTING.md with its list of files replaced by `tree`."""
    return re.sub(r"```text\nfastmfr/\n.*?```", lambda _: f"```text\n{tree()}\n```", page, flags=re.DOTALL)


def _rows(folder) -> Iterator[str]:
    for path in sorted(folder.iterdir(), key=lambda path: (path.is_dir(), path.name)):
        if path.is_dir() and (path / "__init__.py").exists():
            yield ROW.format(f"  {path.name}/", caption(path))
        elif path.suffix == ".cpp" and path.with_suffix(".hpp").exists():
            yield ROW.format(f"  {path.stem}.hpp .cpp", caption(path.with_suffix(".hpp")))
        elif path.suffix == ".hpp" and path.with_suffix(".cpp").exists():
            continue  # in the line of its .cpp
        elif path.suffix in (".py", ".cpp", ".hpp") and path.name != "__init__.py":
            yield ROW.format(f"  {path.name}", caption(path))
    for path in sorted(folder.glob("*/*.yaml")):
        yield ROW.format(f"  {path.parent.name}/{path.name}", caption(path))


def _first_comment(text, mark) -> str:
    lines = []
    for line in text.splitlines():
        if not line.startswith(mark):
            break
        lines.append(line.removeprefix(mark))
    return "\n".join(lines)


if __name__ == "__main__":
    PAGE.write_text(with_tree(PAGE.read_text()))
