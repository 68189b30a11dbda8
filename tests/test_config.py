import inspect
import math
import subprocess
import sys

import pytest

from fastmfr.config import Config, Data, Evaluate, Meta, Pretrain, load_config, parse
from fastmfr.config.margins import MARGINS, checked_values
from fastmfr.head import MARGINS as HEAD_MARGINS
from fastmfr.head import make_margin


def sentence(capsys, *argv):
    with pytest.raises(SystemExit) as stop:
        parse(list(argv))
    assert stop.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    return lines[0]


def test_the_defaults_are_the_papers():
    config, meta = Config(), Meta()
    assert (meta.alpha, meta.beta, meta.gamma, meta.people, meta.scale) == (4e-4, 4e-4, 0.5, 128, 64.0)
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
    for word in ("foo", "-x"):
        assert f"'{word}' is no option; options begin with --" in sentence(capsys, word)
    assert "want a run folder behind --resume, got nothing" in sentence(capsys, "--resume=")


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--meta.method", "maml"], "want meta.method out of 'mfr', 'first_order', 'no_meta', 'mldg', got 'maml'"),
        (["--meta.steps", "x"], 'the option "meta.steps": Expected a int. Got value: x'),
        (["--meta.sharing", "per_domain"], "want meta.batch_norm 'per_domain' or 'frozen'"),
        (
            ["--meta.sharing=per_domain", "--meta.batch_norm=frozen"],
            "want the weight meta.domain_alignment 0, got 0.004, or meta.sharing 'none'",
        ),
        (["--meta.curvature", "fp8"], "want meta.curvature out of 'fp32', 'tf32', 'bf16', got 'fp8'"),
        (["--device", "gpu"], "want device out of 'auto', 'cpu', 'cuda', got 'gpu'"),
        (["--meta.sharing", "per_domain", "--meta.method", "mldg"], "one split a step has nothing to share"),
        (["--pretrain.margin", "sphere"], "want pretrain.margin out of 'cosface', 'arcface', "),
        (["--pretrain.margin_values", "[0.3, 0.2]"], "'cosface' has 1 number, (m): want pretrain.margin_values [0.35]"),
        (["--pretrain.margin", "combined", "--pretrain.margin_values", "[0.3]"], "has 3 numbers, (m1, m2, m3): want "),
        (["--data.size", "-5"], "want data.size >= 16 pixels, got -5"),
        (["--meta.batch_norm", "group"], "got 'group'"),
        (["--data.decode", "gpu"], "want data.decode out of 'auto', 'cpu', 'mixed', 'nvjpeg', 'pillow', got 'gpu'"),
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
        ("data: [", "cannot be read as YAML"),
        ("data: !!python/object:os.system {}", "cannot be read as YAML"),
        ("data: &a\n  synthetic: *a", "uses an alias (*name)"),  # a dict within itself: no end
        ("data: {synthetic: 5}", "below `synthetic:`, but it holds 5"),
        ("[" * 20_000, "has more than 20 levels"),
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


@pytest.mark.parametrize(
    ("option", "wanted"),
    [
        ("pretrain.learning_rate=-0.1", ">= 0 and finite"),
        ("pretrain.learning_rate=.inf", ">= 0 and finite"),
        ("pretrain.momentum=1.5", "at least 0 and below 1"),
        ("pretrain.warmup=-3", ">= 0, as a whole number"),
        ("pretrain.weight_decay=-1", ">= 0 and finite"),
        ("pretrain.scale=-1", "> 0 and finite"),
        ("meta.momentum=1", "at least 0 and below 1"),
        ("meta.beta=.nan", ">= 0 and finite"),
        ("meta.tau_p=5", "in [-1, 1]"),
        ("meta.tau_n=-1.5", "in [-1, 1]"),
        ("meta.scale=0", "> 0"),
        ("meta.hard_pair=-1", ">= 0 and finite"),
        ("meta.decay_every=0", ">= 1, as a whole number"),
        ("evaluate.every=-1", ">= 0, as a whole number"),
        ("evaluate.probes_per_identity=0", ">= 1, as a whole number"),
        ("evaluate.far=0", "in (0, 1)"),
        ("data.flip=1.1", "in [0, 1]"),
        ("data.contrast=1", "at least 0 and below 1"),
        ("data.threads=0", ">= 1, as a whole number"),
        ("data.synthetic.images=1", ">= 2, as a whole number"),
        ("model.width=0", "of at least 1/64"),
        ("model.embedding=0", ">= 1, as a whole number"),
        ("model.dropout=1", "at least 0 and below 1"),
        ("save_every=0", ">= 1, as a whole number"),
        ("threads=-1", ">= 0, as a whole number"),
        ("recipe=a/b", "part of a folder's"),
    ],
)
def test_every_number_has_its_range(capsys, option, wanted):
    said = sentence(capsys, f"--{option}")
    assert option.partition("=")[0] in said
    assert wanted in said


@pytest.mark.parametrize("name", MARGINS)
def test_margins_have_the_ranges_of_the_kernels(name):
    for number, own in MARGINS[name].items():
        for value in (-0.1, 0.0, own, 1.9, 2.0, math.pi - 1e-6, math.pi, 28.6, math.inf, math.nan):
            values = tuple((MARGINS[name] | {number: value}).values())
            try:
                checked_values(name, values)
            except ValueError:
                with pytest.raises(ValueError, match="want"):
                    make_margin(name, values)


def test_one_number_serves_where_several_may_stand(tmp_path):
    assert parse(["--evaluate.far", "0.01"])[0].evaluate.far == (0.01,)
    assert parse(["--evaluate.far=0.01,0.001"])[0].evaluate.far == (0.01, 0.001)
    assert parse(["--pretrain.margin_values=0.4"])[0].pretrain.margin_values == (0.4,)
    assert parse(["--pretrain.margin_values", "null"])[0].pretrain.margin_values == (0.3,)
    (tmp_path / "mine.yaml").write_text("evaluate: {far: 0.1}\npretrain: {margin_values: 0.2}")
    config = load_config(tmp_path / "mine.yaml")
    assert (config.evaluate.far, config.pretrain.margin_values) == ((0.1,), (0.2,))
    assert Evaluate(far=0.5).far == (0.5,)


def test_a_recipe_is_loaded_or_refused_with_a_sentence(tmp_path):
    assert load_config("quickstart") == parse([])[0]
    (tmp_path / "bad.yaml").write_text("meta: {method: maml}")
    with pytest.raises(ValueError, match=r"bad\.yaml: want meta\.method out of .*, got 'maml'"):
        load_config(tmp_path / "bad.yaml")


def test_help_lists_the_choices_and_needs_no_torch():
    program = """
import sys
from fastmfr.__main__ import main
try:
    main(["train", "--help"])
finally:
    print("torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "{mfr,first_order,no_meta,mldg}" in done.stdout
    assert done.stdout.splitlines()[-1] == "False"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_recipe_is_read_in_the_encoding_of_its_byte_order_mark(tmp_path, encoding):
    (tmp_path / "mine.yaml").write_text("meta:\r\n  steps: 7\r\n", encoding=encoding, newline="")
    assert load_config(tmp_path / "mine.yaml").meta.steps == 7
