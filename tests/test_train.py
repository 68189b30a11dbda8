"""Whole runs at a small size: learning, people held out, and what a user is told when something is wrong."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from small_runs import DOMAINS, IMAGES, PEOPLE, interrupted, main, only_run, records

from fastmfr import synthetic
from fastmfr.config import parse
from fastmfr.decode.pipeline import Vetting
from fastmfr.domains import join, open_domain
from fastmfr.training import NonFiniteLoss
from fastmfr.training.data import Splits


@pytest.mark.parametrize(
    ("method", "splits", "curved"),
    [("mfr", 2, True), ("first_order", 2, False), ("no_meta", 2, False), ("mldg", 1, True)],
)
def test_the_methods_are_one_switch(method, splits, curved, small, faces, tmp_path, capsys):
    assert main([*small, "--pretrain.steps=0", "--meta.method", method, "--data.size=24"]) == 0
    steps = records(only_run(tmp_path), "meta")
    assert len(steps) == 3
    assert all((step["alpha_hv_over_v"] > 0) == curved for step in steps)
    sources = join([open_domain(faces[name]) for name in DOMAINS[:2]])
    drawn = Splits(sources, parse([*small, "--meta.method", method])[0])
    assert drawn.of_a_step == splits
    assert {drawn.left_out(i) for i in range(20)} == {0, 1}
    assert "engine rop" in " ".join(capsys.readouterr().out.split())


def test_domains_share_their_gradients(small, faces, tmp_path):
    sharing = ["--meta.sharing=per_domain", "--meta.batch_norm=per_domain", "--meta.domain_alignment=0"]
    assert main([*small, "--pretrain.steps=0", *sharing]) == 0
    assert all(step["alpha_hv_over_v"] > 0 for step in records(only_run(tmp_path), "meta"))
    sources = join([open_domain(faces[name]) for name in DOMAINS[:2]])
    splits = Splits(sources, parse([*small, *sharing])[0])
    for i in range(6):
        train, test = splits.pairs(i)
        assert set(train.domain) == set(test.domain) == {i % 2}
        assert len(train.domain) == len(test.domain) == 6


@pytest.mark.slow
def test_learns_to_verify_people_it_has_not_met(small, faces, tmp_path):
    more = synthetic.make(tmp_path / "more", domains=DOMAINS[:2], identities=40, images=8, size=32, workers=1)
    domains = [f"--data.sources.{name}={path}" for name, path in more.items()]
    held_out = [*domains, f"--data.targets.studio={more['studio']}", "--data.holdout=0.5"]
    longer = [
        "--data.size=24",
        "--model.width=0.125",
        "--pretrain.steps=150",
        "--pretrain.batch_identities=16",
        "--pretrain.scale=16",
        "--pretrain.learning_rate=0.05",
        "--pretrain.warmup=20",
    ]
    assert main([*small, *held_out, *longer]) == 0
    folder = only_run(tmp_path)
    loss = [record["loss"] for record in records(folder, "pretrain")]
    assert np.mean(loss[-10:]) < 0.6 * np.mean(loss[:10])
    targets = json.loads((folder / "results.json").read_text())["targets"]
    assert targets["nir"]["unseen"]
    assert not targets["studio"]["unseen"]
    for model in ("base", "mfr"):
        assert targets["studio"]["models"][model]["auc"] > 0.7  # chance is 0.5; 0.74 to 0.78 by rounding alone
        assert targets["studio"]["models"][model]["identities"] == 20  # the half that was held out


def test_a_cached_run_equals_a_decoding_one_whatever_is_changed_in_the_images(small, tmp_path, capsys):
    changed = ["--data.translate=3", "--data.low_resolution=0.3", "--data.brightness=20", "--data.contrast=0.2"]
    changed += ["--pretrain.steps=3", "--meta.steps=2"]
    weights = []
    for cache, sentence in (("none", "no cache"), ("host", "cache on the host")):
        assert main([*small, *changed, f"--folder={tmp_path / cache}", f"--data.cache={cache}"]) == 0
        assert sentence in " ".join(capsys.readouterr().out.split())
        (folder,) = (tmp_path / cache).iterdir()
        weights.append((folder / "mfr.safetensors").read_bytes())
    assert weights[0] == weights[1]


def test_bad_images_are_listed_and_a_stopped_run_goes_on_to_the_same_bits(small, faces, tmp_path, monkeypatch):
    shutil.copytree(faces["street"], tmp_path / "street")
    files = sorted((tmp_path / "street").rglob("*.jpg"))
    good = files[0].read_bytes()
    damage = {0: b"", 1: good[: len(good) // 2], 2: b"no picture", 3: good[:200] + b"\xff" * 300 + good[500:]}
    for number, content in damage.items():
        files[number * 23].write_bytes(content)
    on_disk = {f"street/{files[number * 23].parent.name}/{files[number * 23].name}" for number in damage}
    argv = [word.replace(str(faces["street"]), str(tmp_path / "street")) for word in small]
    argv += [
        "--data.targets.street",
        str(tmp_path / "street"),
        "--data.holdout=0.3",
        "--save_every=2",
        "--pretrain.steps=3",
    ]

    def listed(run):
        return sorted((run / "bad_images.tsv").read_text().splitlines())

    whole = {}
    for cache in ("none", "host"):
        assert main([*argv, f"--data.cache={cache}", f"--folder={tmp_path / cache}"]) == 0
        (whole[cache],) = (tmp_path / cache).iterdir()
        keys = [line.split("\t")[0] for line in listed(whole[cache])]
        assert len(keys) == len(set(keys))
        assert set(keys) <= on_disk
    assert set(keys) == on_disk  # with a cache every source image was decoded, and every held-out one scored
    weights = (whole["none"] / "mfr.safetensors").read_bytes()
    assert (whole["host"] / "mfr.safetensors").read_bytes() == weights

    interrupted([*argv, "--data.cache=none"], monkeypatch, ("meta", 2))
    folder = only_run(tmp_path)
    assert main(["--resume", str(folder)]) == 0
    assert (folder / "mfr.safetensors").read_bytes() == weights
    assert listed(folder) == listed(whole["none"])


def test_the_decoder_is_chosen_once_and_each_image_vetted_once_a_run(small, tmp_path, capsys, monkeypatch):
    seen, vet = [], Vetting.__call__

    def looking(self, encoded):
        seen.append(bytes(encoded))
        vet(self, encoded)

    monkeypatch.setattr(Vetting, "__call__", looking)
    assert main([*small, "--device=cpu", "--data.cache=none", "--evaluate.every=2"]) == 0
    text = capsys.readouterr().out
    assert text.count("decoder cpu: there is no CUDA device") == 1
    assert len(seen) > PEOPLE * IMAGES  # all images of the target, scored again and again, and some of the sources
    assert len(seen) == len(set(seen))
    assert main(["--resume", str(only_run(tmp_path))]) == 0
    assert "decoder cpu, as asked for" in capsys.readouterr().out  # not chosen anew: another would give other bits
    assert "decode: auto" in (only_run(tmp_path) / "config.yaml").read_text()  # a recipe for another machine too


def test_every_meta_step_logs_what_is_needed_to_judge_it(small, tmp_path):
    assert main(small) == 0
    lines = records(only_run(tmp_path), "meta")
    assert len(lines) == 3
    for name in (
        "hard_pair",
        "soft_classification",
        "domain_alignment",
        "hard_pair_test",
        "soft_classification_test",
        "positives",
        "negatives",
        "gradient_norm",
        "meta_train",
        "meta_test",
        "alpha_hv_over_v",
        "alpha",
        "tau_p",
        "tau_n",
        "images_per_second",
        "data_wait",
    ):
        assert isinstance(lines[0][name], float), name


def test_targets_can_be_scored_on_the_way(small, tmp_path):
    assert main([*small, "--evaluate.every=2"]) == 0
    folder = only_run(tmp_path)
    for stage, steps in (("pretrain/nir", [1, 3, 5]), ("meta/nir", [1])):
        lines = records(folder, stage)
        assert [line["step"] for line in lines] == steps
        assert all(0 <= line[name] <= 1 for line in lines for name in ("auc", "rank1", "tar_at_far_0.01"))
    final = json.loads((folder / "results.json").read_text())["targets"]["nir"]["models"]["base"]
    assert records(folder, "pretrain/nir")[-1]["auc"] == pytest.approx(final["auc"])


def test_warns_when_one_loss_does_nearly_all_the_pulling(small, tmp_path, capsys):
    assert main([*small, "--meta.steps=5", "--meta.hard_pair=1000"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "hard_pair supplies 100 % of the gradient" in text
    assert "lower --meta.hard_pair (now 1000)" in text


def test_a_loss_that_is_not_finite_stops_the_run_and_names_domain_loss_and_step(small, tmp_path, capsys, monkeypatch):
    assert main([*small, "--meta.beta=1e30"]) == 1
    text = " ".join(capsys.readouterr().err.split())
    assert "is not finite at meta step 1, in the split that leaves out studio" in text
    assert main([*small, "--pretrain.learning_rate=1e30", "--pretrain.warmup=0"]) == 1
    text = " ".join(capsys.readouterr().err.split())
    assert "the margin-softmax loss is not finite at pretraining step" in text
    assert issubclass(NonFiniteLoss, RuntimeError)


def test_a_margin_out_of_range_is_told_before_any_data_is_touched(tmp_path, capsys):
    nowhere = [f"--folder={tmp_path / 'runs'}", "--data.sources.a=/nowhere", "--data.targets.b=/nowhere_either"]
    with pytest.raises(SystemExit, match="2"):
        main([*nowhere, "--pretrain.margin=arcface", "--pretrain.margin_values=[28.6]"])
    assert "m 28.6, which looks like degrees" in " ".join(capsys.readouterr().err.split())
    assert main([*nowhere, "--pretrain.margin=combined", "--pretrain.margin_values=[0.5, 0, 0]"]) == 1
    assert "Combined wants m1 of at least 1" in " ".join(capsys.readouterr().err.split())


def test_a_stage_can_be_left_out_and_weights_brought_along(small, tmp_path):
    assert main([*small, "--pretrain.steps=1", "--meta.steps=0"]) == 0
    base = only_run(tmp_path) / "base.safetensors"
    again = [*small, f"--folder={tmp_path / 'second'}", "--pretrain.steps=0", "--model.weights", str(base)]
    assert main(again) == 0
    (second,) = (tmp_path / "second").iterdir()
    results = json.loads((second / "results.json").read_text())
    assert list(results["targets"]["nir"]["models"]) == list(results["gap"]) == ["base", "mfr"]
    assert results["targets"]["nir"]["hardest"]["model"] == "mfr"


def test_a_folder_with_a_corrupt_image_costs_that_image_only(small, tmp_path, capsys):
    rng = np.random.default_rng(0)
    for person in range(8):
        (tmp_path / "mine" / f"p{person}").mkdir(parents=True)
        for number in range(3):
            pixels = rng.integers(0, 256, (40, 36), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "mine" / f"p{person}" / f"{number}.png")
    (tmp_path / "mine" / "p3" / "1.png").write_bytes(b"no picture at all")
    assert main([*small, "--data.targets.mine", str(tmp_path / "mine")]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "unreadable images, replaced in training and left out of scores: 1, all listed in" in said
    folder = only_run(tmp_path)
    assert list(json.loads((folder / "results.json").read_text())["bad_images"]) == ["mine/p3/1.png"]
    assert (folder / "bad_images.tsv").read_text().startswith("mine/p3/1.png\tneither JPEG nor PNG")
    results = json.loads((folder / "results.json").read_text())
    for model in ("base", "mfr"):
        gap = results["gap"][model]
        assert (gap["domains"], gap["unseen"]) == (["studio", "street", "nir", "mine"], [False, False, True, True])
        assert (gap["people"], gap["images"]) == ([*[PEOPLE] * 3, 8], [*[PEOPLE * IMAGES] * 3, 23])
    hardest = results["targets"]["mine"]["hardest"]
    for kind, is_mate in (("genuine", True), ("impostor", False)):
        for pair in hardest[kind]:
            assert pair["gallery_key"].startswith(f"{pair['gallery_identity']}/")
            assert pair["probe_key"].startswith(f"{pair['probe_identity']}/")
            assert (pair["gallery_identity"] == pair["probe_identity"]) == is_mate
    assert (len(hardest["genuine"]), len(hardest["impostor"])) == (7, 4)  # the bad one was the one enrolled of p3


@pytest.mark.parametrize("batch", ["--pretrain.batch_identities=100", "--meta.batch_identities=100"])
def test_a_domain_too_small_for_a_batch_is_told_before_anything_is_made(small, tmp_path, capsys, monkeypatch, batch):
    assert main([*small, batch]) == 1
    text = " ".join(capsys.readouterr().err.split())
    assert f"domain 'studio' has {PEOPLE} identities" in text
    assert f"{batch[2:].replace('=', ' ')}: " in text
    assert "lower batch_identities" in text
    assert not (tmp_path / "runs").exists()

    def next_check(*_):
        raise ValueError("the batches fit")

    monkeypatch.setattr("fastmfr.training.run.choose_decoding", next_check)
    setting, largest = batch.partition("=")[0], int(text.rpartition("the largest that fits is ")[2])
    for identities, sentence in ((largest, "error: the batches fit"), (largest + 1, "the largest that fits is")):
        assert main([*small, f"{setting}={identities}"]) == 1
        assert sentence in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--data.targets.x=/nowhere/at/all"], "/nowhere/at/all"),
        (["--data.targets.[x]=/nowhere/[/x]"], "/nowhere/[/x]"),
        (["--data.sources.studio=synthetic:studo"], "no synthetic domain 'studo'"),
        (["--device=cpu", "--data.decode=mixed"], "decodes on a CUDA device, but the device is cpu; want cpu or auto"),
        (["--model.weights=/nowhere.pth"], "there are no weights at /nowhere.pth"),
    ],
)
def test_what_is_wrong_is_told_in_a_sentence_and_leaves_no_folder(small, tmp_path, capsys, argv, words):
    assert main([*small, *argv]) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert words in said
    assert not (tmp_path / "runs").exists()


def test_names_with_brackets_are_names_and_no_markup(small, faces, tmp_path, capsys):
    argv = [word.replace("targets.nir", "targets.a[/b]") for word in small]
    assert main([*argv, "--meta.steps=0", "--pretrain.steps=1"]) == 0
    assert f"score on  a[/b]: {PEOPLE} people" in capsys.readouterr().out


def test_one_source_domain_is_too_few_for_the_meta_stage(small, faces, tmp_path, capsys):
    argv = [word for word in small if "street" not in word]
    assert main(argv) == 1
    assert "it needs two or more; there is one, studio" in " ".join(capsys.readouterr().err.split())


def test_asking_for_a_gpu_that_is_not_there_is_answered(small, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main([*small, "--device=cuda"]) == 1
    assert "torch sees no CUDA device" in " ".join(capsys.readouterr().err.split())


def test_several_processes_that_torchrun_did_not_start_are_refused(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.chdir(tmp_path)
    assert main([]) == 1
    assert "want torchrun --nproc-per-node 8 -m fastmfr.train" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_what_is_passed_over_never_drawn_or_on_both_sides_is_said(small, faces, tmp_path, capsys):
    mine = shutil.copytree(faces["nir"], tmp_path / "mine")
    street = shutil.copytree(faces["street"], tmp_path / "street")
    people = sorted(street.iterdir())
    for path in sorted(people[0].iterdir())[1:]:
        path.unlink()
    (people[1] / "notes.txt").write_text("no image")
    shutil.copy(next(people[2].iterdir()), next(mine.iterdir()) / "copied.jpg")
    argv = [word.replace(str(faces["street"]), str(street)) for word in small]
    argv += [f"--data.targets.mine={mine}", "--pretrain.steps=0", "--meta.steps=0"]
    assert main(argv) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "train on street: 24 people, 93 images; people with one image, never drawn: 1 (data.single drop)" in said
    assert f"warning: passed over in {street}: 1 files that are no JPEG, PNG, BMP, WebP or TIFF" in said
    assert "of 97 images compared of target mine are images of source street, byte for byte" in said
    assert "target nir are images" not in said


def test_names_of_any_characters_do_not_end_a_run(small, faces, tmp_path, capsys):
    street = shutil.copytree(faces["street"], tmp_path / "street")
    person = sorted(street.iterdir())[0].rename(street / "a\tb\n\x1b[2Jc\udc80")
    next(person.iterdir()).write_bytes(b"no image")
    argv = [word.replace(str(faces["street"]), str(street)) for word in small]
    argv += [f"--data.targets.street={street}", "--data.holdout=0.9", "--pretrain.batch_identities=2"]
    assert main([*argv, "--pretrain.steps=1", "--meta.steps=0"]) == 0
    assert "\x1b" not in capsys.readouterr().out
    folder = only_run(tmp_path)
    assert main(["--resume", str(folder)]) == 0
    (line,) = (folder / "bad_images.tsv").read_text().splitlines()
    assert line.startswith("street/a\\tb\\n\\x1b[2Jc\\udc80/")
