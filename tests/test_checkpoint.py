import pickle
import resource
import shutil
import signal

import numpy as np
import pytest
import torch
from small_runs import same, trained

from fastmfr.backbone import build
from fastmfr.training.checkpoint import FACTS, TENSORS, Checkpoints
from fastmfr.training.errors import NonFiniteLoss
from fastmfr.training.optim import sgd


def test_a_state_comes_back_whole(tmp_path):
    network, optimizer = trained(3)
    Checkpoints(tmp_path, "meta").save(3, network, optimizer)
    other, other_optimizer = trained(0, seed=1)
    assert not same(network, other)
    assert Checkpoints(tmp_path, "meta").resume(other, other_optimizer) == 3
    assert same(network, other)
    for mine, theirs in zip(network.parameters(), other.parameters(), strict=True):
        assert torch.equal(optimizer.state[mine]["momentum_buffer"], other_optimizer.state[theirs]["momentum_buffer"])


def test_stages_are_apart_and_the_newest_state_of_each_is_taken(tmp_path):
    network, optimizer = trained(1)
    for stage, steps in (("pretrain", (9,)), ("meta", (1, 2, 30))):
        for step in steps:
            Checkpoints(tmp_path, stage).save(step, network, optimizer)
    assert Checkpoints(tmp_path, "pretrain").resume(network, optimizer) == 9
    assert Checkpoints(tmp_path, "meta").resume(network, optimizer) == 30
    assert sorted(path.name for path in tmp_path.glob("meta-*")) == ["meta-00000002", "meta-00000030"]


def test_a_half_written_state_is_passed_over_and_cleared(tmp_path):
    network, optimizer = trained(1)
    states = Checkpoints(tmp_path, "meta")
    assert states.resume(network, optimizer) == 0
    states.save(1, network, optimizer)
    (tmp_path / "meta-00000002.partial").mkdir()
    (tmp_path / "meta-00000002.partial" / TENSORS).write_bytes(b"cut")
    assert states.resume(network, optimizer) == 1
    states.save(2, network, optimizer)
    assert states.resume(network, optimizer) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["meta-00000001", "meta-00000002"]


def flipped(content, bits=50):
    damaged = bytearray(content)
    for at in np.random.default_rng(0).integers(0, 8 * len(content), bits):
        damaged[at // 8] ^= 1 << at % 8
    return bytes(damaged)


@pytest.mark.parametrize("name", [TENSORS, FACTS])
@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[: len(content) // 2],
        lambda content: content[:-1] + bytes([content[-1] ^ 1]),
        lambda content: content + b"x",
        lambda content: b"[" * 100_000,
        lambda content: b"3",
        flipped,
        None,
    ],
    ids=["empty", "half", "one bit", "longer", "deep", "a number", "50 bits", "gone"],
)
def test_a_damaged_state_is_named_and_the_one_before_taken(tmp_path, name, damage):
    sentences = []
    states = Checkpoints(tmp_path, "meta", sentences.append)
    network, optimizer = trained(1)
    states.save(1, network, optimizer)
    later, later_optimizer = trained(2)
    states.save(2, later, later_optimizer)
    path = tmp_path / "meta-00000002" / name
    path.write_bytes(damage(path.read_bytes())) if damage else path.unlink()
    assert states.resume(later, later_optimizer) == 1
    assert same(network, later)
    assert [f"{path.parent} is passed over" in sentence for sentence in sentences] == [True]
    shutil.rmtree(tmp_path / "meta-00000001")
    assert states.resume(later, later_optimizer) == 0
    assert sentences[-1] == "no state of meta is whole: the stage begins anew"


def test_a_state_of_another_network_is_refused(tmp_path):
    Checkpoints(tmp_path, "meta").save(1, *trained(1))
    other = build("mfr28", width=0.125)
    with pytest.raises(ValueError, match="meta-00000001 is of another network: "):
        Checkpoints(tmp_path, "meta").resume(other, sgd(other.parameters(), 0.9, 0))


def test_a_state_that_is_not_finite_is_not_kept_and_the_last_good_one_is(tmp_path):
    states, (network, optimizer) = Checkpoints(tmp_path, "meta"), trained(1)
    network.register_buffer("empty", torch.empty(0))  # is finite
    with torch.no_grad():
        bad = next(network.parameters())
        bad.view(-1)[3] = torch.inf
    with pytest.raises(
        NonFiniteLoss, match=r"the update of meta step 0 has made 1 of \d+ tensors NaN .* no earlier state"
    ):
        states.save(1, network, optimizer)
    bad.data.view(-1)[3] = 0
    states.save(1, network, optimizer)
    optimizer.state[bad]["momentum_buffer"].view(-1)[0] = torch.nan
    with pytest.raises(
        NonFiniteLoss, match=r"momentum_buffer first; the state at step 1 is kept\. Lower the learning rate"
    ):
        states.save(2, network, optimizer)
    assert [path.name for path in tmp_path.iterdir()] == ["meta-00000001"]


def test_a_full_disk_is_a_sentence_and_older_states_are_intact(tmp_path):
    """A limit on the size of files stands in for the disk."""
    states, (network, optimizer) = Checkpoints(tmp_path, "meta"), trained(1)
    states.save(1, network, optimizer)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
        with pytest.raises(
            OSError, match=r"the state at step 2 cannot be written to .*meta-00000002: .* step 1 is kept"
        ):
            states.save(2, network, optimizer)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)
    assert [path.name for path in tmp_path.iterdir()] == ["meta-00000001"]
    assert states.resume(network, optimizer) == 1


def test_nothing_in_a_state_is_unpickled(tmp_path):
    """A folder of a stranger's, with what torch's distributed checkpoints would unpickle beside it."""

    class Evil:
        def __reduce__(self):
            return (tmp_path.joinpath("ran").touch, ())

    states, (network, optimizer) = Checkpoints(tmp_path / "states", "meta"), trained(1)
    states.save(1, network, optimizer)
    for name in (".metadata", "__0_0.distcp", TENSORS, FACTS):
        (tmp_path / "states/meta-00000001" / name).write_bytes(pickle.dumps(Evil()))
    assert states.resume(network, optimizer) == 0
    assert not (tmp_path / "ran").exists()
