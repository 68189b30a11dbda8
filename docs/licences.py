"""Write the page of third-party licences out of the metadata of installed packages: `python docs/licences.py`.

Of the extras, every package that fastmfr imports must be installed: pip install -e '.[parquet,timm,export]'.
"""

import platform
import tomllib
from collections.abc import Iterable, Iterator
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs/licences.md"
IMPORTED = ("parquet", "timm", "export")  # the extras that fastmfr itself imports; the others are for working on it
SHORT = 50  # characters; a longer text is no name of a licence
HEADER = """# Third-party licences

Written by `python docs/licences.py` out of the metadata of the installed packages.

fastmfr is under Apache-2.0. fastmfr holds no code of others but pybind11, which is compiled into the wheel: pybind11
is under BSD-3-Clause, and its text, `csrc/LICENSE.pybind11`, comes with the wheel. pip installs everything else, each
package under its own licence. The metadata of a package names the licence of the package, and not always those of
libraries inside its files; read the texts in the package's `dist-info` folder.

## What fastmfr asks for

| package | versions | for | licence | read of version |
|---|---|---|---|---|
"""
MIDDLE = """
## What these bring along

Without the extras, on Linux with Python {python} and PyTorch's build for the CPU. Another build, another version or
another Python brings others. PyTorch's builds for CUDA also bring NVIDIA's libraries, under NVIDIA's terms. DALI brings
the packages `nvidia-*` of this list, some of which are proprietary; fastmfr also runs
[without DALI](installing.md#without-dali).

| package | licence | read of version |
|---|---|---|
"""


def asked_for() -> Iterator[tuple[Requirement, str]]:
    """Yield (requirement, what the package is for) of every package that fastmfr imports, as pyproject.toml has it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for line in project["dependencies"]:
        yield Requirement(line), "everything"
    for extra in IMPORTED:
        for line in project["optional-dependencies"][extra]:
            yield Requirement(line), f"extra `{extra}`"


def brought_along(requirements: Iterable[Requirement]) -> dict[str, Distribution]:
    """Return {name: package} of all that the required packages require in turn, without the required ones."""
    requirements = list(requirements)
    direct = {canonicalize_name(one.name) for one in requirements}
    found, waiting, seen = {}, requirements, set()
    while waiting:
        one = waiting.pop()
        name, package = canonicalize_name(one.name), installed(one.name)
        found[name] = package
        for extra in ("", *one.extras):
            if (name, extra) not in seen:
                seen.add((name, extra))
                inner = [Requirement(line) for line in package.requires or ()]
                waiting += [one for one in inner if _applies(one, extra)]
    return {name: found[name] for name in sorted(found.keys() - direct)}


def _applies(requirement, extra):
    """Whether a requirement holds on this machine, with this extra of the package that has the requirement."""
    marker = requirement.marker
    if not extra:
        return not marker or marker.evaluate({"extra": ""})
    return bool(marker) and marker.evaluate({"extra": extra}) and not marker.evaluate({"extra": ""})


def installed(name: str) -> Distribution:
    """Return an installed package.

    Raises:
        SystemExit: the package is not installed; the sentence says how to install what this script reads.
    """
    try:
        return distribution(name)
    except PackageNotFoundError:
        raise SystemExit(
            f"the licence of {name} cannot be read, because it is not installed; want all that fastmfr imports: "
            f"pip install -e '.[{','.join(IMPORTED)}]'"
        ) from None


def licence(package: Distribution) -> str:
    """Return the licence that the metadata of a package names: an expression, else a short name, else classifiers."""
    metadata = package.metadata
    short = (metadata.get("License") or "").strip()
    classified = [line.split(" :: ")[-1] for line in metadata.get_all("Classifier", []) if line.startswith("License")]
    short = short if "\n" not in short and len(short) <= SHORT else ""
    return metadata.get("License-Expression") or short or ", ".join(classified) or "see its files"


def page() -> str:
    """Return the Markdown of the whole page."""
    asked = list(asked_for())
    lines = [HEADER.rstrip()]
    for one, use in asked:
        package = installed(one.name)
        bounds = ",".join(sorted(str(one.specifier).split(","), reverse=True))
        lines.append(f"| {one.name} | {bounds} | {use} | {licence(package)} | {package.version} |")
    python = ".".join(platform.python_version_tuple()[:2])
    lines += MIDDLE.format(python=python).rstrip().split("\n")
    always = [one for one, use in asked if use == "everything"]
    for name, package in brought_along(always).items():
        lines.append(f"| {name} | {licence(package)} | {package.version} |")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    PAGE.write_text(page())
