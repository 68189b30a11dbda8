"""The recipe finetune: from a file of weights to a report, and what is told before anything is done."""

import pytest
import torch
from small_runs import interrupted, main, only_run, records

from fastmfr.backbone import build
from fastmfr.config import load_config
from fastmfr.results import Results
from fastmfr.weights import load_weights


def released(path, name="mfr28", size=32, **options):
    """A file as InsightFace's trainer leaves it: the names of a backbone within DataParallel."""
    torch.manual_seed(5)
    network = build(name, image_size=size, **options)
    torch.save({f"module.{key}": value for key, value in network.state_dict().items()}, path)
    return network


@pytest.fixture
def finetune(small, tmp_path):
    """Arguments of a run of seconds by the recipe, whose network is read off a file; later arguments win."""
    released(tmp_path / "backbone.pth", width=0.125, embedding=48)
    return [
        *(word for word in small if not word.startswith("--model.")),
        *("--config=finetune", "--data.size=32", f"--model.weights={tmp_path / 'backbone.pth'}"),
        *("--pretrain.steps=0", "--meta.steps=2", "--meta.batch_identities=6", "--meta.alpha=0.05"),
    ]


def said(capsys):
    return " ".join(capsys.readouterr().out.split())


def test_the_recipe_is_what_insightfaces_models_want():
    config = load_config("finetune")
    assert (config.data.size, config.data.mean, config.data.std) == (112, 127.5, 127.5)
    assert (config.model.name, config.meta.domain_alignment, config.pretrain.steps) == ("auto", "auto", 0)


def test_the_start_is_scored_as_base_and_the_network_is_read_off_the_file(finetune, tmp_path, capsys):
    assert main(finetune) == 0
    text = said(capsys)
    assert "gain over base, in points" in text
    assert f"backbone mfr28, 48 outputs, read off {tmp_path / 'backbone.pth'}" in text
    assert "nothing to align; with a third source there would be" in text  # two sources: a split trains on one
    folder = only_run(tmp_path)
    results = Results.load(folder / "results.json")
    assert list(results.targets["nir"].models) == ["base", "mfr"]
    assert list(results.gap) == ["base", "mfr"]
    config = load_config(folder / "config.yaml")
    assert (config.model.name, config.model.embedding, config.model.width) == ("mfr28", 48, 0.125)


def test_an_iresnet_is_read_off_its_file(finetune, tmp_path, capsys):
    before = released(tmp_path / "r18.pth", "iresnet18", size=16).state_dict()
    argv = [*finetune, f"--model.weights={tmp_path / 'r18.pth'}", "--meta.steps=1", "--model.freeze=4"]
    assert main([*argv, "--meta.batch_identities=3", "--data.size=16"]) == 0
    assert "held the stem and 4 of 4 stages; 0.26 of 11.44 million parameters are trained" in said(capsys)
    folder = only_run(tmp_path)
    assert load_config(folder / "config.yaml").model.name == "iresnet18"
    network = build("iresnet18", image_size=16)
    load_weights(network, folder / "mfr.safetensors")
    for name, value in network.state_dict().items():
        if name.startswith(("conv1", "bn1", "prelu", "layer")):
            assert torch.equal(value, before[name]), name
    assert not torch.equal(network.fc.weight, before["fc.weight"])


def test_a_chosen_weight_is_kept_so_that_a_stopped_run_goes_on_to_the_same_bits(finetune, faces, tmp_path, monkeypatch):
    argv = [*finetune, f"--data.sources.nir={faces['nir']}", "--data.holdout=0.4", "--save_every=1", "--meta.steps=3"]
    assert main([*argv, f"--folder={tmp_path / 'whole'}"]) == 0
    (whole,) = (tmp_path / "whole").iterdir()
    (weight,) = {line["alignment_weight"] for line in records(whole, "meta")}
    assert 0 < weight < 1
    first = records(whole, "meta")[0]
    assert first["share_domain_alignment"] == pytest.approx(0.1, abs=0.04)  # a mean over the splits
    interrupted(argv, monkeypatch, ("meta", 1))
    folder = only_run(tmp_path)
    monkeypatch.setattr("fastmfr.training.balance.loss_gradient_norms", None)  # is not measured again
    assert main(["--resume", str(folder)]) == 0
    assert (folder / "mfr.safetensors").read_bytes() == (whole / "mfr.safetensors").read_bytes()
    assert {line["alignment_weight"] for line in records(folder, "meta")} == {weight}


def test_alignment_that_drowns_the_rest_is_told_at_the_first_step(finetune, faces, tmp_path, capsys):
    argv = [*finetune, f"--data.sources.nir={faces['nir']}", "--data.holdout=0.4", "--meta.steps=1"]
    assert main([*argv, "--meta.domain_alignment=100"]) == 0
    assert "more than the other losses together; for 10 % set --meta.domain_alignment" in said(capsys)


def test_pretraining_holds_statistics_and_slows_the_backbone(finetune, tmp_path):
    argv = [*finetune, "--meta.steps=0", "--pretrain.steps=2", "--pretrain.batch_norm=frozen"]
    assert main([*argv, "--pretrain.backbone_multiplier=0"]) == 0
    network = build("mfr28", width=0.125, embedding=48)
    load_weights(network, only_run(tmp_path) / "base.safetensors")
    before = released(tmp_path / "b.pth", width=0.125, embedding=48)
    assert all(torch.equal(value, before.get_parameter(name)) for name, value in network.named_parameters())
    assert all(torch.equal(value, before.get_buffer(name)) for name, value in network.named_buffers())


def test_the_rate_of_the_backbone_is_a_multiple_of_the_classifiers(finetune, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr("fastmfr.training.pretrain.set_rate", lambda optimizer, rate: seen.append(rate))
    argv = [*finetune, "--meta.steps=0", "--pretrain.steps=3", "--pretrain.warmup=0"]
    assert main([*argv, "--pretrain.learning_rate=0.02", "--pretrain.backbone_multiplier=0.25"]) == 0
    rates = [line["learning_rate"] for line in records(only_run(tmp_path), "pretrain")]
    assert rates[0] == 0.02
    assert seen == pytest.approx([0.25 * rate for rate in rates])


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--model.weights=null"], "model.name 'auto' is read off the weights to start from, and there are none"),
        (["--model.name=iresnet18"], "the weights are an mfr28, model.name asks for iresnet18"),
        (["--model.embedding=64"], "the weights have 48 outputs, model.embedding asks for 64"),
        (["--model.weights=/nowhere.pth"], "there are no weights at /nowhere.pth"),
        (
            ["--model.weights=null", "--model.name=mfr28", "--model.freeze=1"],
            "model.freeze would hold what was never trained; want --model.weights FILE",
        ),
    ],
)
def test_mistakes_are_told_before_faces_are_made_or_a_folder_is(finetune, tmp_path, capsys, monkeypatch, argv, words):
    monkeypatch.setattr("fastmfr.training.run.open_people", None)
    assert main([*finetune, *argv]) == 1
    assert words in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "runs").exists()
