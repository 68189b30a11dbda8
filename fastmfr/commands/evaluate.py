"""python -m fastmfr evaluate RUN_OR_WEIGHTS --set NAME=PATH ...: a model scored on sets, as a table and as JSON."""

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import yaml
from rich.console import Console

from fastmfr.backbone import build_backbone
from fastmfr.config import parse
from fastmfr.decode import Preprocess, choose_decoder, dali_installed
from fastmfr.distributed import all_gather_object, joined_ranks, raise_on_all_ranks, rank_and_world
from fastmfr.evaluate.embed import MIRRORS
from fastmfr.evaluate.sets import embed_set, open_sets, score_set
from fastmfr.evaluate.table import notes, table_of
from fastmfr.progress import progress_of
from fastmfr.protocols import paper_protocol
from fastmfr.protocols.files import entry_path, list_text
from fastmfr.protocols.paper import PROTOCOLS, unlike_the_paper
from fastmfr.runtime import device_for, environment, seed_and_set_threads, to_channels_last
from fastmfr.training.checkpoint import load_weights

SETS = """\
what a set may be
  file.bin      LFW, CFP-FP, AgeDB-30, CALFW, CPLFW as InsightFace's tools write them
  pairs.txt     a line `path path 0|1 [fold]` a pair; or LFW's and RFW's own lists of pairs
  folder        with gallery.txt and probe.txt (see split), with gallery_1.txt, probe_1.txt, ..., with pairs.txt, with
                IJB-style templates, RFW as it comes; or a class folder or RecordIO folder, one image a person enrolled
protocols score the sets of these names, and say which are missing: gfr-r-1 to 4 indian, african, asian, caucasian;
gfr-v cacd-vs, casia-nir-vis, multi-pie, meglass, public-ivs
several GPUs: torchrun --nproc-per-node 8 -m fastmfr evaluate ... shares the images out; the figures are the same
settings of the model come from config.yaml beside the weights, from --config RECIPE, and from options such as
--model.name iresnet50 --data.size 112 --data.std 127.5
"""


def main(argv=None) -> int:
    """Run the command line; the exit status is 0, 1 with a sentence on what went wrong, or 130 when interrupted.

    Under torchrun all ranks embed, and the first one alone scores, prints and writes; all have its exit status.
    """
    try:
        with joined_ranks() as group:
            status = _run(argv, group)
            sys.stdout.flush()  # torchrun stops all ranks once one has left with an error; by then all must be said
            return all_gather_object(status, group)[0]
    except KeyboardInterrupt:
        return 130


def _run(argv, group):
    options, settings = _parser().parse_known_args(argv)
    console = Console(highlight=False)
    try:
        with raise_on_all_ranks(group):
            weights = _weights(options.model)
            config = _config(weights, options.config, settings)
            paths = _paths(options)
        results = _evaluate(weights, config, paths, options, console, group)
        if rank_and_world(group)[0] == 0:
            _write(results, weights, Path(options.out or weights.parent / "evaluation.json"), console)
    except (ValueError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; nothing was written", file=sys.stderr)
        raise
    return 0


def _write(results, weights, out, console):
    console.print(table_of(results))
    for note in notes(results):
        console.print(note, markup=False, soft_wrap=True)
    out.write_text(json.dumps({"weights": str(weights), "environment": environment(), "sets": results}, indent=1))
    console.print(f"written to {out}", markup=False, soft_wrap=True)


def _parser():
    parser = argparse.ArgumentParser(
        prog="python -m fastmfr evaluate",
        description="Score a model on sets of images.",
        epilog=SETS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("model", metavar="RUN_OR_WEIGHTS", help="a run folder, or a .safetensors, .pt or .pth file")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=PATH", help="a set; give it several times")
    parser.add_argument("--sets", metavar="FILE.yaml", help="a file of lines NAME: PATH, paths relative to it")
    parser.add_argument("--protocol", choices=PROTOCOLS, help="score the paper's targets among the sets, at its FARs")
    parser.add_argument("--mirror", choices=MIRRORS, help="the mirror image's embedding: beside, added or left out")
    parser.add_argument("--config", metavar="RECIPE", help="settings of the model, where no config.yaml lies beside it")
    parser.add_argument("--out", metavar="FILE.json", help="default: evaluation.json beside the weights")
    return parser


def _weights(model):
    """The weights to score: the file itself, or what a run left: mfr.safetensors, else base.safetensors."""
    path = Path(model)
    if path.is_file():
        return path
    found = [path / name for name in ("mfr.safetensors", "base.safetensors") if (path / name).is_file()]
    if not found:
        raise FileNotFoundError(
            f"{path} is neither a file of weights nor a run folder with mfr.safetensors or base.safetensors in it"
        )
    return found[0]


def _config(weights, recipe, settings):
    """The model's settings; those typed come last."""
    beside = weights.parent / "config.yaml"
    if not recipe and not beside.is_file():
        raise ValueError(
            f"no config.yaml lies beside {weights}; name the model's settings by --config RECIPE, for "
            "InsightFace's for instance --config mfr --model.name iresnet50 --data.size 112 "
            "--data.std 127.5"
        )
    return parse(["--config", recipe or str(beside), *settings], prog="python -m fastmfr evaluate")[0]


def _paths(options):
    """{name: path} of the sets, from the file and from the command line; the latter goes first where both name one."""
    paths = {}
    if options.sets:
        file = Path(options.sets)
        content = yaml.safe_load(list_text(file))
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


def _evaluate(weights, config, paths, options, console, group):
    """{set: what score_set returns} of all sets that can be read; the others are named and skipped."""
    if options.protocol:
        config, paths = _restricted(paper_protocol(options.protocol), config, paths, console)
    with raise_on_all_ranks(group):
        device = device_for(config.device)
        seed_and_set_threads(config.seed, config.threads)
        backbone = build_backbone(config)
        load_weights(backbone, weights)
        backbone = to_channels_last(backbone, device)
        if not dali_installed() and rank_and_world(group)[0] == 0:
            _, sentence = choose_decoder("auto", [], None, device, config.data.threads)  # nothing to measure
            console.print(sentence, markup=False, soft_wrap=True)
    chosen = {"seed": config.seed, "probes_per_identity": config.evaluate.probes_per_identity}
    results = {}
    for name, path in paths.items():
        try:
            for found in _opened(open_sets(name, path, **chosen), path, group):
                if options.protocol and (unlike := _unlike_the_paper(found)):
                    console.print(unlike, markup=False, soft_wrap=True)
                results[found.name] = _scored(backbone, found, config, device, options.mirror, console, group)
        except (ValueError, OSError) as error:
            console.print(f"skipped {name}: {error}", markup=False, soft_wrap=True)
    if not results:
        raise ValueError("no set could be scored")
    return results


def _opened(sets, path, group):
    """The sets one by one, as long as all ranks find the same; a rank with other files would embed other images."""
    while True:
        with raise_on_all_ranks(group):
            found = next(sets, None)
        held = all_gather_object(found and (found.name, found.images.images), group)
        if len(set(held)) > 1:
            raise ValueError(
                f"the ranks find different sets of images at {path}: {', '.join(map(str, held))}; give "
                "all machines the same files"
            )
        if found is None:
            return
        yield found


def _restricted(protocol, config, paths, console):
    """(config, paths) at the paper's FARs, with the paper's targets only; says which are missing."""
    for name in protocol.missing(paths):
        console.print(f"skipped {name}: no --set {name}=PATH was given", markup=False)
    config = replace(config, evaluate=replace(config.evaluate, far=protocol.far))
    return config, {name: path for name, path in paths.items() if name in protocol.targets}


def _unlike_the_paper(found):
    sizes = [
        [
            (len(np.unique(people)), len(images))
            for people, images in ((pairs.gallery_id, pairs.gallery), (pairs.probe_id, pairs.probe))
        ]
        for pairs in found.folds
    ]
    return unlike_the_paper(found.name, *sizes[0]) if sizes else None


def _scored(backbone, found, config, device, mirror, console, group):
    """What score_set returns, on the first rank; None on the others, which only embed."""
    data = config.data
    preprocess = Preprocess(size=data.size, mean=data.mean, std=data.std)
    here = device.type == "cuda" and dali_installed()
    wanted = data.decode if here else "cpu"  # the run's choice was made on the machine it ran on
    with raise_on_all_ranks(group):
        decoder, _ = choose_decoder(wanted, [found.images], preprocess, device, data.threads)
    embedding = {
        "batch_images": config.evaluate.batch_images,
        "decoder": all_gather_object(decoder, group)[0],  # as measured
        "threads": data.threads,
        "vet": data.vet,
        "group": group,
    }
    with raise_on_all_ranks(group):
        if rank_and_world(group)[0] > 0:
            embed_set(backbone, found, preprocess, device, mirror=mirror, **embedding)
            return None
        with progress_of(found.name, console) as progress:
            return score_set(
                backbone,
                found,
                preprocess,
                device,
                far=config.evaluate.far,
                mirror=mirror,
                progress=progress,
                **embedding,
            )
