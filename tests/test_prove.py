"""What `prove` computes: arms that are matched, figures that can be drawn again, gains with intervals, a verdict."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from fastmfr.config import Config, load_config
from fastmfr.evaluate import identification, verification
from fastmfr.meta import PairBatch
from fastmfr.protocols import gallery_probe
from fastmfr.prove.arms import ARMS, arms_of, by_default, config_of, models_of, title_of
from fastmfr.prove.cell import leaving_out
from fastmfr.prove.gains import Gain, followed, gain, views
from fastmfr.prove.pace import Pace
from fastmfr.prove.page import page
from fastmfr.prove.pooled import pooled_images
from fastmfr.prove.report import write_report
from fastmfr.prove.rows import Rows, Task
from fastmfr.prove.scores import by_person, main_figure, titles
from fastmfr.prove.tables import part_of
from fastmfr.prove.verdict import verdict
from fastmfr.training.data import Splits, images_of
from fastmfr.training.resuming import Held

POOLS = Path(__file__).parent.parent / "bench" / "proof"
PEOPLE, IMAGES, FAR = 30, 5, (1e-2, 1e-3)
FIGURES = titles(FAR)
TITLES = {name: title_of(name, ARMS) for name in ("base", "cosface", "no_meta", "first_order", "mfr", "mfr:chosen")}


@pytest.fixture(scope="module")
def scored():
    """(embedding_ND, lists) of 30 people who are told apart, but not perfectly."""
    rng = np.random.default_rng(0)
    noisy = np.repeat(rng.normal(size=(PEOPLE, 16)), IMAGES, 0) + rng.normal(size=(PEOPLE * IMAGES, 16))
    embedding_ND = torch.nn.functional.normalize(torch.from_numpy(noisy))
    return embedding_ND, gallery_probe(np.arange(0, PEOPLE * IMAGES + 1, IMAGES))


def row(value, seconds=2.0, people=10, target="nir"):
    figures = {name: [value] * people for name in FIGURES}
    return {"seconds": seconds, "scores": {target: {"probes": [9] * people, "impostors": 9000, **figures}}}


def rows_of(values):
    """Rows by task out of {(seed, left out, name): value}."""
    return {Task(*key): row(value, target=key[1]) for key, value in values.items()}


def judged(values):
    found = views(rows_of(values), list(dict.fromkeys(name for _, _, name in values)))
    return verdict(found, TITLES, "tar_0.01", "TAR@1e-2")


def test_pools_share_no_domain_and_no_seed():
    tuning, reported = (load_config(POOLS / f"{name}.yaml") for name in ("tuning", "reported"))
    assert not set(tuning.data.sources) & set(reported.data.sources)
    assert tuning.seed + 50 < reported.seed
    same = replace(reported, recipe=tuning.recipe, seed=tuning.seed)
    assert replace(same, data=replace(same.data, sources=tuning.data.sources)) == tuning


def test_figures_by_person_add_up_to_the_figures(scored):
    embedding_ND, pairs = scored
    found = by_person(embedding_ND, pairs, PEOPLE, (1e-2, 1e-3, 1e-4))
    gallery_GD, probe_PD = embedding_ND[pairs.gallery], embedding_ND[pairs.probe]
    truth = verification(probe_PD @ gallery_GD.T, pairs.probe_id[:, None] == pairs.gallery_id, FAR)
    rank1 = identification(gallery_GD, pairs.gallery_id, probe_PD, pairs.probe_id)
    mean = {
        name: np.average(value, weights=found["probes"]) for name, value in found.items() if isinstance(value, list)
    }
    assert 0 < mean["tar_0.001"] < mean["tar_0.01"] < 1
    assert mean["tar_0.01"] == pytest.approx(truth["tar_at_far"][1e-2]["tar"], abs=1e-6)
    assert mean["tar_0.001"] == pytest.approx(truth["tar_at_far"][1e-3]["tar"], abs=1e-6)
    assert mean["auc"] == pytest.approx(truth["auc"], abs=1e-6)
    assert mean["rank1"] == pytest.approx(rank1, abs=1e-6)
    assert mean["eer"] == pytest.approx(truth["eer"], abs=1 / len(pairs.probe))
    assert found["impostors"] == PEOPLE * (IMAGES - 1) * (PEOPLE - 1)
    assert "tar_0.0001" not in found  # 3480 impostor pairs cannot measure that


def test_a_person_whose_enrolled_image_is_bad_keeps_the_place_and_weighs_nothing(scored):
    embedding_ND, pairs = scored
    found = by_person(embedding_ND, pairs.without([pairs.gallery[3]]), PEOPLE, (1e-2,))
    assert found["probes"] == [IMAGES - 1 if person != 3 else 0 for person in range(PEOPLE)]
    assert {len(values) for values in found.values() if isinstance(values, list)} == {PEOPLE}


@pytest.mark.parametrize(
    ("impostors", "wanted"), [(30_000, "tar_0.001"), (29_999, "tar_0.01"), (3_000, "tar_0.01"), (2_999, "auc")]
)
def test_models_are_judged_at_the_lowest_rate_that_the_pairs_are_enough_for(impostors, wanted):
    scores = [
        {"impostors": 10**6, "tar_0.01": [], "tar_0.001": []},
        {"impostors": impostors, "tar_0.01": [], "tar_0.001": []},
    ]
    assert main_figure(scores, FAR) == wanted
    scores[0].pop("tar_0.001")
    assert main_figure(scores, FAR) in ("tar_0.01", "auc")


def test_every_arm_is_matched_in_steps_and_images():
    config = leaving_out(load_config(POOLS / "reported.yaml"), "nir", 101)
    offsets = np.arange(0, 2001, 10)
    domains = [SimpleNamespace(name=name, offsets=offsets) for name in config.data.sources]
    sources = SimpleNamespace(domains=domains, people=None)
    for name, arm in ARMS.items():
        settings = config_of(name, arm, config)
        if arm.kind == "together":
            continue  # as many images by a test of its own
        splits = Splits(sources, settings)
        images = sum(len(images_of(*splits.pairs(i))[0]) for i in range(splits.of_a_step))
        assert (settings.meta.steps, images) == (config.meta.steps, 384), name
        assert settings.choose.patience == 0


def test_more_of_stage_one_has_the_settings_of_stage_one_but_those_typed():
    config = load_config("mfr")
    one = replace(config.pretrain, batch_norm="frozen", precision="bf16", momentum=0.8, learning_rate=0.2)
    two = replace(config.meta, memory="kept", sharing="per_domain", batch_norm="per_domain", domain_alignment=0.0)
    config = replace(config, pretrain=one, meta=two)
    meta = config_of("cosface", ARMS["cosface"], config).meta
    assert (meta.batch_norm, meta.precision, meta.momentum) == ("frozen", "bf16", 0.8)
    assert meta.beta == pytest.approx(0.02)
    typed = arms_of(["low=cosface momentum=0.5"])["low"]
    assert config_of("low", typed, config).meta.momentum == 0.5
    config = replace(config, pretrain=replace(one, batch_norm="batch"))
    assert config_of("cosface", ARMS["cosface"], config).meta.batch_norm == "per_domain"  # not frozen
    assert config_of("mfr", ARMS["mfr"], config).meta == two


def test_a_domain_that_is_left_out_is_in_no_stage():
    domains = {"a": "/a", "b": "/b", "c": "/c"}
    config = Config()
    data = replace(config.data, sources=domains, pretrain=domains | {"more": "/m"}, targets={"photos": "/p"})
    cell = leaving_out(replace(config, data=data), "b", 7)
    assert (cell.seed, list(cell.data.sources), list(cell.data.pretrain)) == (7, ["a", "c"], ["a", "c", "more"])
    assert cell.data.targets == {"b": "/b", "photos": "/p"}


def test_an_own_arm_changes_settings_of_stage_two():
    arms = arms_of(["wide=meta.share_n=0.05 alpha=0.1"])
    config = config_of("wide", arms["wide"], Config())
    assert (config.meta.share_n, config.meta.alpha) == (0.05, 0.1)
    assert config_of("low", arms_of(["low=cosface beta=1e-4"])["low"], Config()).meta.beta == 1e-4
    begun = arms_of(["wide=first_order share_n=0.05", "both=beside alpha=0.1"])
    assert config_of("wide", begun["wide"], Config()).meta.method == "first_order"
    assert (begun["both"].kind, begun["both"].meta) == ("beside", {"alpha": 0.1})


@pytest.mark.parametrize("word", ["wide", "wide=", "wide=meta.shares=1", "=meta.alpha=1", "../x=meta.alpha=1"])
def test_refuses_an_arm_that_is_none(word):
    with pytest.raises(ValueError, match=r'want --arm "NAME=SETTING=VALUE \.\.\." with settings out of '):
        arms_of([word])


def test_refuses_an_arm_whose_name_is_taken_or_whose_value_is_wrong():
    with pytest.raises(ValueError, match="there is an arm 'mfr' already"):
        arms_of(["mfr=meta.alpha=1"])
    with pytest.raises(ValueError, match=r"arm 'far': want meta\.alpha"):
        config_of("far", arms_of(["far=meta.alpha=-1"])["far"], Config())


def test_the_models_compared_by_default_are_those_that_the_settings_allow():
    config = Config()
    everything = by_default(replace(config, data=replace(config.data, new_people=0.5)))
    assert "together" in everything
    assert by_default(config) == [name for name in everything if name != "together"]
    given = replace(config, data=replace(config.data, validation=0.0), pretrain=replace(config.pretrain, steps=0))
    assert set(by_default(config)) - set(by_default(given)) == {"cosface", "mfr:chosen"}


def test_models_come_in_the_order_in_which_they_are_made():
    assert models_of(["mfr:chosen", "mfr", "cosface"], ARMS) == ["base", "cosface", "mfr", "mfr:chosen"]
    for wrong in ("nothing", "mfr:best"):
        with pytest.raises(ValueError, match=f"want arms out of base, .*got '{wrong}'"):
            models_of([wrong], ARMS)


def test_pooled_arms_see_the_images_of_the_splits():
    halves = []
    for first in (0, 10):
        gallery, probe = (
            torch.arange(start, start + 3.0).view(3, 1, 1, 1).expand(3, 3, 2, 2) for start in (first, first + 5)
        )
        halves.append(PairBatch(gallery, probe, torch.zeros(3, dtype=torch.int64)))
    seen = pooled_images(*halves)[:, 0, 0, 0].tolist()
    assert seen == [0, 1, 2, 10, 11, 12, 5, 6, 7, 15, 16, 17]  # galleries, then probes: chunk(2) makes pairs of them


def test_interval_of_the_same_gain_everywhere_is_that_gain():
    mine, theirs = ([row(value)["scores"]["nir"]] * 4 for value in (0.7, 0.5))
    found = gain(mine, theirs, [(seed, "nir") for seed in range(4)], ["nir"] * 4, "rank1")
    assert (found.mean, found.low, found.high) == pytest.approx((0.2, 0.2, 0.2))
    assert found.is_above
    assert not found.is_below


def test_one_seed_has_no_interval():
    mine, theirs = ([row(value)["scores"]["nir"]] for value in (0.7, 0.5))
    assert gain(mine, theirs, [(1, "nir")], ["nir"], "auc") == Gain(pytest.approx(0.2))


def cells(rng, runs, people, of_run, of_person):
    shared = of_person * rng.normal(size=people)
    return [{"probes": [9] * people, "auc": (of_run * rng.normal() + shared).tolist()} for _ in range(runs)]


def interval(mine):
    nothing = [{"probes": score["probes"], "auc": [0.0] * len(score["auc"])} for score in mine]
    return gain(mine, nothing, [(seed, "nir") for seed in range(len(mine))], ["nir"] * len(mine), "auc")


def test_interval_holds_the_people_and_the_runs():
    rng = np.random.default_rng(1)
    for mine in (
        cells(rng, 20, 500, 1.0, 0.0),
        cells(rng, 20, 20, 0.0, 1.0),
    ):  # more runs on the same people do not help
        found = interval(mine)
        assert found.high - found.low == pytest.approx(0.9, rel=0.5)  # about 4 standard errors: 4 sqrt(1 / 20)


def test_interval_of_few_seeds_covers_as_often_as_it_says():
    rng = np.random.default_rng(2)
    found = [interval(cells(rng, 3, 40, 1.0, 0.0)) for _ in range(150)]
    covered = np.mean([one.low <= 0 <= one.high for one in found])
    assert 0.9 <= covered <= 0.99  # drawn from themselves alone, three seeds would cover 0 in 70 to 80 of 100


def test_views_count_only_cells_that_have_every_model():
    values = {(seed, "nir", name): value for seed, value in ((1, 0.8), (2, 0.7)) for name in ("base", "mfr")}
    rows = rows_of(values | {(3, "nir", "mfr"): 0.0}) | {
        Task(4, "nir", "base"): row(0.5),
        Task(4, "nir", "mfr"): {"seconds": 1.0, "failed": "a loss is not finite"},
    }
    (view,) = views(rows, ["base", "mfr"])
    assert view.cells == [(1, "nir"), (2, "nir")]
    assert views(rows, ["base", "mldg"]) == []


def test_tables_say_means_spreads_and_gains():
    values = {(1, "nir", "base"): 0.5, (2, "nir", "base"): 0.5, (1, "nir", "mfr"): 0.8, (2, "nir", "mfr"): 0.7}
    (view,) = views(rows_of(values), ["base", "mfr"])
    text = part_of(view, TITLES, FIGURES).markdown()
    assert "runs of each model: 2" in text
    assert "| MFR | 75.0 ± 7.1 |" in text
    mean, low, high = 25.0, *(100 * value for value in (lambda g: (g.low, g.high))(view.gain("mfr", "base", "auc")))
    assert f"| MFR | {mean:+.2f} [{low:+.2f}, {high:+.2f}] |" in text


def test_domains_left_out_are_told_together_and_apart_and_photographs_by_themselves():
    rows = {}
    for target, value in (("nir", 0.75), ("sketch", 0.25)):
        for name, more in (("base", 0), ("mfr", value - 0.5)):
            one = row(0.5 + more, target=target)
            one["scores"] |= row(value / 2, target="orl")["scores"]
            rows[Task(1, target, name)] = one
    together, nir, sketch, orl = views(rows, ["base", "mfr"])
    assert (together.title, nir.title, sketch.title, orl.title) == ("All domains left out", "nir", "sketch", "orl")
    gains = [view.gain("mfr", "base", "auc").mean for view in (together, nir, sketch, orl)]
    assert gains == pytest.approx([0, 0.25, -0.25, 0])


def test_following_the_other_domains_takes_no_hint_from_a_domain_itself():
    values = {}
    for seed in (1, 2):
        for domain, cosface, mfr in (("a", 0.9, 0.6), ("b", 0.1, 0.6), ("c", 0.4, 0.6)):
            values |= {
                (seed, domain, "base"): 0.5,
                (seed, domain, "cosface"): cosface,
                (seed, domain, "mfr"): mfr,
            }
    together = views(rows_of(values), ["base", "cosface", "mfr"])[0]
    # for b and c a decides with the other: (0.9 + 0.4) / 2 for cosface, so b gets 0.1; (0.9 + 0.1) / 2 < mfr, so c 0.6
    assert followed(together, "auc").mean == pytest.approx(np.mean([0.6, 0.1, 0.6]) - 0.5)
    assert followed(views(rows_of(values), ["base", "mfr"])[1], "auc") is None


def spread(base, other, names=("base", "mfr"), seeds=5, domains=("nir", "sketch")):
    values = {}
    for seed in range(seeds):
        for domain in domains:
            values[seed, domain, names[0]] = base + 0.01 * (seed % 2)
            values[seed, domain, names[1]] = other + 0.01 * (seed % 3)
    return values


def test_verdict_says_what_is_better_and_by_how_much():
    found = judged(spread(0.5, 0.6))
    assert found.take == "mfr"
    assert found.headline.startswith("MFR is better than its base on domains that it has not seen (nir, sketch): ")
    assert "above its base beyond the interval on 2 of 2, below on 0" in "\n".join(found.sentences)
    assert "first look" not in "\n".join(found.sentences)


def test_verdict_hands_out_the_base_where_nothing_is_better():
    worse = judged(spread(0.5, 0.4))
    assert (worse.take, worse.headline.split(" is ")[0]) == ("base", "Everything that was tried")
    undecided = judged(spread(0.5, 0.501))
    assert (undecided.take, undecided.headline.split(" can ")[0]) == ("base", "Nothing that was tried")
    assert "seeds, which could tell" in undecided.headline


def test_verdict_on_a_single_domain_or_few_seeds_says_so():
    one = judged(spread(0.5, 0.6, domains=("nir",)))
    assert one.headline.startswith("MFR is better than its base on nir, which it has not seen: ")
    several = spread(0.5, 0.6, domains=("nir",)) | {(seed, "nir", "cosface"): 0.4 for seed in range(5)}
    assert "The best of 2 models on one domain flatters itself" in judged(several).sentences[-1]
    assert "3 seeds are a first look" in judged(spread(0.5, 0.6, seeds=3)).sentences[-1]
    alone = judged(spread(0.5, 0.6, seeds=1))
    assert (alone.take, alone.sentences[-1].split(":")[0]) == (None, "One seed allows no interval")
    assert alone.headline.startswith(
        "One seed decides nothing; the best so far is MFR, TAR@1e-2 +10.0 points over its base"
    )
    assert "In brackets" not in "".join(judged(spread(0.5, 0.6, seeds=1, domains=("nir",))).sentences)


def test_verdict_hands_out_the_base_where_the_best_model_changes_from_domain_to_domain():
    values = {}
    for seed in range(5):
        for domain, cosface, mfr in (("a", 0.9, 0.4), ("b", 0.45, 0.6)):
            noise = 0.01 * (seed % 2)
            values |= {(seed, domain, "base"): 0.5, (seed, domain, "cosface"): cosface + noise}
            values[seed, domain, "mfr"] = mfr + noise
    found = judged(values)
    assert found.take == "base"
    assert found.headline.startswith(
        "Which model is best changes from domain to domain: hand out the base. On average it "
    )


def test_rows_of_other_settings_are_refused(tmp_path):
    config, arms = load_config(POOLS / "tuning.yaml"), arms_of(["own=meta.alpha=1"])
    Rows(tmp_path, config, {"own": arms["own"]}).add(Task(1, "nir", "mfr"), row(0.5))
    again = Rows(tmp_path, replace(config, seed=9, threads=1), {"mfr": arms["mfr"]})
    assert list(again.by_task) == [Task(1, "nir", "mfr")]
    with pytest.raises(ValueError, match=r"figures of other settings: meta\.beta was 0\.02, now 0\.1\. Want another"):
        Rows(tmp_path, replace(config, meta=replace(config.meta, beta=0.1)), {})
    other = arms_of(["own=meta.alpha=2"])
    with pytest.raises(ValueError, match=r"the arm own was \{'alpha': 1\}, now \{'alpha': 2\}"):
        Rows(tmp_path, config, {"own": other["own"]})
    for first, second in (("beta=0.1", "beta=0.2"), ("alpha=1", "hard_pair alpha=1")):
        one, two = (arms_of([f"other=cosface {first}"]), arms_of([f"other=cosface {second}"]))
        Rows(tmp_path / first, config, {"other": one["other"]}).add(Task(1, "nir", "other"), row(0.5))
        with pytest.raises(ValueError, match="the arm other was"):
            Rows(tmp_path / first, config, {"other": two["other"]})
    (tmp_path / "prove.json").write_text(json.dumps([]))
    with pytest.raises(ValueError, match=r"prove\.json is damaged"):
        Rows(tmp_path, config, {})
    (tmp_path / "prove.json").unlink()
    with pytest.raises(ValueError, match=r"rows\.jsonl lies there without prove\.json"):
        Rows(tmp_path, config, {})


def test_domains_that_have_changed_are_refused(tmp_path):
    config = Config()
    rows = Rows(tmp_path, config, {})
    rows.check_data({"nir": Held(20, 200, "a")})
    rows.add(Task(1, "nir", "mfr"), row(0.5))
    again = Rows(tmp_path, config, {})
    again.check_data({"nir": Held(20, 200, "a"), "more": Held(3, 30, "b")})
    for held, what in ((Held(19, 190, "c"), "20 people and 200 images then, 19"), (Held(20, 200, "c"), "not the same")):
        with pytest.raises(ValueError, match=f"the domain nir has changed .*{what}"):
            again.check_data({"nir": held})


WITHOUT_SCORES = '{"seed": 1, "left_out": "a", "name": "mfr", "seconds": 1}'
OF_TEXT = '{"seed": 1, "left_out": "a", "name": "mfr", "seconds": 1, "scores": {"a": {"probes": [1], "auc": ["x"]}}}'
OF_ANOTHER = OF_TEXT.replace('"x"', "0.5").replace('{"a"', '{"b"')


@pytest.mark.parametrize("line", ["{", "[]", '{"seed": 1}', WITHOUT_SCORES, OF_TEXT, OF_ANOTHER, "\udcff"])
def test_a_damaged_line_is_named(tmp_path, line):
    config = Config()
    Rows(tmp_path, config, {}).add(Task(1, "nir", "mfr"), row(0.5))
    with (tmp_path / "rows.jsonl").open("a") as file:
        file.buffer.write((line + "\n").encode(errors="surrogateescape"))
    with pytest.raises(ValueError, match=r"line 2 of .*rows\.jsonl is damaged .*; delete the line"):
        Rows(tmp_path, config, {})


def test_time_left_is_read_off_the_rows_there_are_and_else_measured():
    pace = Pace(base=80, arm=20, score=3, opened=[5.0, 7.0])
    tasks = [Task(seed, "nir", name) for seed in (1, 2, 3) for name in ("base", "mfr", "mfr:mean")]
    assert pace.left(tasks, {}) == 3 * (83 + 23 + 3 + 6)
    other = Pace(steps={"far": 2.0})  # nothing was measured, for there are models of its kind
    assert other.of("far", {Task(1, "nir", "mfr"): row(0.5, seconds=20.0), tasks[0]: row(0.5, seconds=70.0)}) == 40.0
    rows = {tasks[0]: row(0.5, seconds=70.0)}
    assert pace.left(tasks, rows, [(1, "nir")]) == 2 * 70 + 3 * (23 + 3) + 2 * 6


def test_page_holds_the_verdict_the_tables_and_the_next_step(tmp_path):
    values = spread(0.5, 0.6)
    found = views(rows_of(values), ["base", "mfr"])
    parts = [part_of(view, TITLES, FIGURES) for view in found]
    text = page("a<b", judged(values), parts, None, "python -m fastmfr.train", ["a note"], "seed: 1")
    assert "<h1>MFR is better than its base" in text
    assert "a&lt;b" in text
    assert "a<b" not in text
    for part in ("<h2>nir</h2>", "python -m fastmfr.train", "a note", "seed: 1", "Gains over the controls"):
        assert part in text


@pytest.mark.parametrize(("better", "steps"), [("mfr", 100), ("cosface", 0), ("base", 0)])
def test_the_model_to_take_becomes_a_recipe(tmp_path, better, steps, undrawn):
    config, arms = load_config(POOLS / "tuning.yaml"), arms_of([])
    values = {}
    for seed in range(5):
        for domain in ("glasses", "aged"):
            for name in ("base", "cosface", "mfr"):
                values[seed, domain, name] = 0.5 + 0.001 * (seed % 2) + 0.1 * (name == better)
    answer, notes, path = write_report(
        tmp_path, config, arms, ["base", "cosface", "mfr"], rows_of(values), missing=0, again="again"
    )
    assert (answer.take, notes) == (better, [])
    assert f"python -m fastmfr.train --config {tmp_path / 'take.yaml'}" in path.read_text()
    recipe = load_config(tmp_path / "take.yaml")
    assert (recipe.meta.steps, recipe.data.sources, recipe.choose) == (steps, config.data.sources, config.choose)
