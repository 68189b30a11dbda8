"""Source domains are trained on, target domains are scored; of a domain that is both, people are held out."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike


@dataclass(frozen=True)
class Protocol:
    """Domains to learn from and target domains to score on, each as {name: path}.

    People of a domain that is learned from and a target, with one name and one path, are held out: some identities are
    trained on and the others scored (see `hold_out`). Every other target is unseen. A link is the path that the link
    leads to.

    Attributes:
        sources: the domains of both stages, or of stage two alone if `pretrain` has domains.
        targets: the domains to score on.
        pretrain: the domains of stage one; none takes `sources`.

    Raises:
        ValueError: there is no source, or a person would be trained on and scored.
    """

    sources: dict[str, str]
    targets: dict[str, str]
    pretrain: dict[str, str] = field(default_factory=dict)

    def __post_init__(self):
        if not self.sources:
            raise ValueError("a protocol needs at least one source domain to learn from; add one as NAME: PATH")
        name_of: dict[str, str] = {}
        for name, path in [*self.pretrain.items(), *self.sources.items(), *self.targets.items()]:
            if not name.strip() or not os.fspath(path):
                raise ValueError(f"want every domain as NAME: PATH, got {name!r}: {str(path)!r}")
            first = name_of.setdefault(os.path.realpath(path), name)
            if first != name:
                raise ValueError(
                    f"{path} is given as both {first!r} and {name!r}: its people would be counted twice, "
                    "or scored after being trained on; give it one name"
                )
        for name in self.held_out:
            trained = self.learned_from[name]
            if os.path.realpath(trained) != os.path.realpath(self.targets[name]):
                raise ValueError(
                    f"{name!r} is {trained} as a source and {self.targets[name]} as a target; "
                    "give the two different names, or the same path to hold out part of its people"
                )
        for name in self.in_both_stages if self.pretrain else []:
            if os.path.realpath(self.sources[name]) != os.path.realpath(self.pretrain[name]):
                raise ValueError(
                    f"{name!r} is {self.pretrain[name]} in data.pretrain and {self.sources[name]} in data.sources; "
                    "give the two different names, or the same path"
                )

    @property
    def learned_from(self) -> dict[str, str]:
        """The domains of both stages, {name: path}."""
        return self.pretrain | self.sources

    @property
    def in_both_stages(self) -> list[str]:
        """The names of the sources that stage one learns from too."""
        return [name for name in self.sources if not self.pretrain or name in self.pretrain]

    @property
    def held_out(self) -> list[str]:
        """The names of the domains that are learned from and scored."""
        return [name for name in self.targets if name in self.learned_from]


def leave_one_out(domains: dict[str, str], target: str) -> Protocol:
    """Return the protocol that scores on `target`, a name in `domains` {name: path}, and learns from all others.

    Raises:
        ValueError: there is no domain of that name, or no other domain.
    """
    if target not in domains:
        raise ValueError(f"the target {target!r} is none of the domains {', '.join(domains) or '(none given)'}")
    if len(domains) < 2:
        raise ValueError(f"leaving {target!r} out leaves no domain to learn from; give at least two domains")
    return Protocol({name: path for name, path in domains.items() if name != target}, {target: domains[target]})


def leave_each_out(domains: dict[str, str]) -> dict[str, Protocol]:
    """Leave each of `domains` {name: path} out once; return {name of the target: protocol}."""
    return {name: leave_one_out(domains, name) for name in domains}


def hold_out(
    identities: int,
    fraction: float,
    seed: int | Sequence[int],
    scored: ArrayLike = (),
    trained: ArrayLike = (),
) -> tuple[np.ndarray, np.ndarray]:
    """Divide the people 0 .. identities - 1 at random into those trained on and those scored.

    Args:
        identities: the number of people.
        fraction: of the people to score, in (0, 1).
        seed: of the draw.
        scored: numbers of people who are scored in any case, because they are in another domain.
        trained: numbers of people who are trained on in any case.

    Returns:
        (numbers trained on, numbers scored), int64, each sorted.

    Raises:
        ValueError: the fraction is out of range, or either side has fewer than the two people of an impostor pair.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"want the fraction of people held out above 0 and below 1, got {fraction}")
    scored, trained = np.asarray(scored, np.int64), np.asarray(trained, np.int64)
    order = np.random.default_rng(seed).permutation(identities)
    free = order[~np.isin(order, np.concatenate([scored, trained]))]
    more = min(len(free), max(0, round(identities * fraction) - len(scored)))
    mine, others = np.concatenate([scored, free[:more]]), np.concatenate([trained, free[more:]])
    if min(len(mine), len(others)) < 2:
        raise ValueError(
            f"holding out {fraction:g} of {identities} people trains on {len(others)} and scores "
            f"{len(mine)}; each side needs at least 2: change the fraction or give a larger domain"
        )
    return np.sort(others), np.sort(mine)
