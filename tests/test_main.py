import io
import json
import signal
import subprocess
import sys

import pytest
from PIL import Image

from fastmfr.__main__ import main
from fastmfr.commands.frame import status_of


def test_help_names_the_commands(capsys):
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    for command in (
        "train [OPTIONS]",
        "pack SOURCE... OUT",
        "inspect DOMAIN...",
        "report RUN...",
        "evaluate RUN ...",
        "split FOLDER ...",
    ):
        assert command in text


@pytest.mark.parametrize("argv", [["fly"], ["-x"]])
def test_an_unknown_command_is_answered_with_the_usage(capsys, argv):
    assert main(argv) == 2
    assert "usage: python -m fastmfr COMMAND" in capsys.readouterr().err


@pytest.mark.usefixtures("undrawn")
def test_report_writes_a_runs_page_again(tmp_path, capsys):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.jsonl").write_text(json.dumps({"stage": "pretrain", "step": 0, "loss": 1.0}) + "\n")
    assert main(["report", str(tmp_path / "a")]) == 0
    assert capsys.readouterr().out.split() == [str(tmp_path / "a" / "report.html")]
    assert main(["report", str(tmp_path / "none")]) == 1
    assert "error:" in capsys.readouterr().err


def test_train_is_the_training_command(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--print_config"])
    assert "recipe: quickstart" in capsys.readouterr().out


def test_what_is_packed_can_be_inspected(tmp_path, capsys):
    (tmp_path / "faces" / "ann").mkdir(parents=True)
    buffer = io.BytesIO()
    Image.new("RGB", (20, 20)).save(buffer, "JPEG")
    (tmp_path / "faces" / "ann" / "1.jpg").write_bytes(buffer.getvalue())
    assert main(["pack", str(tmp_path / "faces"), str(tmp_path / "packed")]) == 0
    assert main(["inspect", str(tmp_path / "packed")]) == 0
    said = capsys.readouterr().out
    assert "packed 1 images of 1 people" in said
    assert "packed: width x height 20 x 20" in said


@pytest.mark.parametrize(
    ("command", "usage"),
    [
        ("pack", "[SOURCE ...] OUT"),
        ("inspect", "[DOMAIN ...]"),
        ("evaluate", "RUN_OR_WEIGHTS"),
        ("split", "--out LISTS"),
    ],
)
def test_commands_on_data_explain_themselves(capsys, command, usage):
    with pytest.raises(SystemExit, match="0"):
        main([command, "--help"])
    assert usage in " ".join(capsys.readouterr().out.split())
    with pytest.raises(SystemExit, match="2"):
        main([command, "--fly"])


def test_control_characters_in_names_are_written_out(tmp_path, capsys):
    assert main(["inspect", str(tmp_path / "a[/x]\x1b[31m\n")]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "a[/x]\\x1b[31m\\n" in said


@pytest.mark.parametrize("argv", [["--model.widht", "1"], []])
def test_a_typo_of_evaluate_is_answered_before_torch_is_imported(tmp_path, argv):
    (tmp_path / "mfr.safetensors").write_bytes(b"")
    (tmp_path / "config.yaml").write_text("" if argv else "meta: {method: maml}")
    program = f"""
import sys
from fastmfr.__main__ import main
from fastmfr.commands.frame import status_of
try:
    main(["evaluate", {str(tmp_path)!r}, "--set", "a=b", *{argv!r}])
finally:
    print("torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert done.stdout.split() == ["False"]


def test_a_rank_leaves_sigterm_to_the_system(monkeypatch):
    """Python would see the signal only once a wait for other ranks is over, and torchrun would have to kill."""
    handled = []
    for run_id in ("", "job"):
        if run_id:
            monkeypatch.setenv("TORCHELASTIC_RUN_ID", run_id)
        status_of(lambda: handled.append(signal.getsignal(signal.SIGTERM)) or 0)
    assert handled[0] != signal.SIG_DFL
    assert handled[1] == signal.SIG_DFL
