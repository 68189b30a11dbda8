"""python -m fastmfr pack SOURCE... OUT: class folders, lists, tar and Parquet files into one RecordIO folder."""

import argparse
from collections import Counter

from fastmfr.pack.build import pack
from fastmfr.progress import new_console, progress_of
from fastmfr.text import printable

SOURCES = """\
sources (several at once; the same name in two of them is one person)
  folder        folder/identity/image; or a RecordIO folder, to pack it again
  file.tar      WebDataset: key.jpg, key.png, ... with key.cls, or with key.json that holds "label"; or a class folder
  file.parquet  columns image (bytes, a path, or as Hugging Face writes it) and label; needs pyarrow
  list.txt      a line `path<TAB>label` an image, or as mxnet's .lst; paths relative to the list
"""


def main(arguments: list[str]) -> int:
    """Run the command line: pack the sources, and print what was packed, refused and left out.

    Raises:
        ValueError, OSError, ImportError: what went wrong, in a sentence.
        KeyboardInterrupt: packing was stopped; a note says that there is no train.rec.
    """
    options = _parser().parse_args(arguments)
    console = new_console()
    console.print(f"listing {len(options.sources):,} source(s)")
    try:
        with progress_of("pack", console) as progress:
            packed = pack(
                options.sources,
                options.out,
                resize=options.resize,
                min_images=options.min_images,
                decode=options.decode,
                landmarks=options.landmarks,
                workers=options.workers,
                progress=progress,
            )
    except KeyboardInterrupt as stopped:
        stopped.add_note(f"{options.out} holds no train.rec")
        raise
    for line in _summary(packed, options.min_images):
        console.print(printable(line))
    return 0


def _parser():
    parser = argparse.ArgumentParser(
        prog="python -m fastmfr pack",
        description="Write images of people into one RecordIO folder.",
        epilog=SOURCES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("sources", metavar="SOURCE", nargs="+")
    parser.add_argument("out", metavar="OUT", help="folder for train.rec, train.idx, property and identities.txt")
    parser.add_argument("--resize", type=int, metavar="N", help="make the shorter side N pixels, as JPEG of quality 95")
    parser.add_argument(
        "--landmarks",
        action="append",
        default=[],
        metavar="FILE",
        help="align images by five points each, into crops of 112 pixels or --resize; one file for all sources, or one "
        "for each",
    )
    parser.add_argument("--min-images", type=int, default=1, metavar="K", help="leave out people with fewer images")
    parser.add_argument("--decode", action="store_true", help="decode every image; by default its markers are checked")
    parser.add_argument("--workers", type=int, metavar="N", help="threads (default: one a core)")
    return parser


def _summary(packed, min_images):
    """Sentences on what was packed, refused and left out."""
    size = (packed.folder / "train.rec").stat().st_size
    yield (
        f"packed {packed.images:,} images of {packed.identities:,} people into {packed.folder} "
        f"({size / 1e6:,.1f} MB); who is who stands in identities.txt"
    )
    yield from packed.notes
    if packed.shared:
        yield f"{packed.shared:,} names occur in more than one source; each was packed as one person"
    if packed.dropped:
        least = "no good image" if min_images == 1 else f"fewer than {min_images} good images"
        yield f"{packed.dropped:,} people were left out: {least}"
    if packed.refused:
        yield f"{len(packed.refused):,} images were refused, all listed in {packed.folder / 'refused.txt'}:"
        for reason, count in Counter(reason for _, reason in packed.refused).most_common(5):
            yield f"  {count:,} x {reason}"
