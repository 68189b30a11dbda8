"""Who is trained on in which stage and who is scored: nobody is in two places who should be in one."""

import numpy as np
import pytest
from helpers import command
from small_runs import only_run, records

from fastmfr.config import parse
from fastmfr.domains import open_domain
from fastmfr.protocols import hold_out
from fastmfr.results import META, PRETRAIN
from fastmfr.training import Logbook
from fastmfr.training.people import open_people

main = command("train")


@pytest.fixture
def opened(faces, tmp_path, capsys):
    """A function: the people of a run with these options over the sources studio and street and the target nir."""

    def make(*argv, sources=("studio", "street"), targets=("nir",)):
        domains = [f"--data.sources.{name}={faces[name]}" for name in sources]
        domains += [f"--data.targets.{name}={faces[name]}" for name in targets]
        with Logbook(tmp_path) as logbook:
            return open_people(parse(["--config=mfr", *domains, *argv])[0], logbook)

    return make


def names(domain):
    return {domain.identity_name(identity) for identity in range(domain.identities)}


def test_both_stages_train_on_all_people_unless_more_is_asked_for(opened, faces):
    people = opened()
    assert people.sources[PRETRAIN] is people.sources[META]
    assert [domain.name for domain in people.sources[META].domains] == ["studio", "street"] == list(people.trained)
    assert names(people.trained["studio"]) == names(open_domain(faces["studio"]))


def test_stage_two_meets_people_that_stage_one_has_not(opened, faces, capsys):
    people = opened("--data.new_people=0.25")
    for first, second in zip(people.sources[PRETRAIN].domains, people.sources[META].domains, strict=True):
        assert (first.identities, second.identities) == (18, 6)
        assert names(first) | names(second) == names(people.trained[first.name])
        assert names(people.trained[first.name]) == names(open_domain(faces[first.name]))
        assert not names(first) & names(second)
    said = capsys.readouterr().out
    assert "stage one studio: 18 people, 72 images" in said
    assert "stage two street: 6 people, 24 images" in said


def test_people_held_out_for_scoring_are_the_same_with_and_without_new_people(opened, faces):
    argv = ["--data.holdout=0.25", "--seed=5"]
    people = opened("--data.new_people=0.5", *argv, targets=("studio", "nir"))
    studio = open_domain(faces["studio"])
    trained, scored = hold_out(studio.identities, 0.25, 5)
    assert names(people.targets["studio"].domain) == names(studio.people(scored))
    assert names(people.trained["studio"]) == names(studio.people(trained))
    stages = [names(people.sources[stage].domains[0]) for stage in (PRETRAIN, META)]
    assert [len(stage) for stage in stages] == [9, 9]
    assert not stages[0] & stages[1]
    assert stages[0] | stages[1] == names(people.trained["studio"])


def test_stage_one_can_have_domains_of_its_own(opened, faces):
    people = opened(f"--data.pretrain.nir={faces['nir']}", targets=("nir",), sources=("studio", "street"))
    assert [domain.name for domain in people.sources[PRETRAIN].domains] == ["nir"]
    assert [domain.name for domain in people.sources[META].domains] == ["studio", "street"]
    assert not people.targets["nir"].unseen
    assert not names(people.sources[PRETRAIN].domains[0]) & names(people.targets["nir"].domain)


def test_of_a_domain_of_both_stages_alone_people_are_kept_for_stage_two(opened, faces):
    argv = [f"--data.pretrain.{name}={faces[name]}" for name in ("studio", "nir")]
    people = opened("--data.new_people=0.5", *argv, targets=())
    assert [domain.identities for domain in people.sources[PRETRAIN].domains] == [12, 24]
    assert [domain.identities for domain in people.sources[META].domains] == [12, 24]
    assert not np.intersect1d(*(list(names(people.sources[stage].domains[0])) for stage in (PRETRAIN, META))).size


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["--data.new_people=1"], "want data.new_people at least 0 and below 1, got 1.0"),
        (["--data.new_people=-0.1"], "want data.new_people at least 0 and below 1, got -0.1"),
        (["--data.new_people=0.01"], "data.new_people of the domain 'studio': holding out 0.01 of 24 people"),
        (["--data.pretrain.studio={street}"], "is given as both 'studio' and 'street'"),
        (["--data.pretrain.studio={nir}"], "is given as both 'studio' and 'nir'"),
        (["--data.pretrain.mine={nir}"], "is given as both 'mine' and 'nir'"),
    ],
)
def test_people_that_cannot_be_divided_so_are_told_before_any_work(argv, sentence, faces, tmp_path, capsys):
    given = [f"--data.sources.{name}={faces[name]}" for name in ("studio", "street")]
    given += [f"--data.targets.nir={faces['nir']}", *(word.format(**faces) for word in argv)]
    try:
        status = main([f"--folder={tmp_path / 'runs'}", *given])
    except SystemExit as stopped:
        status = stopped.code
    assert status in (1, 2)
    assert sentence in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "runs").exists()


def test_a_run_whose_stages_have_different_people_is_trained_and_goes_on(small, tmp_path, capsys):
    argv = [*small, "--data.new_people=0.5", "--save_every=2"]
    assert main(argv) == 0
    folder = only_run(tmp_path)
    before = [(record["step"], record["loss"]) for record in records(folder, "meta")]
    assert len(before) == 3
    (folder / "mfr.safetensors").rename(tmp_path / "mfr.safetensors")
    for state in (folder / "checkpoints").glob("meta-00000003"):
        state.rename(tmp_path / state.name)
    assert main(["--resume", str(folder)]) == 0
    assert [(record["step"], record["loss"]) for record in records(folder, "meta")] == before
    assert (folder / "mfr.safetensors").read_bytes() == (tmp_path / "mfr.safetensors").read_bytes()
    capsys.readouterr()
    assert main(["--resume", str(folder), "--data.new_people=0.25"]) == 1
    assert "data.new_people was 0.5, now 0.25" in capsys.readouterr().err
