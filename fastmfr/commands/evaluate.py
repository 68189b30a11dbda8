"""python -m fastmfr evaluate RUN_OR_WEIGHTS --set NAME=PATH ...: a model scored on sets, as a table and as JSON."""

import argparse
import os
import sys
from pathlib import Path
from typing import get_args

from fastmfr.commands.frame import is_rank, status_of
from fastmfr.commands.typed_model import SETTINGS, add_model, typed_model
from fastmfr.config import read_yaml
from fastmfr.config.choices import Mirror
from fastmfr.protocols.files import entry_path, refuse_unless_regular
from fastmfr.protocols.paper import PROTOCOLS
from fastmfr.text import printable

SETS = """\
what a set may be
  file.bin      LFW, CFP-FP, AgeDB-30, CALFW, CPLFW as InsightFace's tools write them
  pairs.txt     a line `path path 0|1 [fold]` a pair; or LFW's and RFW's own lists of pairs
  folder        with gallery.txt and probe.txt (see split), with gallery_1.txt, probe_1.txt, ..., with pairs.txt, with
                IJB-style templates, RFW as it comes; or a class folder or RecordIO folder, one image a person enrolled
images are aligned by five landmarks each if a file of them lies beside the lists of IJB or RFW, or is named:
  --data.landmarks.NAME FILE; --data.landmarks.NAME none leaves the file unused that lies there
protocols score the sets of these names, and say which are missing: gfr-r-1 to 4 indian, african, asian, caucasian;
gfr-v cacd-vs, casia-nir-vis, multi-pie, meglass, public-ivs
several GPUs: torchrun --nproc-per-node 8 -m fastmfr evaluate ... shares the images out; the figures are the same
"""
PROG = "python -m fastmfr evaluate"


def main(arguments: list[str]) -> int:
    """Run the command line: print the table, and write it as JSON.

    Under torchrun all ranks embed, and the first rank alone scores, prints and writes; all ranks return its status.
    """
    options, settings = _parser().parse_known_args(arguments)
    # A rank's mistake must end the others too: see _run.
    model = None if is_rank() else typed_model(options, settings, PROG)
    from fastmfr.distributed import all_gather_object, joined_ranks  # needs torch, whose import takes seconds

    with joined_ranks() as group:
        status = status_of(lambda: _run(options, settings, model, group))
        sys.stdout.flush()  # torchrun stops all ranks once one has left with an error; all output must be out by then
        return all_gather_object(status, group)[0]


def _run(options, settings, model, group):
    from fastmfr.commands.scoring import score_sets, write_scores
    from fastmfr.distributed import raise_on_all_ranks, rank_and_world

    try:
        with raise_on_all_ranks(group):
            weights, config = model or typed_model(options, settings, PROG)
            paths, out = _paths(options), Path(options.out or weights.parent / "evaluation.json")
            _check_folder(out)
            _check_landmarks(config.data, paths)
        results, left_out = score_sets(weights, config, paths, options.protocol, options.mirror, group)
    except KeyboardInterrupt as stopped:
        stopped.add_note("nothing was written")
        raise
    if rank_and_world(group)[0] == 0:
        if results:
            write_scores(results, weights, out)
        for name, reason in left_out.items():
            print(printable(f"not scored {name}: {reason}"), file=sys.stderr)
        if left_out or not results:
            print(f"error: sets scored: {len(results)}, not scored: {len(left_out)}", file=sys.stderr)
    return 1 if left_out or not results else 0


def _check_folder(out):
    """Raises OSError or ValueError if no file `out` can be written; scoring takes long."""
    if out.is_dir() or not out.parent.is_dir():
        raise ValueError(f"want --out as a file in a folder that is there, got {out}")
    if not os.access(out.parent, os.W_OK):
        raise PermissionError(f"{out.parent} cannot be written to; name a file elsewhere by --out")


def _check_landmarks(data, paths):
    """Raises ValueError if data.landmarks names neither a set nor a domain of the run."""
    known = {*paths, *data.sources, *data.pretrain, *data.targets}
    if strange := [name for name in data.landmarks if name not in known]:
        raise ValueError(f"data.landmarks names {', '.join(strange)}, which is no set; want one of {', '.join(paths)}")


def _parser():
    parser = argparse.ArgumentParser(
        prog=PROG,
        description="Score a model on sets of images.",
        epilog=SETS + SETTINGS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    mirrors = get_args(Mirror)
    add_model(parser)
    parser.add_argument("--set", action="append", default=[], metavar="NAME=PATH", help="a set; give it several times")
    parser.add_argument("--sets", metavar="FILE.yaml", help="a file of lines NAME: PATH, paths relative to it")
    parser.add_argument("--protocol", choices=PROTOCOLS, help="score the paper's targets among the sets, at its FARs")
    parser.add_argument("--mirror", choices=mirrors, help="the mirror image's embedding: beside, added or left out")
    parser.add_argument("--out", metavar="FILE.json", help="default: evaluation.json beside the weights")
    return parser


def _paths(options):
    """{name: path} of the sets, from the file and from the command line; the latter goes first where both name one."""
    paths = {}
    if options.sets:
        file = Path(options.sets)
        refuse_unless_regular(file)
        content = read_yaml(file)
        if not isinstance(content, dict) or not all(isinstance(path, str) for path in content.values()):
            raise ValueError(f"{file} should hold lines NAME: PATH, and no more")
        paths = {str(name): file.parent / entry_path(path) for name, path in content.items()}
    for word in options.set:
        name, _, path = word.partition("=")
        if not name or not path:
            raise ValueError(f"want --set NAME=PATH, got {word!r}")
        paths[name] = Path(path)
    if not paths:
        raise ValueError("there is nothing to score on; name sets by --set NAME=PATH or --sets FILE.yaml")
    return paths
