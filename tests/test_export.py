"""Exported files compute what the model computes, and say what their images must be.

Tests that write ONNX trace by torch's older exporter, in a second; `make exports` runs one with the exporter that
the command takes, whose import alone takes seconds.
"""

import os
import stat
import sys
from contextlib import redirect_stdout
from dataclasses import replace
from inspect import signature
from io import BytesIO, StringIO

import numpy as np
import pytest
import torch
from helpers import command
from safetensors import safe_open
from small_runs import same

from fastmfr.backbone import build, build_backbone
from fastmfr.config import Config, Data, Model, parse
from fastmfr.evaluate import embed, embed_domain
from fastmfr.export import Graph, checked_path, export_model, facts_of, onnx_file, write_card
from fastmfr.export.facts import RUNS_MIRROR, metadata_of
from fastmfr.results import Choice, Results, Scores, TarAtFar, TargetResult
from fastmfr.weights import load_weights, open_model, save_weights

main = command("export")
SMALL = ["--model.width=0.0625", "--data.size=16", "--device=cpu", "--threads=1"]
MADE_WITH = (
    '{"settings": {}, "data": {"asia": {"people": 900, "images": 4500, "fingerprint": "f"}, "a|b": {"people": 2}}}'
)


def score(tar, interval):
    rates = {"0.01": TarAtFar(tar=tar, interval=interval), "0.0001": TarAtFar(refused="too few pairs")}
    return Scores(tar_at_far=rates, rank1=0.5, auc=0.9, eer=0.1, identities=30)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run folder of a network nobody trained, with results."""
    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    sources = ["--data.sources.asia", "synthetic:studio", "--data.sources.a|b", "b"]
    config, _ = parse(["--config", "mfr", *sources, "--data.targets.nir", "n", *SMALL])
    (folder / "config.yaml").write_text(config.to_yaml())
    network = build("mfr28", width=0.0625)
    network(torch.randn(8, 3, 16, 16))  # gives BatchNorm its statistics
    save_weights(network, folder / "mfr.safetensors", steps=40)
    models = {"base": score(0.111, [0.1, 0.2]), "mfr": score(0.654, [0.601, 0.702])}
    targets = {"nir": TargetResult(unseen=True, models=models), "asia": TargetResult(models=models)}
    Results(targets=targets, choice=Choice(why="it is better")).save(folder / "results.json")
    (folder / "made_with.json").write_text(MADE_WITH)
    return folder


@pytest.fixture(scope="module")
def facts(run):
    return facts_of(open_model(run), of_run=True)


@pytest.fixture
def quickly(monkeypatch):
    """Traces by the exporter that TorchScript has, which needs no onnxscript and takes a second."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")

    def traced(graph):
        file, axes = BytesIO(), {name: {0: "N"} for name in ("data", "embedding")}
        with onnx_file._quiet():
            torch.onnx.export(
                graph,
                (graph.examples(2),),
                file,
                input_names=["data"],
                output_names=["embedding"],
                dynamic_axes=axes,
                dynamo=False,
            )
        return onnx.load_from_string(file.getvalue())

    monkeypatch.setattr(onnx_file, "_traced", traced)
    monkeypatch.setattr(onnx_file, "NEEDED", ("onnx", "onnxruntime"))


def graph_of(facts, **options):
    return Graph(facts.model.backbone, facts.model.preprocess, **options)


@pytest.mark.parametrize("mirror", ["none", "sum", "concat"])
@pytest.mark.parametrize("normalise", [False, True])
def test_the_graph_computes_what_evaluation_computes(facts, mirror, normalise):
    backbone = facts.model.backbone
    graph, raw = (graph_of(facts, raw_input=raw, mirror=mirror, normalise=normalise) for raw in (False, True))
    want_ND = embed(backbone, [graph.examples(5)], "cpu", mirror=mirror, normalise=normalise)
    assert not graph.training
    assert torch.equal(graph(graph.examples(5)), want_ND)
    pixel_N3HW = raw.examples(5)
    assert pixel_N3HW.min() == 0
    assert pixel_N3HW.max() == 255
    assert (raw(pixel_N3HW) - want_ND).abs().max() < 1e-5 * want_ND.norm(dim=1).max()


def test_metadata_says_what_a_program_must_know(facts, monkeypatch):
    monkeypatch.delattr("importlib.metadata.version")  # a checkout that nobody installed has no metadata
    look = metadata_of(facts, graph_of(facts, mirror="concat", normalise=True))
    assert look["input"] == "N x 3 x 16 x 16, float32"
    assert (look["channels"], look["size"], look["mean"], look["std"]) == ("RGB", "16", "127.5", "128.0")
    assert look["fit"] == "crop"
    assert (look["pixels"], look["normalisation"]) == ("(pixel - mean) / std, of pixels 0 to 255", "by the caller")
    assert (look["embedding"], look["unit_length"], look["mirror"]) == ("64", "true", "concat")
    assert (look["recipe"], look["seed"], look["steps"], look["scored_with_mirror"]) == ("mfr", "2019", "40", "concat")
    assert look["made_by"] == "fastmfr 0.1.0"
    raw = metadata_of(facts, graph_of(facts, raw_input=True))
    assert (raw["pixels"], raw["normalisation"], raw["embedding"]) == ("0 to 255", "in the file", "32")
    assert "run" not in metadata_of(replace(facts, run=None), graph_of(facts))


def test_the_mirror_rule_is_the_one_that_runs_score_with():
    assert {signature(one).parameters["mirror"].default for one in (embed, embed_domain)} == {RUNS_MIRROR}


def test_the_command_writes_safetensors_with_metadata_and_a_card(run, facts, tmp_path, capsys):
    out = tmp_path / "m.safetensors"
    assert main([str(run), "--out", str(out)]) == 0
    assert "under fastmfr's own names" in capsys.readouterr().out
    assert stat.S_IMODE(out.stat().st_mode) == 0o644
    with safe_open(out, "np") as file:
        assert file.metadata() == metadata_of(facts, graph_of(facts))
    network = build("mfr28", width=0.0625)
    load_weights(network, out)
    assert same(network, facts.model.backbone)
    assert {path.name for path in tmp_path.iterdir()} == {"m.safetensors", "MODEL_CARD.md"}


def test_pth_is_a_plain_state_dict_with_insightfaces_names(tmp_path):
    config = Config(model=Model(name="iresnet18", embedding=8), data=Data(size=32))
    network = build_backbone(config)
    save_weights(network, tmp_path / "w.safetensors")
    facts = facts_of(open_model(tmp_path / "w.safetensors", config, device="cpu"), of_run=False)
    _, said = export_model(facts, graph_of(facts), tmp_path / "m.pth")
    assert said.endswith("under InsightFace's names")
    state = torch.load(tmp_path / "m.pth", weights_only=True)
    assert type(state) is dict or type(state).__name__ == "OrderedDict"
    want = network.state_dict()
    assert list(state) == list(want)
    assert all(torch.equal(state[name], want[name]) and state[name].is_contiguous() for name in want)
    assert {"conv1.weight", "layer1.0.bn1.weight", "layer4.1.prelu.weight", "fc.bias", "features.running_var"} < set(
        state
    )
    assert stat.S_IMODE((tmp_path / "m.pth").stat().st_mode) == 0o644


def test_the_card_says_results_with_intervals_and_data(facts, tmp_path):
    (tmp_path / "m.pth").touch()
    text = write_card(tmp_path / "m.pth", facts, {"size": "16"}, "checked so").read_text()
    assert f"# Model card of {facts.run.name}/mfr\n" in text
    assert "| nir | never | 30 | 65.4 (60.1 to 70.2) | - | 50.0 | 90.00 | 10.00 |" in text
    assert "| asia | the domain; not these people | 30 | 65.4 (60.1 to 70.2) |" in text
    assert "11.1" not in text, "the other model's figures"
    assert "`-` on nir: too few pairs." in text
    assert "| asia | 900 | 4,500 | stage one and stage two |\n| a\\|b | 2 | 0 | stage one and stage two |" in text
    assert "Procedural faces, no photographs of people: asia." in text
    assert "crop the centre, 16 x 16" in text
    assert "Take (pixel - 127.5) / 128 of pixels" in text
    assert "## File `m.pth`\n\nChecked so.\n" in text
    assert "**TO BE FILLED IN by whoever hands this model on:**" in text.partition("## Intended use")[2]


def test_a_card_written_again_keeps_what_the_user_wrote(facts, tmp_path):
    for name in ("a.pth", "b.pth", "c.pth"):
        (tmp_path / name).touch()
        card = write_card(tmp_path / name, facts, {}, f"of {name}")
    blank, filled = card.read_text().partition("> **TO BE")[::2]
    card.write_text(f"{blank}Doors of our house.\n\n## Licence\n\nNone ({len(filled)}).\n")
    (tmp_path / "b.pth").unlink()
    text = write_card(tmp_path / "a.pth", facts, {}, "again").read_text()
    assert "## Intended use\n\nDoors of our house.\n" in text
    assert f"## Licence\n\nNone ({len(filled)}).\n" in text
    assert "TO BE FILLED IN" not in text
    assert "## File `a.pth`\n\nAgain.\n" in text
    assert "## File `c.pth`\n\nOf c.pth.\n" in text
    assert "b.pth" not in text
    assert text.count("## ") == 8
    assert write_card(tmp_path / "a.pth", facts, {}, "again").read_text() == text


def test_a_card_says_what_is_not_known(facts, tmp_path):
    bare = replace(facts, run=None, results=None, held=None, steps=None)
    text = write_card(tmp_path / "m.pth", bare, {}, "-").read_text()
    assert "how they were trained is not known here" in text
    assert "was not scored by its run" in text
    assert "is not recorded beside its weights" in text


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--out", "{tmp}/m.pt"], "want --out as a file that ends in .onnx, .safetensors, .pth, got"),
        (["--out", "{tmp}/none/m.pth"], "want --out as a file in a folder that is there"),
        (["--out", "{run}/mfr.safetensors"], "is the file of the weights itself"),
        (["--out", "{tmp}/m.pth", "--normalise"], "computed within a graph, which .pth has not"),
        (["--out", "{tmp}/card/m.pth"], "MODEL_CARD.md is not of these weights; move it"),
    ],
)
def test_refuses_with_a_sentence_and_writes_nothing(run, tmp_path, capsys, monkeypatch, argv, words):
    monkeypatch.setattr("fastmfr.commands.export.typed_model", lambda *_: (run / "mfr.safetensors", small_config()))
    (tmp_path / "card").mkdir()
    (tmp_path / "card/MODEL_CARD.md").write_text("# Mine")
    before = (run / "mfr.safetensors").read_bytes()
    assert main([str(run), *(word.format(run=run, tmp=tmp_path) for word in argv)]) == 1
    assert words in capsys.readouterr().err
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["MODEL_CARD.md"]
    assert (run / "mfr.safetensors").read_bytes() == before


def small_config():
    return Config(model=Model(width=0.0625), data=Data(size=16), threads=1)


def test_damaged_records_of_a_run_are_named(run, tmp_path):
    model = open_model(run)
    for name, words in (
        ("results.json", "results.json cannot be read"),
        ("made_with.json", "made_with.json is damaged"),
    ):
        (tmp_path / name).write_text("{")
        (tmp_path / "mfr.safetensors").write_bytes(b"w")
        with pytest.raises(ValueError, match=words):
            facts_of(replace(model, weights=tmp_path / "mfr.safetensors"), of_run=True)
        (tmp_path / name).unlink()


@pytest.mark.parametrize("missing", onnx_file.NEEDED)
def test_what_onnx_needs_is_named_once_it_is_missing(tmp_path, monkeypatch, missing):
    for name in onnx_file.NEEDED:
        monkeypatch.setitem(sys.modules, name, None if name == missing else sys)
    with pytest.raises(ImportError, match=rf"{missing} is not installed: `pip install 'fastmfr\[export\]'`; \.safet"):
        checked_path(tmp_path / "m.onnx", tmp_path / "w.pth", in_graph=True)


@pytest.mark.usefixtures("quickly")
@pytest.mark.parametrize("options", [{}, {"raw_input": True, "mirror": "sum", "normalise": True}])
def test_onnx_is_checked_and_says_what_it_takes(facts, tmp_path, options):
    import onnx
    import onnxruntime

    graph, path = graph_of(facts, **options), tmp_path / "m.onnx"
    metadata, said = export_model(facts, graph, path)
    assert "checked in onnxruntime on 1 and 5 random images: the largest difference from torch is" in said
    assert onnx_file.largest_difference(graph, path) < 1e-6
    session = onnxruntime.InferenceSession(path)
    assert session.get_modelmeta().custom_metadata_map == metadata
    assert [(one.name, one.shape) for one in session.get_inputs()] == [("data", ["N", 3, 16, 16])]
    assert [one.name for one in session.get_outputs()] == ["embedding"]
    assert str(onnx_file.__file__.rpartition("/fastmfr/")[0]).encode() not in path.read_bytes()
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert not any(node.doc_string or node.metadata_props for node in onnx.load(path).graph.node)


@pytest.mark.usefixtures("quickly")
def test_onnx_that_differs_from_torch_is_not_kept(facts, tmp_path, monkeypatch):
    graph, traced = graph_of(facts), onnx_file._traced
    monkeypatch.setattr(onnx_file, "_traced", lambda graph: traced(graph_of(facts, mirror="sum")))
    with pytest.raises(ValueError, match=r"m\.onnx differ from torch's by \S+ of their length .* at most 1e-05\. The"):
        export_model(facts, graph, tmp_path / "m.onnx")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("named", [True, False])
def test_nodes_lose_what_torch_notes_of_them_and_pixels_are_named(named):
    helper = pytest.importorskip("onnx").helper
    nodes = [
        helper.make_node(kind, ["data", "data"], ["y"], f"node_{kind}", "a line") for kind in ("Sub", "Mul", "Add")
    ]
    graph = helper.make_graph(nodes, "graph", [], [])
    graph.node[2].metadata_props.add(key="stack_trace", value="/home/me/network.py")
    graph.metadata_props.add(key="of", value="/home/me")
    model = helper.make_model(graph)
    onnx_file._clean(model, named=named)
    kinds = ["Sub_pixels", "Mul_pixels"] if named else ["node_Sub", "node_Mul"]
    assert [node.name for node in model.graph.node] == [*kinds, "node_Add"]
    assert b"/home/me" not in model.SerializeToString()
    assert b"a line" not in model.SerializeToString()


def insightface_normalises(path):
    """Whether InsightFace's loader normalises pixels: unless it finds two names among the first eight nodes."""
    import onnx

    names = [node.name for node in onnx.load(path).graph.node[:8]]
    return not all(any(name.startswith(kind) for name in names) for kind in (("Sub", "_minus"), ("Mul", "_mul")))


@pytest.mark.skipif("FASTMFR_WHOLE_EXPORTS" not in os.environ, reason="tracing takes 20 s a model; see `make exports`")
@pytest.mark.parametrize("name", ["mfr28", "iresnet18"])
def test_a_whole_export_equals_torch(tmp_path, name):
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    size = {"mfr28": 120, "iresnet18": 112}[name]
    config = Config(model=Model(name=name), data=Data(size=size), threads=1)
    torch.manual_seed(0)
    network = build_backbone(config)
    network(torch.randn(4, 3, size, size))
    save_weights(network, tmp_path / "w.safetensors")
    model = open_model(tmp_path / "w.safetensors", config, device="cpu")
    typed = {"mfr28": ["--raw-input", "--normalise", "--mirror-fused", "concat"], "iresnet18": []}[name]
    settings = ["--config", "mfr", f"--model.name={name}", f"--data.size={size}", "--threads=1"]
    with redirect_stdout(StringIO()) as said:
        assert main([str(tmp_path / "w.safetensors"), "--out", str(tmp_path / "m.onnx"), *typed, *settings]) == 0
    assert "the largest difference from torch is" in said.getvalue()
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx")
    assert session.get_inputs()[0].shape == ["N", 3, size, size]
    pixels = torch.randint(256, (5, 3, size, size), generator=torch.Generator().manual_seed(1)).float()
    image_N3HW = (pixels - 127.5) / 128
    want = embed(model.backbone, [image_N3HW], "cpu", mirror="concat" if typed else "none", normalise=bool(typed))
    for images in (1, 5):
        (found,) = session.run(None, {"data": (pixels if typed else image_N3HW)[:images].numpy()})
        assert found.shape == (images, want.shape[1])
        assert np.abs(found - want[:images].numpy()).max() < 1e-5 * want.norm(dim=1).max()
    assert insightface_normalises(tmp_path / "m.onnx") == (not typed)
    assert str(onnx_file.__file__.rpartition("/fastmfr/")[0]).encode() not in (tmp_path / "m.onnx").read_bytes()
