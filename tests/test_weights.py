"""Weights of every kind that people bring, and images of every kind that they embed."""

import os
import stat

import numpy as np
import pytest
import torch
from evaluation_fakes import face
from small_runs import same, trained

from fastmfr.backbone import build
from fastmfr.config import Config, Data, Model, load_config
from fastmfr.training.checkpoint import TENSORS, Checkpoints
from fastmfr.weights import load_weights, open_model, save_weights


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


def test_weights_and_states_are_read_by_whom_the_umask_lets(tmp_path):
    network, optimizer = trained(1)
    before = os.umask(0o027)
    try:
        save_weights(network, tmp_path / "w.safetensors")
        Checkpoints(tmp_path, "meta").save(1, network, optimizer)
    finally:
        os.umask(before)
    for path in (tmp_path / "w.safetensors", tmp_path / "meta-00000001" / TENSORS):
        assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_weights_of_another_network_or_none_are_refused_with_a_sentence(tmp_path):
    network, _ = trained(0)
    save_weights(network, tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match=r"not of this backbone: .* of width 0\.0625, model\.width asks for 0\.125"):
        load_weights(build("mfr28", width=0.125), tmp_path / "w.safetensors")
    torch.save({"body.0.conv.weight": torch.zeros(3), "x": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"not of this backbone: check model\.name and its options: \d+ of") as told:
        load_weights(network, tmp_path / "other.pth")
    assert len(str(told.value).replace(str(tmp_path), "")) < 400
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


@pytest.mark.parametrize("content", [[1], 3, {1: torch.zeros(2)}, {"epoch": 3, "weight": torch.zeros(2)}])
def test_what_is_no_state_dict_is_refused_with_a_sentence(tmp_path, content):
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(ValueError, match="no state dict"):
        load_weights(trained(0)[0], tmp_path / "w.pth")


@pytest.mark.parametrize(
    "wrapped",
    [
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"model": {"state_dict": state}, "optimizer": {"state": {}}},
        lambda state: {f"module.{name}": value for name, value in state.items()},
        lambda state: {"backbone": {f"module._orig_mod.{name}": value for name, value in state.items()}},
        lambda state: {f"_orig_mod.module.{name}": value for name, value in state.items()},
        lambda state: {"state_dict_backbone": state, "state_dict_softmax_fc": {"weight": torch.zeros(3)}, "epoch": 1},
        lambda state: {
            "state_dict": {"head.kernel": torch.zeros(3), **{f"model.{name}": value for name, value in state.items()}}
        },
        lambda state: (
            {f"module.backbone.{name}": value for name, value in state.items()} | {"module.fc.w": torch.ones(2)}
        ),
    ],
)
def test_what_other_trainers_put_around_weights_is_taken_off(tmp_path, wrapped):
    network, _ = trained(1)
    torch.save(wrapped(network.state_dict()), tmp_path / "w.pth")
    other, _ = trained(0, seed=1)
    load_weights(other, tmp_path / "w.pth")
    assert same(network, other)


def test_a_model_is_opened_by_a_recipe_that_names_no_network(tmp_path):
    network = build("mfr28", width=0.0625, embedding=24)
    torch.save({"state_dict": network.state_dict()}, tmp_path / "w.pth")
    model = open_model(tmp_path / "w.pth", load_config("finetune"), device="cpu")
    assert (model.config.model.name, model.config.model.embedding, model.config.model.width) == ("mfr28", 24, 0.0625)
    assert same(network, model.backbone)
    torch.save({"weight": torch.zeros(2, 3)}, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=r"'auto' cannot be read off .*; they look like a classifier alone"):
        open_model(tmp_path / "w.pth", load_config("finetune"), device="cpu")


def test_a_pointer_of_git_lfs_is_told(tmp_path):
    (tmp_path / "w.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 3\n")
    with pytest.raises(ValueError, match=r"is a pointer of Git LFS, .* `git lfs pull`"):
        load_weights(trained(0)[0], tmp_path / "w.safetensors")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "w.safetensors"
    save_weights(build("mfr28", width=0.0625, image_size=16), path)
    return open_model(path, Config(data=Data(size=16), model=Model(width=0.0625)), device="cpu")


def test_images_are_embedded_however_they_come(model, tmp_path):
    (tmp_path / "one.jpg").write_bytes(face(0, 1))
    images = [face(0, 1), tmp_path / "one.jpg", str(tmp_path / "one.jpg")]
    embedding_ND = model.embed(images)
    assert embedding_ND.shape == (3, 64)
    assert torch.equal(embedding_ND[0], embedding_ND[1])
    assert torch.equal(embedding_ND[0], embedding_ND[2])
    assert model.embed([np.zeros((20, 30, 3), np.uint8)], mirror="none").shape == (1, 32)


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (np.zeros((0, 5, 3), np.uint8), r"want pixels as uint8 \(height, width, 3\), got uint8 \(0, 5, 3\)"),
        (np.zeros((4, 4, 3)), "got float64"),
        (3, "want an image as bytes, a path or an array of pixels, got int"),
        (None, "got NoneType"),
        (b"", "these 0 bytes cannot be decoded"),
    ],
)
def test_what_is_no_image_is_refused(model, image, words):
    with pytest.raises(ValueError, match=words):
        model.embed([image])
