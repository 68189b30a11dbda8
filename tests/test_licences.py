"""docs/licences.md names what fastmfr imports, as pyproject.toml has it; the versions read may be older."""

import re
from importlib.metadata import distribution
from types import SimpleNamespace

import pytest
from packaging.requirements import Requirement
from test_readme import docs_module

licences = docs_module("licences")


def rows(heading):
    """The rows of the table below a heading of the page, each a list of cells."""
    (part,) = re.findall(rf"^## {heading}\n(.*?)(?=^## |\Z)", licences.PAGE.read_text(), re.MULTILINE | re.DOTALL)
    return [line.strip("| ").split(" | ") for line in part.splitlines() if line.startswith("| ")][1:]


def test_the_page_lists_what_pyproject_asks_for():
    listed = [(name, set(bounds.split(",")), use) for name, bounds, use, _, _ in rows("What fastmfr asks for")]
    asked = [(one.name, set(str(one.specifier).split(",")), use) for one, use in licences.asked_for()]
    assert listed == asked, "write the page again: python docs/licences.py"


def test_everything_asked_for_has_two_bounds():
    for one, _ in licences.asked_for():
        assert sorted(bound.operator for bound in one.specifier) == ["<", ">="], one


def test_every_package_of_the_page_has_a_licence():
    for table in ("What fastmfr asks for", "What these bring along"):
        assert len(rows(table)) > 10
        assert all(len(licence) > 2 for *_, licence, _ in rows(table))


def test_what_is_brought_along_is_what_requirements_require_in_turn(monkeypatch):
    requires = {
        "A": ["b[x]>=1", "gone; python_version < '3'"],
        "b": ["c", "d; extra == 'x'", "e; extra == 'y'"],
        "c": ["A"],
        "d": [],
    }
    monkeypatch.setattr(licences, "installed", lambda name: SimpleNamespace(requires=requires[name]))
    assert list(licences.brought_along([Requirement("A")])) == ["b", "c", "d"]


def test_a_package_that_is_missing_is_named():
    with pytest.raises(SystemExit, match="no-such-package cannot be read"):
        licences.installed("no-such-package")


@pytest.mark.parametrize(
    ("fields", "licence"),
    [
        ({"License-Expression": "MIT", "License": "other"}, "MIT"),
        ({"License": "Apache 2.0"}, "Apache 2.0"),
        ({"License": "Permission is\nhereby granted"}, "see its files"),
        ({}, "see its files"),
    ],
)
def test_the_licence_is_the_name_in_the_metadata(fields, licence):
    metadata = SimpleNamespace(get=fields.get, get_all=lambda name, default: default)
    assert licences.licence(SimpleNamespace(metadata=metadata)) == licence


def test_a_classifier_names_a_licence_where_nothing_else_does():
    assert licences.licence(distribution("safetensors")).startswith("Apache")
