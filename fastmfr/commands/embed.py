"""python -m fastmfr embed RUN_OR_WEIGHTS SOURCE --out FOLDER: the embeddings of all images, with their keys."""

import argparse
from pathlib import Path
from typing import get_args

from fastmfr.commands.typed_model import SETTINGS, add_model, refuse_ranks, typed_model
from fastmfr.config.choices import Mirror
from fastmfr.text import printable

PROG = "python -m fastmfr embed"
SOURCES = f"""\
what a source may be
  folder     a class folder, folder/identity/image; or a RecordIO folder, or its .rec file
  list.txt   a line `path<TAB>identity` an image; or `path` alone, whose folder is then the identity
what is written
  embeddings.npy    float32 (images, embedding), for numpy.load(..., mmap_mode="r")
  keys.parquet      a row for each row above: row, key, identity, decoded; keys.csv if pyarrow is not installed
  embeddings.json   the weights, settings and source they were made with
An image that cannot be decoded gets a row of zeros, and `decoded` is false. Type a stopped command again to go on.
{SETTINGS}"""


def main(arguments: list[str]) -> int:
    """Run the command line: embed the source into the folder, and print what was written.

    Raises:
        ValueError, OSError: what went wrong, in a sentence.
        KeyboardInterrupt: the command was stopped; a note says how to go on.
    """
    options, settings = _parser().parse_known_args(arguments)
    refuse_ranks(PROG)
    weights, config = typed_model(options, settings, PROG)
    from fastmfr.embedding import embed_into, open_source  # needs torch, whose import takes seconds
    from fastmfr.progress import new_console
    from fastmfr.runtime import seed_and_set_threads
    from fastmfr.weights import open_model

    console = new_console()
    source = open_source(options.source)
    seed_and_set_threads(config.seed, config.threads)
    model = open_model(weights, config, device=config.device)
    if options.landmarks:
        from fastmfr.protocols.landmarks import attach, read_landmarks

        console.print(printable(attach(source.images, read_landmarks(options.landmarks))))
    for note in source.images.notes:
        console.print(printable(note))
    try:
        written = embed_into(
            Path(options.out),
            source,
            model,
            mirror=options.mirror,
            normalise=not options.no_normalise,
            console=console,
        )
    except KeyboardInterrupt as stopped:
        stopped.add_note(f"type the command again to go on in {options.out}")
        raise
    for line in written:
        console.print(printable(line))
    return 0


def _parser():
    parser = argparse.ArgumentParser(
        prog=PROG,
        description="Embed all images of a folder, a RecordIO file or a list.",
        epilog=SOURCES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_model(parser)
    parser.add_argument("source", metavar="SOURCE", help="a class folder, a RecordIO folder or a list of paths")
    parser.add_argument("--out", metavar="FOLDER", required=True, help="where the embeddings go; made if need be")
    parser.add_argument(
        "--landmarks", metavar="FILE", help="align images by five points each, before they are embedded"
    )
    parser.add_argument(
        "--mirror",
        choices=get_args(Mirror),
        default="none",
        help="the mirror image's embedding: beside (concat), added (sum) or left out (none, the default, as "
        "InsightFace's get_feat; evaluate takes concat for galleries and sum for pairs)",
    )
    parser.add_argument("--no-normalise", action="store_true", help="leave rows as long as they are, not of length 1")
    return parser
