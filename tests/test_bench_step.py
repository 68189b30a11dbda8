"""The trainer that bench/bench_step.py measures beside fastmfr's takes the same steps, and all are timed in turn."""

import copy
import os
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small_runs import records

from fastmfr import synthetic
from fastmfr.config import load_config
from fastmfr.decode import decode_reference
from fastmfr.head import MarginHead
from fastmfr.results import META, PRETRAIN
from fastmfr.training import Run
from fastmfr.training.meta import meta_train
from fastmfr.training.pretrain import pretrain

sys.path.append(str(Path(__file__).parent.parent / "bench"))

from peers_step import Faces, MetaTraining, Pretraining, files_of
from turns import Over, Replayed, Ticking, Turns, spread

DOMAINS = ("studio", "street", "tungsten")
STEPS = 2
# Of a network without training, which the quickstart's rates tear apart; all pairs are hard, so rounding moves none.
SMOOTH = {"alpha": 0.01, "beta": 1e-3, "share_p": 1.0, "share_n": 1.0}
APART = 1e-3  # of what two steps move; rounding grows from step to step
COMPILED = pytest.mark.skipif(
    "FASTMFR_COMPILED_PEERS" not in os.environ, reason="compiling takes a minute; set FASTMFR_COMPILED_PEERS"
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("faces")
    return synthetic.make(root, domains=DOMAINS, identities=20, images=3, size=32, records=(), workers=1)


@pytest.fixture
def opened(folders, tmp_path):
    """A function that opens a small run with these settings, whose stage calls `tick` after each step."""

    def open_run(stage, tick, **data):
        config = load_config("quickstart")
        data = {"size": 32, "decode": "pillow", "threads": 1, "targets": {}} | data
        config = replace(
            config,
            device="cpu",
            threads=1,
            data=replace(config.data, sources={name: str(path) for name, path in folders.items()}, **data),
            model=replace(config.model, width=0.0625),
            pretrain=replace(config.pretrain, batch_identities=8, warmup=2, steps=10),
            meta=replace(config.meta, batch_identities=6, steps=10, **SMOOTH),
        )
        return Run.open(config, Ticking(tmp_path / "run", stage, tick), new=True)

    return open_run


def stop_after(steps):
    """A function that raises Over when it is called for the last of so many times."""
    left = iter(range(steps - 1))

    def tick():
        if next(left, None) is None:
            raise Over

    return tick


def losses_of(run, stage, train, backbone):
    with pytest.raises(Over), run.logbook:
        train(run, backbone)
    return [line["loss"] for line in records(run.folder, stage)]


def values(network):
    return torch.cat([value.detach().flatten() for value in network.parameters()])


def difference(ours, theirs, before):
    """How far two networks lie apart, as a part of how far the steps have moved them."""
    return ((values(ours) - values(theirs)).norm() / (values(ours) - before).norm()).item()


# Who is mirrored is drawn in other ways where flip is neither 0 nor 1.
@pytest.mark.parametrize(
    ("cache", "flip", "options"),
    [
        ("host", 0.0, {}),
        ("none", 1.0, {}),
        ("host", 1.0, {"in_memory": True}),
        # by the ways of torch.compile, but without its compiler
        pytest.param("none", 0.0, {"compiled": "aot_eager"}, marks=COMPILED),
    ],
)
def test_steps_of_stage_one_are_those_of_the_peer(opened, monkeypatch, cache, flip, options):
    heads = []

    def remembered(*args, **settings):
        heads.append((head := MarginHead(*args, **settings), head.weight_CD.detach().clone()))
        return head

    monkeypatch.setattr("fastmfr.training.pretrain.MarginHead", remembered)
    run = opened(PRETRAIN, stop_after(STEPS), flip=flip, cache=cache)
    backbone = run.new_backbone()
    theirs, before = copy.deepcopy(backbone), values(backbone)
    losses = losses_of(run, PRETRAIN, pretrain, backbone)
    ((head, first_CD),) = heads
    options = {**options, "seed": run.config.seed, "workers": 0}
    peer = Pretraining(theirs, run.data[PRETRAIN].sources, run.preprocess, run.config.pretrain, **options)
    with torch.no_grad():
        peer.loss.head.weight.copy_(first_CD)
    assert losses == pytest.approx([peer.step().item() for _ in range(STEPS)], rel=1e-5)
    assert difference(backbone, theirs, before) < APART
    assert difference(head, peer.loss.head, first_CD.flatten()) < APART


@pytest.mark.parametrize(("method", "flip"), [("mfr", 1.0), ("first_order", 0.0)])
def test_steps_of_stage_two_are_those_of_the_peer_if_they_are_exact(opened, method, flip):
    run = opened(META, stop_after(STEPS), flip=flip)
    run = replace(run, config=replace(run.config, meta=replace(run.config.meta, method=method)))
    backbone = run.new_backbone()
    theirs, before = copy.deepcopy(backbone), values(backbone)
    losses = losses_of(run, META, meta_train, backbone)
    settings = {"seed": run.config.seed, "workers": 0}
    peer = MetaTraining(theirs, run.data[META].sources, run.preprocess, run.config.meta, **settings)
    others = [peer.step().item() for _ in range(STEPS)]
    assert losses[0] == pytest.approx(others[0], abs=1e-5)
    if method == "mfr":
        assert losses == pytest.approx(others, abs=APART)
        # the two round differently, and some elements cross the kink of PReLU by it
        assert difference(backbone, theirs, before) < 5 * APART
    else:  # what leaves the Hessian out would be found
        assert difference(backbone, theirs, before) > 10 * APART


@COMPILED
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_the_compiled_peer_is_the_eager_one(opened):
    run = opened(PRETRAIN, stop_after(1), flip=0.0)
    peers = []
    for compiled in (None, "inductor"):
        torch.manual_seed(0)
        sources, settings = run.data[PRETRAIN].sources, run.config.pretrain
        options = {"seed": 0, "workers": 0, "compiled": compiled}
        peers.append(Pretraining(run.new_backbone(), sources, run.preprocess, settings, **options))
    first, second = ([peer.step().item() for _ in range(STEPS)] for peer in peers)
    assert first == pytest.approx(second, rel=1e-4)


@pytest.mark.slow  # two processes import torch
def test_workers_hand_on_what_the_process_itself_reads(opened):
    run = opened(PRETRAIN, stop_after(1), flip=0.0)
    torch.manual_seed(0)
    backbone = run.new_backbone()
    made = []
    for workers in (0, 2):
        torch.manual_seed(1)
        options = {"seed": 0, "workers": workers}
        sources, settings = run.data[PRETRAIN].sources, run.config.pretrain
        made.append(Pretraining(copy.deepcopy(backbone), sources, run.preprocess, settings, **options))
    first, second = ([peer.step().item() for _ in range(STEPS)] for peer in made)
    assert first == second


def test_resized_images_are_the_peers_but_for_the_border(opened):
    run = opened(PRETRAIN, stop_after(1), size=24, flip=0.0)
    sources = run.data[PRETRAIN].sources
    paths, label_N, _ = files_of(sources)
    faces = Faces(paths, label_N, run.preprocess)
    assert len(faces) == sources.images
    for image in (0, len(faces) - 1):
        got, label = faces[image]
        want = decode_reference(np.frombuffer(paths[image].read_bytes(), np.uint8), run.preprocess, mirror=False)
        assert np.array_equal(got[:, 2:-2, 2:-2], want[:, 2:-2, 2:-2])
        assert label == label_N[image]


def test_everybody_has_turns_of_as_many_steps_and_the_first_turns_do_not_count():
    now, order = [0.0], []

    def step(name, seconds):
        def take():
            order.append(name)
            now[0] += seconds

        return take

    peers = {"a": step("a", 2.0), "b": step("b", 3.0)}
    ours, settle = step("ours", 1.0), lambda: order.append("settle")
    turns = Turns(peers, clock=lambda: (now[0], 2 * now[0]), settle=settle, rounds=2, steps=2, before=1)

    def stage():
        while True:
            ours()
            turns.tick()

    with pytest.raises(Over):
        stage()
    one_round = ["ours"] * 3 + ["settle"] + ["a"] * 3 + ["settle"] + ["b"] * 3
    assert order == [*one_round, "settle", *one_round, "settle", *one_round]
    assert turns.spent == {"ours": [(2.0, 4.0)] * 2, "a": [(4.0, 8.0)] * 2, "b": [(6.0, 12.0)] * 2}


def test_a_stage_is_stopped_when_all_had_their_turns_and_its_steps_are_whole(opened):
    taken, clock = [], iter(range(100))
    peers = {"peer": lambda: taken.append(1)}
    turns = Turns(peers, clock=lambda: (float(next(clock)), 0.0), settle=lambda: None, rounds=2, steps=2, before=1)
    run = opened(PRETRAIN, turns.tick)
    assert len(losses_of(run, PRETRAIN, pretrain, run.new_backbone())) == len(taken) == 3 * 3
    assert turns.spent == {"ours": [(1.0, 0.0)] * 2, "peer": [(1.0, 0.0)] * 2}


def test_ratios_are_paired_by_round():
    mine = [(1.0, 0.0), (2.0, 0.0), (4.0, 0.0)]
    found = spread(mine, [(2.0, 0.0), (6.0, 0.0), (16.0, 0.0)])
    assert found["times_ours_by_round"] == [2.0, 3.0, 4.0]
    low, high = found["times_ours_p20_p80"]
    assert low < 3.0 < high


def test_the_clock_of_the_table_shows_the_seconds_that_it_is_given():
    clock = Replayed()
    clock.load([0.5, 2.0])
    shown = []
    for _ in range(2):
        begin = clock()
        clock.let_pass()
        shown.append(clock() - begin)
    assert shown == [0.5, 2.0]
