"""A stage of training, run whole by its own code, in turn with peers: after each of its turns the peers have theirs.

A stage cannot be called step by step. It records every step in its logbook, so the logbook is its clock, and what the
peers do is done there, between two steps of the stage. A turn is so many steps, after steps that are not timed: whoever
runs ahead (a DataLoader's workers, a decoder) has then used up what it made while the others had their turns.
"""

import statistics
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from fastmfr.training import Logbook

Clock = Callable[[], tuple[float, float]]  # seconds on the wall, and of CPU time
OURS = "ours"


class Over(Exception):
    """All have had their turns; raised through the stage, which ends by it."""


class Turns:
    """Times steps of a stage and of its peers in turn, round by round. `tick` is called after each step of the stage.

    The turns before the first round are not counted: caches are filled in them, graphs recorded, networks compiled.

    Args:
        peers: {name: a function that takes one step}.
        clock: What to time by; it waits for the device.
        settle: Called before every turn, to wait for processes that still work for another contender.
        rounds: How often all have their turns.
        steps: Steps of a turn.
        before: Steps before these, not timed.

    Attributes:
        spent: {name: (seconds, CPU seconds) of the turn of each round}, "ours" first.
    """

    def __init__(
        self,
        peers: Mapping[str, Callable[[], Any]],
        *,
        clock: Clock,
        settle: Callable[[], Any],
        rounds: int,
        steps: int,
        before: int,
    ):
        self._peers, self._clock, self._settle = peers, clock, settle
        self._rounds, self._steps, self._before = rounds, steps, before
        self._begin, self._taken = (0.0, 0.0), 0
        self.spent: dict[str, list[tuple[float, float]]] = {name: [] for name in (OURS, *peers)}

    def tick(self) -> None:
        """Count a step of the stage; after its turn let the peers have theirs. Raises Over when all rounds are over."""
        self._taken += 1
        if self._taken == self._before:
            self._begin = self._clock()
        if self._taken < self._before + self._steps:
            return
        self._end(OURS, self._begin)
        self._taken = 0
        for name, peer in self._peers.items():
            self._settle()
            for _ in range(self._before):
                peer()
            begin = self._clock()
            for _ in range(self._steps):
                peer()
            self._end(name, begin)
        if len(self.spent[OURS]) > self._rounds:
            for turns in self.spent.values():
                del turns[0]
            raise Over
        self._settle()

    def _end(self, name, begin):
        self.spent[name].append(tuple(end - start for end, start in zip(self._clock(), begin, strict=True)))


class Ticking(Logbook):
    """A logbook that calls `tick` after it has recorded a step of a stage."""

    def __init__(self, folder: Path, stage: str, tick: Callable[[], Any], **options: Any):
        super().__init__(folder, **options)
        self._stage, self._tick = stage, tick

    def record(self, stage: str, step: int, **values: float) -> None:
        super().record(stage, step, **values)
        if stage == self._stage:
            self._tick()


def spread(mine: list[tuple[float, float]], theirs: list[tuple[float, float]]) -> dict[str, Any]:
    """How many times our seconds a contender took, round by round: the ratios, and their 20th and 80th percentile."""
    ratios = [their[0] / my[0] for my, their in zip(mine, theirs, strict=True)]
    deciles = statistics.quantiles(ratios, n=10)
    return {
        "times_ours_p20_p80": [round(deciles[1], 3), round(deciles[7], 3)],
        "times_ours_by_round": [round(ratio, 3) for ratio in ratios],
    }


class Replayed:
    """A clock for pytest-benchmark that shows seconds measured before, for a stage that cannot be called by it."""

    def __init__(self):
        self._now, self._seconds = 0.0, iter(())

    def __call__(self) -> float:
        return self._now

    def __repr__(self) -> str:
        """What a results file calls the clock."""
        return "seconds measured in turn"

    def load(self, seconds: Iterator[float]) -> None:
        """Show these seconds next, one for each call of `let_pass`."""
        self._seconds = iter(seconds)

    def let_pass(self) -> None:
        """Let the seconds of one round pass."""
        self._now += next(self._seconds)
