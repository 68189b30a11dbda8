"""Which network a file of weights is of, and what a person reads where it is another one than the settings name."""

from functools import cache

import pytest
import torch

from fastmfr.architecture import Architecture, architecture_of, check_fits, difference, read_off
from fastmfr.backbone import IRESNET_BLOCKS, build
from fastmfr.config.model_settings import Model


@cache
def state(name, **options):
    """Names and shapes of a backbone, made once; nothing is allocated."""
    with torch.device("meta"):
        return build(name, **options).state_dict()


@pytest.mark.parametrize("name", IRESNET_BLOCKS)
def test_an_iresnet_of_every_depth_is_read_off_its_names_and_shapes(name):
    found = architecture_of(state(name, embedding=256, image_size=128))
    assert found == Architecture(name, 256, image_size=128)
    model = read_off(Model(name="auto"), state(name))
    assert (model.name, model.embedding) == (name, 512)
    check_fits(state(name), model, 112)


@pytest.mark.parametrize(("width", "embedding"), [(0.5, None), (0.25, 64), (0.3, None), (0.0625, 32)])
def test_the_28_layer_network_is_read_off_its_names_and_shapes(width, embedding):
    model = read_off(Model(name="auto"), state("mfr28", width=width, embedding=embedding))
    assert model.name == "mfr28"
    assert model.embedding == (embedding or round(512 * width))
    check_fits(state("mfr28", width=width, embedding=embedding), model, 120)


def test_a_name_that_was_typed_stays():
    assert read_off(Model(name="iresnet18"), state("iresnet50")) == Model(name="iresnet18")


@pytest.mark.parametrize(
    ("weights", "asked", "size", "words"),
    [
        (("iresnet50", {}), Model(name="iresnet18"), 112, "are an iresnet50, model.name asks for iresnet18"),
        (("iresnet18", {}), Model(), 112, "are an iresnet18, model.name asks for mfr28"),
        (
            ("iresnet18", {"embedding": 256}),
            Model(name="iresnet18"),
            128,
            "the weights are for images of 112 px, data.size asks for 128; the weights have 256 outputs, "
            "model.embedding asks for 512",
        ),
        (("mfr28", {"width": 0.25}), Model(), 112, "the weights are of width 0.25, model.width asks for 0.5"),
    ],
)
def test_what_differs_is_told_by_the_names_of_the_settings(weights, asked, size, words):
    name, options = weights
    with pytest.raises(ValueError, match=r"^the weights") as told:
        check_fits(state(name, **options), asked, size)
    assert words in str(told.value)


FOREIGN = {
    "IR network of face.evoLVe": ("input_layer.0.weight", "body.0.shortcut_layer.0.weight", "output_layer.0.weight"),
    "without the PReLU": ("conv1.weight", "bn1.weight", "layer1.0.conv1.weight", "layer1.0.relu.x", "fc.weight"),
    "bottleneck blocks": ("conv1.weight", "layer1.0.conv1.weight", "layer1.0.conv3.weight", "fc.weight"),
    "a classifier alone": ("weight",),
    "a transformer": ("patch_embed.proj.weight", "blocks.0.mlp.fc1.weight", "blocks.1.attn.qkv.weight"),
}


@pytest.mark.parametrize("guess", FOREIGN)
def test_another_network_is_told_with_a_guess_and_three_names_at_most(guess):
    foreign = {name: torch.zeros(2) for name in FOREIGN[guess]}
    wanted = state("iresnet18")
    sentence = difference(foreign, wanted)
    assert guess in sentence
    assert sum(name in sentence for name in {*wanted, *foreign} if len(name) > 8) <= 3
    with pytest.raises(ValueError, match=r"of no backbone that fastmfr has.*their names begin") as told:
        read_off(Model(name="auto"), foreign)
    assert guess in str(told.value)


def test_a_depth_that_nobody_has_is_told():
    odd = {name: value for name, value in state("iresnet50").items() if not name.startswith("layer3.13.")}
    with pytest.raises(ValueError, match="an iresnet with 3, 4, 13 and 3 blocks; want one of iresnet18, "):
        read_off(Model(name="auto"), odd)


def test_names_that_are_missing_are_counted_and_old_files_have_no_counters():
    whole = state("iresnet18")
    assert difference({name: value for name, value in whole.items() if "num_batches" not in name}, whole) == ""
    missing = difference({name: value for name, value in whole.items() if "layer2.0.bn" not in name}, whole)
    assert "12 of the backbone's" in missing
    assert "such as layer2.0.bn1.weight, layer2.0.bn1.bias ..." in missing
    other = {**whole, "layer2.0.prelu.weight": torch.zeros(1)}
    assert "layer2.0.prelu.weight has the shape (1,), and the backbone's has (128,)" in difference(other, whole)
