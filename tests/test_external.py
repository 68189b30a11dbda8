"""Backbones of others: built, checked before any work, trained by the command, and refused with what was wanted."""

import re
import sys

import pytest
import torch
from safetensors.torch import save_file
from small_runs import interrupted, main, only_run
from torch import nn

from fastmfr.__main__ import main as fastmfr_main
from fastmfr.backbone import build, check_backbone
from fastmfr.config import load_config, parse
from fastmfr.meta import MetaTrainer
from fastmfr.weights import load_weights, open_model, save_weights

NETS = '''
from torch import nn


def unit(width_in, width, size=1, stride=1, groups=1, padding=None, act=True):
    padding = size // 2 if padding is None else padding
    convolution = nn.Conv2d(width_in, width, size, stride, padding, groups=groups, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(width), nn.PReLU(width) if act else nn.Identity())


class Bottleneck(nn.Module):
    def __init__(self, width_in, width, stride):
        super().__init__()
        inner = 2 * width_in
        depthwise = unit(inner, inner, 3, stride, inner)
        self.layers = nn.Sequential(unit(width_in, inner), depthwise, unit(inner, width, act=False))
        self.adds = stride == 1 and width_in == width

    def forward(self, x):
        return x + self.layers(x) if self.adds else self.layers(x)


class MobileFaceNet(nn.Module):
    """Small, and laid out as MobileFaceNet: bottlenecks, a depthwise convolution over all pixels, a linear layer."""

    def __init__(self, embedding, size):
        super().__init__()
        self.body = nn.Sequential(unit(3, 8, 3, 2), unit(8, 8, 3, 1, 8), Bottleneck(8, 8, 2), Bottleneck(8, 8, 1))
        self.last = nn.Sequential(unit(8, 16), unit(16, 16, size // 4, 1, 16, padding=0, act=False))
        self.fc, self.norm = nn.Linear(16, embedding, bias=False), nn.BatchNorm1d(embedding)

    def forward(self, x):
        x = self.last(self.body(x))
        return self.norm(self.fc(x.view(x.size(0), -1)))


def plain():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def strided():
    return nn.Sequential(nn.Conv2d(3, 16, 1, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def colourful(embedding, colour):
    return plain()


def sized(size):
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * size * size, 7))


def named():
    network = plain()
    network.embedding = 'text'
    return network


def broken(size=0):
    raise KeyError("no such width")


maps, number, words = nn.Conv2d(3, 4, 3), 5, lambda: "no module"
conv = lambda: nn.Conv2d(3, 4, 3)
only_32 = lambda embedding=7: nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, embedding))
'''


@pytest.fixture(autouse=True)
def _nets(tmp_path, monkeypatch):
    """A module of networks that can be imported, as from the folder that a command is started in."""
    (tmp_path / "nets_of_a_user.py").write_text(NETS)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    sys.modules.pop("nets_of_a_user", None)


def user(name):
    return f"nets_of_a_user:{name}"


@pytest.mark.parametrize(
    ("name", "embedding", "length"),
    [
        ("MobileFaceNet", 24, 24),
        ("MobileFaceNet", None, 512),
        ("plain", None, 4),
        ("sized", 7, 7),
        ("only_32", None, 7),
    ],
)
def test_a_factory_gets_what_its_signature_names(name, embedding, length):
    network = build(user(name), embedding, image_size=32)
    assert network.embedding == length
    assert network.training
    assert network(torch.randn(3, 3, 32, 32)).shape == (3, length)


@pytest.mark.parametrize(
    ("name", "embedding", "sentence"),
    [
        (user("colourful"), None, "takes `embedding` and `size` or fewer, but .*:colourful also wants colour"),
        (user("broken"), None, r"broken\(size=16\) failed: KeyError: 'no such width'"),
        (user("words"), None, r"want a torch.nn.Module from .*words\(\), got str"),
        (user("missing"), None, "nets_of_a_user has no callable missing"),
        (user("number"), None, "nets_of_a_user has no callable number"),
        (user("conv"), None, r"want embeddings \(2, D\) of 2 images from .*:conv, got \(2, 4, 14, 14\)"),
        (user("only_32"), 7, r"only_32 fails on images \(2, 3, 16, 16\) .*; want a data.size that the network takes"),
        (user("plain"), 9, "want 9 numbers in an embedding .*, got 4 from .*:plain; want --model.embedding 4"),
        (user("named"), None, "has an attribute `embedding` that is no whole number"),
        ("no_such_package.nets:make", None, "cannot import no_such_package.nets, .*install it, or start the command"),
        ("os.path:abspath", None, "got os.path:abspath, of Python's standard library"),
    ],
)
def test_says_what_is_wrong_with_a_factory(name, embedding, sentence):
    with pytest.raises(ValueError, match=sentence):
        build(name, embedding, image_size=16)


@pytest.mark.parametrize("name", ["resnet50", "timm/", "timm/../x", "a.b", ":f", "a:", "a b:c"])
def test_a_name_of_no_kind_is_answered_with_the_kinds(name, capsys):
    with pytest.raises(SystemExit, match="2"):
        parse([f"--model.name={name}"])
    assert "want model.name out of mfr28, iresnet18" in capsys.readouterr().err


def test_checking_leaves_random_numbers_and_other_backbones_alone():
    config = parse([f"--model.name={user('plain')}"])[0]
    state = torch.get_rng_state()
    check_backbone(config, torch.device("cpu"))
    assert torch.equal(state, torch.get_rng_state())
    check_backbone(load_config("mfr"), torch.device("cpu"))


def test_a_convolution_whose_gradient_would_corrupt_memory_is_refused_on_a_cpu():
    config = parse([f"--model.name={user('strided')}"])[0]
    with pytest.raises(ValueError, match=r"cannot be trained on a CPU: the gradient of 0, .* of 3 channels with a"):
        check_backbone(config, torch.device("cpu"))
    check_backbone(config, torch.device("cuda"))


def test_a_wrong_backbone_is_told_before_a_domain_is_opened(tmp_path, capsys):
    argv = [f"--folder={tmp_path / 'runs'}", "--data.sources.a=/nowhere", f"--model.name={user('conv')}"]
    assert main(argv) != 0
    assert "want embeddings (2, D) of 2 images" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def trained(small, name, *more):
    argv = [*small, f"--model.name={name}", "--model.width=0.5", "--model.embedding=16", *more]
    assert main(argv) == 0
    return argv


def engine_of(network):
    from fastmfr.config import MetaSettings

    trainer = MetaTrainer(network, torch.optim.SGD(network.parameters(), 0.1), MetaSettings(0.5, "auto"))
    return trainer.engine, trainer.reason


def test_the_line_that_says_how_to_go_on_names_the_factory(small, monkeypatch, capsys):
    interrupted([*small, f"--model.name={user('MobileFaceNet')}"], monkeypatch, ("pretrain", 1))
    again = capsys.readouterr().err.partition("go on with: ")[2].split()
    assert again[-2:] == ["--model.name", user("MobileFaceNet")]


def test_a_network_of_the_user_is_trained_resumed_opened_and_exported(small, tmp_path, capsys):
    trained(small, user("MobileFaceNet"))
    run = only_run(tmp_path)
    assert re.search(r"engine rop\s", capsys.readouterr().out)
    assert main(["--resume", str(run), "--meta.steps=4", f"--model.name={user('MobileFaceNet')}"]) == 0
    model = open_model(run, device="cpu", code=True)
    assert "body.0.0.weight" in model.backbone.state_dict()  # the network's own names
    assert model.embed([torch.zeros(32, 32, 3, dtype=torch.uint8).numpy()]).shape == (1, 32)
    assert (
        fastmfr_main(["export", str(run), f"--model.name={user('MobileFaceNet')}", f"--out={tmp_path / 'm.onnx'}"]) == 0
    )
    again = [*small, f"--model.name={user('MobileFaceNet')}", "--model.embedding=16", f"--model.weights={run}"]
    assert main([*again, "--pretrain.steps=0", "--meta.steps=1"]) == 0


def test_a_file_has_no_code_run(tmp_path, capsys):
    """A factory is called if it is typed, and not because a run folder of a stranger names it."""
    (tmp_path / "config.yaml").write_text(f"model: {{name: '{user('broken')}'}}")
    save_file({"a": torch.zeros(1)}, tmp_path / "base.safetensors")
    sentence = f"has the backbone {user('broken')}, which is code .*type --model.name {user('broken')} too"
    with pytest.raises(ValueError, match=sentence):
        open_model(tmp_path)
    with pytest.raises(SystemExit, match="2"):
        main(["--resume", str(tmp_path)])
    assert re.search(sentence, capsys.readouterr().err)
    with pytest.raises(ValueError, match="failed: KeyError: 'no such width'"):
        open_model(tmp_path, code=True)


@pytest.fixture
def timm():
    """timm, which needs a torchvision that was built for the torch at hand."""
    try:
        import timm
    except Exception as error:
        pytest.skip(f"timm cannot be imported: {type(error).__name__}: {error}")
    return timm


@pytest.mark.usefixtures("timm")
class TestTimm:
    """What needs timm."""

    def test_a_network_of_timm_is_trained_and_opened(self, small, tmp_path, capsys):
        trained(small, "timm/mobilenetv3_small_050")
        assert re.search(r"engine rop\s", capsys.readouterr().out)
        model = open_model(only_run(tmp_path), device="cpu")
        assert model.backbone.embedding == 16
        assert isinstance(model.backbone.classifier, nn.Sequential)

    @pytest.mark.parametrize("name", ["mobilenetv3_small_050", "vit_tiny_patch16_224"])
    def test_the_head_is_a_linear_layer_and_a_batchnorm_whose_weight_is_fixed(self, name):
        network = build(f"timm/{name}", 24, image_size=32)
        assert network.embedding == 24
        head = network.get_submodule(network.replaced_head)
        assert [type(layer) for layer in head] == [nn.Linear, nn.BatchNorm1d]
        assert not head[1].weight.requires_grad

    def test_released_weights_fill_all_but_the_head(self, timm, tmp_path):
        network = build("timm/mobilenetv3_small_050", 24, image_size=32)
        released = timm.create_model("mobilenetv3_small_050", num_classes=10)
        torch.save(released.state_dict(), tmp_path / "released.pth")
        head = network.classifier[0].weight.clone()
        assert "the classifier in" in load_weights(network, tmp_path / "released.pth")
        assert torch.equal(network.conv_stem.weight, released.conv_stem.weight)
        assert torch.equal(network.classifier[0].weight, head)
        save_weights(network, tmp_path / "ours.safetensors")
        assert load_weights(network, tmp_path / "ours.safetensors") == ""
        config = parse(["--model.name=timm/mobilenetv3_small_050", "--model.embedding=24", "--data.size=32"])[0]
        with pytest.raises(ValueError, match=r"classifier .* was left out.*want weights that were trained with"):
            open_model(tmp_path / "released.pth", config)

    def test_says_what_is_wrong_with_a_name_a_size_or_a_head(self):
        with pytest.raises(ValueError, match=r"has no network 'mobilenetv3_smal_050'; did you mean timm/mobilenetv3"):
            build("timm/mobilenetv3_smal_050")
        with pytest.raises(ValueError, match=r"classifier is one linear layer, got timm/levit_128s"):
            build("timm/levit_128s", image_size=224)
        with pytest.raises(ValueError, match=r"fails on images \(2, 3, 16, 16\).*timm made it for 299 pixels a side"):
            build("timm/inception_v3", image_size=16)

    def test_attention_goes_to_autograd_which_the_reason_names(self):
        engine, reason = engine_of(build("timm/vit_tiny_patch16_224", 8, image_size=32))
        assert engine == "autograd"
        assert "has no R-operator here" in reason


def test_without_timm_a_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ImportError, match=r"timm is needed, and cannot be imported .*pip install 'fastmfr\[timm\]'"):
        build("timm/resnet18", image_size=32)
