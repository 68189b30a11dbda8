import inspect

import pytest

from fastmfr.config import Config, Data, Meta, Pretrain, parse
from fastmfr.config.margins import MARGINS
from fastmfr.head import MARGINS as HEAD_MARGINS


def sentence(capsys, *argv):
    with pytest.raises(SystemExit) as stop:
        parse(list(argv))
    assert stop.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    return lines[0]


def test_the_defaults_are_the_papers():
    config, meta = Config(), Meta()
    assert (meta.alpha, meta.beta, meta.gamma, meta.batch_identities, meta.scale) == (4e-4, 4e-4, 0.5, 128, 64.0)
    assert (meta.tau_p, meta.tau_n, meta.decay_every, meta.method, meta.mining) == (0.3, 0.04, 1000, "mfr", "threshold")
    assert (meta.hard_pair, meta.soft_classification, meta.domain_alignment) == (1.0, 1.0, 1.0)
    assert (meta.momentum, meta.weight_decay, meta.batch_norm) == (0.9, 5e-4, "batch")
    assert (config.seed, config.data.size, config.data.mean, config.data.std) == (2019, 120, 127.5, 128.0)
    assert (config.model.name, config.model.width) == ("mfr28", 0.5)


def test_without_arguments_the_recipe_is_quickstart():
    config, resume = parse([])
    assert config.recipe == "quickstart"
    assert resume is None
    assert all(path.startswith("synthetic:") for path in config.data.sources.values())


def test_options_override_the_recipe():
    config, _ = parse(["--meta.method", "first_order", "--data.synthetic.images=7", "--evaluate.far", "[0.1, 0.01]"])
    assert config.meta.method == "first_order"
    assert config.data.synthetic.images == 7
    assert config.evaluate.far == (0.1, 0.01)


def test_domains_typed_replace_the_recipes_on_that_side():
    config, _ = parse(["--data.sources.mine", "/a", "--data.sources.other", "/b"])
    assert config.data.sources == {"mine": "/a", "other": "/b"}
    assert config.data.targets == parse([])[0].data.targets


def test_a_printed_configuration_is_a_recipe_that_gives_it_back(tmp_path, capsys):
    argv = ["--meta.alpha", "0.01", "--data.targets.x", "/x", "--model.embedding", "64"]
    with pytest.raises(SystemExit) as stop:
        parse([*argv, "--print_config"])
    assert stop.value.code == 0
    (tmp_path / "mine.yaml").write_text(capsys.readouterr().out)
    assert parse(["--config", str(tmp_path / "mine.yaml")])[0] == parse(argv)[0]


def test_help_lists_every_section(capsys):
    with pytest.raises(SystemExit) as stop:
        parse(["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    for option in ("data.sources", "pretrain.steps", "meta.method", "evaluate.far", "resume", "print_config"):
        assert f"--{option}" in text
    assert "every domain left out once, exact second order" in " ".join(text.split())


@pytest.mark.parametrize("margin", [name for name in MARGINS if name != "cosface"])
def test_another_margin_than_the_recipes_takes_its_own_numbers_and_says_so(margin, capsys):
    own = tuple(MARGINS[margin].values())
    assert parse([])[0].pretrain.margin_values == (0.3,)  # the recipe's, which are CosFace's
    assert not capsys.readouterr().err
    assert parse(["--pretrain.margin", margin])[0].pretrain.margin_values == own
    said = capsys.readouterr().err
    assert f"the recipe's margin values [0.3] are of 'cosface'; {margin!r} takes its own" in said
    assert all(f"{name} {value:g}" in said for name, value in MARGINS[margin].items())
    assert parse(["--config", "mfr", f"--pretrain.margin={margin}"])[0].pretrain.margin_values == own
    typed = parse(["--pretrain.margin", margin, "--pretrain.margin_values", str([0.5] * len(own))])[0]
    assert typed.pretrain.margin_values == (0.5,) * len(own)
    assert not capsys.readouterr().err  # nothing was left out


def test_the_recipes_numbers_stay_with_its_margin(tmp_path, capsys):
    (tmp_path / "mine.yaml").write_text("pretrain: {margin: combined, margin_values: [1.0, 0.2, 0.1]}")
    mine = ["--config", str(tmp_path / "mine.yaml")]
    assert parse(mine)[0].pretrain.margin_values == (1.0, 0.2, 0.1)
    assert parse([*mine, "--pretrain.margin", "combined"])[0].pretrain.margin_values == (1.0, 0.2, 0.1)
    assert parse([*mine, "--pretrain.margin_values", "[1.0, 0.5, 0]"])[0].pretrain.margin_values == (1.0, 0.5, 0.0)
    assert not capsys.readouterr().err
    assert parse([*mine, "--pretrain.margin", "cosface"])[0].pretrain.margin_values == (0.35,)
    assert "are of 'combined'; 'cosface' takes its own (m 0.35)" in capsys.readouterr().err


@pytest.mark.parametrize(
    "text",
    [
        "margin: combined, margin_values: [0.3]",
        "margin: magface, margin_values: [0.35]",
        "margin: cosface, margin_values: [1.0, 0.3, 0.2]",
        "margin_values: [0.3, 0.3]",
    ],
)
def test_numbers_of_another_margin_are_refused_from_a_recipe_too(tmp_path, capsys, text):
    (tmp_path / "mine.yaml").write_text(f"pretrain: {{{text}}}")
    assert "or null for these, got [" in sentence(capsys, "--config", str(tmp_path / "mine.yaml"))


def test_the_margins_are_those_of_the_head_with_its_numbers():
    assert sorted(MARGINS) == sorted(HEAD_MARGINS)
    for name, numbers in MARGINS.items():
        takes = inspect.signature(HEAD_MARGINS[name]).parameters
        assert list(numbers) == list(takes)[: len(numbers)]
        assert all(takes[number].default == value for number, value in numbers.items())
        assert Pretrain(margin=name).margin_values == tuple(numbers.values())


def test_a_wrong_name_is_answered_with_the_nearest(capsys):
    assert "no option --meta.metod; did you mean --meta.method?" in sentence(capsys, "--meta.metod", "mldg")
    assert "did you mean --meta.method?" in sentence(capsys, "--method", "mldg")
    assert "no option --zzz (" in sentence(capsys, "--zzz")


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--meta.method", "maml"], "want meta.method out of 'mfr', 'first_order', 'no_meta', 'mldg', got 'maml'"),
        (["--meta.steps", "x"], 'the option "meta.steps": Expected a int. Got value: x'),
        (["--meta.sharing", "per_domain"], "want meta.batch_norm 'per_domain' or 'frozen' and meta.domain_alignment 0"),
        (["--meta.sharing", "per_domain", "--meta.method", "mldg"], "one split a step has nothing to share"),
        (["--pretrain.margin", "sphere"], "want pretrain.margin out of 'cosface', 'arcface', "),
        (["--pretrain.margin_values", "[0.3, 0.2]"], "'cosface' has 1 number, (m): want pretrain.margin_values [0.35]"),
        (["--pretrain.margin", "combined", "--pretrain.margin_values", "[0.3]"], "has 3 numbers, (m1, m2, m3): want "),
        (["--data.size", "-5"], "want data.size >= 16 pixels, got -5"),
        (["--meta.batch_norm", "group"], "got 'group'"),
        (["--data.decode", "gpu"], "want data.decode out of 'auto', 'cpu', 'mixed', 'pillow', got 'gpu'"),
        (["--config", "nope"], "no recipe 'nope'; want a .yaml file or one of"),
        (["--resume", "/nowhere"], "/nowhere is no run folder"),
    ],
)
def test_a_wrong_value_is_answered_with_a_sentence(capsys, argv, words):
    assert words in sentence(capsys, *argv)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("meta: {ordr: 1}", "ordr"),
        ("meat: {order: 1}", "meat"),
        ("meta: {steps: many}", "meta.steps"),
        ("meta: 3", "below `meta:`"),
        ("- a list", "sections such as"),
    ],
)
def test_a_wrong_recipe_is_answered_with_a_sentence(tmp_path, capsys, text, words):
    (tmp_path / "bad.yaml").write_text(text)
    assert words in sentence(capsys, "--config", str(tmp_path / "bad.yaml"))


def test_settings_are_checked_when_made_from_python_too():
    with pytest.raises(ValueError, match=r"gamma in \[0, 1\], got 2"):
        Meta(gamma=2)
    with pytest.raises(ValueError, match=r"holdout above 0 and below 1, got 1"):
        Data(holdout=1)
