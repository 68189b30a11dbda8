import ast
import json
import subprocess
import sys
from dataclasses import fields, is_dataclass, replace
from pathlib import Path

import pytest

from fastmfr import results
from fastmfr.results import (
    BASE,
    MFR,
    Accuracy,
    Command,
    DomainGap,
    HardestPair,
    HardestPairs,
    Results,
    RocPoints,
    Scores,
    TarAtFar,
    TargetResult,
    from_json,
    to_json,
)

ROOT = Path(__file__).parent.parent
RUN = ROOT / "bench" / "results" / "20261122-082520-quickstart-cpu2.json"
SCORES = Scores(
    tar_at_far={"0.01": TarAtFar(tar=0.5, far=0.01, interval=[0.4, 0.6]), "1e-05": TarAtFar(refused="too few pairs")},
    auc=0.9,
    genuine=10,
    roc=RocPoints(far=[0.1, 1.0], tar=[0.5, 1.0]),
    exact=True,
    accuracy={"exact": Accuracy(mean=0.9, std=0.01)},
    bad_images={},
)
GAP = DomainGap(
    domains=["a", "b"],
    people=[2, 2],
    images=[4, 4],
    distance=[[0.0, 0.5], [0.5, 0.0]],
    distance_by_chance=[[0.0, 0.1], [0.1, 0.0]],
    told=0.9,
    told_by_chance=0.5,
    far=0.001,
    threshold=0.7,
    impostors=24,
    false_accepts=1,
    across_of_all=0.6,
    across=0.0,
    false_accepts_of=[[1, 0], [0, 0]],
    unseen=[False, True],
)
PAIR = HardestPair(cosine=0.1, gallery=3, probe=4, gallery_key="a/1.jpg", gallery_identity="a")
RESULTS = Results(
    recipe="quickstart",
    sources=["a"],
    targets={
        "b": TargetResult(
            unseen=True,
            models={BASE: SCORES, MFR: Scores(folds=[SCORES])},
            gains={MFR: {"rank1": [-0.5, 0.25]}},
            hardest=HardestPairs(model=MFR, genuine=[PAIR], impostor=[]),
        )
    },
    gap={BASE: None, MFR: GAP},
    seconds={"pretrain": 1.5, "meta": 2},
    commands=[Command(line="train", began="then")],
    wall_seconds=4.0,
    bad_images={"a/1.jpg": "empty"},
)


def test_the_results_of_a_run_are_the_same_text_after_reading_and_writing():
    data = json.loads(RUN.read_text())["results"]
    assert json.dumps(to_json(from_json(Results, data)), indent=1) == json.dumps(data, indent=1)


def test_results_equal_themselves_after_a_round_trip_through_the_file(tmp_path):
    RESULTS.save(tmp_path / "results.json")
    assert Results.load(tmp_path / "results.json") == RESULTS
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]


def test_what_is_not_set_is_left_out_of_the_file():
    assert to_json(TarAtFar(tar=0.5)) == {"tar": 0.5}
    assert to_json({BASE: None}) == {BASE: {}}
    assert to_json(Results(gap={BASE: None}))["gap"] == {BASE: {}}
    whole = ["recipe", "sources", "targets", "gap", "seconds", "commands", "wall_seconds", "bad_images"]
    assert list(to_json(RESULTS)) == whole
    assert list(to_json(Results())) == [name for name in whole if name not in ("commands", "wall_seconds")]
    assert "draws" not in to_json(Scores(draws={"rank1": [0.5]}))


def test_unknown_keys_are_ignored_and_missing_ones_take_defaults():
    data = {"targets": {"nir": {"models": {"base": {"auc": 0.5, "of tomorrow": 1}}}}, "later": []}
    assert from_json(Results, data) == Results(targets={"nir": TargetResult(models={BASE: Scores(auc=0.5)})})


def test_a_target_without_models_was_not_scored():
    late = replace(RESULTS, targets={"late": TargetResult(unseen=True)} | RESULTS.targets)
    assert list(late.scored) == ["b"]


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        ([], r"results should be an object, got '\[\]'"),
        ({"recipe": 7}, "results.recipe should be a text, got '7'"),
        ({"sources": "a"}, "results.sources should be a list, got 'a'"),
        ({"sources": ["a", None]}, r"results.sources\[1\] should be a text, got 'None'"),
        ({"targets": {"nir": None}}, "results.targets.nir should be an object, got 'None'"),
        ({"targets": {"nir": {"unseen": 1}}}, "results.targets.nir.unseen should be true or false, got '1'"),
        (
            {"targets": {"nir": {"models": {"base": {"auc": "high"}}}}},
            "results.targets.nir.models.base.auc should be a number, got 'high'",
        ),
        (
            {"targets": {"nir": {"models": {"base": {"genuine": True}}}}},
            "results.targets.nir.models.base.genuine should be a whole number, got 'True'",
        ),
        ({"gap": {"mfr": {"told": 1.0}}}, "results.gap.mfr should hold the key 'domains', but holds told"),
    ],
)
def test_data_of_a_wrong_type_is_refused_with_its_key(data, sentence):
    with pytest.raises(ValueError, match=f"^{sentence}$"):
        from_json(Results, data)


def test_a_file_that_was_cut_is_refused(tmp_path):
    (tmp_path / "results.json").write_text('{"targets": {"nir"')
    with pytest.raises(ValueError, match="Expecting"):
        Results.load(tmp_path / "results.json")
    with pytest.raises(FileNotFoundError):
        Results.load(tmp_path / "none.json")


METHODS = {("meta.py", MFR)}  # a choice of the setting meta.method has the same name as a model


def by_string(source, keys):
    """(line, key) of each key in a subscript or as first argument of .get, and of each model's name, as a literal."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Subscript):
            held, wanted = node.slice, keys
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "get":
            held, wanted = node.args[0] if node.args else None, keys
        else:
            held, wanted = node, {BASE, MFR}
        if isinstance(held, ast.Constant) and held.value in wanted:
            yield held.lineno, held.value


def keys_of_results():
    kinds = [kind for kind in vars(results).values() if is_dataclass(kind)]
    return {each.name for kind in kinds for each in fields(kind)}


@pytest.mark.parametrize("room", ["training", "meta", "evaluate", "report"])
def test_no_module_reads_results_by_string_or_spells_a_models_name(room):
    keys = keys_of_results()
    assert {"tar_at_far", "models", "hardest", "auc", "told"} <= keys
    found = [
        f"{path.relative_to(ROOT)}:{line} {key!r}"
        for path in sorted((ROOT / "fastmfr" / room).rglob("*.py"))
        for line, key in by_string(path.read_text(), keys)
        if (path.name, key) not in METHODS
    ]
    assert not found, f"read results by attribute, and take names of models from fastmfr.results: {found}"


def test_the_test_would_notice():
    source = 'a["models"]\na.get("auc", {})\nb = "mfr"\nc["other"] = a.get(name)\n'
    assert sorted(by_string(source, keys_of_results())) == [(1, "models"), (2, "auc"), (3, "mfr")]


def test_results_and_the_report_are_imported_without_torch_and_matplotlib():
    source = "import sys, fastmfr.results, fastmfr.report; print(*{'torch', 'matplotlib'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == ""
