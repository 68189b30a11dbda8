import pytest
import torch

from fastmfr.backbone import build
from fastmfr.training.checkpoint import Checkpoints
from fastmfr.training.optim import set_rate, sgd
from fastmfr.weights import load_weights, save_weights


def trained(steps, seed=0):
    torch.manual_seed(seed)
    network = build("mfr28", width=0.0625)
    optimizer = sgd(network.parameters(), 0.9, 5e-4)
    for _ in range(steps):
        set_rate(optimizer, 0.01)
        network(torch.randn(4, 3, 16, 16)).square().sum().backward()
        optimizer.step()
    return network, optimizer


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


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
    (tmp_path / "meta-00000002.partial" / "__0_0.distcp").write_bytes(b"cut")
    assert states.resume(network, optimizer) == 1
    states.save(2, network, optimizer)
    assert states.resume(network, optimizer) == 2


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_weights_come_back(tmp_path, suffix):
    network, _ = trained(2)
    path = tmp_path / f"w{suffix}"
    if suffix == ".pth":
        torch.save(network.state_dict(), path)
    else:
        save_weights(network, path)
    other, _ = trained(0, seed=1)
    load_weights(other, path)
    assert same(network, other)


def test_weights_of_another_network_or_none_are_refused_with_a_sentence(tmp_path):
    network, _ = trained(0)
    save_weights(network, tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match="not of this backbone; check model"):
        load_weights(build("mfr28", width=0.125), tmp_path / "w.safetensors")
    with pytest.raises(FileNotFoundError, match="no weights at"):
        load_weights(network, tmp_path / "none.pth")


def test_a_pickle_that_would_run_code_is_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return (tmp_path.joinpath("ran").touch, ())

    torch.save({"fc.weight": Evil()}, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=r"w\.pth cannot be read as weights"):
        load_weights(trained(0)[0], tmp_path / "w.pth")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("content", [b"", b"no weights", b"PK\x03\x04 cut", b"\xff" * 64])
def test_a_file_that_holds_no_weights_is_refused_with_a_sentence(tmp_path, content, suffix):
    (tmp_path / f"w{suffix}").write_bytes(content)
    with pytest.raises(ValueError, match="cannot be read as weights"):
        load_weights(trained(0)[0], tmp_path / f"w{suffix}")


@pytest.mark.parametrize("content", [[1], 3, {1: torch.zeros(2)}])
def test_what_is_no_state_dict_is_refused_with_a_sentence(tmp_path, content):
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(ValueError, match="no state dict"):
        load_weights(trained(0)[0], tmp_path / "w.pth")
