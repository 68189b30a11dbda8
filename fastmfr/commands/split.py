"""python -m fastmfr split FOLDER --out LISTS: share the people of a class folder out into lists, always the same."""

import argparse
from pathlib import Path

from fastmfr.domains import open_domain
from fastmfr.protocols.drawing import ListSettings, write_lists


def main(arguments: list[str]) -> int:
    """Run the command line: write the lists, and print how many people and images each holds.

    Raises:
        ValueError, OSError, ImportError: what went wrong, in a sentence.
    """
    options = vars(_parser().parse_args(arguments))
    folder, out = options.pop("folder"), Path(options.pop("out"))
    splits = write_lists(open_domain(folder), ListSettings(**options), out)
    for number, split in enumerate(splits, start=1):
        sizes = "; ".join(
            f"{kind} {split.people[kind]:,} people, {len(images):,} images" for kind, images in split.images.items()
        )
        print(f"fold {number}: {sizes}" if len(splits) > 1 else sizes)
    print(f"lists in {out}; score with: python -m fastmfr evaluate RUN --set NAME={out}")
    return 0


def _parser():
    parser = argparse.ArgumentParser(
        prog="python -m fastmfr split", description="Divide the people of a class folder at random into lists."
    )
    parser.add_argument("folder", metavar="FOLDER", help="a class folder: folder/identity/image.jpg or .png")
    parser.add_argument("--out", metavar="LISTS", required=True, help="folder for train.txt, gallery.txt and probe.txt")
    parser.add_argument(
        "--scored",
        type=float,
        default=0.5,
        metavar="N",
        help="people looked up: a part below 1, or how many (default: 0.5); the others are trained on",
    )
    parser.add_argument("--gallery", type=int, default=1, metavar="N", help="images of each enrolled (default: 1)")
    parser.add_argument("--probes", type=int, metavar="N", help="most images of each looked up (default: all)")
    parser.add_argument("--gallery-like", default="*", metavar="PATTERN", help="enrol images of such names: '*VIS*'")
    parser.add_argument("--probe-like", default="*", metavar="PATTERN", help="look up images of such names: '*NIR*'")
    parser.add_argument("--folds", type=int, default=0, metavar="N", help="how many splits, each drawn apart")
    parser.add_argument("--seed", type=int, default=2019, metavar="N", help="another seed, another split")
    return parser
