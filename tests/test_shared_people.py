"""People of several domains: who is one person, in which part of a run, and under which label."""

import numpy as np
import pytest
import torch
from helpers import command
from small_runs import only_run, records

from fastmfr.config import parse
from fastmfr.domains import join, open_domain, people_of
from fastmfr.evaluate import domain_gap
from fastmfr.evaluate.validation import validate
from fastmfr.protocols.shared_people import names_in_common, names_of, share_people
from fastmfr.results import META, PRETRAIN
from fastmfr.training import Logbook
from fastmfr.training.data import Splits, batch_sampler
from fastmfr.training.people import open_people

main = command("train")
PEOPLE = {"nir": range(24), "vis": range(24), "web": range(18, 48)}  # the people of each domain, by number


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Three domains of some of the same people, four images each; no image is one."""
    root = tmp_path_factory.mktemp("shared")
    for domain, people in PEOPLE.items():
        for person in people:
            (root / domain / f"s{person:02d}").mkdir(parents=True)
            for image in range(4):
                (root / domain / f"s{person:02d}" / f"{image}.jpg").write_bytes(f"{domain}{person}{image}".encode())
    return {name: root / name for name in PEOPLE}


@pytest.fixture
def opened(folders, tmp_path, capsys):
    """A function: the people of a run with these options over some of the domains."""

    def make(*argv, sources=("nir", "vis", "web"), targets=(), pretrain=()):
        sides = {"sources": sources, "targets": targets, "pretrain": pretrain}
        domains = [f"--data.{side}.{name}={folders[name]}" for side, names in sides.items() for name in names]
        domains += [] if targets else ["--data.targets={}"]
        with Logbook(tmp_path) as logbook:
            return open_people(parse(["--config=mfr", "--data.shared_identities=by_name", *domains, *argv])[0], logbook)

    return make


def names(*domains):
    return {name for domain in domains for name in names_of(domain)}


def reference_labels(domains):
    """The label of each identity of each domain, in plain Python."""
    number = {}
    return [[number.setdefault(name, len(number)) for name in names_of(domain)] for domain in domains]


def test_people_of_one_name_have_one_label_as_plain_python_numbers_them(opened):
    people = opened("--data.validation=0")
    joint = people.sources[PRETRAIN]
    wanted = reference_labels(joint.domains)
    assert joint.identities == 48
    for number, domain in enumerate(joint.domains):
        assert joint.label([number] * domain.identities, range(domain.identities)).tolist() == wanted[number]
        assert joint.people[number].tolist() == wanted[number]
    assert [len(joint.who()), len(set(joint.who()))] == [48, 48]


def test_without_sharing_labels_fingerprints_and_batches_are_those_of_domains_apart(opened, folders):
    apart = opened("--data.shared_identities=none", sources=("nir", "web"))
    joint = apart.sources[PRETRAIN]
    assert joint.labels is None
    assert joint.identities == sum(domain.identities for domain in joint.domains)
    assert open_domain(folders["nir"]).person is None
    alone = [open_domain(folders["nir"]), open_domain(folders["web"]).people(range(6, 30))]  # nobody in common
    shared, _ = share_people({domain.name: domain for domain in alone}, "by_name")
    assert join(list(shared.values())).labels is None
    config = parse(["--config=mfr"])[0]
    plain, same = (batch_sampler(join(list(some)), config, 16) for some in (alone, shared.values()))
    assert np.array_equal(plain.batch(5).identity, same.batch(5).identity)
    assert alone[0].fingerprint() != shared["nir"].fingerprint()


def test_no_batch_and_no_half_of_a_split_holds_a_person_twice(opened):
    people = opened("--meta.batch_identities=16", "--data.validation=0")
    config = parse(["--config=mfr", "--meta.batch_identities=16"])[0]
    joint = people.sources[META]
    splits, sampler = Splits(joint, config), batch_sampler(joint, config, 24)
    for step in range(60):
        halves = splits.pairs(step)
        for pairs in (sampler.batch(step), *halves):
            assert len(np.unique(joint.label(pairs.domain, pairs.identity))) == len(pairs.identity)


def test_pairs_are_of_one_domain_and_a_person_may_be_trained_on_by_one_and_tested_by_the_other(opened):
    """No pair leads from the domain left out into meta-training, though its people are there by their other images."""
    sources = opened("--meta.batch_identities=16", "--data.validation=0").sources[META]
    splits, of_both = Splits(sources, parse(["--config=mfr", "--meta.batch_identities=16"])[0]), 0
    for i in range(60):
        train, test = splits.pairs(i)
        assert (test.domain == splits.left_out(i)).all()
        assert (train.domain != splits.left_out(i)).all()
        for half in (train, test):
            for number, domain in enumerate(sources.domains):
                mine = half.domain == number
                for images in (half.gallery[mine], half.probe[mine]):
                    assert np.array_equal(domain.identity_of(images), half.identity[mine])
        labels = [sources.label(half.domain, half.identity) for half in (train, test)]
        of_both += len(np.intersect1d(*labels))
    assert of_both > 0


def test_a_person_kept_for_validation_is_kept_in_all_domains(opened):
    people = opened("--data.validation=0.3")
    kept, trained = names(*people.validation.values()), names(*people.trained.values())
    assert not kept & trained
    for domain, numbers in PEOPLE.items():
        own = {f"s{person:02d}" for person in numbers}
        assert names(people.validation[domain]) == own & kept
        assert names(people.trained[domain]) == own - kept
    assert people.validation["nir"].identities == 7  # those kept of vis are the same
    assert people.validation["web"].identities == 9


def test_people_who_are_new_to_stage_two_are_so_in_all_domains(opened):
    people = opened("--data.new_people=0.5", "--data.validation=0.2")
    first, second = (names(*people.sources[stage].domains) for stage in (PRETRAIN, META))
    assert not first & second
    assert first | second == names(*people.trained.values())
    stage_one = opened("--data.new_people=0.5", sources=("nir", "vis"), pretrain=("nir", "web"))
    met, new = names(*stage_one.sources[PRETRAIN].domains), names(stage_one.sources[META].domains[0])
    assert not met & new


@pytest.mark.parametrize("targets", [("nir",), ("nir", "vis"), ("web",), ("vis", "web")])
def test_nobody_who_is_scored_is_trained_on_under_another_domain(opened, targets):
    sources = [name for name in PEOPLE if name not in targets] or ["web"]
    people = opened("--data.holdout=0.5", "--data.validation=0.2", sources=[*sources, targets[0]], targets=targets)
    scored = names(*(target.domain for target in people.targets.values()))
    assert scored
    assert not scored & names(*people.trained.values())
    assert not scored & names(*people.validation.values())


def test_of_people_whom_an_unseen_target_shares_with_sources_a_part_is_scored(opened):
    people = opened("--data.holdout=0.25", "--data.validation=0", sources=("nir", "web"), targets=("vis",))
    assert people.targets["vis"].unseen
    assert people.targets["vis"].domain.identities == 6  # a quarter of 24, all of whom are people of nir
    assert people.trained["nir"].identities == 18
    apart = opened("--data.holdout=0.25", "--data.validation=0", sources=("nir", "vis"), targets=("web",))
    assert apart.targets["web"].domain.identities == 24 + 2  # 24 are of web alone, and of six others a quarter


def test_a_list_says_who_is_one_person_across_and_within_domains(folders, tmp_path):
    listing = tmp_path / "shared.csv"
    listing.write_text(
        '# who is who\nanna,nir/s00,web/s20\n"berta, b.",vis/s01,vis/s02,web/s21\ncora,nir/s05,elsewhere/7\n'
    )
    domains = {name: open_domain(path, name) for name, path in folders.items()}
    shared, said = share_people(domains, str(listing))
    joint = join(list(shared.values()))
    assert joint.identities == 24 + 24 + 30 - 3
    label = lambda domain, person: joint.label([domain], [person])[0]  # noqa: E731
    assert label(0, 0) == label(2, 2)
    assert label(1, 1) == label(1, 2) == label(2, 3)
    assert len({label(0, 0), label(1, 0), label(1, 1), label(0, 5)}) == 4
    assert said == [
        f"{listing} names elsewhere, which this run has not",
        "vis: 1 of 24 identities are people under another label",
        "nir and web: 1 people in common",
        "vis and web: 1 people in common",
    ]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("anna,nir/s00,nir/none", r"line 1 of .* names nir/none, and .*nir has no such folder"),
        (
            "\nanna,nir/s00\nberta,nir/s00",
            "line 3 of .* says that nir/s00 is berta, and a line before that",
        ),
        ("anna", r"line 1 of .* is not `identity,domain/folder,domain/folder`, got 'anna'"),
        (",nir/s00,vis/s00", "is not `identity,domain/folder"),
        ("anna,nir,vis/s00", "is not `identity,domain/folder"),
    ],
)
def test_a_list_with_a_mistake_is_refused_with_the_line(text, sentence, folders, tmp_path):
    (tmp_path / "shared.csv").write_text(text)
    domains = {name: open_domain(path, name) for name, path in folders.items()}
    with pytest.raises(ValueError, match=sentence):
        share_people(domains, str(tmp_path / "shared.csv"))


def test_a_list_that_is_not_there_and_names_in_common_are_told(folders, tmp_path, capsys):
    argv = [f"--folder={tmp_path / 'runs'}", *(f"--data.sources.{name}={path}" for name, path in folders.items())]
    assert main([*argv, "--data.targets={}", "--data.shared_identities=by_nmae"]) == 1
    assert "want data.shared_identities as none, by_name or a list" in " ".join(capsys.readouterr().err.split())
    domains = [open_domain(path) for path in folders.values()]
    assert next(names_in_common(domains)).startswith(
        "nir and vis have 24 folder names in common (as 's00'); if these are the same people, train with "
        "--data.shared_identities by_name"
    )
    assert len(list(names_in_common(domains))) == 3
    (first, *rest) = names_in_common(domains[:1], domains[1:])
    assert len(rest) == 1  # targets are not compared with each other
    assert first.startswith("the target vis and nir, which is trained on, have 24 folder names in common (as 's00')")


def test_inspect_hints_at_people_of_two_domains(faces, tmp_path, capsys):
    for name in ("nir", "vis"):
        (tmp_path / name).mkdir()
        for folder in sorted(faces["nir"].iterdir())[:3]:
            (tmp_path / name / f"p{folder.name}").symlink_to(folder)
    assert command("inspect")([str(tmp_path / "nir"), str(tmp_path / "vis"), str(faces["street"])]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "nir and vis have 3 folder names in common (as 'p0000000'); if these are the same people, train with" in text
    assert command("inspect")([str(faces["nir"]), str(faces["street"])]) == 0
    assert "nir and street have 24 folder names in common that are bare numbers" in capsys.readouterr().out


def test_images_of_one_person_in_two_domains_are_genuine_pairs_of_validation_and_no_impostors_of_the_gap():
    rng = torch.Generator().manual_seed(0)
    rows = torch.randn(8, 16, dtype=torch.float64, generator=rng)
    person_N = np.array([0, 0, 1, 1, 2, 2, 3, 3])
    embedded = {"nir": (rows, person_N), "vis": (rows, person_N)}
    own = np.arange(4)
    assert validate(embedded, {"nir": own, "vis": own}).together > validate(embedded).together
    together, apart = (domain_gap(embedded, people=people) for people in ({"nir": own, "vis": own}, None))
    assert apart.impostors - together.impostors == 4 * 2 * 2  # four people, two images each, in both domains
    assert together.people == apart.people == [4, 4]


def test_people_of_restricted_domains_stay_who_they_are(folders):
    domains = {name: open_domain(path, name) for name, path in folders.items()}
    shared, _ = share_people(domains, "by_name")
    some = {"nir": shared["nir"].people([5, 20]), "web": shared["web"].people([2, 0, 29])}
    assert {name: own.tolist() for name, own in people_of(some).items()} == {"nir": [0, 1], "web": [1, 2, 3]}
    assert people_of({"nir": some["nir"]}) is None
    with pytest.raises(ValueError, match=r"want a person for each of the 24 identities of 'nir', got \(3,\)"):
        domains["nir"].with_persons([1, 2, 3])


def test_a_run_with_shared_people_trains_and_goes_on_to_the_same_weights(small, faces, tmp_path, capsys):
    listing = tmp_path / "shared.csv"
    folders = zip(*(names_of(open_domain(faces[name])) for name in ("studio", "street")), strict=True)
    lines = [f"p{k},studio/{one},street/{other}\n" for k, (one, other) in enumerate(folders)]
    listing.write_text("".join(lines[:12]))
    argv = [*small, f"--data.shared_identities={listing}", "--save_every=2"]
    assert main(argv) == 0
    said = capsys.readouterr().out
    assert "shared    studio and street: 12 people in common" in said
    folder = only_run(tmp_path)
    before = [(record["step"], record["loss"]) for record in records(folder, "meta")]
    (folder / "mfr.safetensors").rename(tmp_path / "mfr.safetensors")
    for state in (folder / "checkpoints").glob("meta-00000003"):
        state.rename(tmp_path / state.name)
    assert main(["--resume", str(folder)]) == 0
    assert [(record["step"], record["loss"]) for record in records(folder, "meta")] == before
    assert (folder / "mfr.safetensors").read_bytes() == (tmp_path / "mfr.safetensors").read_bytes()
    listing.write_text(lines[0])
    assert main(["--resume", str(folder)]) == 1
    assert "has changed since" in " ".join(capsys.readouterr().err.split())
