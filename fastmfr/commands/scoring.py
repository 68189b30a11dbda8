"""What `evaluate` does once its arguments are read: score the model on every set, print and write the scores."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from torch.distributed import ProcessGroup

from fastmfr.atomic import write_text
from fastmfr.config import Config
from fastmfr.config.choices import Mirror
from fastmfr.decode import choose_decoder, dali_installed
from fastmfr.decode.shapes import shapes_of
from fastmfr.distributed import all_gather_object, raise_on_all_ranks, rank_and_world
from fastmfr.evaluate.sets import embed_set, open_sets, score_set
from fastmfr.evaluate.table import notes, table_of
from fastmfr.progress import new_console, progress_of
from fastmfr.protocols import paper_protocol
from fastmfr.protocols.paper import unlike_the_paper
from fastmfr.results import Scores, to_json
from fastmfr.runtime import device_for, environment, seed_and_set_threads
from fastmfr.text import printable
from fastmfr.weights import open_model


def score_sets(
    weights: Path,
    config: Config,
    paths: Mapping[str, Path],
    protocol: str | None,
    mirror: Mirror | None,
    group: ProcessGroup | None,
) -> tuple[dict[str, Scores], dict[str, str]]:
    """Score a model on every set that can be read.

    Args:
        weights: the file of the model's weights.
        config: the model's settings.
        paths: the sets by name.
        protocol: one of the paper's protocols, which restricts the sets and the false accept rates; or None.
        mirror: what to do with mirror images; None takes each set's own.
        group: the ranks that divide the images among themselves, or None.

    Returns:
        The scores by set; on ranks other than the first, None for each set. And why the other sets were not scored, by
        name.

    Raises:
        FileNotFoundError, ValueError: the model cannot be opened.
    """
    console = new_console()
    if protocol:
        config, paths = _restricted(paper_protocol(protocol), config, paths, console)
    with raise_on_all_ranks(group):
        device = device_for(config.device)
        seed_and_set_threads(config.seed, config.threads)
        model = open_model(weights, config, device=device)
        if not dali_installed() and rank_and_world(group)[0] == 0:
            _, sentence = choose_decoder("cpu", [], None, device, config.data.threads)
            console.print(sentence)
    chosen = {"seed": config.seed, "probes_per_identity": config.evaluate.probes_per_identity}
    results, left_out = {}, {}
    for name, path in paths.items():
        try:
            sets = open_sets(name, path, **chosen, landmarks=config.data.landmarks.get(name))
            for found in _opened(sets, path, group):
                for note in (*found.images.notes, *shapes_of(found.images, model.preprocess.fit).lines):
                    console.print(printable(f"{found.name}: {note}"))
                if protocol and (unlike := _unlike_the_paper(found)):
                    console.print(printable(unlike))
                results[found.name] = _scored(model, found, mirror, console, group)
        except (ValueError, OSError) as error:
            left_out[name] = str(error)
    return results, left_out


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
        console.print(f"left out {name}: no --set {name}=PATH was given")
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


def _scored(model, found, mirror, console, group):
    """What score_set returns, on the first rank; None on the others, which only embed."""
    data, evaluate, device = model.config.data, model.config.evaluate, model.device
    here = device.type == "cuda" and dali_installed()
    wanted = data.decode if here else "cpu"  # the run's choice was made on the machine it ran on
    with raise_on_all_ranks(group):
        decoder, _ = choose_decoder(wanted, [found.images], model.preprocess, device, data.threads, exact=True)
    embedding = {
        "batch_images": evaluate.batch_images,
        "decoder": all_gather_object(decoder, group)[0],  # as measured
        "threads": data.threads,
        "vet": data.vet,
        "group": group,
    }
    with raise_on_all_ranks(group):
        if rank_and_world(group)[0] > 0:
            embed_set(model.backbone, found, model.preprocess, device, mirror=mirror, **embedding)
            return None
        with progress_of(found.name, console) as progress:
            return score_set(
                model.backbone,
                found,
                model.preprocess,
                device,
                far=evaluate.far,
                mirror=mirror,
                progress=progress,
                **embedding,
            )


def write_scores(results: Mapping[str, Scores], weights: Path, out: Path) -> None:
    """Write the scores as JSON to `out`, and print them as a table with its notes."""
    written = {"weights": str(weights), "environment": environment(), "sets": to_json(results)}
    write_text(out, json.dumps(written, indent=1))
    console = new_console()
    console.print(table_of(results, console.width), soft_wrap=False)
    for note in notes(results):
        console.print(printable(note))
    console.print(printable(f"written to {out}"))
