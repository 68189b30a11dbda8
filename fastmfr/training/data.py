"""What a run trains and scores on: its domains, the batches drawn from them, and the images of these batches.

Shape suffix: B = images of a batch.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastmfr import synthetic
from fastmfr.config import Config, narrowed
from fastmfr.decode import DecodedCache, Preprocess, Verdicts, choose_cache, choose_decoder, open_stream
from fastmfr.domains import Domain, Joint, join, open_domain
from fastmfr.protocols import GalleryProbe, Protocol, gallery_probe, hold_out
from fastmfr.protocols.shared_images import shared_images
from fastmfr.sampler import GroupedDomainSampler, Pairs
from fastmfr.training.logbook import Logbook

SYNTHETIC = "synthetic:"


@dataclass(frozen=True)
class Target:
    """A domain to score on.

    `pairs` lists the images enrolled and the images looked up. `unseen` says that training has no image of the domain.
    """

    domain: Domain
    pairs: GalleryProbe
    unseen: bool


def open_protocol(config: Config, logbook: Logbook) -> tuple[Joint, dict[str, Target]]:
    """Open the source and target domains of a run; make the procedural faces among them.

    Returns:
        The source domains joined under one set of labels, and the targets by name. Of a domain that is source and
        target the people held out are in the target, the others in the source.

    Raises:
        FileNotFoundError: a path is no folder.
        ValueError: a folder is no domain, or there is no procedural domain of a name.
    """
    protocol = Protocol(config.data.sources, config.data.targets)
    paths = {**protocol.sources, **protocol.targets}
    real = {name: path for name, path in paths.items() if not path.startswith(SYNTHETIC)}
    domains = {name: open_domain(path, name) for name, path in real.items()}  # before faces are made, which takes long
    made = _make_faces({name: path for name, path in paths.items() if name not in real}, config, logbook)
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
    _say_what_is_there(sources, targets, config.data.single, logbook)
    return sources, targets


def _say_what_is_there(sources, targets, single, logbook):
    for domain in sources.domains:
        alone = domain.single if single == "drop" else 0
        drawn = f"; people with one image, never drawn: {alone:,} (data.single drop)" if alone else ""
        logbook.say(f"train on  {domain.name}: {domain.identities:,} people, {domain.images:,} images{drawn}")
    for name, target in targets.items():
        kind = "never seen in training" if target.unseen else "people held out of training"
        logbook.say(f"score on  {name}: {target.domain.identities:,} people, {target.domain.images:,} images, {kind}")
    unseen = [target.domain for target in targets.values() if target.unseen]
    for note in dict.fromkeys(note for domain in (*sources.domains, *unseen) for note in domain.notes):
        logbook.warn(note)
    for sentence in shared_images(sources.domains, unseen):
        logbook.warn(sentence)


def _make_faces(paths, config, logbook):
    """{name: folder} for {name: "synthetic:DOMAIN"}; faces made before with the same settings are found again."""
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


def preprocess(data: Any) -> Preprocess:
    """The part of the settings `data` that says what is done to every training image."""
    return narrowed(data, Preprocess)


def choose_decoding(
    config: Config, domains: list[Domain], device: torch.device, logbook: Logbook
) -> tuple[str, Mapping[str, Any]]:
    """Choose the decoder of a run, once, and say which it is and why.

    Returns:
        The decoder's name, and how every image stream of the run decodes: threads, decoder, vet and verdicts, as
        ImageStream takes them. A verdict on an image that cannot be decoded is kept for all streams.
    """
    data = config.data
    decoder, sentence = choose_decoder(data.decode, domains, preprocess(data), device, data.threads)
    logbook.say(sentence)
    verdicts = Verdicts(report=logbook.note_bad)
    return decoder, {"decoder": decoder, "threads": data.threads, "vet": data.vet, "verdicts": verdicts}


class TrainingImages:
    """The images of both stages. If data.cache selects a cache, the first stream has all source images decoded."""

    def __init__(
        self, sources: Joint, config: Config, device: torch.device, decoding: Mapping[str, Any], logbook: Logbook
    ):
        self._sources, self._config, self._device, self._logbook = sources, config, device, logbook
        self._decoding = decoding  # what `choose_decoding` returns

    def open(
        self, requests: Callable[[int], tuple[np.ndarray, np.ndarray]], *, batch_images: int, first: int, last: int
    ) -> Any:
        """Open a stream of the batches `first` .. `last` - 1: (number, image_B3HW), as open_stream yields them.

        Args:
            requests: the (domain_B, image_B) of a batch, by its number.
            batch_images: images in a batch.
        """
        numbers = {"batch_images": batch_images, "first": first, "last": last}
        return self._open(requests, **numbers)

    def prepare(self) -> None:
        """Do now what the first stream would do."""
        self._open  # noqa: B018

    @cached_property
    def _open(self) -> Callable[..., Any]:
        return partial(
            open_stream,
            self._sources.domains,
            preprocess=preprocess(self._config.data),
            cache=self._cache(),
            seed=self._config.seed,
            device=str(self._device),
            **self._decoding,
        )

    def _cache(self) -> Any:
        """The decoded images, or "none"; the logbook says which and why."""
        config, domains = self._config, self._sources.domains
        pairs = config.pretrain.steps * config.pretrain.batch_identities
        pairs += config.meta.steps * config.meta.batch_identities * 2 * len(domains)
        look = preprocess(config.data)
        place, sentence = choose_cache(config.data.cache, domains, look, 2 * pairs, self._device)
        self._logbook.say(sentence)
        if place == "none":
            return place
        with self._logbook.progress("decoding", 0, sum(domain.images for domain in domains)) as meter:
            show = lambda done, _: meter.step(done, done)  # noqa: E731
            return DecodedCache(domains, look, place=place, device=self._device, **self._decoding, progress=show)


def batch_sampler(sources: Joint, config: Config, batch_identities: int, **options: Any) -> GroupedDomainSampler:
    """The sampler of `batch_identities` people a batch from all source domains; `options` are GroupedDomainSampler's.

    Raises:
        ValueError: a domain has too few people for a batch.
    """
    offsets = {domain.name: domain.offsets for domain in sources.domains}
    return GroupedDomainSampler(offsets, batch_identities, config.seed, single=config.data.single, **options)


def check_batches(sources: Joint, config: Config) -> None:
    """Check that every stage with steps can draw its batches.

    Raises:
        ValueError: a domain is too small for a batch, there is one source domain for meta-training, or
            pretrain.sample_rate takes fewer identities than a batch has.
    """
    domains, meta = sources.domains, config.meta
    if config.pretrain.steps:
        batch_sampler(sources, config, config.pretrain.batch_identities)
        _check_sample_rate(sources, config.pretrain)
    if meta.steps and len(domains) == 1:
        raise ValueError(
            "meta-training leaves out one source domain at a time, so it needs two or more; there is one, "
            f"{domains[0].name}. Add sources, or set meta.steps to 0"
        )
    if meta.steps:
        splits = Splits(sources, config)
        for i in range(splits.of_a_step):
            splits.pairs(i)


def _check_sample_rate(sources, settings):
    """Raises ValueError if fewer identities would take part in a step than a batch has."""
    drawn = max(1, int(settings.sample_rate * sources.identities))
    if drawn < min(settings.batch_identities, sources.identities):
        raise ValueError(
            f"pretrain.sample_rate {settings.sample_rate:g} takes {drawn} of {sources.identities} identities, fewer "
            f"than the {settings.batch_identities} of a batch; raise it, or lower pretrain.batch_identities"
        )


def images_of(*pairs: Pairs) -> tuple[np.ndarray, np.ndarray]:
    """(domain_B, image_B): the galleries of the first pairs, their probes, then those of the next pairs."""
    domain = [part for pair in pairs for part in (pair.domain, pair.domain)]
    image = [part for pair in pairs for part in (pair.gallery, pair.probe)]
    return np.concatenate(domain), np.concatenate(image)


class Splits:
    """The splits of all meta steps, numbered through; `of_a_step` of them make one meta-batch.

    A split is a function of its number i, the seed and the data alone.
    """

    def __init__(self, sources: Joint, config: Config):
        settings, self._domains, self._seed = config.meta, len(sources.domains), config.seed
        self._one = settings.method == "mldg"
        self.of_a_step = 1 if self._one else self._domains
        identities = settings.batch_identities
        self._sampler = batch_sampler(sources, config, identities, per_domain=settings.per_domain)
        self._everyone = None
        if settings.sharing == "per_domain":
            self._everyone = batch_sampler(sources, config, identities * self._domains)

    def left_out(self, i: int) -> int:
        """Number of the domain that split i tests on."""
        if self._one:
            return int(np.random.default_rng([self._seed, i]).integers(self._domains))
        return i % self._domains

    def pairs(self, i: int) -> tuple[Pairs, Pairs]:
        """(train, test) pairs of split i; if domains share their gradients, both are of the domain left out."""
        step, domain = i // self.of_a_step, self.left_out(i)
        train, test = self._sampler.split(step, domain)
        if self._everyone is not None:
            everyone = self._everyone.batch(step)
            mine = everyone.domain == domain
            train = Pairs(*(getattr(everyone, field.name)[mine] for field in fields(Pairs)))
        return train, test
