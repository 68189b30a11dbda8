"""What `evaluate` found, as one table for the console: a row a set, every share in percent."""

from collections.abc import Iterable

from rich.table import Table


def table_of(results: dict) -> Table:
    """`results`: {set: what score_set returns}."""
    fars = sorted({far for found in results.values() for far in found["tar_at_far"]}, key=float, reverse=True)
    accuracy = any("accuracy" in found for found in results.values())
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
    for name, found in results.items():
        cells = [_tar(found["tar_at_far"].get(far, {})) for far in fars]
        cells += [f"{100 * found[figure]:.2f}" if figure in found else "-" for figure in ("rank1", "auc", "eer")]
        table.add_row(name, f"{found['images']:,}", *cells, *[_accuracy(found)][:accuracy])
    return table


def notes(results: dict) -> Iterable[str]:
    """Sentences that belong to the table: refused figures, images left out, probes nobody is enrolled for."""
    for name, found in results.items():
        for reason in {far["refused"]: None for far in found["tar_at_far"].values() if "refused" in far}:
            yield f"{name}: {reason}"
        if found.get("probes_without_mate"):
            yield (
                f"{name}: {found['probes_without_mate']:,} probes have no mate in the gallery; they count as "
                "impostors and not for rank-1"
            )
        if found["bad_images"]:
            key, reason = next(iter(found["bad_images"].items()))
            yield (
                f"{name}: {len(found['bad_images']):,} images could not be decoded and were left out, the first, "
                f"{key}, because: {reason}"
            )


def _tar(found):
    if "tar" not in found:
        return "-"
    interval = " ({:.1f}-{:.1f})".format(*(100 * end for end in found["interval"])) if "interval" in found else ""
    return f"{100 * found['tar']:.2f}{interval}"


def _accuracy(found):
    """On InsightFace's grid, mean and standard deviation over the folds, as InsightFace prints it."""
    accuracy = found.get("accuracy", {}).get("grid_0.01")
    return f"{100 * accuracy['mean']:.2f} ± {100 * accuracy['std']:.2f}" if accuracy else "-"
