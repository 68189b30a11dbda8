"""Write the documentation pages that are made of the code: options, recipes, notebooks, and the list of recorded runs.

The site's build calls these functions (docs/hooks.py), so that a page never says something else than the code.
"""

import ast
import inspect
import json
import textwrap
import typing
from collections.abc import Iterator
from dataclasses import MISSING, dataclass, fields, is_dataclass
from itertools import pairwise
from pathlib import Path

from fastmfr.config import Config

ROOT = Path(__file__).parent.parent
RECIPES = ROOT / "fastmfr/recipes"
RESULTS = ROOT / "bench/results"


@dataclass(frozen=True)
class Option:
    """One setting of a run: its dotted name, its type as text, its default as text, and what it means."""

    name: str
    kind: str
    default: str
    meaning: str


def options(section: type = Config, prefix: str = "") -> Iterator[Option]:
    """Yield every option of a settings class: its own fields, then inherited ones; nested sections in their place."""
    hints, meanings = typing.get_type_hints(section), field_docstrings(section)
    for part in sorted(fields(section), key=lambda part: part.name not in section.__annotations__):
        hint = hints[part.name]
        if is_dataclass(hint):
            yield from options(hint, f"{prefix}{part.name}.")
        elif part.init:
            yield Option(f"{prefix}{part.name}", _kind(hint), _default(part), meanings.get(part.name, ""))


def field_docstrings(section: type) -> dict[str, str]:
    """Return {field: docstring} of a dataclass and the dataclasses that it inherits from."""
    found = {}
    for base in reversed([base for base in section.__mro__ if is_dataclass(base)]):
        body = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0].body
        for statement, after in pairwise(body):
            if (
                isinstance(statement, ast.AnnAssign)
                and isinstance(after, ast.Expr)
                and isinstance(after.value, ast.Constant)
            ):
                found[statement.target.id] = " ".join(str(after.value.value).split())
    return found


def options_page() -> str:
    """Return the Markdown of the page with all options, one table for each section."""
    lines = [
        "# Options",
        "",
        "Made from the settings of the code (`fastmfr.config`) when this site is built.",
        "",
        "Type an option as `--section.field value` behind `python -m fastmfr.train`. In a [recipe](recipes.md), write",
        "the field below its section. The defaults are the paper's, and the recipe `mfr` uses them; without `--config`",
        "the command takes the recipe `quickstart`, whose other values are on the page of recipes.",
        "`python -m fastmfr.train --help` prints the same list.",
        "",
    ]
    for prefix, section in _sections(Config, ""):
        lines += [f"## {prefix.rstrip('.') or 'run'}", "", inspect.getdoc(section) or "", ""]
        lines += ["| option | type or choices | default | meaning |", "|---|---|---|---|"]
        own = [part.name for part in fields(section) if not is_dataclass(typing.get_type_hints(section)[part.name])]
        lines += [
            f"| `--{option.name}` | {option.kind} | `{option.default}` | {_cell(option.meaning)} |"
            for option in options(section, prefix)
            if option.name.removeprefix(prefix) in own
        ]
        lines.append("")
    return "\n".join(lines)


def recipes_page() -> str:
    """Return the Markdown of the page with all recipes: their first comment and their whole text."""
    lines = [
        "# Recipes",
        "",
        "Made from `fastmfr/recipes` when this site is built.",
        "",
        "A recipe is a YAML file with the settings that differ from the [defaults](options.md). Name one of these with",
        "`--config NAME`, or your own file with `--config mine.yaml`. Options on the command line win over the recipe.",
        "Write the settings of a run as a recipe of your own:",
        "",
        "```sh",
        "python -m fastmfr.train --config mfr --print_config > mine.yaml",
        "```",
        "",
    ]
    for path in sorted(RECIPES.glob("*.yaml")):
        lines += [f"## {path.stem}", "", "```yaml", path.read_text().rstrip(), "```", ""]
    return "\n".join(lines)


def notebook_page(path: Path) -> str:
    """Return a notebook as the Markdown of a page: its text, its cells as code, and a link to the notebook itself."""
    parts = []
    for cell in json.loads(path.read_text())["cells"]:
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
    parts.insert(1, f"Open [{path.name}]({path.name}) in Jupyter to run this page.")
    return "\n\n".join(parts) + "\n"


def results_page() -> str:
    """Return the Markdown of the page that links every recorded run in bench/results."""
    lines = [
        "# Recorded runs",
        "",
        "The figures on this site come from these files. A file holds the figures of one run, with the machine, the",
        "versions and the commit that made them. A file is never edited.",
        "",
    ]
    names = sorted(path.name for path in RESULTS.iterdir())
    lines += [f"- [{name}](bench/results/{name})" for name in names if "-quick-" not in name]  # quick: no figures
    return "\n".join([*lines, ""])


def _sections(section, prefix):
    """(prefix, class) of a settings class and of all sections below."""
    yield prefix, section
    hints = typing.get_type_hints(section)
    for part in fields(section):
        if is_dataclass(hints[part.name]):
            yield from _sections(hints[part.name], f"{prefix}{part.name}.")


def _kind(hint) -> str:
    """A type as a reader of the command line sees it: choices by name, `null` for None."""
    origin, inside = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return ", ".join("`null`" if choice is None else f"`{choice}`" for choice in inside)
    if origin is dict:
        return "NAME: PATH"
    if origin in (tuple, list):
        return f"list of {_kind(inside[0])}"
    if inside:  # a union
        return " or ".join(_kind(part) for part in inside)
    return {type(None): "`null`", bool: "`true`, `false`", float: "number", int: "integer", str: "text"}.get(
        hint, getattr(hint, "__name__", str(hint))
    )


def _default(part) -> str:
    value = part.default_factory() if part.default_factory is not MISSING else part.default
    if value is MISSING:
        return "required"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, tuple | list):
        return f"[{', '.join(f'{item:g}' if isinstance(item, float) else str(item) for item in value)}]"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _cell(text: str) -> str:
    return text.replace("|", r"\|").replace("<", "&lt;")
