"""The steps of the Dockerfile are those of the Makefile and of .ci/run. No image is built here: no daemon is needed."""

import json
import os
import re
import subprocess
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).parent.parent


def instructions(text):
    """[(name, rest)] of a Dockerfile, lines that go on joined, comments dropped."""
    lines = re.sub(r"\\\n\s*", "", re.sub(r"^#.*\n", "", text, flags=re.MULTILINE)).splitlines()
    return [tuple(line.split(None, 1)) for line in lines if line.strip()]


STEPS = instructions((ROOT / "Dockerfile").read_text())


def stage(name):
    """The instructions of one stage."""
    start = next(number for number, (_, rest) in enumerate(STEPS) if rest.endswith(f" AS {name}"))
    ends = [number for number, (word, _) in enumerate(STEPS) if word == "FROM" and number > start]
    return STEPS[start + 1 : min([*ends, len(STEPS)])]


def runs(name):
    return [rest for word, rest in stage(name) if word == "RUN"]


def shell_lines(target):
    """What make would run for a target, from nothing."""
    command = ["make", "--dry-run", "--always-make", "--no-print-directory", "VENV=nowhere", target]
    own = {key: value for key, value in os.environ.items() if not key.startswith("MAKE")}  # not of a make around it
    return subprocess.run(command, cwd=ROOT, env=own, capture_output=True, text=True, check=True).stdout.splitlines()


def test_every_step_is_a_target_of_the_makefile():
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    system, *made = [rest for word, rest in STEPS if word == "RUN"]
    assert system.startswith("apt-get update")
    assert {tuple(step.split()) for step in made} == {("make", "install"), ("make", "test")}
    assert {"install", "test"} <= targets


def test_the_installation_is_the_one_that_the_other_targets_do_first():
    installing = shell_lines("install")
    assert any("pip install" in line for line in installing)
    for target in ("train", "suite", "lint", "bench"):
        assert shell_lines(target)[: len(installing)] == installing


def test_the_tested_image_runs_what_ci_runs():
    script = (ROOT / ".ci/run").read_text().splitlines()
    ci = [line for line in script if line and not line.startswith(("#", "set ", "cd "))]
    assert runs("tested") == ci


def test_the_system_has_what_the_makefile_asks_for():
    assert "nothing but Python 3.11-3.13 and a C++ compiler" in (ROOT / "Makefile").read_text()
    packages = re.search(r"apt-get install [-\w ]*?((?: [a-z][\w+]*)+) *&&", runs("installed")[0])[1].split()
    assert packages == ["make", "g++"]
    image = next(rest for word, rest in STEPS if word == "FROM")
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    assert SpecifierSet(wanted).contains(re.match(r"python:(\d+\.\d+)-slim", image)[1])


def test_a_container_is_the_command():
    last = dict(stage("fastmfr"))
    assert [*json.loads(last["ENTRYPOINT"]), *json.loads(last["CMD"])] == ["python", "-m", "fastmfr", "--help"]
    places = dict(stage("installed"))
    assert f"PATH={places['WORKDIR']}/.venv/bin:$PATH" in last["ENV"].split()


def ignored(path):
    """Whether .dockerignore leaves a path out; its patterns hold for parts of paths, those with **/ in any folder."""
    patterns = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if not line.startswith("#")]
    parts = path.split("/")
    return any(
        fnmatch(part, pattern.removeprefix("**/"))
        for pattern in patterns
        for part in (parts if pattern.startswith("**/") else parts[:1])
    )


def test_what_git_ignores_stays_out_of_the_image():
    for line in (ROOT / ".gitignore").read_text().split():
        assert ignored(line.rstrip("/").replace("*", "x")), f"{line} would be copied into the image"
    assert ignored(".git/HEAD")
    assert ignored("fastmfr/decode/__pycache__/x.pyc")


@pytest.mark.parametrize("folder", ["fastmfr", "kernels", "csrc", "tests", "bench", "docs", ".ci", "."])
def test_everything_else_comes_into_the_image(folder):
    found = [path for path in (ROOT / folder).glob("**/*" if folder != "." else "*") if path.is_file()]
    names = [str(path.relative_to(ROOT)) for path in found]
    built = [name for name in names if re.search(r"\.so$|__pycache__|\.egg-info|_cache/|^\.git$|\.benchmarks", name)]
    assert names
    assert [name for name in names if ignored(name)] == [name for name in names if name in built]
