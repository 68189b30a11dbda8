"""`fastmfr prove` as a user types it: a small comparison, gone on with, and what it refuses before any work is done."""

import json

import pytest

from fastmfr import synthetic
from fastmfr.__main__ import main
from fastmfr.config import load_config
from fastmfr.prove.pace import Pace
from fastmfr.training import NonFiniteLoss

DOMAINS = ("street", "tungsten", "nir")
SMALL = [
    *("--threads=1", "--data.threads=1", "--data.size=32", "--data.decode=pillow", "--model.width=0.0625"),
    *("--pretrain.steps=4", "--pretrain.batch_identities=6", "--pretrain.warmup=1", "--meta.steps=2"),
    *("--meta.batch_identities=4", "--data.validation=0.25", "--data.synthetic.identities=24"),
    *("--data.synthetic.images=3", "--data.synthetic.size=32"),
]
STEPS = 2


@pytest.fixture(scope="module")
def faces(tmp_path_factory):
    """A folder with the faces, made once and by one process."""
    root = tmp_path_factory.mktemp("faces")
    synthetic.make(root / "24x3-32px", domains=DOMAINS, identities=24, images=3, size=32, workers=1)
    return root


def words(faces, *more):
    sources = [f"--data.sources.{name}=synthetic:{name}" for name in DOMAINS]
    return [*sources, f"--data.synthetic.folder={faces}", *SMALL, *more]


def prove(faces, out, *more):
    return main(["prove", "--out", str(out), "--seeds=1", "--leave-out=nir", *words(faces), *more])


def rows_in(out):
    return [json.loads(line) for line in (out / "rows.jsonl").read_text().splitlines()]


def unmeasured(monkeypatch):
    """Takes no steps to estimate a time: the first test does."""
    monkeypatch.setattr("fastmfr.prove.cell.measure", lambda run, score: Pace(1.0, 1.0, 1.0))


def test_a_small_comparison_is_finished_by_the_same_command(faces, tmp_path, capsys, monkeypatch):
    arms = ("--arms", "cosface", "first_order", "first_order:mean", "first_order:chosen")
    assert prove(faces, tmp_path, *arms, "--minutes", "0.0001") == 0
    said = capsys.readouterr().out
    assert "5 of 5 models to make, about " in said
    assert "by a few steps of each stage" in said
    assert "0.0001 minutes are over; the same command goes on from here" in said
    assert [row["name"] for row in rows_in(tmp_path)] == ["base"]
    assert "4 of 5 models are missing" in (tmp_path / "report.html").read_text()

    unmeasured(monkeypatch)
    assert prove(faces, tmp_path, *arms) == 0
    said = capsys.readouterr().out
    assert "4 of 5 models to make, about " in said
    assert "[5/5] seed 2019, nir left out, first_order:chosen" in said
    assert "One seed decides nothing; the best so far is " in said
    rows = {row["name"]: row for row in rows_in(tmp_path)}
    assert [row.get("steps") for row in rows.values()] == [None, STEPS, STEPS, None, None]
    distinct = {name: json.dumps(row["scores"]) for name, row in rows.items()}
    assert len({distinct[name] for name in ("base", "cosface", "first_order")}) == 3  # each arm has left the base
    assert (tmp_path / "gains.png").stat().st_size > 0
    assert "| more of stage one |" in (tmp_path / "table.md").read_text()
    assert (
        "# with --seeds 5, which keeps what there is\npython -m fastmfr prove" in (tmp_path / "report.html").read_text()
    )

    _loses_rows_and_finds_them_again(faces, tmp_path, rows, capsys)


def _loses_rows_and_finds_them_again(faces, out, rows, capsys):
    assert not list(out.glob("*/first_order/*.safetensors"))
    assert len(list(out.glob("*/base/checkpoints/*"))) == 1
    (out / "rows.jsonl").write_text(json.dumps(rows["cosface"]) + "\n")
    assert prove(faces, out, "--arms", "hard_pair", "first_order") == 0
    said = capsys.readouterr().out
    assert "base, hard_pair, first_order" in said
    assert "cosface" not in said
    again = {row["name"]: row for row in rows_in(out)}
    for name in ("base", "first_order"):
        assert again[name]["scores"] == rows[name]["scores"]  # the base was found, the arm trained again to the bit
    assert again["hard_pair"]["scores"] != rows["base"]["scores"]
    assert prove(faces, out, "--meta.beta=0.01") == 1
    assert "figures of other settings: meta.beta was 0.05, now 0.01" in capsys.readouterr().err


def test_an_arm_that_fails_costs_no_other(faces, tmp_path, capsys, monkeypatch):
    def fails(run, *_):
        if run.config.meta.method == "no_meta":
            raise NonFiniteLoss("hard_pair is not finite at meta step 1")

    monkeypatch.setattr("fastmfr.prove.cell.meta_train", fails)
    monkeypatch.setattr("fastmfr.prove.cell._facts", lambda path: {})
    unmeasured(monkeypatch)
    assert prove(faces, tmp_path, "--arms", "together", "no_meta", "no_meta:mean", "mfr", "--data.new_people=0.5") == 0
    said = capsys.readouterr().out
    assert "no_meta: failed: hard_pair is not finite" in said
    assert "[5/5] seed 2019, nir left out, mfr: " in said
    page = (tmp_path / "report.html").read_text()
    assert "no_meta failed in one run or more and is left out: hard_pair is not finite at meta step 1" in page
    assert [row.get("failed", "")[:9] for row in rows_in(tmp_path)] == ["", "", "hard_pair", "hard_pair", ""]
    together = rows_in(tmp_path)[1]
    assert (together["name"], together["steps"]) == ("together", 8 + round(STEPS * 2 * 4 * 4 / 12))
    assert together["scores"] != rows_in(tmp_path)[0]["scores"]


def test_a_base_that_diverges_ends_the_command_with_its_name(faces, tmp_path, capsys, monkeypatch):
    def diverges(*_):
        raise NonFiniteLoss("the margin-softmax loss is not finite at pretraining step 2")

    monkeypatch.setattr("fastmfr.prove.cell.pretrain", diverges)
    unmeasured(monkeypatch)
    assert prove(faces, tmp_path, "--arms", "mfr") == 1
    said = capsys.readouterr().err
    assert "error: the base of seed 2019, nir left out: the margin-softmax loss is not finite at pretraining" in said
    assert not (tmp_path / "rows.jsonl").exists()


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--seeds=0"], "want --seeds of at least 1, got 0"),
        (["--out", __file__], "want --out as a folder, but "),
        (["--data.sources.a/b=synthetic:nir"], "names that can be part of a folder's, got 'a/b'"),
        (["--minutes=0"], "want --minutes above 0, got 0"),
        (["--leave-out", "moon"], "want --leave-out out of street, tungsten, nir; got moon"),
        (["--arms", "nothing"], "got 'nothing'"),
        (["--arm", "x=meta.alpha=-1"], "arm 'x': want meta.alpha"),
        (["--meta.steps=0"], "want --meta.steps above 0"),
        (["--data.targets.nir=synthetic:nir"], "nir is among data.sources"),
        (
            ["--arms", "mfr:chosen", "--data.validation=0"],
            "the arm mfr:chosen is chosen on people",
        ),
        (
            ["--arms", "cosface", "--pretrain.steps=0"],
            "the arm cosface needs the classifier",
        ),
        (["--meta.batch_identities=20"], "with street left out: "),
        (["--data.sources.far=nowhere"], "there is no folder"),
    ],
)
def test_refuses_what_cannot_work_before_any_work(faces, tmp_path, capsys, more, sentence):
    assert main(["prove", "--out", str(tmp_path / "out"), *words(faces), *more]) == 1
    assert sentence in capsys.readouterr().err
    assert not list(tmp_path.glob("out/*-*"))


def test_refuses_a_target_with_too_many_pairs(faces, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("fastmfr.prove.checks.MOST_PAIRS", 24 * 24)
    assert prove(faces, tmp_path) == 1
    assert (
        "nir has 48 images to look up among 24 people, more than 576 pairs; want --evaluate.probes_per_identity 1"
        in (capsys.readouterr().err)
    )


def test_a_model_that_nobody_is_kept_for_is_left_out_with_a_word_or_refused_if_asked_for(
    faces, tmp_path, capsys, monkeypatch
):
    unmeasured(monkeypatch)
    assert prove(faces, tmp_path, "--data.validation=0.1", "--dry-run") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "not compared: mfr:chosen: no source has five people to keep" in said
    assert "7 of 7 models to make" in said
    assert prove(faces, tmp_path, "--data.validation=0.1", "--arms", "mfr:chosen") == 1
    assert "raise --data.validation, or leave it out of --arms" in capsys.readouterr().err


def test_refuses_fewer_than_three_domains(tmp_path, capsys):
    assert main(["prove", "--out", str(tmp_path), "--data.sources.a=a", "--data.sources.b=b"]) == 1
    assert "want three domains or more" in capsys.readouterr().err


def test_targets_of_a_recipe_count_only_with_its_sources(faces, tmp_path, monkeypatch):
    seen = []

    def begin(_, config, *__, **___):
        seen.append(config)
        raise SystemExit

    monkeypatch.setattr("fastmfr.prove.comparison.Comparison.__init__", begin)
    for more in ([], words(faces), [*words(faces), "--data.targets.photos=faces"]):
        with pytest.raises(SystemExit):
            main(["prove", "--out", str(tmp_path), *more])
    assert [list(config.data.targets) for config in seen] == [["glasses", "nir"], [], ["photos"]]
    assert list(load_config("quickstart").data.targets) == ["studio", "glasses", "nir"]


def test_cells_made_side_by_side_are_those_made_in_turn_even_after_a_process_has_failed(
    faces, tmp_path, capsys, monkeypatch
):
    unmeasured(monkeypatch)
    arms = ("--leave-out", "nir", "street", "--arms", "base", "no_meta")
    assert prove(faces, tmp_path / "one", *arms) == 0
    in_the_way = tmp_path / "two/2019-street/log.txt"
    in_the_way.mkdir(parents=True)
    assert prove(faces, tmp_path / "two", *arms, "--jobs", "2") == 1
    assert "seed 2019, street left out: its process ended, exit status 1" in capsys.readouterr().err
    in_the_way.rmdir()
    assert prove(faces, tmp_path / "two", *arms, "--jobs", "2") == 0
    assert "[4/4] seed 2019" in capsys.readouterr().out
    one, two = (
        {(row["left_out"], row["name"]): row["scores"] for row in rows_in(tmp_path / name)} for name in ("one", "two")
    )
    assert one == two
    assert len(rows_in(tmp_path / "two")) == 4
    assert "[2/2] seed 2019, street left out, no_meta" in (tmp_path / "two/2019-street/log.txt").read_text()
    left = [sorted(path.name for path in (tmp_path / name).rglob("*.safetensors")) for name in ("one", "two")]
    assert left[0] == left[1]  # weights of arms fill disks, here too


def test_jobs_are_at_least_one(faces, tmp_path, capsys):
    assert prove(faces, tmp_path, "--jobs", "0") == 1
    assert "want --jobs of at least 1, got 0" in capsys.readouterr().err
