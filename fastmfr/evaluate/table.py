"""What `evaluate` found, as one table for the console: a row a set, every share in percent."""

from collections.abc import Iterator, Mapping

from rich.table import Table

from fastmfr.results import Scores, TarAtFar
from fastmfr.text import printable


def table_of(scores_by_set: Mapping[str, Scores]) -> Table:
    """Return the table of the scores, each with the number of its images, by the name of its set."""
    scored = scores_by_set.values()
    fars = sorted({far for scores in scored for far in scores.tar_at_far}, key=float, reverse=True)
    accuracy = any(scores.accuracy for scores in scored)
    titles = [f"TAR@{float(far):.0e}".replace("e-0", "e-") for far in fars]
    table = Table(
        "set",
        "images",
        *titles,
        "rank-1",
        "AUC",
        "EER",
        *["accuracy"][:accuracy],
        title="in percent, with 95 % intervals over the people scored; over the pairs of a .bin",
    )
    for name, scores in scores_by_set.items():
        cells = [_tar(scores.rate(far)) for far in fars]
        cells += ["-" if share is None else f"{100 * share:.2f}" for share in (scores.rank1, scores.auc, scores.eer)]
        table.add_row(printable(name), f"{scores.images:,}", *cells, *[_accuracy(scores)][:accuracy])
    return table


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
    if rate.tar is None:
        return "-"
    interval = " ({:.1f}-{:.1f})".format(*(100 * end for end in rate.interval)) if rate.interval else ""
    return f"{100 * rate.tar:.2f}{interval}"


def _accuracy(scores: Scores) -> str:
    """On InsightFace's grid, mean and standard deviation over the folds, as InsightFace prints them."""
    accuracy = (scores.accuracy or {}).get("grid_0.01")
    return f"{100 * accuracy.mean:.2f} ± {100 * accuracy.std:.2f}" if accuracy else "-"
