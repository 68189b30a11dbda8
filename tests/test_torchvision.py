"""Networks of torchvision as backbones.

A stand-in has torchvision's functions, for torchvision must be built for the torch at hand; what is installed is tried
too.
"""

import re
import sys
from types import SimpleNamespace

import pytest
import torch
from small_runs import only_run
from test_external import engine_of, trained
from torch import nn

from fastmfr.__main__ import main as fastmfr_main
from fastmfr.backbone import build
from fastmfr.weights import load_weights, save_weights


class Small(nn.Module):
    """A network as torchvision's are: dropouts in place before the classifier, stochastic depth within."""

    def __init__(self, classes=1000):
        super().__init__()
        StochasticDepth = type("StochasticDepth", (nn.Dropout,), {})
        self.features = nn.Sequential(nn.Conv2d(3, 8, 3, 2, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.depth = StochasticDepth(0.5)
        self.classifier = nn.Sequential(nn.Dropout(0.2, inplace=True), nn.Linear(8, classes))

    def forward(self, x):
        return self.classifier(self.depth(self.features(x)).mean((2, 3)))


@pytest.fixture
def stand_in(monkeypatch):
    """A torchvision of three networks, in the place of one that must be built for the torch at hand; returns what its
    builders were given."""
    given = []

    def get_model(name, weights="not told", **options):
        if set(options) - {"attends": {"image_size"}}.get(name, set()):
            raise TypeError(f"unexpected keyword {options}")
        given.append((name, weights, options))
        return Small(classes=10 if name == "few" else 1000)

    models = SimpleNamespace(list_models=lambda module: ["small", "attends", "few"], get_model=get_model)
    whole = SimpleNamespace(models=models, __version__="0.28.0")
    monkeypatch.setitem(sys.modules, "torchvision", whole)
    monkeypatch.setitem(sys.modules, "torchvision.models", models)
    return given


def test_a_network_of_torchvision_has_a_layer_to_the_embedding_and_no_depth_at_random(stand_in):
    network = build("torchvision/small", 24, image_size=16, dropout=0.1)
    assert network.embedding == 24
    assert [type(layer) for layer in network.get_submodule(network.replaced_head)] == [nn.Linear, nn.BatchNorm1d]
    assert (network.classifier[0].p, network.classifier[0].inplace) == (0.1, False)
    assert isinstance(network.depth, nn.Identity)
    assert build("torchvision/attends", image_size=32).embedding == 512
    assert stand_in == [("small", None, {}), ("attends", None, {"image_size": 32})]
    assert engine_of(build("torchvision/small", 24, image_size=16)) == ("rop", "")


def test_weights_of_torchvision_fill_all_but_the_head(stand_in, tmp_path):
    network, released = build("torchvision/small", 24, image_size=16), Small()
    torch.save(released.state_dict(), tmp_path / "released.pth")
    assert "the classifier in" in load_weights(network, tmp_path / "released.pth")
    assert torch.equal(network.features[0].weight, released.features[0].weight)
    save_weights(network, tmp_path / "ours.safetensors")
    assert load_weights(network, tmp_path / "ours.safetensors") == ""


def test_a_network_of_torchvision_is_trained_and_exported(stand_in, small, tmp_path, capsys):
    trained(small, "torchvision/small")
    assert re.search(r"engine rop\s", capsys.readouterr().out)
    assert fastmfr_main(["export", str(only_run(tmp_path)), f"--out={tmp_path / 'm.safetensors'}"]) == 0
    assert "under torchvision's names, but for the layer to the embedding" in " ".join(capsys.readouterr().out.split())


def test_says_what_is_wrong_with_a_name_or_a_head_of_torchvision(stand_in):
    with pytest.raises(ValueError, match=r"torchvision 0.28.0 has no network 'smal'; did you mean torchvision/small"):
        build("torchvision/smal")
    with pytest.raises(ValueError, match="that ends in a linear layer to 1000 classes, got torchvision/few; want"):
        build("torchvision/few")


def test_without_torchvision_a_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    monkeypatch.delitem(sys.modules, "torchvision.models", raising=False)
    with pytest.raises(
        ImportError, match=r"torchvision is needed, .*built for torch \d+\.\d+.*, from where torch came"
    ):
        build("torchvision/resnet18", image_size=32)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "googlenet"])
def test_a_real_network_of_torchvision_takes_the_r_operator(name):
    try:
        import torchvision.models  # noqa: F401
    except Exception as error:
        pytest.skip(f"torchvision cannot be imported: {type(error).__name__}: {error}")
    network = build(f"torchvision/{name}", 24, image_size=64)
    assert engine_of(network) == ("rop", "")
    assert network.train()(torch.randn(2, 3, 64, 64)).shape == (2, 24)
