"""Whole steps of both stages WITH their data, as fastmfr.train takes them, beside the trainer a user would write.

Ours: the stage's own code on a run of its own, with sampler, images, network, loss, optimizer, averages of weights and
records. Theirs: see peers_step.py; the same files, batches, network, precision and threads, which
tests/test_bench_step.py holds to equal losses and weights. Left out on both sides: states written to disk, and scores
taken on the way.

`kept`: our stage has decoded every image once before, as data.cache auto does where there is room; what that took is
`seconds_to_fill`. `decoded`: our stage decodes every batch. Figures are per image, so that rates are images a second.
"""

import time
from dataclasses import dataclass, replace

import pytest
import torch
from conftest import cpu_seconds, figures, settled_cpu_seconds
from peers_step import MetaTraining, Pretraining
from turns import OURS, Over, Replayed, Ticking, Turns, spread

from fastmfr import synthetic
from fastmfr.config import Config, load_config
from fastmfr.results import META, PRETRAIN
from fastmfr.training import Run
from fastmfr.training.choosing import Choosing
from fastmfr.training.meta import meta_train
from fastmfr.training.pretrain import pretrain

GPU = torch.cuda.is_available()
DOMAINS = ("studio", "street", "tungsten")  # the quickstart's sources
KEPT, DECODED = "gpu" if GPU else "host", "none"
REPLAYED = Replayed()
# torch.compile imports parts of torch that torch itself has deprecated
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
    pytest.mark.benchmark(timer=REPLAYED),
]


@dataclass(frozen=True)
class Size:
    """A recipe with its data: people and images of each domain, pixels of the files; and changes to its sections."""

    recipe: str
    people: int
    images: int
    pixels: int
    sections: dict

    def config(self, folders, cache: str) -> Config:
        """The recipe on these folders, without targets, states and scores on the way."""
        config = load_config(self.recipe)
        changed = {name: replace(getattr(config, name), **values) for name, values in self.sections.items()}
        config = replace(config, save_every=10**9, **changed)
        longest = {stage: replace(getattr(config, stage), steps=10**6) for stage in (PRETRAIN, META)}  # ended by Turns
        config = replace(config, **longest)
        sources = {name: str(path) for name, path in folders.items()}
        return replace(config, data=replace(config.data, sources=sources, targets={}, cache=cache))


SIZES = {"quickstart": Size("quickstart", 200, 10, 64, {})}
if GPU:
    CARD = {
        "data": {"size": 112, "threads": 8},
        "model": {"name": "iresnet50"},
        "pretrain": {"precision": "bf16"},
    }
    SIZES["iresnet50"] = Size("mfr", 200, 10, 112, CARD)
    SIZES["paper"] = Size("mfr", 200, 10, 120, {"data": {"threads": 8}, "meta": {"precision": "tf32", "alpha": 0.01}})
OF_PRETRAINING = [name for name in SIZES if name != "paper"]
OF_META = [name for name in SIZES if name != "iresnet50"]
# A DataLoader is two batches of each worker ahead: so many steps at least are not timed.
TURN = {PRETRAIN: {"rounds": 6, "steps": 6, "before": 5}, META: {"rounds": 5, "steps": 3, "before": 4}}
if GPU:
    TURN = {PRETRAIN: {"rounds": 7, "steps": 20, "before": 20}, META: {"rounds": 7, "steps": 10, "before": 17}}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """size -> {domain: its class folder}, drawn once."""
    drawn = {}

    def of(size):
        key = size.people, size.images, size.pixels
        if key not in drawn:
            people = {"identities": size.people, "images": size.images, "size": size.pixels}
            drawn[key] = synthetic.make(tmp_path_factory.mktemp("faces"), domains=DOMAINS, records=(), **people)
        return drawn[key]

    return of


@pytest.fixture(scope="module")
def peers():
    """{size: peers of stage one}, made once: the compiled one takes a minute, which its first step pays."""
    return {}


def clock():
    """(seconds, CPU seconds of this process and its workers), when the device has done all that it was given."""
    if GPU:
        torch.cuda.synchronize()
    return time.perf_counter(), cpu_seconds()


def opened(size, folders, cache, place, stage, tick):
    """A run as fastmfr.train opens it."""
    config = size.config(folders, cache)
    return Run.open(config, Ticking(place, stage, tick), new=True)


def in_turn(stage, run, turns, train):
    """Runs the stage until all have had their turns; returns the seconds that its images took before the first step."""
    begin = time.perf_counter()
    run.data[stage].images.prepare()
    prepared = time.perf_counter() - begin
    with pytest.raises(Over), run.logbook:
        train(run, run.new_backbone(), Choosing(run))
    run.data[stage].images.close()
    return prepared


def record(benchmark, spent, images_a_turn, **facts):
    """Hands the turns to pytest-benchmark, per image."""
    mine = [tuple(value / images_a_turn for value in turn) for turn in spent[OURS]]
    REPLAYED.load([wall for wall, _ in mine])
    benchmark.pedantic(REPLAYED.let_pass, rounds=len(mine))
    benchmark.extra_info |= facts
    for name, turns in spent.items():
        benchmark.extra_info[name] = figures(mine, turns, images_a_turn) | spread(spent[OURS], turns)


@pytest.mark.parametrize("cache", [KEPT, DECODED], ids=["kept", "decoded"])
@pytest.mark.parametrize("name", OF_PRETRAINING)
def test_pretraining(benchmark, folders, peers, tmp_path, name, cache):
    size, turn = SIZES[name], TURN[PRETRAIN]
    run = opened(size, folders(size), cache, tmp_path / "run", PRETRAIN, lambda: turns.tick())
    if name not in peers:
        peers[name] = peers_of_stage_one(run)
    steps = {who: peer.step for who, peer in peers[name].items() if cache == KEPT or who != IN_MEMORY}
    turns = Turns(steps, clock=clock, settle=settled_cpu_seconds, **turn)
    filled = in_turn(PRETRAIN, run, turns, pretrain)
    images = 2 * run.config.pretrain.people
    record(benchmark, turns.spent, turn["steps"] * images, **facts(run, PRETRAIN, images, filled))


EAGER, COMPILED, IN_MEMORY = "eager", "compiled", "eager, images in memory"


def peers_of_stage_one(run):
    config, sources = run.config, run.data[PRETRAIN].sources

    def peer(**options):
        options |= {"seed": config.seed, "workers": config.data.threads}
        return Pretraining(run.new_backbone(), sources, run.preprocess, config.pretrain, **options)

    return {EAGER: peer(), COMPILED: peer(compiled="inductor"), IN_MEMORY: peer(in_memory=True)}


@pytest.mark.parametrize("cache", [KEPT, DECODED], ids=["kept", "decoded"])
@pytest.mark.parametrize("name", OF_META)
def test_meta_training(benchmark, folders, tmp_path, name, cache):
    size, turn = SIZES[name], TURN[META]
    run = opened(size, folders(size), cache, tmp_path / "run", META, lambda: turns.tick())
    config, sources = run.config, run.data[META].sources
    workers = config.data.threads
    peer = MetaTraining(run.new_backbone(), sources, run.preprocess, config.meta, seed=config.seed, workers=workers)
    turns = Turns({"autograd twice": peer.step}, clock=clock, settle=settled_cpu_seconds, **turn)
    filled = in_turn(META, run, turns, meta_train)
    images = 4 * config.meta.people * len(sources.domains)
    record(benchmark, turns.spent, turn["steps"] * images, **facts(run, META, images, filled))


def facts(run, stage, images, filled):
    """What the figures are of."""
    config, sources = run.config, run.data[stage].sources
    return {
        "recipe": config.recipe,
        "model": config.model.name,
        "size": config.data.size,
        "images_a_step": images,
        "identities": sources.identities,
        "images": sources.images,
        "cache": config.data.cache,
        "decode": config.data.decode,
        "seconds_to_fill": round(filled, 2),
        "precision": getattr(config, stage).precision,
        "device": str(run.device),
        "threads": torch.get_num_threads(),
        "workers": config.data.threads,
        **{f"turn_{name}": value for name, value in TURN[stage].items()},
    }
