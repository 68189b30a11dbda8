import json
import os
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout

import pytest
from evaluation_fakes import class_folder, lfw_bin
from helpers import free_port, on_ranks
from small_runs import untrained_run

from fastmfr.__main__ import main
from fastmfr.domains import open_domain
from fastmfr.protocols.drawing import ListSettings, write_lists

SMALL = ["--model.width=0.0625", "--data.size=16", "--device=cpu", "--threads=1", "--evaluate.far=[0.1,0.01]"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run folder of a network nobody trained."""
    return untrained_run(tmp_path_factory.mktemp("run"), "--data.size=16", "--evaluate.far=[0.1,0.01]")


def test_scores_a_runs_model_on_every_set_that_is_there(run, tmp_path, capsys):
    write_lists(open_domain(class_folder(tmp_path / "faces")), ListSettings(scored=6), tmp_path / "lists")
    lfw_bin(tmp_path / "lfw.bin")
    (tmp_path / "sets.yaml").write_text("lfw: lfw.bin\nlists: lists\ngone: nowhere\n")
    out = tmp_path / "found.json"
    assert (
        main(
            [
                "evaluate",
                str(run),
                "--sets",
                str(tmp_path / "sets.yaml"),
                "--set",
                f"faces={tmp_path / 'faces'}",
                "--out",
                str(out),
            ]
        )
        == 1
    )
    printed = capsys.readouterr()
    said = " ".join(printed.out.split())
    assert printed.err.startswith("not scored gone: there is no")
    assert printed.err.endswith("\nerror: sets scored: 3, not scored: 1\n")
    assert "lfw: FAR 0.01 needs at least 100 impostor pairs, there are 30" in said
    found = json.loads(out.read_text())
    assert found["weights"] == str(run / "mfr.safetensors")
    assert list(found["sets"]) == ["lfw", "lists", "faces"]
    assert found["environment"]["versions"]["torch"]
    assert list(found["sets"]["lfw"]["tar_at_far"]) == ["0.1", "0.01"]
    assert found["sets"]["lists"]["gallery"] == 6


def test_weights_alone_take_their_settings_from_a_recipe_and_options(run, tmp_path, capsys):
    weights = tmp_path / "backbone.safetensors"
    weights.write_bytes((run / "mfr.safetensors").read_bytes())
    faces = class_folder(tmp_path / "faces")
    assert main(["evaluate", str(weights), "--set", f"faces={faces}"]) == 1
    assert "no config.yaml lies beside" in capsys.readouterr().err
    typed = ["evaluate", str(weights), "--set", f"faces={faces}", "--config", "mfr", *SMALL]
    assert main([*typed, "--mirror", "none"]) == 0
    assert json.loads((tmp_path / "evaluation.json").read_text())["sets"]["faces"]["mirror"] == "none"
    with pytest.raises(SystemExit, match="2"):
        main([*typed, "--model.widht", "1"])
    assert "did you mean --model.width?" in capsys.readouterr().err


def test_a_protocol_names_what_is_missing_and_says_where_sizes_differ(run, tmp_path, capsys):
    write_lists(open_domain(class_folder(tmp_path / "faces")), ListSettings(scored=6), tmp_path / "lists")
    out = tmp_path / "found.json"
    assert (
        main(
            [
                "evaluate",
                str(run),
                "--protocol",
                "gfr-v",
                "--set",
                f"meglass={tmp_path / 'lists'}",
                "--set",
                f"other={tmp_path / 'faces'}",
                "--out",
                str(out),
            ]
        )
        == 0
    )
    said = " ".join(capsys.readouterr().out.split())
    assert "left out multi-pie: no --set multi-pie=PATH was given" in said
    assert "meglass is not of the paper's size" in said
    found = json.loads(out.read_text())["sets"]
    assert list(found) == ["meglass"]
    assert "1e-06" in found["meglass"]["tar_at_far"]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["{run}"], "there is nothing to score on"),
        (["{run}", "--set", "faces"], "want --set NAME=PATH, got 'faces'"),
        (["{tmp}", "--set", "a=b"], "there are no weights at"),
        (["{run}", "--set", "a={tmp}/none"], "error: sets scored: 0, not scored: 1"),
        (["{run}", "--set", "a={tmp}/none", "--out", "{tmp}"], "want --out as a file in a folder that is there"),
        (["{run}", "--sets", "{tmp}/list.yaml"], "should hold lines NAME: PATH"),
        (
            ["{run}", "--set", "a={tmp}/lfw.bin", "--out", "{tmp}/none/found.json"],
            "as a file in a folder that is there",
        ),
    ],
)
def test_refuses_with_a_sentence(run, tmp_path, capsys, argv, message):
    (tmp_path / "list.yaml").write_text("- a\n- b\n")
    lfw_bin(tmp_path / "lfw.bin")
    assert main(["evaluate", *(word.format(run=run, tmp=tmp_path) for word in argv)]) == 1
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (run / "evaluation.json").exists()


def _one_of_the_ranks(rank, typed, folder, port):
    """Evaluate as torchrun would start it, and leave in `folder` what it printed and its exit status."""
    torchrun = {"TORCHELASTIC_RUN_ID": "none", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update(torchrun, WORLD_SIZE="2", LOCAL_WORLD_SIZE="2", RANK=str(rank), LOCAL_RANK=str(rank))
    out, err = folder / f"{rank}.out", folder / f"{rank}.err"
    with out.open("w") as to_out, err.open("w") as to_err, redirect_stdout(to_out), redirect_stderr(to_err):
        status = main(typed[rank])
    (folder / f"{rank}.status").write_text(str(status))


def two_ranks(typed, tmp_path):
    """(stdout, stderr) of each of two ranks that evaluate with the arguments typed[rank], and their statuses."""
    folder = tmp_path / "said"
    folder.mkdir()
    on_ranks(_one_of_the_ranks, typed, folder, free_port())
    said = [[(folder / f"{rank}.{stream}").read_text() for stream in ("out", "err")] for rank in range(2)]
    return *said, [int((folder / f"{rank}.status").read_text()) for rank in range(2)]


@pytest.mark.slow
def test_two_ranks_write_what_one_process_writes_and_say_it_once(run, tmp_path, capsys):
    lfw_bin(tmp_path / "lfw.bin")
    class_folder(tmp_path / "faces")
    (tmp_path / "faces/p03/1.jpg").write_bytes(b"no picture")
    typed = [
        "evaluate",
        str(run),
        "--set",
        f"lfw={tmp_path / 'lfw.bin'}",
        "--set",
        f"faces={tmp_path / 'faces'}",
        "--set",
        f"gone={tmp_path / 'nowhere'}",
        "--evaluate.batch_images",
        "16",
    ]
    first, second, statuses = two_ranks([[*typed, "--out", str(tmp_path / "two.json")]] * 2, tmp_path)
    assert main([*typed, "--out", str(tmp_path / "one.json")]) == 1
    assert statuses == [1, 1]
    one = "".join(capsys.readouterr())
    for once in ("not scored gone: there is no", "written to", "lfw: FAR 0.01 needs", "lfw 120/120", "faces 36/36"):
        assert "".join((*first, *second)).count(once) == one.count(once) == 1
    found = [json.loads((tmp_path / f"{name}.json").read_text())["sets"] for name in ("one", "two")]
    assert found[0] == found[1]
    assert list(found[1]["faces"]["bad_images"]) == ["p03/1.jpg"]


@pytest.mark.slow
def test_torchrun_starts_the_ranks_and_hands_on_their_status(run, tmp_path):
    faces = class_folder(tmp_path / "faces", people=4)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "fastmfr"]
    out = tmp_path / "two.json"
    typed = ["evaluate", str(run), "--set", f"faces={faces}", "--evaluate.batch_images", "4", "--out", str(out)]
    two = subprocess.run([*launch, *typed], capture_output=True, text=True)
    assert two.returncode == 0, two.stderr
    assert (two.stdout + two.stderr).count("faces 12/12") == 1
    assert json.loads(out.read_text())["sets"]["faces"]["images"] == 12


@pytest.mark.slow
def test_what_goes_wrong_on_one_rank_alone_ends_all_with_its_sentence_once(run, tmp_path):
    """The second rank finds no `a`, and fewer images in `b`."""
    many, few = class_folder(tmp_path / "many"), class_folder(tmp_path / "few", people=3)
    typed = [["--set", f"a={many}", "--set", f"b={many}"], ["--set", f"a={tmp_path / 'none'}", "--set", f"b={few}"]]
    (said, error), second, statuses = two_ranks([["evaluate", str(run), *words] for words in typed], tmp_path)
    assert statuses == [1, 1], second
    assert f"not scored a: there is no {tmp_path / 'none'};" in error
    assert f"not scored b: the ranks find different sets of images at {many}: ('b', 36), ('b', 9); give all" in error
    assert "error: sets scored: 0, not scored: 2\n" in error
    assert not any(word in "".join((said, *second)) for word in ("not scored", "error:"))


def test_what_should_be_read_before_the_figures_is_said(run, tmp_path, capsys):
    faces = class_folder(tmp_path / "faces")
    (faces / "gallery.txt").write_text("p00/0.jpg\np01/0.jpg\np02/0.jpg\n")
    (faces / "probe.txt").write_text("p00/0.jpg\np00/1.jpg\np01/1.jpg\np02/1.jpg\n")
    assert main(["evaluate", str(run), "--set", f"faces={faces}", "--out", str(tmp_path / "e.json")]) == 0
    assert "faces: 1 of 4 images looked up are enrolled too" in " ".join(capsys.readouterr().out.split())
