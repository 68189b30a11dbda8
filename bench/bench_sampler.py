"""Grouped domain sampling: batches of 160 pairs (320 images) out of 10 domains, C++ beside what others use.

Everybody samples 5 million images. Peers that work in proportion to the identities draw fewer batches a call; every
figure is per batch.
"""

import json
import resource
import statistics
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
from peers_sampler import DOMAINS, MISSING, PAIRS, SAMPLERS, People

from fastmfr.sampler import GroupedDomainSampler

IMAGES = 5_000_000
BATCHES = {"ours": 5000, "numpy": 500, "python": 50, "MPerClassSampler": 5, "HierarchicalSampler": 5}
SKIPPED = 20
RESUME_AT = 1_000_000_000


class Ours:
    """fastmfr's sampler, as the peers are called."""

    def __init__(self, people, step=0):
        self._sampler, self._step = GroupedDomainSampler(people.offsets, PAIRS, seed=0), step

    def batch(self):
        self._step += 1
        return self._sampler.batch(self._step - 1)


def drawn(sampler, batches):
    """The sampler, after so many batches."""
    for _ in range(batches):
        sampler.batch()
    return sampler


def facts(people):
    return {
        "identities": people.identities,
        "images": people.images,
        "domains": DOMAINS,
        "pairs": PAIRS,
        "not_installed": MISSING,
    }


def people_of(identities):
    people = People(identities, IMAGES)
    assert len(people.offsets) == DOMAINS
    assert len(people.label_N) == len(people.domain_N) == IMAGES  # made now, so outside what is timed
    return people


@pytest.mark.parametrize("identities", [100_000, 1_000_000])
def test_batches(compare, identities):
    people = people_of(identities)
    samplers = {name: sampler(people) for name, sampler in {"ours": Ours, **SAMPLERS}.items()}
    calls = {name: partial(drawn, sampler, BATCHES[name]) for name, sampler in samplers.items()}
    compare(calls.pop("ours"), calls, rounds=7, units=BATCHES, **facts(people))


@pytest.mark.parametrize("identities", [100_000, 1_000_000])
def test_first_batch(compare, identities):
    """From the labels in memory to the first batch; and what the process has grown by then."""
    people = people_of(identities)
    calls = {name: lambda s=sampler: drawn(s(people), 1) for name, sampler in {"ours": Ours, **SAMPLERS}.items()}
    memory = {name: grown_mib(name, identities) for name in calls}
    compare(calls.pop("ours"), calls, rounds=3, warm=False, memory_mib=memory, **facts(people))


def test_resume(compare):
    """A batch at step 1e9 from a fresh object. Peers cannot go there: they are made and skip 20 batches, no more."""
    people = people_of(1_000_000)
    calls = {name: lambda s=sampler: drawn(s(people), SKIPPED) for name, sampler in SAMPLERS.items()}
    alone = []
    for _ in range(9):
        fresh = Ours(people, RESUME_AT)
        start = time.perf_counter()
        fresh.batch()
        alone.append(time.perf_counter() - start)
    compare(
        lambda: drawn(Ours(people, RESUME_AT), 1),
        calls,
        rounds=3,
        warm=False,
        our_step=RESUME_AT,
        peers_skip=SKIPPED,
        our_draw_alone_seconds=statistics.median(alone),
        **facts(people),
    )


def grown_mib(name, identities):
    """How much more memory a process of its own holds with this sampler and a batch drawn, in MiB.

    Resident memory, for tracemalloc sees neither C++ nor what the allocator keeps.
    """
    done = subprocess.run([sys.executable, __file__, name, str(identities)], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def resident_mib():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20


if __name__ == "__main__":
    name, identities = sys.argv[1:]
    sampler_of = {"ours": Ours, **SAMPLERS}[name]
    drawn(sampler_of(People(1000, 100_000)), 1)  # code and libraries are loaded
    people = people_of(int(identities))
    before = resident_mib()
    sampler = drawn(sampler_of(people), 1)
    print(round(resident_mib() - before, 1))
