"""How many people a batch holds, and how often each domain is drawn, if that is not typed and if it is."""

import numpy as np
import pytest
from helpers import command
from small_runs import PEOPLE, only_run
from test_sampler import same

from fastmfr.config import load_config, parse
from fastmfr.domains import join, open_domain
from fastmfr.results import META, PRETRAIN
from fastmfr.sampler import GroupedDomainSampler
from fastmfr.training.batch_sizes import check_batches, fit_batches
from fastmfr.training.data import batch_sampler, sampler_of_stage_one

main = command("train")


@pytest.fixture
def sources(faces):
    """The domains studio, of nine people, and street, of all 24."""
    joint = join([open_domain(faces["studio"]).people(range(9)), open_domain(faces["street"])])
    return {PRETRAIN: joint, META: joint}


def test_batches_follow_from_the_domains_where_no_number_is_typed(sources):
    config, said = fit_batches(sources, parse(["--config=mfr"])[0])
    assert (config.pretrain.batch_identities, config.meta.batch_identities) == (18, 9)
    check_batches(sources, config)
    assert said == [
        "pretrain.batch_identities 18: people in a batch of stage one, the largest number that the domains allow (else "
        "128)",
        "meta.batch_identities 9: people in each half of a split, the largest number that the domains allow (else 128)",
    ]
    with pytest.raises(ValueError, match=r"pretrain.batch_identities 19: .*; the largest that fits is 18"):
        check_batches(sources, parse(["--config=mfr", "--pretrain.batch_identities=19"])[0])


def test_a_number_that_is_typed_is_kept_and_large_domains_get_the_papers(sources, monkeypatch):
    config = parse(["--config=mfr", "--pretrain.batch_identities=6", "--meta.batch_identities=4"])[0]
    assert fit_batches(sources, config) == (config, [])
    monkeypatch.setattr("fastmfr.config.sections.PEOPLE", 8)
    config, said = fit_batches(sources, parse(["--config=mfr"])[0])
    assert (config.pretrain.batch_identities, config.meta.batch_identities) == (8, 8)
    assert said[0] == "pretrain.batch_identities 8: people in a batch of stage one"


def test_a_stage_without_steps_or_with_one_domain_has_no_batches(sources):
    one = {stage: join(joint.domains[:1]) for stage, joint in sources.items()}
    config, said = fit_batches(one, parse(["--config=mfr", "--pretrain.steps=0"])[0])
    assert (config.pretrain.batch_identities, config.meta.batch_identities, said) == (None, None, [])
    with pytest.raises(ValueError, match="it needs two or more; there is one, studio"):
        check_batches(one, config)


@pytest.mark.parametrize(
    ("argv", "weights", "sentence"),
    [
        (["--data.weights.street=3"], [1, 3], "drawn in stage one: studio 25.0 %, street 75.0 %"),
        (["--data.temperature=1"], [9, 24], "drawn in stage one: studio 27.3 %, street 72.7 %"),
        (["--data.temperature=2"], [9**0.5, 24**0.5], "drawn in stage one: studio 38.0 %, street 62.0 %"),
    ],
)
def test_stage_one_draws_domains_by_weight_or_by_their_people(sources, argv, weights, sentence):
    config, said = fit_batches(sources, parse(["--config=mfr", *argv])[0])
    assert said[0] == sentence
    offsets = [domain.offsets for domain in sources[PRETRAIN].domains]
    wanted = GroupedDomainSampler(offsets, 8, config.seed, weights=weights)
    sampler = sampler_of_stage_one(sources[PRETRAIN], config, 8)
    assert all(same(sampler.batch(step), wanted.batch(step)) for step in range(20))
    even = batch_sampler(sources[PRETRAIN], config, 8).split(3, 0)
    assert np.array_equal(even[0].identity, sampler.split(3, 0)[0].identity)  # stage two does not know the weights


def test_without_weights_stage_one_draws_what_it_always_drew(sources):
    config = parse(["--config=mfr"])[0]
    plain = GroupedDomainSampler([domain.offsets for domain in sources[PRETRAIN].domains], 8, config.seed)
    sampler = sampler_of_stage_one(sources[PRETRAIN], config, 8)
    assert all(same(sampler.batch(step), plain.batch(step)) for step in range(20))


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["--data.weights.street=0"], "want data.weights.street above 0 and finite, got 0"),
        (["--data.temperature=0"], "want data.temperature above 0 and finite, or null, got 0"),
        (["--data.temperature=1", "--data.weights.street=2"], "want data.weights or data.temperature, got both"),
        (["--data.weights.sreet=2"], "want data.weights of studio, street, got one of sreet"),
    ],
)
def test_weights_that_mean_nothing_are_told_before_any_work(small, tmp_path, capsys, argv, sentence):
    try:
        status = main([*small, *argv])
    except SystemExit as stopped:
        status = stopped.code
    assert status in (1, 2)
    assert sentence in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "runs").exists()


def test_a_run_with_weights_and_without_typed_batches_says_and_keeps_what_it_took(small, tmp_path, capsys):
    null = ["--pretrain.batch_identities=null", "--meta.batch_identities=null", "--data.weights.studio=2"]
    assert main([*small, *null, "--pretrain.steps=2", "--meta.steps=1"]) == 0
    said = capsys.readouterr().out
    assert "drawn in stage one: studio 66.7 %, street 33.3 %" in said
    config = load_config(only_run(tmp_path) / "config.yaml")
    assert config.data.weights == {"studio": 2}
    assert config.meta.batch_identities == PEOPLE  # a tenth is kept for validation: fewer than five, so nobody
    assert f"meta.batch_identities {config.meta.batch_identities}: people in each half" in said
    assert main(["--resume", str(only_run(tmp_path)), "--meta.steps=2"]) == 0
    assert main(["--resume", str(only_run(tmp_path)), "--meta.steps=3", "--data.weights.studio=3"]) == 1
    assert "data.weights was {'studio': 2" in " ".join(capsys.readouterr().err.split())
