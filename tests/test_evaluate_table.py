import io
import re
from dataclasses import replace

import pytest
from rich.console import Console

from fastmfr.evaluate.table import notes, table_of
from fastmfr.results import Accuracy, Scores, TarAtFar

LFW = Scores(
    tar_at_far={"0.01": TarAtFar(tar=0.5, interval=[0.4, 0.61]), "1e-06": TarAtFar(refused="FAR 1e-06 needs more")},
    auc=0.98765,
    eer=0.1,
    images=12000,
    bad_images={"7": "cut short"},
    accuracy={"grid_0.01": Accuracy(mean=0.9, std=0.01)},
)
FOLDS = Scores(
    tar_at_far={"0.01": TarAtFar(tar=0.25, std=0.1)},
    rank1=0.125,
    auc=0.9,
    eer=0.2,
    images=30,
    bad_images={},
    probes_without_mate=3,
)


def printed(results, width=80):
    console = Console(width=width, file=io.StringIO())
    console.print(table_of(results, width))
    return console.file.getvalue()


def columns(results):
    """What stands below each other in a wide table: title, then the parts of each row's cell."""
    lines = [line for line in printed(results, 200).splitlines()[1:] if line.strip("─ ")]
    starts = [found.end() for found in re.finditer(r"\S+", lines[0])]
    words = [[(found.end(), found[0]) for found in re.finditer(r"\S+(?: \S+)*", line)] for line in lines]
    return {
        title: [word for line in words for end, word in line if end == place][1:]
        for title, place in zip(lines[0].split()[2:], starts[2:], strict=True)
    }


def test_a_column_holds_the_figures_of_each_set_in_percent():
    assert columns({"lfw": LFW, "casia": FOLDS}) == {
        "TAR@1e-2": ["50.00", "40.0-61.0", "25.00"],
        "TAR@1e-6": ["-", "-"],
        "rank-1": ["-", "12.50"],
        "AUC": ["98.77", "90.00"],
        "EER": ["10.00", "20.00"],
        "accuracy": ["90.00", "± 1.00", "-"],
    }


def test_without_pairs_there_is_no_column_of_accuracy():
    assert list(columns({"casia": FOLDS})) == ["TAR@1e-2", "rank-1", "AUC", "EER"]


def test_the_number_of_images_stands_below_the_name():
    lines = printed({"lfw": LFW}).splitlines()
    assert [line.split("  ")[0] for line in lines[3:5]] == ["lfw", "12,000"]


@pytest.mark.parametrize("count", [1, 3, 7])
def test_the_table_is_whole_at_80_columns(count):
    """With long names, the widest intervals, and more rates than one table has room for."""
    rates = {f"1e-0{place + 1}": TarAtFar(tar=1.0, interval=[1.0, 1.0]) for place in range(count)}
    rates |= {f"2e-0{place + 1}": TarAtFar(tar=0.5, interval=[0.123 * place, 1.0]) for place in range(count)}
    name = "a_set_of_faces/with_a_name_much_longer_than_its_column"
    text = printed({name: replace(LFW, tar_at_far=rates, rank1=0.5, rank1_interval=[0.25, 0.75]), "b": FOLDS})
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text
    assert text.count("100.0-100.0") == count
    for figure in ("25.0-75.0", "98.77", "90.00", "± 1.00", *(f"{12.3 * place:.1f}-100.0" for place in range(count))):
        assert figure in text
    assert len(re.findall("^set, images ", text, re.MULTILINE)) == {1: 2, 3: 3, 7: 5}[count]
    folded = "".join(line.split(" ")[0] for line in text.split("set", 1)[1].splitlines()[2:5])
    assert folded == name


def test_the_rates_of_a_run_stand_in_one_table():
    rates = {far: TarAtFar(tar=0.5, interval=[0.4, 0.6]) for far in ("0.01", "0.001", "0.0001")}
    text = printed({"lfw": replace(LFW, tar_at_far=rates, rank1=0.5, rank1_interval=[0.25, 0.75])})
    assert text.count("images") == 1


def test_what_was_refused_or_left_out_is_told():
    assert list(notes({"lfw": LFW, "casia": FOLDS})) == [
        "lfw: FAR 1e-06 needs more",
        "lfw: 1 images could not be decoded and were left out, the first, 7, because: cut short",
        "casia: 3 probes have no mate in the gallery; they count as impostors and not for rank-1",
    ]


def test_the_name_of_a_set_cannot_steer_the_terminal():
    assert r"a\x1b[1m" in printed({"a\x1b[1m": FOLDS})
