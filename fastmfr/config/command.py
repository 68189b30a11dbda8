"""From a command line and a recipe to a Config; whatever is wrong there is answered with a sentence."""

import copy
import difflib
import re
import sys
import typing
import warnings
from argparse import ArgumentError
from collections.abc import Iterator, Sequence
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, set_parsing_settings

from fastmfr.config.margins import MARGINS
from fastmfr.config.model_settings import is_code
from fastmfr.config.sections import DOMAINS, Config, Pretrain, flattened
from fastmfr.config.yaml_file import read_yaml

DESCRIPTION = """Pretrain a face model on several source domains, meta-train it by MFR, score it on unseen ones.
Without arguments: procedural faces, about five minutes on two CPU cores."""
# What jsonargparse says of a wrong choice: the setting, the choices, the value.
CHOICE = re.compile(r"key [\"'](\S+?)[\"']: .*Literal\[(.*?)\].*?(?:Got|Given) value: (.*)$")
# And of a value that is none of several types, and of a value for a section.
UNION = re.compile(r"key [\"'](\S+?)[\"']: Does not validate .*?\[(.*?)\] Errors: .* Given value: (.*)$")
SECTION = re.compile(r"key [\"'](\S+?)[\"']: Unable to load config ['\"](.*?)['\"]")
KINDS = {
    "int": "a whole number",
    "float": "a number",
    "auto": "'auto'",
    "NoneType": "null",
    "str": "text",
    "tuple[float, ...]": "numbers",
}
INSTEAD = {"--meta.order": "--meta.method"}  # what the library calls otherwise than a recipe
WRONG = (ArgumentError, ValueError, KeyError, TypeError)  # what a wrong name or value raises there
_CHECKED: set[str] = set()  # what this process has read of recipes and found right
RECIPES = Path(__file__).parent.parent / "recipes"


def _recipe(name) -> dict:
    """A recipe's content by name (of the package) or by path."""
    path = RECIPES / f"{name}.yaml" if not str(name).endswith((".yaml", ".yml")) else Path(name)
    if not path.is_file():
        ours = ", ".join(sorted(recipe.stem for recipe in RECIPES.glob("*.yaml")))
        raise ValueError(f"there is no recipe {name!r}; want a .yaml file or one of {ours}")
    content = read_yaml(path) or {}
    if not isinstance(content, dict):
        raise ValueError(f"{path} should hold sections such as `data:`, but it holds {type(content).__name__}")
    for section in ("data", "model", "pretrain", "meta", "choose", "evaluate", "profile"):
        if not isinstance(content.setdefault(section, {}), dict):
            raise ValueError(f"{path} should hold settings below `{section}:`, but it holds {content[section]!r}")
    if not isinstance(content["data"].setdefault("synthetic", {}), dict):
        raise ValueError(
            f"{path} should hold settings below `synthetic:`, but it holds {content['data']['synthetic']!r}"
        )
    return content


def _options(kind: type = Config, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted name, type) of every setting."""
    types = typing.get_type_hints(kind)
    for part in fields(kind):
        if hasattr(types[part.name], "__dataclass_fields__"):
            yield from _options(types[part.name], f"{prefix}{part.name}.")
        else:
            yield f"{prefix}{part.name}", types[part.name]


def _takes_several(kind) -> bool:
    """Whether a setting of this type is a tuple."""
    return tuple in (typing.get_origin(part) for part in (kind, *typing.get_args(kind)))


def _sentence(error, argv):
    """jsonargparse's complaint in one sentence; for a wrong name, with the nearest option."""
    text = " ".join(str(error).split()).replace("<class '", "").replace("'>", "")
    text = text.replace("typing.Literal['auto']", "auto")
    if not text.startswith("unrecognized arguments:"):
        if choice := CHOICE.search(text):
            name, wanted, got = choice.groups()
            return f"want {name} out of {wanted.replace(',', ', ').replace('  ', ' ')}, got {got!r}"
        if union := UNION.search(text):
            name, kinds, got = union.groups()
            wanted = " or ".join(KINDS.get(kind, kind) for kind in re.split(r", (?!\.)", kinds))
            return f"want {name} as {wanted}, got {got}"
        if section := SECTION.search(text):
            name, got = section.groups()
            return f"{name} is a section: want --{name}.NAME VALUE or a .yaml file of its settings, got {got!r}"
        return text.replace('Parser key "', 'the option "')
    known = ["--config", "--resume", "--print_config", *(f"--{name}" for name, _ in _options())]
    words = (word.split("=")[0] for word in argv if word.startswith("--"))
    wrong = next((word for word in words if word in text), "")
    if not wrong:
        return f"{text.partition(': ')[2]!r} is no option; options begin with -- (--help lists them all)"
    near = [name for name in known if name.endswith("." + wrong.lstrip("-")) or name == INSTEAD.get(wrong)]
    near = near or difflib.get_close_matches(wrong, known, n=1, cutoff=0.6)
    return f"there is no option {wrong}" + (f"; did you mean {near[0]}?" if near else "") + " (--help lists them all)"


def parse(
    argv: Sequence[str], *, prog: str = "python -m fastmfr.train", default: str = "quickstart"
) -> tuple[Config, str | None]:
    """Read a command line.

    Domains typed as --data.sources.NAME PATH replace all of the recipe's sources; so do those of --data.targets and
    --data.pretrain.

    Args:
        argv: the words after the command. Only here may model.name be package.module:factory, and not in a recipe.
        prog: the command, for --help.
        default: the recipe if there is no --config.

    Returns:
        The settings, and the run folder to resume, or None.

    Raises:
        SystemExit: with status 2 after a sentence on a wrong name or value; with 0 after --help and --print_config.
    """
    show = "--print_config" in argv  # jsonargparse has its own meaning for the word, bound to its own --config
    argv = [word for word in argv if word != "--print_config"]
    try:
        config, resume, note = _read(argv, prog, default)
    except WRONG as error:
        print(f"error: {_sentence(error, argv)}", file=sys.stderr)
        raise SystemExit(2) from None
    if note:
        print(f"note: {note}", file=sys.stderr)
    if show:
        print(config.to_yaml(), end="")
        raise SystemExit(0)
    return config, resume


def load_config(recipe: Path | str, *, code: bool = False) -> Config:
    """Read the settings in a recipe: a name of the package's, or a .yaml file such as a run's config.yaml.

    Args:
        recipe: the name or the file.
        code: whether model.name may be package.module:factory, which imports and calls code.

    Raises:
        ValueError: no such recipe, or a wrong name or value in it.
    """
    try:
        return _read(["--config", str(recipe)], "", "", code=code)[0]
    except WRONG as error:
        raise ValueError(f"{recipe}: {_sentence(error, [])}") from None


def _read(argv, prog, default, *, code=False):
    """(Config, run folder to resume or None, a note or "")."""
    parser = copy.deepcopy(_parser(prog, default))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        chosen, resume = _before(argv, "--config", default), _before(argv, "--resume", None)
        if resume is not None:
            if not resume.strip():
                raise ValueError("want a run folder behind --resume, got nothing")
            chosen = str(Path(resume) / "config.yaml")
            if not Path(chosen).is_file():
                raise ValueError(f"{resume} is no run folder: it has no config.yaml")
        content = _recipe(chosen)
        for side in DOMAINS:
            if any(word.startswith(f"--{side}.") for word in argv):
                content["data"][side.removeprefix("data.")] = {}
        if not code and _before(argv, "--model.name", None) is None:
            _refuse_code(chosen, content["model"].get("name"))
        _as_meant(content)
        if repr(content) not in _CHECKED:  # a check takes as long as all the rest
            parser.parse_object(content)  # defaults are not checked, an object is
            _CHECKED.add(repr(content))
        several = {name for name, kind in _options() if _takes_several(kind)}
        made, note = _made(parser, content, _with_brackets(argv, several))
    return Config(**{part.name: getattr(made, part.name) for part in fields(Config)}), resume, note


def _refuse_code(recipe, name):
    """Raise ValueError if a file names a factory, which is code: only the command line may."""
    if isinstance(name, str) and is_code(name):
        raise ValueError(
            f"{recipe} has the backbone {name}, which is code to be imported and called, and no file may have that "
            f"done; if you trust the code, type --model.name {name} too, or in Python give code=True"
        )


@cache
def _parser(prog, default):
    """The parser as it is before a recipe gives its defaults; to make it takes longer than to read a command line."""
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser(prog=prog, description=DESCRIPTION, exit_on_error=False, allow_abbrev=False)
    parser.add_argument("--config", default=default, help="a recipe: a name of the package's, or a .yaml file")
    parser.add_argument("--resume", metavar="RUN", help="go on with the run in this folder, with its settings")
    parser.add_argument("--print_config", action="store_true", help="print all settings as a recipe, and stop")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        parser.add_class_arguments(Config, as_group=False)
    return parser


def _as_meant(content):
    """In a recipe, a number becomes a list of one if its setting takes several, and True and False, which YAML reads
    where on and off stand without quotes, become "on" and "off" if its setting takes these."""
    for name, kind in _options():
        section, _, last = name.rpartition(".")
        held = content.get(section, {}) if section else content
        value = held.get(last)
        if _takes_several(kind) and isinstance(value, int | float):
            held[last] = [value]
        elif isinstance(value, bool) and {"on", "off"} <= set(typing.get_args(kind)):
            held[last] = "on" if value else "off"


def _with_brackets(argv, several):
    """The command line with brackets around bare numbers: 0.01 and 0.01,0.001 become lists."""
    words, takes = [], False
    for word in argv:
        name, equals, value = word.partition("=")
        if takes and not word.startswith(("[", "(", "null")):
            word = f"[{word}]"
        elif equals and name.removeprefix("--") in several and not value.startswith(("[", "(", "null")):
            word = f"{name}=[{value}]"
        takes = not equals and word.removeprefix("--") in several
        words.append(word)
    return words


def _made(parser, content, argv):
    """(settings, a note or ""): the recipe's, then those of the command line.

    The recipe's margin values are of its margin: another one typed takes its own numbers, and the note says so.
    """
    values = content["pretrain"].pop("margin_values", None)
    parser.set_defaults({**flattened(content), "pretrain.margin_values": None})
    given, note = parser.parse_args(argv), ""
    margin, typed = content["pretrain"].get("margin", Pretrain.margin), given["pretrain.margin"]
    if values and not given["pretrain.margin_values"]:
        if margin == typed:
            given["pretrain.margin_values"] = tuple(values)
        elif typed in MARGINS:
            own = ", ".join(f"{name} {value:g}" for name, value in MARGINS[typed].items())
            note = (
                f"the recipe's margin values {list(values)} are of {margin!r}; {typed!r} takes its own ({own}): "
                "give --pretrain.margin_values for others"
            )
    return parser.instantiate(given), note


def _before(argv, option, default):
    """The value of an option that decides how the others are read."""
    for place, word in enumerate(argv):
        if word == option and place + 1 < len(argv):
            return argv[place + 1]
        if word.startswith(option + "="):
            return word.split("=", 1)[1]
    return default
