"""What bench/scale.py counts on paper is what two processes send, and what a GPU was seen to take."""

import json
import sys
from collections import Counter
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
import torch
from torch import distributed as dist

from fastmfr.backbone import build

BENCH = Path(__file__).parent.parent / "bench"
sys.path.append(str(BENCH))

from scaling import binding, messages, room  # noqa: E402
from scaling.counted import CASES, count, plan_of  # noqa: E402
from scaling.messages import Message  # noqa: E402
from scaling.plan import Machines, Plan, network_by_name  # noqa: E402

spec = spec_from_file_location("scale_command", BENCH / "scale.py")
command = module_from_spec(spec)
spec.loader.exec_module(command)

NETWORK = network_by_name("iresnet50", 512)


@pytest.fixture(scope="module")
def of_two():
    return count(2, "three layers")


@pytest.mark.parametrize("case", CASES)
def test_two_processes_send_what_the_formula_says(of_two, case):
    measured, formula = of_two[0][case]
    assert measured == formula
    assert measured.total() > 10


def test_two_processes_write_a_state_as_large_as_the_formula_says(of_two):
    written, formula = of_two[1]
    assert written == formula > 80 * 2 * 16 * 4


def test_the_buckets_of_a_large_network_are_those_of_torch():
    with torch.device("meta"):
        parameters = list(build("iresnet50").parameters())[::-1]
    places, _ = dist._compute_bucket_assignment_by_size(parameters, list(messages.BUCKETS))
    wanted = [4 * sum(parameters[place].numel() for place in bucket) for bucket in places]
    plan = Plan(NETWORK).but(sync=False, network=network_by_name("iresnet50", 512))
    made = Counter(each.bytes for each in messages.pretraining(plan) if each.kind == "all_reduce")
    assert len(wanted) > 5
    assert Counter(wanted) <= made


def test_neither_stage_sends_the_classifier():
    few, many = (Plan(NETWORK, identities=count) for count in (10_000, 100_000_000))
    assert messages.pretraining(few) == messages.pretraining(many)


def test_the_gradient_of_ten_million_identities_takes_what_a_gpu_was_seen_to_take():
    """The figure is the peak over what lay there before: the gradient and a chunk."""
    rows = (BENCH / "results" / "20261127-030155-gpu-h200.jsonl").read_text().splitlines()
    seen = [row for row in map(json.loads, rows) if row["stage"] == "ten million" and row.get("who") == "ours, chunks"]
    (peak,) = {row["peak_bytes"] for row in seen}
    taken = room.on_gpu(Plan(NETWORK, 1, 10_000_000, people=256))
    assert taken["its gradient"] + taken["gathered"] == pytest.approx(peak, rel=0.01)


def test_an_image_takes_what_a_gpu_was_seen_to_take_in_a_step_of_pretraining():
    rows = (BENCH / "results" / "20261127-021731-gpu-h100.jsonl").read_text().splitlines()
    seen = [row for row in map(json.loads, rows) if row["stage"] == "pretraining" and row.get("who") == "ours, chunks"]
    (peak,) = {row["peak_bytes"] for row in seen}
    taken = room.on_gpu(Plan(NETWORK, 1, 100_000))
    assert sum(taken.values()) - taken["averages"] == pytest.approx(peak, rel=0.01)


def test_a_ring_sends_a_sum_twice_and_a_gather_once():
    assert messages.sent(Message("all_reduce", 800), 4) == 1200
    assert messages.sent(Message("all_gather", 800), 4) == 600
    assert messages.sent(Message("reduce_scatter", 800), 1) == 0
    plan, machines = plan_of(4), Machines(inside=100.0, latency=0.5)
    assert messages.seconds([Message("all_gather", 800)], plan, machines) == 6 + 2 * 0.5
    assert messages.seconds([Message("all_gather", 800)], plan.but(gpus=1), machines) == 0


@pytest.mark.parametrize("counted", ["identities", "images"])
def test_the_largest_run_is_the_last_one_that_fits(counted):
    plan, machines = Plan(NETWORK), Machines()
    most = {"identities": binding.most_identities, "images": binding.most_images}[counted](plan, machines)
    assert most > 10_000_000
    assert binding.taken(plan.but(**{counted: most}), machines).fits(machines)
    assert not binding.taken(plan.but(**{counted: most + 8}), machines).fits(machines)


def test_what_binds_follows_what_the_machines_have():
    plan = Plan(NETWORK, 16, 10_000_000)
    for name, machines in {
        "GPU memory": Machines(gpu=1e9),
        "host memory": Machines(host=1e9),
        "disk": Machines(disk=1e9),
        "interconnect": Machines(between=1e6),
    }.items():
        assert binding.taken(plan, machines).binds(machines) == name


def test_the_command_prints_a_row_for_each_run(capsys):
    asked = ["--gpus", "1", "8", "--identities", "1e6", "--images", "1e8", "--sample-rate", "0.1"]
    assert command.main(asked) == 0
    said = capsys.readouterr().out
    assert said.count("| 1M | 100M | 10 % |") == 2
    assert "The largest run on 8 GPUs of 80.0 GB" in said
    assert command.main([*asked, "--gpu-memory", "1", "--parts"]) == 0
    said = capsys.readouterr().out
    assert said.count("does not fit") == 2
    assert "no identities beside 100M images, bound by GPU memory; no images beside 1M identities" in said
    assert "* a GPU, pretraining: classifier 512 MB, " in said


def test_mistakes_are_told(capsys):
    assert command.main(["--sample-rate", "2"]) == 1
    assert "a sample rate above 0 and at most 1" in capsys.readouterr().err
    assert command.main(["--disk", "0"]) == 1
    assert "want --disk above 0, got 0" in capsys.readouterr().err
    assert command.main(["--people", "0"]) == 1
    assert "want --people of at least 1, got 0" in capsys.readouterr().err
