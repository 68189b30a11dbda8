"""CITATION.cff has what the schema of the Citation File Format 1.2.0 requires, and cites the paper."""

from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
CITATION = yaml.safe_load((ROOT / "CITATION.cff").read_text())
REQUIRED = {"authors", "cff-version", "message", "title"}
REQUIRED_OF_A_REFERENCE = {"authors", "title", "type"}
ALLOWED = REQUIRED | {
    *("abstract", "commit", "contact", "date-released", "doi", "identifiers", "keywords", "license", "license-url"),
    *("preferred-citation", "references", "repository", "repository-artifact", "repository-code", "type", "url"),
    "version",
}
PERSON = {"family-names", "given-names", "name-particle", "name-suffix", "alias", "affiliation", "orcid", "email"}


def missing(citation):
    """What the schema requires and a citation does not have."""
    lacks = REQUIRED - {key for key, value in citation.items() if value}
    for reference in citation.get("references", []):
        lacks |= {f"{name} of a reference" for name in REQUIRED_OF_A_REFERENCE if not reference.get(name)}
    return lacks


def test_it_has_what_the_schema_requires_and_no_field_that_the_schema_does_not_know():
    assert missing(CITATION) == set()
    assert set(CITATION) <= ALLOWED
    assert CITATION["cff-version"] == "1.2.0"
    assert CITATION["type"] in ("software", "dataset")


def test_every_author_is_a_person_or_a_named_group():
    for work in (CITATION, *CITATION["references"]):
        for author in work["authors"]:
            assert "name" in author or set(author) <= PERSON, author
            assert all(isinstance(value, str) for value in author.values())


def test_it_cites_the_paper_by_its_arxiv_number():
    (paper,) = CITATION["references"]
    assert (paper["type"], paper["year"]) == ("conference-paper", 2020)
    assert [author["family-names"] for author in paper["authors"]] == ["Guo", "Zhu", "Zhao", "Cao", "Lei", "Li"]
    assert paper["url"] == "https://arxiv.org/abs/2003.07733"
    assert [one["value"] for one in paper["identifiers"]] == ["arXiv:2003.07733"]


@pytest.mark.parametrize("name", sorted(REQUIRED))
def test_a_field_that_is_left_out_is_found(name):
    assert missing({key: value for key, value in CITATION.items() if key != name}) == {name}
