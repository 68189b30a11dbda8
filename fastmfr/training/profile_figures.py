"""The figures of a profile: seconds of the parts of steps on the host, and on a GPU what the device did meanwhile."""

import gzip
import json
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastmfr.profiling import PREFIX

REST = "the rest"  # of a step: what is in no part
_ON_DEVICE = ("kernel", "gpu_memcpy", "gpu_memset")
_LAUNCHING = ("cuda_runtime", "cuda_driver")


@dataclass
class Span:
    """Steps of one kind: how many, the seconds of all of them, those of each part, and how often a part was done."""

    steps: int = 0
    seconds: float = 0.0
    parts: dict[str, float] = field(default_factory=dict)
    times: dict[str, int] = field(default_factory=dict)

    def add(self, seconds: float, parts: Mapping[str, float], times: Mapping[str, int]) -> None:
        """Add a step, with the seconds of its parts and how often each was done."""
        self.steps += 1
        self.seconds += seconds
        for name, spent in parts.items():
            self.parts[name] = self.parts.get(name, 0.0) + spent
            self.times[name] = self.times.get(name, 0) + times[name]

    @property
    def shares(self) -> dict[str, float]:
        """Return the part of the steps' time that each part takes, 0 to 1, the rest among them; they sum to 1."""
        if not self.seconds:
            return {}
        shares = {name: seconds / self.seconds for name, seconds in self.parts.items()}
        return {**shares, REST: 1 - sum(shares.values())}

    @property
    def step_seconds(self) -> float:
        """Return the mean seconds of a step."""
        return self.seconds / max(1, self.steps)


@dataclass(frozen=True)
class DeviceTimes:
    """What a GPU did in traced steps.

    Attributes:
        idle: the part of the steps as training takes them in which the GPU ran nothing, 0 to 1.
        parts: the GPU's seconds in what each part has launched, of steps that ran operation by operation.
    """

    idle: float
    parts: dict[str, float]


@dataclass(frozen=True)
class Operation:
    """An operation of the traced steps: how often it was called, and its seconds without those of what it calls."""

    name: str
    calls: int
    seconds: float


@dataclass
class Figures:
    """The profile of one stage.

    Attributes:
        stage: the stage.
        device: where it trained.
        threads: data.threads.
        cache: data.cache.
        after: steps before those that were timed.
        steady: the steps that were timed and not traced, without scores and states.
        traced: the steps that were traced.
        apart: the steps that were traced, and ran operation by operation where a GPU would have replayed them.
        whole: all steps of this process but the traced ones.
        longest: the longest operations of the traced steps.
        on_device: what the GPU did; None on the CPU.
    """

    stage: str
    device: str
    threads: int
    cache: str
    after: int
    steady: Span
    traced: Span
    apart: Span
    longest: list[Operation]
    whole: Span = field(default_factory=Span)
    on_device: DeviceTimes | None = None


def read_trace(path: Path) -> dict[str, Any]:
    """Read a trace of torch.profiler, JSON under gzip."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return json.load(file)


def device_times(trace: Mapping[str, Any]) -> DeviceTimes:
    """Work out what the GPU did in the steps of a trace.

    A kernel belongs to the part in which the host launched the kernel, whichever thread did: autograd launches a
    backward in a thread of its own while the step waits for the backward. Kernels of decoding that another thread
    launches meanwhile are counted with the part, too.

    Args:
        trace: a trace in which steps and parts have names as `fastmfr.profiling` gives them; times in microseconds.
    """
    events = [event for event in trace["traceEvents"] if event.get("ph") == "X"]
    ranges = sorted(
        (event["ts"], event["ts"] + event["dur"], event["name"].removeprefix(PREFIX))
        for event in events
        if event.get("cat") == "user_annotation" and event["name"].startswith(PREFIX)
    )
    steps = [one for one in ranges if one[2].startswith("step")]
    parts = [one for one in ranges if not one[2].startswith("step")]
    as_trained = [one for one in steps if one[2] == "step, traced"]
    apart = [one for one in steps if one[2] == "step, apart"] or as_trained
    launched = {_correlation(event): event["ts"] for event in events if event.get("cat") in _LAUNCHING}
    busy, seconds = [], {}
    for event in events:
        if event.get("cat") not in _ON_DEVICE:
            continue
        busy.append((event["ts"], event["ts"] + event["dur"]))
        at = launched.get(_correlation(event), event["ts"])
        if apart and apart[0][0] <= at <= apart[-1][1]:
            name = _part_at(parts, at)
            seconds[name] = seconds.get(name, 0.0) + event["dur"] / 1e6
    return DeviceTimes(_idle(busy, as_trained), seconds)


def _correlation(event):
    return event.get("args", {}).get("correlation")


def _part_at(parts, time):
    place = bisect_right(parts, time, key=lambda part: part[0]) - 1
    return parts[place][2] if place >= 0 and time <= parts[place][1] else REST


def _idle(busy, steps):
    """The part of the time from the first step's begin to the last one's end that no interval of `busy` covers."""
    if not steps:
        return 0.0
    begin, end = steps[0][0], steps[-1][1]
    covered, reached = 0.0, begin
    for start, stop in sorted(busy):
        start, stop = max(start, reached), min(stop, end)
        if stop > start:
            covered, reached = covered + stop - start, stop
    return 1 - covered / (end - begin)
