"""How many people a batch holds: what the domains allow, where no number is given, and whether a number given fits."""

from collections.abc import Callable, Mapping
from dataclasses import replace

from fastmfr.config import Config
from fastmfr.domains import Joint
from fastmfr.results import META, PRETRAIN
from fastmfr.training.data import Splits, sampler_of_stage_one, weights_of

WORDS = {PRETRAIN: "people in a batch of stage one", META: "people in each half of a split"}


def fit_batches(sources: Mapping[str, Joint], config: Config, processes: int = 1) -> tuple[Config, list[str]]:
    """Take the largest batches that the domains allow, up to the paper's, where no number of people is given.

    Args:
        sources: the domains of each stage.
        config: the settings.
        processes: the number that the people of a batch are a multiple of.

    Returns:
        The settings with both numbers, and sentences on what was taken and on how often domains are drawn.

    Raises:
        ValueError: data.weights names a domain that stage one has not.
    """
    said = _said_of_weights(sources[PRETRAIN], config)
    for stage in (PRETRAIN, META):
        settings = getattr(config, stage)
        if settings.batch_identities is not None or not settings.steps:
            continue
        if stage == META and len(sources[META].domains) == 1:
            continue
        draw, most = _draws(stage, sources, config), settings.people
        taken = most if _fits(draw, most) else _largest(draw, most)
        if taken is not None and taken >= processes:
            taken -= taken % processes
        if taken is None:  # `check_batches` says why
            continue
        config = replace(config, **{stage: replace(settings, batch_identities=taken)})
        why = "" if taken == most else f", the largest number that the domains allow (else {most})"
        said.append(f"{settings.prefix}batch_identities {taken}: {WORDS[stage]}{why}")
    return config, said


def _said_of_weights(sources: Joint, config: Config) -> list[str]:
    """A sentence on how often each domain is drawn in pretraining, if not equally often."""
    weights = weights_of(sources, config)
    if weights is None or not config.pretrain.steps:
        return []
    shares = (
        f"{domain.name} {100 * weight / sum(weights):.1f} %"
        for domain, weight in zip(sources.domains, weights, strict=True)
    )
    return [f"drawn in stage one: {', '.join(shares)}"]


def check_batches(sources: Mapping[str, Joint], config: Config, processes: int = 1) -> None:
    """Check that every stage with steps can draw its batches from its sources, and that processes can share them.

    Raises:
        ValueError: a domain is too small for a batch, there is one source domain for meta-training, or the number of
            processes does not divide the people of a batch.
    """
    for stage in (config.pretrain, config.meta):
        if stage.steps and stage.people % processes:
            raise ValueError(
                f"{processes} processes share the people of a batch equally; want {stage.prefix}batch_identities as a "
                f"multiple of {processes}, got {stage.people}"
            )
    domains, meta = sources[META].domains, config.meta
    if config.pretrain.steps:
        _check_batch("pretrain.batch_identities", config.pretrain.people, _draws(PRETRAIN, sources, config))
    if meta.steps and len(domains) == 1:
        raise ValueError(
            "meta-training leaves out one source domain at a time, so it needs two or more; there is one, "
            f"{domains[0].name}. Add sources, or set meta.steps to 0"
        )
    if meta.steps:
        _check_batch("meta.batch_identities", meta.people, _draws(META, sources, config))


def _draws(stage: str, sources: Mapping[str, Joint], config: Config) -> Callable[[int], object]:
    """A function that draws a batch, or every split of a meta-batch, of so many people; it may raise ValueError."""
    if stage == PRETRAIN:
        return lambda people: sampler_of_stage_one(sources[PRETRAIN], config, people)

    def draw(people):
        splits = Splits(sources[META], replace(config, meta=replace(config.meta, batch_identities=people)))
        for i in range(splits.of_a_step):
            splits.pairs(i)

    return draw


def _check_batch(setting: str, value: int, draw: Callable[[int], object]) -> None:
    """Draw a batch of as many people; raises ValueError with the setting's name, and the largest number that fits."""
    try:
        draw(value)
    except ValueError as error:
        largest = _largest(draw, value)
        fits = f"; the largest that fits is {largest}" if largest else ""
        raise ValueError(f"{setting} {value}: {error}{fits}") from None


def _fits(draw: Callable[[int], object], value: int) -> bool:
    """Whether a batch of as many people can be drawn."""
    try:
        draw(value)
    except ValueError:
        return False
    return True


def _largest(draw: Callable[[int], object], below: int) -> int | None:
    """The largest number from 2 up to, not including, `below` for which `draw` raises no ValueError."""
    found, least = None, 2
    while least < below:
        middle = (least + below) // 2
        if _fits(draw, middle):
            found, least = middle, middle + 1
        else:
            below = middle
    return found
