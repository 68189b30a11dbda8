"""People of several domains: which identities are one person, by their names or by a list.

identity,domain/folder,domain/folder     a line of a list; of a RecordIO folder, its label or name is the folder
"""

import csv
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path

import numpy as np

from fastmfr.domains import Domain
from fastmfr.pack.names import kept_apart, known_names

from .lists import lines

__all__ = [
    "BY_NAME",
    "NAMED",
    "NONE",
    "check_sharing",
    "has_names",
    "hint",
    "names_in_common",
    "names_of",
    "share_people",
]

NONE, BY_NAME = "none", "by_name"
NAMED = 3  # domains or people that a sentence names


def names_of(domain: Domain) -> list[str]:
    """Return the name of each identity: the folder's, or of a packed domain the one in identities.txt."""
    labels = [domain.identity_name(identity) for identity in range(domain.identities)]
    if not domain.has_records:
        return labels
    known = known_names(domain.path)
    return list(kept_apart({label: known.get(label, label) for label in labels}).values())


def has_names(domain: Domain) -> bool:
    """Tell whether people of the domain have names; those of a RecordIO folder without identities.txt have numbers."""
    return not domain.has_records or bool(known_names(domain.path))


def check_sharing(shared: str) -> None:
    """Raise FileNotFoundError if `shared` is neither "none" nor "by_name", nor a list that is there."""
    if shared not in (NONE, BY_NAME) and not Path(shared).is_file():
        raise FileNotFoundError(
            f"want data.shared_identities as {NONE}, {BY_NAME} or a list of lines `identity,domain/folder,"
            f"domain/folder`; there is no file {shared!r}"
        )


def share_people(domains: Mapping[str, Domain], shared: str) -> tuple[dict[str, Domain], list[str]]:
    """Say of all domains which of their identities are one person.

    Args:
        domains: whole domains, by the name that a list calls them.
        shared: "none": all identities are different people. "by_name": identities of one name are one person. Else the
            path of a list.

    Returns:
        The domains, and sentences on what is shared, and on what could not be.

    Raises:
        FileNotFoundError: there is no list.
        ValueError: a line of the list is wrong; the sentence says which one.
    """
    if shared == NONE:
        return dict(domains), []
    check_sharing(shared)
    names = {name: names_of(domain) for name, domain in domains.items()}
    if shared == BY_NAME:
        keys, notes = _by_name(domains, names)
    else:
        keys, notes = _by_list(Path(shared), domains, names)
    persons = {name: np.array([_number(*key) for key in keys[name]], np.int64) for name in domains}
    notes += _counts(persons)
    return {name: domain.with_persons(persons[name]) for name, domain in domains.items()}, notes


def names_in_common(trained: Sequence[Domain], scored: Sequence[Domain] = ()) -> Iterator[str]:
    """Yield a sentence for every two domains with names in common; a bare number means someone else in most sets.

    Args:
        trained: domains that are trained on; they are compared with each other.
        scored: domains that are scored alone; they are compared with those trained on.
    """
    names = {
        domain.name: {name for name in names_of(domain) if not name.isdecimal()}
        for domain in (*trained, *scored)
        if has_names(domain)
    }
    targets = [domain.name for domain in scored]
    for one, other in combinations(names, 2):
        both = names[one] & names[other]
        if both and other not in targets:
            yield hint(one, other, len(both), min(both))
        elif both and one not in targets:
            yield (
                f"the target {other} and {one}, which is trained on, have {len(both):,} folder names in common (as "
                f"{min(both)!r}); if these are the same people, the score is not one on new people: train with "
                f"--data.shared_identities {BY_NAME}"
            )


def hint(one: str, other: str, count: int, first: str) -> str:
    """The sentence on `count` names that two domains have in common, such as `first`."""
    return (
        f"{one} and {other} have {count:,} folder names in common (as {first!r}); if these are the same people, train "
        f"with --data.shared_identities {BY_NAME}, or else they are pushed apart as different people"
    )


def _by_name(domains: Mapping[str, Domain], names: Mapping[str, list[str]]) -> tuple[dict[str, list], list[str]]:
    """The key of the person of each identity, by domain, and notes."""
    nameless = [name for name, domain in domains.items() if not has_names(domain)]
    keys = {
        name: [(name, own) for own in names[name]] if name in nameless else [(own,) for own in names[name]]
        for name in domains
    }
    notes = [
        f"people of {name} are not compared by name: {domains[name].path} has labels, and no identities.txt with "
        "names; name a list by data.shared_identities"
        for name in nameless
    ]
    return keys, notes


def _by_list(
    path: Path, domains: Mapping[str, Domain], names: Mapping[str, list[str]]
) -> tuple[dict[str, list], list[str]]:
    """The key of the person of each identity, by domain, and notes."""
    keys: dict[str, list[tuple[str, ...]]] = {name: [(name, own) for own in owns] for name, owns in names.items()}
    place = {name: {own: k for k, own in enumerate(owns)} for name, owns in names.items()}
    for name, domain in domains.items():  # a label serves as well as a name
        for k in range(domain.identities) if domain.has_records else ():
            place[name].setdefault(domain.identity_name(k), k)
    elsewhere, listed = [], {}
    for number, line in lines(path):
        person, *places = (cell.strip() for cell in next(csv.reader([line])))
        if not person or not places or not all("/" in entry.strip("/") for entry in places):
            raise ValueError(
                f"line {number} of {path} is not `identity,domain/folder,domain/folder`, got {line[:100]!r}"
            )
        for domain, _, folder in (entry.partition("/") for entry in places):
            if domain not in place:
                elsewhere.append(domain)
                continue
            if folder not in place[domain]:
                raise ValueError(
                    f"line {number} of {path} names {domain}/{folder}, and {domains[domain].path} has no such folder"
                )
            identity = domain, place[domain][folder]
            if listed.setdefault(identity, person) != person:
                raise ValueError(
                    f"line {number} of {path} says that {domain}/{folder} is {person}, and a line before that it is "
                    f"{listed[identity]}; want one of the two"
                )
            keys[domain][identity[1]] = (person,)
    unknown = list(dict.fromkeys(elsewhere))
    notes = [f"{path} names {', '.join(unknown[:NAMED])}, which this run has not"] if unknown else []
    return keys, notes


def _number(*key: str) -> int:
    """A number of 63 bits for the key of a person: the same in every run, and with whatever other domains.

    Among 50 million people, two have one number with a probability of 1.4e-4.
    """
    text = "\0".join([str(len(key)), *key]).encode("utf-8", "surrogateescape")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest()) >> 1


def _counts(persons: Mapping[str, np.ndarray]) -> list[str]:
    """Sentences on how many people every two domains share, and a domain has twice."""
    said = []
    for name, own in persons.items():
        if double := len(own) - len(np.unique(own)):
            said.append(f"{name}: {double:,} of {len(own):,} identities are people under another label")
    for (one, its), (other, others) in combinations(persons.items(), 2):
        if both := len(np.intersect1d(its, others)):
            said.append(f"{one} and {other}: {both:,} people in common")
    return said or ["no person is in two domains"]
