"""What `evaluate` found, as a table for the console that is whole at 80 columns: a set after the other, in percent."""

from collections.abc import Iterator, Mapping, Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table

from fastmfr.results import Scores, TarAtFar
from fastmfr.text import printable

NAME = 22  # characters: longer names of sets are broken
HEAD = "set, images"  # the second below the first
GAP = 2  # characters between columns
READING = "in percent, with 95 % intervals over the people scored (of a .bin: over pairs)"


def table_of(scores_by_set: Mapping[str, Scores], width: int = 80) -> Group:
    """Return the table of the scores, each with the number of its images, by the name of its set.

    An interval stands below its figure. Columns that do not fit into the width go on in another table below.

    Args:
        scores_by_set: The scores by the name of the set.
        width: How many characters fit into a line.
    """
    names = [f"{printable(name)}\n{scores.images or 0:,}" for name, scores in scores_by_set.items()]
    of_names = min(NAME, max(len(line) for name in [HEAD, *names] for line in name.splitlines()))
    groups, left = [], 0
    for column in _columns(list(scores_by_set.values())):
        wide = GAP + max(len(line) for cell in column for line in cell.splitlines())
        if wide > left:
            groups.append([])
            left = width - of_names
        left -= wide
        groups[-1].append(column)
    return Group(READING, *(_table(names, of_names, group) for group in groups))


def _table(names: Sequence[str], of_names: int, columns: Sequence[Sequence[str]]) -> Table:
    """A row for each name, with a column for each of `columns`: a title and a cell for each name."""
    table = Table(box=SIMPLE_HEAD, show_edge=False, padding=(0, GAP - 1, 0, 0), pad_edge=False)
    table.add_column(HEAD, overflow="fold", max_width=of_names)
    for title, *_ in columns:
        table.add_column(title, justify="right", no_wrap=True)
    for row in zip(names, *(cells for _, *cells in columns), strict=True):
        table.add_row(*row)
    return table


def _columns(scored: Sequence[Scores]) -> Iterator[list[str]]:
    """A title and a cell for each set, figure by figure."""
    for far in sorted({far for scores in scored for far in scores.tar_at_far}, key=float, reverse=True):
        yield [f"TAR@{float(far):.0e}".replace("e-0", "e-"), *(_tar(scores.rate(far)) for scores in scored)]
    yield ["rank-1", *(_share(scores.rank1) + _between(scores.rank1_interval) for scores in scored)]
    yield ["AUC", *(_share(scores.auc) + _between(scores.auc_interval) for scores in scored)]
    yield ["EER", *(_share(scores.eer) + _between(scores.eer_interval) for scores in scored)]
    if any(scores.accuracy for scores in scored):
        yield ["accuracy", *map(_accuracy, scored)]


def notes(scores_by_set: Mapping[str, Scores]) -> Iterator[str]:
    """Yield the sentences that belong to the table: refused figures, images left out, probes without a mate."""
    for name, scores in scores_by_set.items():
        for reason in dict.fromkeys(rate.refused for rate in scores.tar_at_far.values() if rate.refused):
            yield f"{name}: {reason}"
        if scores.probes_without_mate:
            yield (
                f"{name}: {scores.probes_without_mate:,} probes have no mate in the gallery; they count as "
                "impostors and not for rank-1"
            )
        if scores.bad_images:
            key, reason = next(iter(scores.bad_images.items()))
            yield (
                f"{name}: {len(scores.bad_images):,} images could not be decoded and were left out, the first, "
                f"{key}, because: {reason}"
            )


def _tar(rate: TarAtFar) -> str:
    return _share(rate.tar) + _between(rate.interval)


def _share(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.2f}"


def _between(interval: Sequence[float] | None) -> str:
    """The ends of an interval, on a line below its figure."""
    return "\n{:.1f}-{:.1f}".format(*(100 * end for end in interval)) if interval else ""


def _accuracy(scores: Scores) -> str:
    """On InsightFace's grid, mean and standard deviation over the folds, which InsightFace prints too."""
    accuracy = (scores.accuracy or {}).get("grid_0.01")
    return f"{_share(accuracy.mean)}\n± {100 * accuracy.std:.2f}" if accuracy else "-"
