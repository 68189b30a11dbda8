"""Sizes that are published, names that InsightFace's checkpoints use, and that every layer has a double backward."""

import pytest
import torch
from torch import nn

from fastmfr.backbone import NAMES, build


def parameters(network):
    return sum(value.numel() for value in network.parameters())


def test_mfr28_has_28_convolutions_and_the_papers_size():
    network = build("mfr28")
    assert sum(isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3) for m in network.modules()) == 28
    assert parameters(network) == pytest.approx(4.64e6, rel=0.01)
    assert network(torch.randn(2, 3, 120, 120)).shape == (2, 256)


# Counted in InsightFace's own definitions: 24.03, 34.14, 43.59, 65.16 million.
@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("iresnet18", 24.03),
        ("iresnet34", 34.14),
        ("iresnet50", 43.59),
        ("iresnet100", 65.16),
    ],
)
def test_iresnet_has_the_published_size(name, millions):
    with torch.device("meta"):
        assert parameters(build(name)) / 1e6 == pytest.approx(millions, abs=0.01)


def test_iresnet_parameters_have_insightfaces_names():
    with torch.device("meta"):
        names = set(build("iresnet50").state_dict())
    block = {
        f"layer3.13.{part}"
        for part in ("bn1.weight", "conv1.weight", "bn2.running_var", "prelu.weight", "conv2.weight", "bn3.bias")
    }
    rest = {
        "conv1.weight",
        "bn1.bias",
        "prelu.weight",
        "layer1.0.downsample.0.weight",
        "layer4.0.downsample.1.weight",
        "bn2.running_mean",
        "fc.weight",
        "fc.bias",
        "features.weight",
        "features.running_var",
    }
    assert block | rest <= names


@pytest.mark.parametrize("size", [48, 56, 64])
def test_mfr28_takes_any_image_size(size):
    assert build("mfr28", width=0.125)(torch.randn(2, 3, size, size)).shape == (2, 64)


def test_width_and_embedding_are_options():
    network = build("mfr28", 24, width=0.125)
    assert network(torch.randn(2, 3, 32, 32)).shape == (2, 24)
    assert network.embedding == 24
    assert build("iresnet18", 128, image_size=32)(torch.randn(2, 3, 32, 32)).shape == (2, 128)


@pytest.mark.parametrize(("name", "options"), [("mfr28", {"width": 0.0625}), ("iresnet18", {"image_size": 16})])
def test_every_layer_has_a_double_backward(name, options):
    torch.manual_seed(0)
    network = build(name, **options).double()
    trained = [value for value in network.parameters() if value.requires_grad]
    x = torch.randn(3, 3, 16, 16, dtype=torch.float64)
    weight = torch.randn(3, network.embedding, dtype=torch.float64)
    first = torch.autograd.grad((torch.tanh(network(x)) * weight).sum(), trained, create_graph=True)
    second = torch.autograd.grad(sum(g.square().sum() for g in first), trained)
    assert all(torch.isfinite(value).all() for value in second)
    assert all(value.any() for value in second)


def test_an_unknown_name_is_answered_with_the_known_ones():
    with pytest.raises(ValueError, match=f"{NAMES[0]}.*got 'resnet50'"):
        build("resnet50")
    with pytest.raises(ValueError, match="multiple of 16, got 120"):
        build("iresnet18", image_size=120)
