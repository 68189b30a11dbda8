"""python -m fastmfr pack SOURCE... OUT: class folders, lists, tar and Parquet files into one RecordIO folder.

With --pairs, a list of pairs and its images become one InsightFace .bin.
"""

import argparse
from collections import Counter
from pathlib import Path

from fastmfr.pack.build import pack
from fastmfr.pack.pairs import pack_pairs
from fastmfr.pack.source import Reading
from fastmfr.progress import new_console, progress_of
from fastmfr.text import printable

SOURCES = """\
sources (several at once; the same name in two of them is one person)
  folder        folder/identity/image; or a RecordIO folder, to pack it again
  file.tar      WebDataset: key.jpg, key.png, ... with key.cls, or with key.json that holds "label"; or a class folder
  file.parquet  columns image (bytes, a path, or as Hugging Face writes it) and label; needs pyarrow
  list.txt      a line `path<TAB>label` an image, or as mxnet's .lst; paths relative to the list
pairs: pack --pairs pairs.txt FOLDER lfw.bin writes the pairs of a list, as of LFW, and their images out of FOLDER into
one InsightFace .bin
"""


def main(arguments: list[str]) -> int:
    """Run the command line: pack the sources, and print what was packed, refused and left out.

    Raises:
        ValueError, OSError, ImportError: what went wrong, in a sentence.
        KeyboardInterrupt: packing was stopped; a note says that there is no train.rec.
    """
    options = _parser().parse_args(arguments)
    console = new_console()
    if options.pairs:
        return _pack_pairs(options, console)
    root = Path(options.root) if options.root else None
    reading = Reading(root, options.image, options.label, options.label_pattern)
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
                reading=reading,
            )
    except KeyboardInterrupt as stopped:
        stopped.add_note(f"{options.out} holds no train.rec")
        raise
    for line in _summary(packed, options.min_images):
        console.print(printable(line))
    return 0


def _pack_pairs(options, console):
    if len(options.sources) != 1:
        raise ValueError(
            "want one folder and one file behind --pairs, `pack --pairs pairs.txt FOLDER OUT.bin`, got "
            f"{' '.join([*options.sources, options.out])}"
        )
    if options.min_images != 1:
        raise ValueError("want no --min-images with --pairs: pairs are packed as they are listed")
    settings = {"resize": options.resize, "decode": options.decode, "workers": options.workers}
    try:
        with progress_of("pack", console) as progress:
            packed = pack_pairs(options.pairs, options.sources[0], options.out, **settings, progress=progress)
    except KeyboardInterrupt as stopped:
        stopped.add_note(f"{options.out} was not written")
        raise
    size, sizes = packed.path.stat().st_size, packed.sizes.most_common(1)[0][0]
    alike = f"all of {sizes[0]} x {sizes[1]} pixels" if len(packed.sizes) == 1 else f"of {len(packed.sizes)} sizes"
    console.print(
        printable(
            f"packed {packed.pairs:,} pairs, {packed.mates:,} of one person each, into {packed.path} "
            f"({size / 1e6:,.1f} MB); images {alike}"
        )
    )
    for note in packed.notes:
        console.print(printable(note))
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
    parser.add_argument("--root", metavar="FOLDER", help="the folder that paths in lists are relative to")
    parser.add_argument("--image", metavar="NAME", help="column of images in Parquet; suffix of images in a tar")
    parser.add_argument(
        "--label", metavar="NAME", help="column of labels in Parquet; suffix of labels in a tar, json:KEY for a key"
    )
    parser.add_argument(
        "--label-pattern", metavar="REGEX", help="of names in a tar or a list: the first group found is the label"
    )
    parser.add_argument("--pairs", metavar="LIST", help="write the pairs of this list, of images in SOURCE, to OUT.bin")
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
