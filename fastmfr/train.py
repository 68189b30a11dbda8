"""Train a face model on several source domains by Meta Face Recognition and score it on domains it never saw.

With no argument it runs the recipe `quickstart`: it makes procedural faces, pretrains, meta-trains and scores an unseen
domain in about three minutes on two CPU cores. Your own folders: --data.sources.NAME PATH --data.targets.NAME PATH.
"""

import json
import os
import sys
import time
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from pathlib import Path

from fastmfr import synthetic
from fastmfr.backbone import build_backbone
from fastmfr.config import Config, parse
from fastmfr.decode import Verdicts, checked_decoder, choose_decoder
from fastmfr.domains import Domain, Joint, join, open_domain
from fastmfr.evaluate import embed_and_score
from fastmfr.head import make_margin
from fastmfr.precision import check_precision
from fastmfr.protocols import GalleryProbe, Protocol, gallery_probe, hold_out
from fastmfr.report import final_table, write_report
from fastmfr.runtime import device_for, environment, seed_and_set_threads, to_channels_last
from fastmfr.training.checkpoint import Checkpoints, load_weights, save_weights
from fastmfr.training.diagnose import Diagnosis
from fastmfr.training.logbook import Logbook
from fastmfr.training.stages import NonFiniteLoss, check_batches, image_opener, meta_train, preprocess, pretrain

SYNTHETIC = "synthetic:"


@dataclass(frozen=True)
class Target:
    """A domain to score on, the images enrolled and looked up in it, and whether training never saw the domain."""

    domain: Domain
    pairs: GalleryProbe
    unseen: bool


def run(config: Config, folder: Path, logbook: Logbook) -> dict:
    """The whole run, in the order the data flows; what it finds is returned and written to the run folder."""
    device = device_for(config.device)
    for precision in (config.pretrain.precision, config.meta.precision, config.meta.curvature):
        check_precision(precision, device)
    make_margin(config.pretrain.margin, config.pretrain.margin_values)  # a number out of range is told at once
    if config.data.decode != "auto":
        checked_decoder(config.data.decode, device)
    seed_and_set_threads(config.seed, config.threads)
    (folder / "environment.json").write_text(json.dumps(environment(), indent=1))
    seconds = {}

    with _timed(seconds, "data"):
        protocol = Protocol(config.data.sources, config.data.targets)
        sources, targets = open_protocol(protocol, config, logbook)
        check_batches(sources, config)
        config, decoding = _decoding(sources, targets, config, device, folder, logbook)
        diagnosis = Diagnosis(sources, targets, config, device, decoding)
        diagnosis.draw_domains(folder / "domains.png")
    backbone = _backbone(config, device)
    results = {"recipe": config.recipe, "sources": [domain.name for domain in sources.domains]}
    results |= {"targets": {}, "gap": {}}
    for name, target in targets.items():
        results["targets"][name] = {"unseen": target.unseen, "models": {}}

    open_images = None
    for stage, model, train, steps in (
        ("pretrain", "base", pretrain, config.pretrain.steps),
        ("meta", "mfr", meta_train, config.meta.steps),
    ):
        if not steps:
            continue
        weights = folder / f"{model}.safetensors"
        if weights.is_file():  # this run had finished the stage before it was resumed
            load_weights(backbone, weights)
        else:
            with _timed(seconds, stage):
                watch = partial(_watch, stage, backbone, targets, config, device, decoding, logbook)
                states = Checkpoints(folder / "checkpoints", stage)
                if open_images is None:  # it may fill a cache, and a resumed run may have no training left to do
                    open_images = image_opener(sources, config, device, decoding, logbook)
                train(backbone, sources, config, open_images, device, logbook, states, watch)
            save_weights(backbone, weights)
        with _timed(seconds, "evaluate"):
            for name, scores, embedding_ND, bad in _score(backbone, targets, config, device, decoding):
                results["targets"][name]["models"][model] = scores
                results["targets"][name]["hardest"] = diagnosis.of_target(name, model, embedding_ND, bad)
            results["gap"][model] = diagnosis.gap(backbone)

    if any(target["models"] for target in results["targets"].values()):
        with _timed(seconds, "evaluate"):
            diagnosis.draw_hardest(results["targets"], folder / "hardest.png")
    results |= {"seconds": {stage: round(value, 1) for stage, value in seconds.items()}, "bad_images": logbook.bad}
    (folder / "results.json").write_text(json.dumps(results, indent=1))
    return results


def _backbone(config, device):
    backbone = build_backbone(config)
    if config.model.weights:
        load_weights(backbone, config.model.weights)
    return to_channels_last(backbone, device)


def _decoding(sources, targets, config, device, folder, logbook):
    """(config, how every stream of the run decodes): the decoder is chosen once, and a verdict on an image kept.

    The run's settings keep the choice, for decoders differ by a grey level or two: resumed, it must give the same bits.
    """
    domains = [*sources.domains, *(target.domain for target in targets.values())]
    data = config.data
    decoder, sentence = choose_decoder(data.decode, domains, preprocess(data), device, data.threads)
    logbook.say(sentence)
    config = replace(config, data=replace(data, decode=decoder))
    (folder / "config.yaml").write_text(config.to_yaml())
    verdicts = Verdicts(report=logbook.note_bad)
    return config, {"decoder": decoder, "threads": data.threads, "vet": data.vet, "verdicts": verdicts}


def _score(backbone, targets, config, device, decoding):
    """(name, score of the backbone on it, its embedding_ND, its bad images) of one target after the other."""
    for name, target in targets.items():
        yield (
            name,
            *embed_and_score(
                backbone,
                target.domain,
                target.pairs,
                preprocess(config.data),
                device,
                far=config.evaluate.far,
                batch_images=config.evaluate.batch_images,
                **decoding,
            ),
        )


def _watch(stage, backbone, targets, config, device, decoding, logbook, steps):
    """After `steps` steps of a stage: scores the targets and records it, if evaluate.every says so."""
    if config.evaluate.every and steps % config.evaluate.every == 0:
        for name, scores, *_ in _score(backbone, targets, config, device, decoding):
            figures = {far: found["tar"] for far, found in scores["tar_at_far"].items() if "tar" in found}
            tar = {f"tar_at_far_{far}": value for far, value in figures.items()}
            logbook.record(f"{stage}/{name}", steps - 1, rank1=scores["rank1"], auc=scores["auc"], **tar)


def open_protocol(protocol: Protocol, config: Config, logbook: Logbook) -> tuple[Joint, dict[str, Target]]:
    """Source domains joined under one set of labels, and targets by name; people held out are in one or the other."""
    paths = {**protocol.sources, **protocol.targets}
    real = {name: path for name, path in paths.items() if not path.startswith(SYNTHETIC)}
    domains = {name: open_domain(path, name) for name, path in real.items()}  # first: a wrong path is told at once
    made = _make({name: path for name, path in paths.items() if name not in real}, config, logbook)
    domains |= {name: open_domain(path, name) for name, path in made.items()}
    scored = dict(domains)
    for name in protocol.held_out:
        train_people, scored_people = hold_out(domains[name].identities, config.data.holdout, config.seed)
        domains[name], scored[name] = domains[name].people(train_people), scored[name].people(scored_people)
    sources = join([domains[name] for name in protocol.sources])
    targets = {}
    for name in protocol.targets:
        pairs = gallery_probe(
            scored[name].offsets, seed=config.seed, probes_per_identity=config.evaluate.probes_per_identity
        )
        targets[name] = Target(scored[name], pairs, unseen=name not in protocol.sources)
    for domain in sources.domains:
        logbook.say(f"train on  {domain.name}: {domain.identities:,} people, {domain.images:,} images")
    for name, target in targets.items():
        kind = "never seen in training" if target.unseen else "people held out of training"
        logbook.say(f"score on  {name}: {target.domain.identities:,} people, {target.domain.images:,} images, {kind}")
    return sources, targets


def _make(paths, config, logbook):
    """{name: folder} for {name: "synthetic:DOMAIN"}: made now, or found made before with the same settings."""
    wanted = {name: path.removeprefix(SYNTHETIC) for name, path in paths.items()}
    for domain in wanted.values():
        if domain not in synthetic.DOMAINS:
            raise ValueError(f"there is no synthetic domain {domain!r}; want one of {', '.join(synthetic.DOMAINS)}")
    if not wanted:
        return {}
    settings = config.data.synthetic
    kept = Path(settings.folder) / f"{settings.identities}x{settings.images}-{settings.size}px"
    with logbook.progress("making faces", 0, len(wanted) * settings.identities * settings.images) as meter:
        made = synthetic.make(
            kept,
            domains=tuple(wanted.values()),
            identities=settings.identities,
            images=settings.images,
            size=settings.size,
            progress=lambda done, _: meter.step(done, done),
        )
    return {name: made[domain] for name, domain in wanted.items()}


class _timed:
    """Adds the seconds spent inside to `seconds[name]`."""

    def __init__(self, seconds, name):
        self._seconds, self._name = seconds, name

    def __enter__(self):
        self._start = time.perf_counter()

    def __exit__(self, *_):
        self._seconds[self._name] = self._seconds.get(self._name, 0.0) + time.perf_counter() - self._start


def main(argv=None) -> int:
    """The command line; the exit status is 0, or 1 with a sentence on what went wrong."""
    ranks = int(os.environ.get("WORLD_SIZE", 1))
    if ranks > 1:
        print(
            f"error: the trainer runs as one process, and torchrun started {ranks}, which would train the same model "
            "into one folder; start it with python -m fastmfr.train",
            file=sys.stderr,
        )
        return 1
    config, resume = parse(sys.argv[1:] if argv is None else argv)
    folder = Path(resume or Path(config.folder) / f"{config.recipe}-{datetime.now():%Y%m%d-%H%M%S}")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(config.to_yaml())
    with Logbook(folder) as logbook:
        logbook.say(f"run folder {folder}")
        try:
            results = run(config, folder, logbook)
            page = write_report(folder)
        except (ValueError, OSError, NonFiniteLoss) as error:
            logbook.say(f"[bold red]error:[/] {error}")
            return 1
        except KeyboardInterrupt:
            logbook.say(f"stopped; go on with: python -m fastmfr.train --resume {folder}")
            return 130
        logbook.console.print(final_table(results))
        if bad := results["bad_images"]:
            some = "; ".join(f"{key} ({reason})" for key, reason in list(bad.items())[:3])
            logbook.warn(
                f"unreadable images, replaced in training and left out of scores: {len(bad)}, all listed in "
                f"{folder / 'bad_images.tsv'}: {some}{' ...' if len(bad) > 3 else ''}"
            )
        logbook.say(f"report    {page}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
