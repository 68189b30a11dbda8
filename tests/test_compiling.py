"""`pretrain.compile`: torch.compile as asked for, chosen by time, kept for a resumed run, and nothing left behind."""

import json
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from small_runs import interrupted, main, only_run, records
from torch import nn

from fastmfr.config import parse
from fastmfr.head import MarginHead
from fastmfr.training import compiling
from fastmfr.training.compiling import compiled_or_not
from fastmfr.training.pretrain import _network

# torch.compile imports parts of torch that torch itself has deprecated
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
SIDE, IMAGES, STEPS = 16, 8, 2000
BEFORE = "pretrain: torch.compile compiles the backbone, which takes one minute to five"


def make_network():
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 4, 3, 4), nn.BatchNorm2d(4), nn.PReLU(4), nn.Dropout(0.5), nn.Flatten(), nn.Linear(64, 8)
    return nn.Sequential(*layers).train()


def make_head(margin="cosface"):
    return MarginHead(8, 20, margin, 8.0)


class Taken:
    """What stage one hands over, and what is said; `compile` is the setting."""

    def __init__(self, compile, tmp_path, group=None):
        self.said = []
        settings = SimpleNamespace(compile=compile, precision="fp32", cuda_graph=True)
        self.run = SimpleNamespace(
            config=SimpleNamespace(pretrain=settings, data=SimpleNamespace(size=SIDE)),
            device=torch.device("cpu"),
            logbook=SimpleNamespace(say=self.said.append),
            ranks=SimpleNamespace(group=group),
            folder=tmp_path,
        )

    def __call__(self, network, head=None, steps=STEPS):
        self.chosen = compiled_or_not(self.run, network, network, head or make_head(), IMAGES, steps)
        return self.chosen


class Clock:
    """Time that passes only in networks: a forward pass of a network takes its seconds."""

    def __init__(self, patch):
        self.now, self.compilations = 0.0, 0
        patch.setattr(compiling.time, "perf_counter", lambda: self.now)

    def compile_as(self, patch, seconds):
        def compile(network, dynamic, fullgraph):
            self.compilations += 1
            return self.taking(seconds, network)

        patch.setattr(torch, "compile", compile)

    def taking(self, seconds, network):
        network = nn.Sequential(network)
        network.register_forward_pre_hook(lambda *_: self.pass_by(seconds))
        return network

    def pass_by(self, seconds):
        self.now += seconds


def fails(network, dynamic, fullgraph):
    def forward(image):
        raise RuntimeError("no C++\n compiler\n\nSet TORCHDYNAMO_VERBOSE=1 for more")

    network = nn.Sequential(network)
    network.forward = forward
    return network


def assert_untouched(network, head, before):
    for part, state in zip((network, head), before, strict=True):
        assert all(torch.equal(value, state[name]) for name, value in part.state_dict().items())
        assert all(value.grad is None for value in part.parameters())


def test_off_compiles_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "compile", fails)
    taken, network = Taken("off", tmp_path), make_network()
    assert taken(network) is network
    assert taken.said == []


@pytest.mark.slow  # about ten seconds of a compiler
def test_on_computes_what_the_backbone_computes(tmp_path):
    plain, network = make_network().eval(), make_network().eval()
    taken = Taken("on", tmp_path)
    compiled = taken(network)
    image = torch.randn(IMAGES, 3, SIDE, SIDE).to(memory_format=torch.channels_last)
    assert compiled is not network
    for one in (plain, compiled):
        one(image).square().sum().backward()
    torch.testing.assert_close(compiled(image), plain(image))
    for mine, its in zip(network.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, its.grad)
    assert taken.said[0] == BEFORE
    assert taken.said[1].startswith("pretrain: compiled by torch.compile, in ")


@pytest.mark.parametrize("compile", ["on", "auto"])
def test_trying_leaves_weights_statistics_gradients_and_random_numbers_as_they_were(tmp_path, monkeypatch, compile):
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    monkeypatch.setattr(compiling, "WORTH_FROM", 0.0)
    network, head = make_network(), make_head("adaface")
    before = [{name: value.clone() for name, value in part.state_dict().items()} for part in (network, head)]
    lot = torch.random.get_rng_state()
    taken = Taken(compile, tmp_path)
    taken(network, head)
    assert_untouched(network, head, before)
    assert torch.equal(torch.random.get_rng_state(), lot)
    assert len(taken.said) == 2


@pytest.mark.parametrize(("seconds", "ratio", "is_taken"), [(0.5, "0.50", True), (2.0, "2.00", False)])
def test_auto_takes_what_is_faster_and_says_by_how_much(tmp_path, monkeypatch, seconds, ratio, is_taken):
    clock = Clock(monkeypatch)
    clock.compile_as(monkeypatch, seconds)
    taken, network = Taken("auto", tmp_path), make_network()
    chosen = compiled_or_not(taken.run, network, clock.taking(1.0, network), make_head(), IMAGES, STEPS)
    assert chosen[0] is network
    assert clock.compilations == 1
    before, sentence = taken.said
    assert before == BEFORE
    assert sentence.startswith(f"pretrain: {'compiled by torch.compile' if is_taken else 'not compiled'}: with")
    assert f"takes {ratio} x its time without" in sentence


def test_auto_does_not_compile_for_a_short_stage(tmp_path, monkeypatch):
    clock = Clock(monkeypatch)
    clock.compile_as(monkeypatch, 0.5)
    taken, network = Taken("auto", tmp_path), make_network()
    plain = clock.taking(1.0, network)
    assert compiled_or_not(taken.run, network, plain, make_head(), IMAGES, 1799) is plain
    assert clock.compilations == 0
    assert "1,799 steps take about 1799 s" in taken.said[0]
    compiled_or_not(taken.run, network, plain, make_head(), IMAGES, 1800)
    assert clock.compilations == 1


def test_a_backbone_that_cannot_be_compiled(tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "compile", fails)
    monkeypatch.setattr(compiling, "WORTH_FROM", 0.0)
    network, head = make_network(), make_head()
    before = [{name: value.clone() for name, value in part.state_dict().items()} for part in (network, head)]
    taken = Taken("auto", tmp_path)
    assert taken(network, head) is network
    assert taken.said == [
        BEFORE,
        "pretrain: not compiled: torch.compile cannot make one graph of this backbone here (no C++ compiler)",
    ]
    with pytest.raises(ValueError, match=r"pretrain.compile on: torch.compile cannot .* want pretrain.compile off"):
        Taken("on", tmp_path)(network, head)
    assert_untouched(network, head, before)


class Branching(nn.Module):
    """A network that asks its images which way to go."""

    def __init__(self):
        super().__init__()
        self.layers = make_network()

    def forward(self, image):
        return self.layers(image if image.mean() > 0 else -image)


def test_a_backbone_of_several_graphs_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    with pytest.raises(ValueError, match=r"cannot make one graph of this backbone here .*[Dd]ata-dependent"):
        Taken("on", tmp_path)(Branching())


def test_on_and_off_in_a_recipe_need_no_quotes(tmp_path):
    recipe = tmp_path / "mine.yaml"
    for typed in ("on", "off", "'on'", "auto"):
        recipe.write_text(f"pretrain: {{compile: {typed}}}\ndata: {{sources: {{a: a}}}}\n")
        config, _ = parse(["--config", str(recipe)])
        assert config.pretrain.compile == typed.strip("'")


def test_several_processes_do_not_compare(tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "compile", fails)
    taken, network = Taken("auto", tmp_path, group=object()), make_network()
    assert taken(network) is network
    assert "compares in one process" in taken.said[0]


def test_statistics_over_processes_exclude_compiling():
    settings = {"compile": "on", "sync_batch_norm": True, "batch_norm": "batch"}
    run = SimpleNamespace(
        config=SimpleNamespace(pretrain=SimpleNamespace(**settings)), ranks=SimpleNamespace(group=object())
    )
    with pytest.raises(ValueError, match="sync_batch_norm false, or"):
        _network(run, make_network(), make_head(), IMAGES, STEPS)


def test_fused_operations_exclude_compiling(capsys):
    given = ["--data.sources.a", "a", "--pretrain.fused=true", "--pretrain.compile=on"]
    with pytest.raises(SystemExit):
        parse(given)
    assert "pretrain.fused true excludes pretrain.compile on" in " ".join(capsys.readouterr().err.split())
    parse([*given[:-1], "--pretrain.compile=auto"])


def test_a_resumed_run_takes_what_was_chosen(small, tmp_path, monkeypatch):
    interrupted([*small, "--pretrain.compile=auto", "--save_every=2"], monkeypatch, ("pretrain", 3))
    folder = only_run(tmp_path)
    assert json.loads((folder / "made_with.json").read_text())["settings"]["pretrain.compile"] == "off"
    assert "compile: auto" in (folder / "config.yaml").read_text()
    monkeypatch.setattr(torch, "compile", fails)
    monkeypatch.setattr(compiling, "WORTH_FROM", 0.0)
    assert main(["--resume", str(folder)]) == 0
    assert "compile: auto" in (folder / "config.yaml").read_text()
    assert [line["step"] for line in records(folder, "pretrain")] == list(range(6))


def test_a_resumed_run_does_not_change_over(small, tmp_path, monkeypatch, capsys):
    interrupted([*small, "--pretrain.compile=auto", "--save_every=2"], monkeypatch, ("pretrain", 3))
    folder = only_run(tmp_path)
    assert main(["--resume", str(folder), "--pretrain.compile=on"]) == 1
    assert "pretrain.compile was 'off', now 'on'" in " ".join(capsys.readouterr().err.split())
