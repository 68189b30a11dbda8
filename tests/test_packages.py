"""What is handed out, an sdist and a wheel, holds what it needs and nothing else; `make wheel` makes and tries both.

FASTMFR_DIST is a folder with both. Without the folder, these tests make an sdist, and of its content all parts of a
wheel that need no compiler.
"""

import email
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest
import yaml

import fastmfr

ROOT = Path(__file__).parent.parent
MADE = Path(os.environ["FASTMFR_DIST"]).resolve() if "FASTMFR_DIST" in os.environ else None
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
FOLDERS = ("fastmfr", "kernels", "csrc", "docs")
LEFT_OUT = shutil.ignore_patterns("__pycache__", "*.so", ".ipynb_checkpoints")
pytestmark = pytest.mark.slow
when_made = pytest.mark.skipif(not MADE, reason="building takes minutes; see `make wheel`")


def files(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def python(code, folder, path):
    """Run code in another process, in `folder`."""
    environment = os.environ | {"PYTHONPATH": str(path), "PYTHONWARNINGS": "ignore"}
    ran = subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """The files that a clone has, without what was built in it."""
    source = tmp_path_factory.mktemp("clone")
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, source / folder, ignore=LEFT_OUT, symlinks=True)
    (source / "fastmfr/kernels").unlink(missing_ok=True)  # a link that some installations make
    for path in ROOT.iterdir():
        if path.is_file() and path.name != ".git":
            shutil.copy(path, source)
    return source


@pytest.fixture(scope="module")
def without_pybind11(tmp_path_factory):
    """A stand-in for pybind11, which setup.py imports, and which compiling alone needs."""
    stand_in = tmp_path_factory.mktemp("path")
    (stand_in / "pybind11.py").touch()
    return stand_in


@pytest.fixture(scope="module")
def sdist(source, without_pybind11, tmp_path_factory):
    """The content of an sdist, in a folder."""
    place = tmp_path_factory.mktemp("sdist")
    if not MADE:
        copy = shutil.copytree(source, place / "copy")  # the build writes into it
        code = f"from setuptools import build_meta; build_meta.build_sdist({str(place)!r})"
        python(code, copy, without_pybind11)
    (packed,) = (MADE or place).glob("*.tar.gz")
    with tarfile.open(packed) as archive:
        archive.extractall(place / "content", filter="data")
    (content,) = (place / "content").iterdir()
    return content


@pytest.fixture(scope="module")
def wheel(sdist, without_pybind11, tmp_path_factory):
    """The content of a wheel, in a folder: of the finished one, or what setuptools puts in it without compiling."""
    content = tmp_path_factory.mktemp("wheel") / "content"
    if MADE:
        (packed,) = MADE.glob("*.whl")
        with zipfile.ZipFile(packed) as archive:
            archive.extractall(content)
    else:
        copy = shutil.copytree(sdist, content.parent / "copy")
        steps = (
            f"import sys; sys.argv = ['setup.py', '-q', 'build_py', '--build-lib', {str(content)!r}]",
            "import runpy; runpy.run_path('setup.py', run_name='__main__')",
            "from setuptools import build_meta; build_meta.prepare_metadata_for_build_wheel('.')",
        )
        python("\n".join(steps), copy, without_pybind11)
        (metadata,) = copy.glob("*.dist-info")
        metadata.rename(content / metadata.name)
    return content


def test_the_sdist_holds_all_that_it_is_built_from(source, sdist):
    built_from = {name for name in files(source) if name.startswith(("fastmfr/", "kernels/", "csrc/", "docs/"))}
    built_from |= {"setup.py", "pyproject.toml", "CMakeLists.txt", "README.md", "LICENSE", "CITATION.cff"}
    assert len(built_from) > 200
    assert built_from - files(sdist) == set()


def test_the_sdist_holds_nothing_that_was_built_and_no_half_of_the_tests(source, sdist):
    extra = files(sdist) - files(source) - {"PKG-INFO", "setup.cfg"}
    assert {name for name in extra if not name.startswith("fastmfr.egg-info/")} == set()


def test_the_wheel_holds_the_package_and_the_kernels(source, wheel):
    wanted = {f"fastmfr/{name}" for name in files(source / "fastmfr")}
    wanted |= {f"fastmfr/kernels/{name}" for name in files(source / "kernels")}
    got = {name for name in files(wheel) if ".dist-info/" not in name}
    compiled = {name for name in got if re.fullmatch(r"fastmfr/_native\.cpython-\d+-x86_64-linux-gnu\.so", name)}
    assert got - compiled == wanted
    assert len(compiled) == bool(MADE)


def test_the_wheel_says_what_it_needs_and_carries_every_licence(wheel):
    (info,) = wheel.glob("*.dist-info")
    metadata = email.message_from_string((info / "METADATA").read_text())
    assert metadata["License-Expression"] == "Apache-2.0"
    needed = {re.sub(r"\s", "", line) for line in metadata.get_all("Requires-Dist", []) if "extra ==" not in line}
    assert {re.match(r"[\w.-]+", line)[0] for line in needed} == {
        re.match(r"[\w.-]+", line)[0] for line in PROJECT["dependencies"]
    }
    assert all(re.search(r"[<>=]", line) for line in needed), "a dependency without bounds"
    assert (info / "licenses/LICENSE").read_text() == (ROOT / "LICENSE").read_text()
    assert "Wenzel Jakob" in (info / "licenses/csrc/LICENSE.pybind11").read_text()


def test_every_place_that_says_the_version_says_the_same():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"]
    assert PROJECT["version"] == fastmfr.__version__ == str(cited)


@when_made
def test_the_wheel_is_for_many_linuxes():
    (packed,) = MADE.glob("*.whl")
    assert re.search(r"-manylinux_2_\d+_x86_64\.whl$", packed.name)


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """run(words) in an empty folder, in an environment that has the wheel and sees the packages that it needs here."""
    place = tmp_path_factory.mktemp("installed")
    venv.create(place / "venv", with_pip=False, symlinks=True)
    own = place / "venv/bin/python"
    (packages,) = place.glob("venv/lib/python*/site-packages")
    here = [path for path in sys.path if any(Path(path).glob("*.dist-info"))]
    (packages / "here.pth").write_text("".join(f"{path}\n" for path in here))  # the .pth files there are not followed
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", str(own)]
    (packed,) = MADE.glob("*.whl")
    subprocess.run([*pip, "install", "--quiet", "--no-deps", "--ignore-installed", str(packed)], check=True)
    (place / "empty").mkdir()
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}

    def run(*words):
        words = [str(own) if word == "python" else word for word in words]
        ran = subprocess.run(words, cwd=place / "empty", env=environment, capture_output=True, text=True)
        assert ran.returncode == 0, ran.stdout + ran.stderr
        return ran.stdout

    run.pip = pip
    run.packages = packages
    return run


@when_made
def test_what_the_wheel_needs_is_what_it_is_tested_with(installed):
    checked = subprocess.run([*installed.pip, "check"], capture_output=True, text=True)
    assert [line for line in checked.stdout.splitlines() if line.startswith("fastmfr ")] == []


@when_made
def test_the_installed_wheel_runs_in_an_empty_folder(installed):
    assert "inspect DOMAIN" in installed("python", "-m", "fastmfr", "--help")
    faces = "from fastmfr.synthetic import write_folders as w; w('faces/nir', 'nir', identities=3, images=2, size=32)"
    installed("python", "-c", faces)
    assert "nir" in installed("python", "-m", "fastmfr", "inspect", "faces/nir")


@when_made
def test_the_compiled_part_and_the_kernels_are_those_of_the_wheel(installed):
    code = "import fastmfr.native, fastmfr._native as n, fastmfr.kernels as k; print(n.__file__, k.__file__)"
    places = installed("python", "-c", code).split()
    assert [Path(place).is_relative_to(installed.packages) for place in places] == [True, True]
