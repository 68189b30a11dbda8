"""The README and docs/ say what is true: every command parses or runs, every link leads somewhere, nothing is left out.

The site itself is built by `make docs`, with warnings as errors; what can be checked in seconds is checked here.
"""

import importlib
import json
import re
import shlex
import shutil
from contextlib import nullcontext
from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest
import yaml
from evaluation_fakes import class_folder, face, lfw_bin
from pack_fakes import tar
from test_readme import docs_module

from fastmfr.__main__ import MODULES
from fastmfr.__main__ import main as run_command
from fastmfr.config import Config, load_config, parse

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
generate = docs_module("generate")

LANGUAGES = {"sh", "python", "yaml", "text"}
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")

# Commands of other programs, and commands that take hours, a GPU or an installation: why each is not run here.
NOT_RUN = {
    "make": "installs a virtual environment; its target is looked up",
    "pip": "installs; its extras are looked up",
    "docker": "builds and starts images; options behind an image's name are parsed",
    "tensorboard": "a server that does not end",
    "torchrun": "several processes; the options behind it are parsed",
    "python -m fastmfr prove": "an hour; its options are parsed",
    "python -m fastmfr.train": "minutes; its options are parsed, and one of them is run below at toy size",
    "python -m fastmfr export": "what tests/test_export.py tries; its options are parsed",
    "python -m fastmfr evaluate": "data of others; its options are parsed, and the first of evaluating.md is run",
}
RUN = tuple(f"python -m fastmfr {name}" for name in ("inspect", "pack", "split", "report", "embed"))
TOY = [
    *("--threads=1", "--data.threads=1", "--data.size=16", "--data.decode=pillow", "--model.width=0.0625"),
    *("--pretrain.steps=2", "--pretrain.batch_identities=6", "--save_every=1"),
    *("--meta.steps=1", "--meta.batch_identities=4", "--meta.alpha=0.01"),
]


def blocks(page, language):
    return [text for kind, text in FENCE.findall(page.read_text()) if kind == language]


def commands(page):
    """The shell commands of a page, lines that go on joined, comments dropped."""
    for block in blocks(page, "sh"):
        for line in block.replace("\\\n", " ").splitlines():
            if words := shlex.split(line, comments=True):
                yield " ".join(words)


ALL = sorted({command for page in PAGES for command in commands(page)} | set(commands(ROOT / "CONTRIBUTING.md")))
ALL += [command for command in re.findall(r"```sh\n(.*?)\n```", generate.recipes_page()) if command not in ALL]


def other_sources(place):
    """What the commands of pack name: sources with names of their own, and a list of pairs."""
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    people = [(person, face(person, image)) for person in range(3) for image in range(2)]
    table = {"crop": [image for _, image in people], "person_name": [f"p{person}" for person, _ in people]}
    parquet.write_table(pyarrow.table(table), place / "crops.parquet")
    for number in range(2):
        samples = [
            (f"{number}{k}.{end}", content)
            for k, (person, image) in enumerate(people)
            for end, content in (("jpg", image), ("json", json.dumps({"person": f"p{person}"}).encode()))
        ]
        tar(place / f"shard-{number}.tar", samples)
    tar(place / "flat.tar", [(f"cam/{person}_c{k}.jpg", image) for k, (person, image) in enumerate(people)])
    images = sorted(path.relative_to(place / "faces/asia") for path in (place / "faces/asia").rglob("*.jpg"))
    (place / "train.lst").write_text("".join(f"{k}\t{k % 2}.000000\t{image}\n" for k, image in enumerate(images)))
    for person, image in {(person, k % 2) for k, (person, _) in enumerate(people)}:
        (place / f"lfw/aligned/p{person}").mkdir(parents=True, exist_ok=True)
        (place / f"lfw/aligned/p{person}/p{person}_{image + 1:04d}.jpg").write_bytes(face(person, image))
    (place / "lfw/pairs.txt").write_text("p0\t1\t2\np0\t1\tp1\t1\n")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder in which the commands of the docs find what they name, at toy size, with a run that one of them made."""
    place = tmp_path_factory.mktemp("docs")
    for name in ("asia", "europe", "webcam", "nir", "casia", "meglass"):
        class_folder(place / "faces" / name)
    for name in ("one.jpg", "two.jpg"):
        (place / name).write_bytes(face(0, len(name)))
    shutil.copytree(ROOT / "bench" / "proof", place / "bench" / "proof")
    (place / "bins").mkdir()
    lfw_bin(place / "bins/lfw.bin")
    other_sources(place)
    (place / "sets.yaml").write_text("lfw: bins/lfw.bin\n")
    points = "6,8,11,8,8,11,6,13,10,13"
    listed = [path.relative_to(place) for path in sorted((place / "faces/asia").rglob("*.jpg"))]
    (place / "asia.csv").write_text("".join(f"{path},{points}\n" for path in listed))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        (first,) = [command for command in commands(ROOT / "docs/data.md") if "--data.holdout" in command]
        assert run_command(["train", *first.split()[3:], *TOY, "--folder=made"]) == 0
    (run,) = (place / "made").iterdir()
    for name in ("report.html", "roc.png", "training.png", "domains.png", "gap.png", "hardest.png", "environment.json"):
        assert (run / name).stat().st_size > 0
    for name in ("NAME", "OTHER", "FIRST", "SECOND"):
        shutil.copytree(run, place / "runs" / name)
    assert run_command(["export", str(run), "--classifier", "--out", str(place / "classifier.safetensors")]) == 0
    return place


def parsed(command):
    """Reads the options of a command as the command would; SystemExit 2 if one is wrong."""
    words = command.partition(" > ")[0].split()
    if words[0] == "torchrun":
        words = ["python", *words[words.index("-m") :]]
    if words[1:3] == ["-m", "fastmfr.train"]:
        return parse(words[3:])
    if words[1:3] == ["-m", "fastmfr"]:
        assert words[3] in MODULES, f"there is no command {words[3]}"
        if words[3] == "train":
            return parse(words[4:])
        parser = importlib.import_module(MODULES[words[3]])._parser()
        options, rest = parser.parse_known_args(words[4:])
        if words[3] not in ("evaluate", "prove"):
            assert not rest, f"there are no options {rest}"
        return parse([*(["--config", options.config] if getattr(options, "config", None) else []), *rest])
    pytest.fail(f"nothing here reads the options of {command!r}")


@pytest.mark.parametrize("command", ALL)
def test_a_command_parses(command, place, monkeypatch):
    monkeypatch.chdir(place)
    assert command.startswith((*NOT_RUN, *RUN)), "run it here or say in NOT_RUN why not"
    program, *words = command.split()
    if program == "make":
        assert re.search(rf"^{words[0]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
    elif program == "pip":
        assert words[0] in ("install", "uninstall")
        extras = re.findall(r"[\w-]+", words[1].partition("[")[2])
        assert all(f"\n{extra} = [" in (ROOT / "pyproject.toml").read_text() for extra in extras)
    elif program == "docker":
        assert words[-1] == "." or command.startswith("docker run ")
        if words[0] == "run" and (rest := words[words.index("fastmfr") + 1 :]):
            parsed(" ".join(["python", "-m", "fastmfr", *rest]))
    elif program != "tensorboard":
        with nullcontext() if "--print_config" not in words else pytest.raises(SystemExit, match="0"):
            parsed(command)


@pytest.mark.usefixtures("place", "undrawn")  # the pictures of `place` are drawn
@pytest.mark.parametrize("command", [command for command in ALL if command.startswith(RUN)])
def test_a_command_runs(command, place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    assert run_command(command.split()[3:]) == 0, capsys.readouterr().err


def test_the_first_evaluation_runs(place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    command = next(commands(ROOT / "docs/evaluating.md"))
    assert run_command([*command.split()[3:], "--out", "evaluation.json"]) == 0, capsys.readouterr().err


def test_a_wrong_option_would_be_found():
    with pytest.raises(SystemExit, match="2"):
        parsed("python -m fastmfr.train --meta.ordre 1")


# The blocks of this page go on from each other: tests/test_python_api.py runs them in one go and reads what they print.
IN_ONE_GO = ROOT / "docs/python.md"
ALONE = [page for page in PAGES if page != IN_ONE_GO]


@pytest.mark.parametrize("page", ALONE, ids=[str(page.relative_to(ROOT)) for page in ALONE])
def test_blocks_of_python_run(page, place, monkeypatch):
    monkeypatch.chdir(place)
    for block in blocks(page, "python"):
        exec(compile(block, str(page), "exec"), {})


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CONTRIBUTING.md"], ids=[*NAMES, "CONTRIBUTING.md"])
def test_every_block_names_its_language(page):
    assert {kind for kind, _ in FENCE.findall(page.read_text())} <= LANGUAGES


def anchor(heading):
    """The id that the site, and GitHub, make of a heading."""
    return re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", heading.lower())).strip("-")


@pytest.mark.parametrize("page", [*PAGES, *(ROOT / name for name in ("CONTRIBUTING.md", "CHANGELOG.md", "LOG.md"))])
def test_every_link_leads_somewhere(page):
    generated = {"options.md", "recipes.md", "recorded-runs.md"}
    for link in LINK.findall(page.read_text()):
        if link.startswith("https://"):
            continue
        path, _, part = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists() or target.name in generated, f"{page.name}: {link}"
        if part:
            headings = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE)
            assert part in map(anchor, headings), f"{page.name}: {link}"


def nav_pages(nav):
    for entry in nav:
        (value,) = entry.values()
        yield from [value] if isinstance(value, str) else nav_pages(value)


def test_every_page_is_in_the_navigation_and_there():
    site = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    listed = set(nav_pages(site["nav"]))
    made = {"options.md", "recipes.md", "recorded-runs.md"}
    made |= {f"notebooks/{path.stem}.md" for path in (ROOT / "docs/notebooks").glob("*.ipynb")}
    pages = {str(page.relative_to(ROOT / "docs")) for page in PAGES[1:]}
    assert pages <= listed
    for name in listed - pages:
        assert (ROOT / name).exists() or name in made, name


def names(section=Config, prefix=""):
    for part in fields(section):
        inner = getattr(Config(), part.name, None) if section is Config else getattr(section(), part.name)
        if is_dataclass(inner):
            yield from names(type(inner), f"{prefix}{part.name}.")
        else:
            yield f"{prefix}{part.name}"


def test_the_page_of_options_has_every_field_with_its_meaning():
    page = generate.options_page()
    for name in names():
        row = next((line for line in page.splitlines() if line.startswith(f"| `--{name}` |")), None)
        assert row, f"{name} is not among the options"
        assert len(row.split(" | ")[-1].strip(" |")) > 2, f"{name} has no docstring"


def test_the_page_of_recipes_has_every_recipe():
    page = generate.recipes_page()
    for path in generate.RECIPES.glob("*.yaml"):
        assert f"## {path.stem}\n" in page
        load_config(path.stem)


def test_the_api_pages_name_what_can_be_imported():
    for page in (ROOT / "docs/api").glob("*.md"):
        for name in re.findall(r"^::: (\S+)$", page.read_text(), re.MULTILINE):
            module, _, attribute = name.rpartition(".")
            found = getattr(importlib.import_module(module), attribute)
            assert found.__doc__, f"{name} has no docstring"


# What outside code relies on; it stays importable and documented.
PUBLIC = {
    "kernels": ("margin_softmax", "cos_lse", "CosFace", "ArcFace", "Combined", "make_margin"),
    "margin_losses": ("MarginSoftmaxLoss", "CosFaceLoss", "ArcFaceLoss"),
    "batch_sampler": ("PairBatchSampler", "SplitBatchSampler"),
    "losses": ("hard_pair", "soft_classification", "domain_alignment"),
    "meta": ("meta_gradient", "MetaGradient", "MetaTrainer", "MetaSettings", "splits_of_batch"),
    "domains": ("open_domain",),
    "sampler": ("GroupedDomainSampler",),
    "evaluate": ("verification", "identification", "tar_at_far"),
    "backbone": ("build",),
    "weights": ("open_model",),
    "training": ("Run",),
}


@pytest.mark.parametrize(("module", "attribute"), [(module, name) for module, of in PUBLIC.items() for name in of])
def test_a_public_name_is_documented(module, attribute):
    assert hasattr(importlib.import_module(f"fastmfr.{module}"), attribute)
    text = "\n".join(page.read_text() for page in (ROOT / "docs/api").glob("*.md"))
    assert re.search(rf"^::: fastmfr\.{module}\.([\w.]+\.)?{attribute}$", text, re.MULTILINE)
