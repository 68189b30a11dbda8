"""What the stages of a run draw from their domains: batches, and the images of these batches.

Shape suffix: B = images of a batch.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch

from fastmfr.config import Config, narrowed
from fastmfr.decode import (
    DecodedCache,
    Preprocess,
    Verdicts,
    choose_cache,
    choose_decoder,
    open_stream,
    other_formats,
)
from fastmfr.distributed import Ranks
from fastmfr.domains import Domain, Joint
from fastmfr.results import META, PRETRAIN
from fastmfr.sampler import GroupedDomainSampler, Pairs
from fastmfr.training.logbook import Logbook


def preprocess(data: Any) -> Preprocess:
    """The part of the settings `data` that says what is done to every training image."""
    return narrowed(data, Preprocess)


def choose_decoding(
    config: Config, domains: list[Domain], device: torch.device, logbook: Logbook, ranks: Ranks
) -> tuple[str, Mapping[str, Any]]:
    """Choose the decoder of a run, once, and say which it is and why; all ranks take what the first one finds faster.

    Returns:
        The decoder's name, and how every image stream of the run decodes: threads, decoder, vet and verdicts, as
        ImageStream takes them. A verdict on an image that cannot be decoded is kept for all streams.
    """
    data = config.data
    look = preprocess(data)
    decoder, sentence = ranks.by_first(partial(choose_decoder, data.decode, domains, look, device, data.threads))
    logbook.say(sentence)
    for sentence in dict.fromkeys(other_formats(domains)):  # people of one domain may be in several
        logbook.say(sentence)
    verdicts = Verdicts(report=logbook.note_bad)
    return decoder, {"decoder": decoder, "threads": data.threads, "vet": data.vet, "verdicts": verdicts}


class TrainingImages:
    """The images of one stage, or of both. If data.cache selects a cache, the first stream has all of them decoded.

    Args:
        sources: the domains.
        images_drawn: how many images are drawn from them in all, as often as they are drawn.
        config: the settings.
        device: where the images are wanted.
        decoding: what `choose_decoding` returns.
        logbook: says whether there is a cache, and why.
    """

    def __init__(
        self,
        sources: Joint,
        images_drawn: int,
        config: Config,
        device: torch.device,
        decoding: Mapping[str, Any],
        logbook: Logbook,
    ):
        self._sources, self._images_drawn, self._config = sources, images_drawn, config
        self._device, self._logbook, self._decoding = device, logbook, decoding

    def open(
        self,
        requests: Callable[[int], tuple[np.ndarray, np.ndarray]],
        *,
        slot_B: np.ndarray,
        first: int,
        last: int,
    ) -> Any:
        """Open a stream of the batches `first` .. `last` - 1: (number, image_B3HW), as open_stream yields them.

        Args:
            requests: the domain and the image of every slot of a batch of all ranks, by its number.
            slot_B: the slots whose images the stream has, as `slots_of` returns them.
            first: the first batch.
            last: the batch to end before.
        """
        own = lambda number: tuple(part[slot_B] for part in requests(number))  # noqa: E731
        return self._open(own, batch_images=len(slot_B), slot_B=slot_B, first=first, last=last)

    def prepare(self) -> None:
        """Do now what the first stream would do."""
        self._open  # noqa: B018

    def close(self) -> None:
        """Free the cache. A stream that is opened later makes another one."""
        self.__dict__.pop("_open", None)

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
        look = preprocess(config.data)
        place, sentence = choose_cache(config.data.cache, domains, look, self._images_drawn, self._device)
        self._logbook.say(sentence)
        if place == "none":
            return place
        with self._logbook.progress("decoding", 0, sum(domain.images for domain in domains)) as meter:
            show = lambda done, _: meter.step(done, done)  # noqa: E731
            return DecodedCache(domains, look, place=place, device=self._device, **self._decoding, progress=show)


@dataclass(frozen=True)
class StageData:
    """What a stage trains on.

    Attributes:
        sources: its domains, joined under one set of labels.
        images: streams of their images.
    """

    sources: Joint
    images: TrainingImages


def stage_data(sources: Mapping[str, Joint], config: Config, *rest: Any) -> dict[str, StageData]:
    """Make the data of each stage; stages with the same sources share their images, and so a cache.

    Args:
        sources: the domains of each stage.
        config: the settings.
        rest: device, decoding and logbook, as TrainingImages takes them.
    """
    images_drawn = {
        PRETRAIN: config.pretrain.steps * config.pretrain.people * 2,
        META: images_of_meta(config, sources[META]),
    }
    if sources[PRETRAIN] is sources[META]:
        shared = StageData(sources[META], TrainingImages(sources[META], sum(images_drawn.values()), config, *rest))
        return dict.fromkeys(images_drawn, shared)
    return {
        stage: StageData(sources[stage], TrainingImages(sources[stage], drawn, config, *rest))
        for stage, drawn in images_drawn.items()
    }


def images_of_meta(config: Config, sources: Joint) -> int:
    """How many images stage two draws from its sources in all."""
    return config.meta.steps * config.meta.people * 4 * len(sources.domains)


def batch_sampler(sources: Joint, config: Config, batch_identities: int, **options: Any) -> GroupedDomainSampler:
    """The sampler of `batch_identities` people a batch from all source domains; `options` are GroupedDomainSampler's.

    Raises:
        ValueError: a domain has too few people for a batch.
    """
    offsets = {domain.name: domain.offsets for domain in sources.domains}
    options |= {"single": config.data.single, "people": sources.people}
    return GroupedDomainSampler(offsets, batch_identities, config.seed, **options)


def sampler_of_stage_one(sources: Joint, config: Config, batch_identities: int) -> GroupedDomainSampler:
    """The sampler of pretraining, whose domains come as often as data.weights or data.temperature say."""
    return batch_sampler(sources, config, batch_identities, weights=weights_of(sources, config))


def weights_of(sources: Joint, config: Config) -> list[float] | None:
    """How often each domain is drawn in pretraining, in proportion; None for equally often.

    Raises:
        ValueError: a weight of no domain of stage one.
    """
    data, names = config.data, [domain.name for domain in sources.domains]
    if strange := [name for name in data.weights if name not in names]:
        raise ValueError(f"want data.weights of {', '.join(names)}, got one of {', '.join(strange)}")
    if data.weights:
        return [float(data.weights.get(name, 1.0)) for name in names]
    if data.temperature is None:
        return None
    return [domain.identities ** (1 / data.temperature) for domain in sources.domains]


def images_of(*pairs: Pairs) -> tuple[np.ndarray, np.ndarray]:
    """(domain_B, image_B): the galleries of the first pairs, their probes, then those of the next pairs."""
    domain = [part for pair in pairs for part in (pair.domain, pair.domain)]
    image = [part for pair in pairs for part in (pair.gallery, pair.probe)]
    return np.concatenate(domain), np.concatenate(image)


def slots_of(ranks: Ranks, *pairs: Pairs) -> np.ndarray:
    """The slots of `images_of(*pairs)`, int64, that hold this rank's share of the galleries and of the probes.

    Raises:
        ValueError: the ranks cannot share the pairs equally.
    """
    sizes = [len(pair.domain) for pair in pairs for _ in ("galleries", "probes")]
    parts = np.split(np.arange(sum(sizes)), np.cumsum(sizes)[:-1])
    return np.concatenate([part[ranks.share(len(part))] for part in parts])


def share_of(ranks: Ranks, pairs: Pairs) -> Pairs:
    """This rank's share of the pairs of a batch."""
    own = ranks.share(len(pairs.domain))
    return Pairs(*(getattr(pairs, field.name)[own] for field in fields(Pairs)))


class Splits:
    """The splits of all meta steps, numbered through; `of_a_step` of them make one meta-batch.

    A split is a function of its number i, the seed and the data alone.
    """

    def __init__(self, sources: Joint, config: Config):
        settings, self._domains, self._seed = config.meta, len(sources.domains), config.seed
        self._one = settings.method == "mldg"
        self.of_a_step = 1 if self._one else self._domains
        identities = settings.people
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
