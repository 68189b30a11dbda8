import json

import pytest

from fastmfr.__main__ import main


def test_help_names_the_commands(capsys):
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert "train [OPTIONS]" in text
    assert "report RUN" in text


@pytest.mark.parametrize("argv", [["fly"], ["report"]])
def test_an_unknown_command_is_answered_with_the_usage(capsys, argv):
    assert main(argv) == 2
    assert "usage: python -m fastmfr COMMAND" in capsys.readouterr().err


def test_report_writes_a_page_for_each_run(tmp_path, capsys):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.jsonl").write_text(json.dumps({"stage": "pretrain", "step": 0, "loss": 1.0}) + "\n")
    assert main(["report", str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    assert capsys.readouterr().out.split() == [str(tmp_path / name / "report.html") for name in ("a", "b")]
    assert main(["report", str(tmp_path / "none")]) == 1
    assert "error:" in capsys.readouterr().err


def test_train_is_the_training_command(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--print_config"])
    assert "recipe: quickstart" in capsys.readouterr().out
