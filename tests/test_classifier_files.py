"""The classifier of stage one handed on: out of the states of a run into a file, and from a file into another run."""

import csv
import shutil
import stat
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import command, on_ranks
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from small_runs import arguments, interrupted, main, only_run
from test_ranks_share import _save_and_resume, networks_of

from fastmfr import classifier_files
from fastmfr.classifier_files import list_beside, open_classifier, write_identities
from fastmfr.config import parse
from fastmfr.distributed import ALONE
from fastmfr.domains import join, open_domain
from fastmfr.results import PRETRAIN
from fastmfr.training.pretrain import _begin_with

export = command("export")


def said(capsys):
    found = capsys.readouterr()
    return " ".join((found.out + found.err).split())


@pytest.fixture(scope="module")
def finished(faces, tmp_path_factory):
    """The folder of a run that was trained to its end, and its classifier as exported; no test changes them."""
    place = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        assert main([*arguments(faces, place, patch), "--pretrain.margin=arcface"]) == 0
    run = only_run(place)
    assert export([str(run), "--classifier", "--out", str(place / "c.safetensors")]) == 0
    return run, place / "c.safetensors"


@pytest.fixture
def domains(faces):
    return join([open_domain(faces[name], name) for name in ("studio", "street")])


def people(path):
    """The lines of the list beside a classifier."""
    return list(csv.DictReader(list_beside(path).read_text().splitlines()))


def handed_on(path, weight_CD, domains):
    """A classifier file with its list."""
    save_file({"weight": weight_CD}, path)
    write_identities(list_beside(path), domains)
    return path


def test_the_rows_of_the_last_state_are_exported_with_who_they_are_and_what_they_go_with(finished):
    run, out = finished
    rows = people(out)
    state = load_file(run / "checkpoints/pretrain-00000006/state.safetensors")
    assert torch.equal(load_file(out)["weight"], state["networks.head.weight_CD"])
    assert [int(row["row"]) for row in rows] == list(range(len(state["networks.head.weight_CD"])))
    assert {row["domain"] for row in rows} == {"studio", "street"}
    with safe_open(out, "np") as file:
        said = file.metadata()
    assert (said["margin"], said["margin_values"], said["scale"], said["steps"]) == ("arcface", "0.5", "32", "6")
    assert said["belongs_to"].startswith("base.safetensors, the backbone at the end of stage one; stage two has moved")
    assert (said["people"], said["embedding"]) == (str(len(rows)), "32")
    assert stat.S_IMODE(out.stat().st_mode) == 0o644


def test_a_run_begins_from_it_and_says_how_many_people_were_found(finished, small, faces, capsys, monkeypatch):
    _, out = finished
    seen = {}

    def kept(run, head, path):
        fresh_CD = head.weight_CD.detach().clone()
        _begin_with(run, head, path)
        seen.update(fresh=fresh_CD, begun=head.weight_CD.detach().clone(), sources=run.data["pretrain"].sources)

    monkeypatch.setattr("fastmfr.training.pretrain._begin_with", kept)
    more = [f"--data.sources.nir={faces['nir']}", "--data.targets", "{}", "--meta.steps=0"]
    assert main([*small, *more, f"--pretrain.classifier={out}"]) == 0
    known = {(row["domain"], row["name"]): int(row["row"]) for row in people(out)}
    given, found, wanted = load_file(out)["weight"], 0, seen["sources"].who()
    for label, person in enumerate(wanted):
        row = known.get(person)
        found += row is not None
        assert torch.equal(seen["begun"][label], seen["fresh"][label] if row is None else given[row])
    assert 0 < found < len(wanted)
    told = f"classifier: {found} of {len(wanted)} rows are those of {out}, {len(wanted) - found} are drawn new"
    assert told in said(capsys)


def test_an_interrupted_run_goes_on_from_its_state_and_not_from_the_file(finished, small, tmp_path, monkeypatch):
    out = shutil.copy(finished[1], tmp_path / "c.safetensors")
    shutil.copy(finished[1].with_suffix(".csv"), tmp_path / "c.csv")
    argv = [*small, f"--pretrain.classifier={out}", "--save_every=2", "--meta.steps=0"]
    assert main([*argv, f"--folder={tmp_path / 'whole'}"]) == 0
    (whole,) = (tmp_path / "whole").iterdir()
    interrupted(argv, monkeypatch, ("pretrain", 3))
    folder = only_run(tmp_path)
    monkeypatch.setattr("fastmfr.training.pretrain._begin_with", lambda *_: pytest.fail("begins anew"))
    assert main(["--resume", str(folder)]) == 0
    assert (folder / "base.safetensors").read_bytes() == (whole / "base.safetensors").read_bytes()


def test_rows_of_two_ranks_become_one_file(finished, tmp_path, capsys):
    run = shutil.copytree(finished[0], tmp_path / "run")
    shutil.rmtree(run / "checkpoints")
    (run / "base.safetensors").unlink()
    on_ranks(_save_and_resume, 2, tmp_path, run / "checkpoints", True)
    assert len(list(run.glob("checkpoints/pretrain-*/rows-*.safetensors"))) == 2
    assert export([str(run), "--classifier", "--out", str(tmp_path / "c.safetensors")]) == 0
    assert torch.equal(load_file(tmp_path / "c.safetensors")["weight"], networks_of(ALONE)["head"].weight_CD)
    assert "the rows belong to the backbone after 5 of 6 steps of stage one, which has not ended yet" in said(capsys)


def test_each_rank_begins_with_the_rows_it_has(domains, tmp_path):
    weight_CD = torch.randn(domains.identities, 2)
    path, said = handed_on(tmp_path / "c.safetensors", weight_CD, domains), []
    logbook = SimpleNamespace(say=said.append, warn=lambda sentence: pytest.fail(sentence))
    data = {PRETRAIN: SimpleNamespace(sources=domains)}
    run = SimpleNamespace(data=data, logbook=logbook, device=torch.device("cpu"))
    head = SimpleNamespace(weight_CD=torch.zeros(9, 2), rows=(20, 29))
    _begin_with(run, head, path)
    assert torch.equal(head.weight_CD, weight_CD[20:29])
    number = domains.identities
    assert said == [f"classifier: {number} of {number} rows are those of {path}, 0 are drawn new"]
    logbook.warn = said.append
    list_beside(path).write_text("row,domain,name\n0,elsewhere,0001\n\n")
    _begin_with(run, head, path)
    assert said[-1] == f"classifier: 0 of {number} rows are those of {path}, {number} are drawn new"


@pytest.mark.parametrize("kind", [".npy", ".pt", "checkpoint.pt"])
def test_files_of_others_are_read(domains, tmp_path, kind):
    torch.manual_seed(0)
    weight_CD = torch.randn(domains.identities, 8).half()
    path = tmp_path / f"c{kind}"
    if kind == ".npy":
        np.save(path, weight_CD.numpy())
    else:
        torch.save({"epoch": 1, "state_dict_softmax_fc": {"weight": weight_CD}} if "check" in kind else weight_CD, path)
    write_identities(list_beside(path), domains)
    opened = open_classifier(path, 8)
    assert opened.shape == (domains.identities, 8)
    (places, rows), *rest = opened.rows(opened.row_of(domains))
    assert rest == []
    assert places.tolist() == list(range(domains.identities))
    assert torch.equal(rows, weight_CD.float())


def test_rows_are_read_in_parts_and_each_once(domains, tmp_path, monkeypatch):
    monkeypatch.setattr(classifier_files, "READ_AT_ONCE", 4)
    weight_CD = torch.arange(2.0 * domains.identities).view(-1, 2)
    opened = open_classifier(handed_on(tmp_path / "c.safetensors", weight_CD, domains))
    row_C = np.array([9, -1, 0, 9, 8])
    found = {place: row for places, rows in opened.rows(row_C) for place, row in zip(places, rows, strict=True)}
    assert {place: row.tolist() for place, row in found.items()} == {
        2: [0.0, 1.0],
        0: [18.0, 19.0],
        3: [18.0, 19.0],
        4: [16.0, 17.0],
    }


def test_a_person_of_several_domains_has_a_line_for_each_and_the_first_row_found(domains, tmp_path):
    person = [np.arange(domain.identities) for domain in domains.domains]
    shared = join([domain.with_persons(own) for domain, own in zip(domains.domains, person, strict=True)])
    assert shared.identities == domains.identities // 2
    opened = open_classifier(handed_on(tmp_path / "c.safetensors", torch.zeros(shared.identities, 2), shared))
    lines = list_beside(tmp_path / "c.safetensors").read_text().splitlines()
    assert lines[1:3] == [f"0,{domain.name},{domain.identity_name(0)}" for domain in domains.domains]
    assert opened.row_of(domains).tolist() == [*range(shared.identities)] * 2  # apart, both begin from the one row
    apart = open_classifier(handed_on(tmp_path / "a.safetensors", torch.zeros(domains.identities, 2), domains))
    assert apart.row_of(shared).tolist() == list(range(shared.identities))  # one person, the first domain's row


def test_names_with_commas_lines_and_bytes_that_are_no_text_come_back(tmp_path):
    from PIL import Image

    for name in ("a,b", "a\nb", 'a"b', "\udcff"):
        (tmp_path / "d" / name).mkdir(parents=True)
        Image.new("RGB", (16, 16)).save(tmp_path / "d" / name / "1.png")
    domains = join([open_domain(tmp_path / "d")])
    opened = open_classifier(handed_on(tmp_path / "c.safetensors", torch.zeros(4, 2), domains))
    assert opened.row_of(domains).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ("row,name\n", "want row,domain,name as the first line of"),
        ("row,domain,name\n0,a\n", r"line 2 of \S+ is not `row,domain,name` with a row below 3, got '0,a'"),
        ("row,domain,name\n0,a,b\n3,a,c\n", "line 3 of .* got '3,a,c'"),
        ("row,domain,name\n-1,a,b\n", "line 2 of .* got '-1,a,b'"),
        (
            "row,domain,name\n0,a,b\n0,a,b\n1,a,b\n",
            "line 4 of .* 'b' of the domain 'a' the row 1, and .* row 0;",
        ),
    ],
)
def test_a_wrong_list_is_told_by_its_line(domains, tmp_path, lines, words):
    path = handed_on(tmp_path / "c.safetensors", torch.zeros(3, 2), domains)
    list_beside(path).write_text(lines)
    with pytest.raises(ValueError, match=words):
        open_classifier(path)  # before any data is opened


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"weight": torch.zeros(3)}, r"want weight in \S+ as numbers \(people, embedding\), got torch.float32 \(3,\)"),
        ({"weight": torch.zeros(3, 2, dtype=torch.int64)}, "got torch.int64"),
        ({"other": torch.zeros(3, 2)}, r"cannot be read as a classifier \(SafetensorError\)"),
        ({"weight": torch.zeros(3, 5)}, "have 5 numbers, and the embeddings of this backbone 2; want .*embedding 5"),
        (b"version https://git-lfs", "it is a pointer of Git LFS"),
        (b"", "cannot be read"),
    ],
)
def test_refuses_what_is_no_classifier(domains, tmp_path, content, words):
    path = handed_on(tmp_path / "c.safetensors", torch.zeros(1, 1), domains)
    path.write_bytes(content) if isinstance(content, bytes) else save_file(content, path)
    with pytest.raises(ValueError, match=words):
        open_classifier(path, 2)


def test_refuses_rows_that_are_not_finite(domains, tmp_path):
    path = handed_on(tmp_path / "c.safetensors", torch.full((domains.identities, 2), torch.nan), domains)
    with pytest.raises(ValueError, match="rows that are NaN or infinite"):
        list(open_classifier(path).rows(np.array([1])))


def test_what_cannot_work_is_told_before_any_data_is_opened(finished, small, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("fastmfr.training.run.open_people", lambda *_: pytest.fail("opens data"))
    for argv, words in (
        (
            [f"--pretrain.classifier={finished[1]}", "--model.embedding=16"],
            "have 32 numbers, and the embeddings of this",
        ),
        ([f"--pretrain.classifier={tmp_path}"], "want a classifier as a file that ends in .safetensors, .pt"),
        ([f"--pretrain.classifier={finished[0] / 'base.safetensors'}"], "want a list of lines row,domain,name at"),
    ):
        assert main([*small, *argv]) == 1
        assert words in said(capsys)
    with pytest.raises(SystemExit, match="2"):
        parse(["--pretrain.classifier=c.safetensors", "--pretrain.steps=0"])
    assert "is of a stage without steps; want pretrain.steps above 0" in said(capsys)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("lost", "argv", "words"),
    [
        ("identities.csv", [], "has no identities.csv, which says whose the rows are"),
        ("checkpoints", [], "holds no state of stage one (checkpoints/pretrain-*)"),
        ("", ["--out=c.pth"], "want --out as a file that ends in .safetensors with --classifier, got c.pth"),
        ("", ["--out={run}/identities.safetensors"], "is a file of the run itself, or its list would be"),
        ("", ["--out={run}/base.safetensors"], "is a file of the run itself"),
        ("", ["--normalise", "--data.size=3"], "got --normalise, --data.size=3 too, which a classifier has not"),
        ("damage", [], "is as it was written; the classifier is lost"),
    ],
)
def test_an_export_that_cannot_work_says_why(finished, tmp_path, capsys, lost, argv, words):
    run = shutil.copytree(finished[0], tmp_path / "run")
    if lost == "checkpoints":
        shutil.rmtree(run / lost)
    elif lost == "damage":
        for state in (run / "checkpoints").glob("pretrain-*/state.safetensors"):
            state.write_bytes(b"")
    elif lost:
        (run / lost).unlink()
    before = {path: path.read_bytes() for path in run.glob("*.safetensors")}
    out = [f"--out={tmp_path / 'c.safetensors'}"]
    assert export([str(run), "--classifier", *out, *(word.format(run=run) for word in argv)]) == 1
    assert words in said(capsys)
    assert not (tmp_path / "c.safetensors").exists()
    assert {path: path.read_bytes() for path in run.glob("*.safetensors")} == before


def test_a_table_of_the_user_is_not_written_over_and_an_earlier_list_is(finished, tmp_path, capsys):
    (tmp_path / "shared.csv").write_text("p1,asia/1,nir/1\n")
    words = [str(finished[0]), "--classifier", "--out", str(tmp_path / "shared.safetensors")]
    assert export(words) == 1
    assert "is there and is no such list; name another file" in said(capsys)
    (tmp_path / "shared.csv").write_text("row,domain,name\n")
    assert export(words) == 0
    assert (tmp_path / "shared.csv").read_bytes() == (finished[0] / "identities.csv").read_bytes()


def test_a_resumed_run_of_an_earlier_version_gets_its_list(finished, tmp_path):
    run = shutil.copytree(finished[0], tmp_path / "run")
    before = (run / "identities.csv").read_bytes()
    (run / "identities.csv").unlink()
    assert main(["--resume", str(run)]) == 0
    assert (run / "identities.csv").read_bytes() == before
