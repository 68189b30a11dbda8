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


def cells(results):
    console = Console(width=200, file=None, record=True, quiet=False)
    with console.capture() as printed:
        console.print(table_of(results))
    return [[cell.strip() for cell in line.split("│")[1:-1]] for line in printed.get().splitlines() if "│" in line]


def test_a_row_holds_the_figures_of_a_set_in_percent():
    lfw, folds = cells({"lfw": LFW, "casia": FOLDS})
    assert lfw == ["lfw", "12,000", "50.00 (40.0-61.0)", "-", "-", "98.77", "10.00", "90.00 ± 1.00"]
    assert folds == ["casia", "30", "25.00", "-", "12.50", "90.00", "20.00", "-"]


def test_without_pairs_there_is_no_column_of_accuracy():
    assert cells({"casia": FOLDS}) == [["casia", "30", "25.00", "12.50", "90.00", "20.00"]]


def test_what_was_refused_or_left_out_is_told():
    assert list(notes({"lfw": LFW, "casia": FOLDS})) == [
        "lfw: FAR 1e-06 needs more",
        "lfw: 1 images could not be decoded and were left out, the first, 7, because: cut short",
        "casia: 3 probes have no mate in the gallery; they count as impostors and not for rank-1",
    ]


def test_the_name_of_a_set_cannot_steer_the_terminal():
    assert cells({"a\x1b[1m": FOLDS})[0][0] == r"a\x1b[1m"
