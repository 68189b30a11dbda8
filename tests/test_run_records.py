"""What a run leaves behind of how it went: command lines, dates, times, and its end in TensorBoard."""

import re
import sys
from datetime import datetime

import pytest
from PIL import Image
from small_runs import main, only_run
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import plugin_data_pb2

from fastmfr.report import write_report
from fastmfr.results import Command, Results, Scores, TarAtFar, TargetResult
from fastmfr.run_folder import commands_of, note_command
from fastmfr.training.logbook import Logbook


def test_a_run_records_its_command_its_date_and_its_time(small, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "fastmfr.train", "--data.sources.a", "two words"])
    before = datetime.now().astimezone().replace(microsecond=0)
    assert main([*small, "--pretrain.steps=2", "--meta.steps=1", "--data.size=24"]) == 0
    said = capsys.readouterr().out
    folder = only_run(tmp_path)
    results = Results.load(folder / "results.json")
    (command,) = results.commands
    assert command.line == "python -m fastmfr.train --data.sources.a 'two words'"
    assert before <= datetime.fromisoformat(command.began) <= datetime.now().astimezone()
    assert sum(results.seconds.values()) - 0.5 < results.wall_seconds < 600
    # 16 of 192 images a step of pretraining, 48 a step of MFR: two splits of 6 + 6 pairs
    assert re.search(r"^pretrain 1/2 .*images/s .* loss [\d.]+ · learning rate [\d.e-]+ · epoch 0.08$", said, re.M)
    assert re.search(r"^meta 1/1 .*left .*images/s .* loss [-\d.]+ · learning rate [\d.e-]+ · epoch 0.25$", said, re.M)
    end = EventAccumulator(str(folder / "tensorboard" / "end")).Reload()
    scores = results.targets["nir"].models["mfr"]
    assert end.Scalars("nir/mfr/auc")[0].value == pytest.approx(scores.auc)
    assert end.SummaryMetadata("_hparams_/session_start_info").plugin_data.plugin_name == "hparams"


def test_the_scores_are_named_after_the_method(small, tmp_path):
    steps = ["--pretrain.steps=1", "--meta.steps=1", "--data.size=24"]
    assert main([*small, *steps, "--meta.method=no_meta"]) == 0
    results = Results.load(only_run(tmp_path) / "results.json")
    models = list(results.targets["nir"].models)
    assert models[:2] == ["base", "no_meta"] == list(results.gap)[:2]
    assert "mfr" not in models
    assert {"rank1", "tar_at_far_0.01"} <= set(results.targets["nir"].gains["no_meta"])


def test_the_commands_of_a_run_that_was_resumed_stand_in_their_order(tmp_path, monkeypatch):
    for place, words in enumerate((["train", "a b"], ["train", "--resume", "x"])):
        monkeypatch.setattr(sys, "orig_argv", words)
        note_command(tmp_path, 1_700_000_000 + place)
    with (tmp_path / "commands.jsonl").open("a") as file:
        file.write('{"line": "cut sh')
    found = commands_of(tmp_path)
    assert [command.line for command in found] == ["train 'a b'", "train --resume x"]
    assert [datetime.fromisoformat(command.began).timestamp() for command in found] == [1_700_000_000, 1_700_000_001]
    assert commands_of(tmp_path / "none") == []


@pytest.mark.usefixtures("undrawn")
def test_the_page_says_when_and_how_it_was_run_also_of_a_run_that_was_stopped(tmp_path):
    (tmp_path / "config.yaml").write_text("seed: 1\n")
    (tmp_path / "commands.jsonl").write_text('{"line": "train <b>", "began": "2026-11-27 22:00:00+00:00"}\n')
    text = write_report(tmp_path).read_text()
    assert "Begun 2026-11-27 22:00:00+00:00." in text
    assert "<pre>2026-11-27 22:00:00+00:00  train &lt;b&gt;</pre>" in text
    models = {"base": Scores(auc=0.5)}
    begun = [Command(line="train", began="then"), Command(line="train --resume", began="later")]
    Results(
        targets={"nir": TargetResult(models=models)}, seconds={"meta": 60.0}, wall_seconds=75.0, commands=begun
    ).save(tmp_path / "results.json")
    text = write_report(tmp_path).read_text()
    assert "Time: meta 60 s, in all 75 s. Begun then." in text
    assert "<pre>then  train\nlater  train --resume</pre>" in text


def test_tensorboard_shows_scores_settings_and_domains_of_the_last_process(tmp_path):
    Image.new("RGB", (6, 4), (255, 0, 0)).save(tmp_path / "domains.png")
    rates = {"0.01": TarAtFar(tar=0.75), "0.001": TarAtFar(refused="too few")}
    for auc in (0.5, 0.875):
        models = {"base": Scores(auc=auc, rank1=0.25, tar_at_far=rates)}
        with Logbook(tmp_path) as book:
            settings = {"meta.alpha": 0.5, "data.far": [1, 2], "meta.bn": None}
            book.record_end(settings, Results(targets={"nir": TargetResult(models=models)}), tmp_path / "domains.png")
    end = EventAccumulator(str(tmp_path / "tensorboard" / "end")).Reload()
    found = {tag: [(point.step, point.value) for point in end.Scalars(tag)] for tag in end.Tags()["scalars"]}
    assert found == {
        "nir/base/auc": [(0, 0.875)],
        "nir/base/rank1": [(0, 0.25)],
        "nir/base/tar_at_far_0.01": [(0, 0.75)],
    }
    image = end.Images("domains")[-1]
    assert (image.width, image.height) == (6, 4)
    content = end.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    shown = plugin_data_pb2.HParamsPluginData.FromString(content).session_start_info.hparams
    assert shown["meta.alpha"].number_value == 0.5
    assert (shown["data.far"].string_value, shown["meta.bn"].string_value) == ("[1, 2]", "None")
