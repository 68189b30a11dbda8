"""Who is trained on and who is scored: source and target domains, and people held out of a domain that is both."""

import os
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Protocol:
    """Source domains to learn from and target domains to score on, each as {name: path}.

    A name on both sides, with the same path, is held out by people: part of its identities is trained on and the
    other part scored (see `hold_out`). Every other target is unseen. Raises ValueError where the two sides would mix.
    """

    sources: dict[str, str]
    targets: dict[str, str]

    def __post_init__(self):
        if not self.sources:
            raise ValueError("a protocol needs at least one source domain to learn from; add one as NAME: PATH")
        name_of: dict[str, str] = {}
        for name, path in [*self.sources.items(), *self.targets.items()]:
            if not name.strip() or not os.fspath(path):
                raise ValueError(f"want every domain as NAME: PATH, got {name!r}: {str(path)!r}")
            first = name_of.setdefault(os.path.abspath(path), name)
            if first != name:
                raise ValueError(
                    f"{path} is given as both {first!r} and {name!r}: its people would be counted twice, "
                    "or scored after being trained on; give it one name"
                )
        for name in self.held_out:
            if os.path.abspath(self.sources[name]) != os.path.abspath(self.targets[name]):
                raise ValueError(
                    f"{name!r} is {self.sources[name]} as a source and {self.targets[name]} as a target; "
                    "give the two different names, or the same path to hold out part of its people"
                )

    @property
    def held_out(self) -> list[str]:
        """Names that are both source and target: their people are split, part trained on, part scored."""
        return [name for name in self.targets if name in self.sources]


def leave_one_out(domains: dict[str, str], target: str) -> Protocol:
    """The protocol that scores on `target`, a name in `domains` {name: path}, and learns from all the others."""
    if target not in domains:
        raise ValueError(f"the target {target!r} is none of the domains {', '.join(domains) or '(none given)'}")
    if len(domains) < 2:
        raise ValueError(f"leaving {target!r} out leaves no domain to learn from; give at least two domains")
    return Protocol({name: path for name, path in domains.items() if name != target}, {target: domains[target]})


def leave_each_out(domains: dict[str, str]) -> dict[str, Protocol]:
    """Each of `domains` {name: path} left out once: {name of the one scored: its protocol}."""
    return {name: leave_one_out(domains, name) for name in domains}


def hold_out(identities: int, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Split people 0 .. identities - 1 by chance into (train_numbers, scored_numbers), int64, each sorted.

    `share` in (0, 1) is the part scored. Raises ValueError where a side would have fewer than the two people that
    an impostor pair takes.
    """
    if not 0 < share < 1:
        raise ValueError(f"want the share of people held out above 0 and below 1, got {share}")
    scored = round(identities * share)
    if min(scored, identities - scored) < 2:
        raise ValueError(
            f"holding out {share:g} of {identities} people trains on {identities - scored} and scores "
            f"{scored}; each side needs at least 2: change the share or give a larger domain"
        )
    order = np.random.default_rng(seed).permutation(identities)
    return np.sort(order[scored:]), np.sort(order[:scored])
