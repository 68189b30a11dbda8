"""Who of each domain is for what: to train stage one on, stage two, to choose a model by, or to score."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from fastmfr import synthetic
from fastmfr.config import Config
from fastmfr.decode.shapes import shapes_of
from fastmfr.domains import Domain, Joint, join, open_domain
from fastmfr.progress import progress_of
from fastmfr.protocols import GalleryProbe, Protocol, gallery_probe
from fastmfr.protocols.landmarks import UNUSED, attach, read_landmarks
from fastmfr.protocols.shared_images import shared_images
from fastmfr.protocols.shared_people import NONE, check_sharing, names_in_common, share_people
from fastmfr.results import META, PRETRAIN
from fastmfr.training.dividing import Division
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


@dataclass(frozen=True)
class People:
    """The people of a run. Nobody who is scored, or kept for validation, is trained on.

    Attributes:
        sources: the domains of each stage, joined under one set of labels; one object if both have the same people.
        trained: everybody who is trained on, in whichever stage, by domain.
        validation: people of the sources by whom the model that is handed out is chosen, by domain; a domain with too
            few people has no part in it.
        targets: the domains to score on, by name.
    """

    sources: Mapping[str, Joint]
    trained: Mapping[str, Domain]
    validation: Mapping[str, Domain]
    targets: Mapping[str, Target]


def open_people(config: Config, logbook: Logbook) -> People:
    """Open the domains of a run and divide their people; make the procedural faces among them.

    Of a domain that is learned from and scored, data.holdout says how many people are scored. Of the others in a
    domain of stage two, data.validation says how many are kept out of training. Of the rest of a domain of both stages,
    data.new_people says how many are kept for stage two. A person of several domains, as data.shared_identities says,
    is in the same part of all of them.

    Raises:
        FileNotFoundError: a path is no folder.
        ValueError: a folder is no domain, a domain has too few people, or there is no procedural domain of a name.
    """
    data = config.data
    protocol = Protocol(data.sources, data.targets, data.pretrain)
    check_sharing(data.shared_identities)
    opened = _open(protocol.learned_from | protocol.targets, config, logbook)
    opened, shared = share_people(opened, data.shared_identities)
    _align(opened, config, logbook)
    trained, scored = _hold_out(opened, protocol, config)
    trained, validation = _keep_for_validation(trained, protocol, config)
    stages = {PRETRAIN: dict(trained), META: dict(trained)}
    names = {PRETRAIN: protocol.pretrain or protocol.sources, META: protocol.sources}
    if data.new_people:
        division = Division()
        for name in protocol.in_both_stages:
            divided = division.share_out(trained[name], "data.new_people", data.new_people, (config.seed, 1))
            stages[PRETRAIN][name], stages[META][name] = divided
        stages[PRETRAIN] = dict(division.without_taken({name: stages[PRETRAIN][name] for name in names[PRETRAIN]}))
    sources = {stage: join([stages[stage][name] for name in names[stage]]) for stage in names}
    if not protocol.pretrain and not data.new_people:
        sources[PRETRAIN] = sources[META]  # one object: the stages share their images
    targets = {name: _target(scored[name], config, unseen=name not in trained) for name in protocol.targets}
    people = People(sources, trained, validation, targets)
    _say(people, data.single, shared, logbook)
    if data.shared_identities == NONE:
        unseen = [target.domain for target in targets.values() if target.unseen]
        for sentence in names_in_common(list(trained.values()), unseen):
            logbook.warn(sentence)
    return people


def _align(opened: Mapping[str, Domain], config: Config, logbook: Logbook) -> None:
    """Attaches the landmarks that the settings name to domains, and says what becomes of images that are not square."""
    landmarks = config.data.landmarks
    if strange := [name for name in landmarks if name not in opened]:
        raise ValueError(
            f"data.landmarks names {', '.join(strange)}, which is no domain of this run; want names out of "
            f"{', '.join(opened)}"
        )
    for name, domain in opened.items():
        if landmarks.get(name, UNUSED) != UNUSED:
            logbook.say(f"align     {name}: {attach(domain, read_landmarks(landmarks[name]))}")
        shapes = shapes_of(domain, config.data.fit)
        if shapes.fit:
            logbook.say(f"{name}: {shapes.fit}")
        if shapes.outside:
            logbook.warn(f"{name}: {shapes.outside}")


def _hold_out(opened: dict[str, Domain], protocol: Protocol, config: Config) -> tuple[dict, dict]:
    """The domains that are trained on and those that are scored, by name; no person is in both."""
    trained, scored = {name: opened[name] for name in protocol.learned_from}, dict(opened)
    division, share = Division(), config.data.holdout
    for name in protocol.held_out:
        trained[name], scored[name] = division.share_out(opened[name], "data.holdout", share, config.seed)
    for name in protocol.targets:
        if name not in trained:
            scored[name] = division.divide_shared(opened[name], trained, share, config.seed)
    return dict(division.without_taken(trained)), scored


def _keep_for_validation(trained: dict[str, Domain], protocol: Protocol, config: Config) -> tuple[dict, dict]:
    """The domains without the people kept for validation, and these people, by domain."""
    division, rest, validation = Division(), dict(trained), {}
    for name in protocol.sources if config.data.validation else ():
        rest[name], kept = division.keep_some(trained[name], config.data.validation, config.seed)
        validation |= {name: kept} if kept else {}
    return dict(division.without_taken(rest)), validation


def _target(domain: Domain, config: Config, *, unseen: bool) -> Target:
    most = config.evaluate.probes_per_identity
    return Target(domain, gallery_probe(domain.offsets, seed=config.seed, probes_per_identity=most), unseen)


def _say(people: People, single: str, shared: list[str], logbook: Logbook) -> None:
    """Says who is trained on and who is scored, and warns of what was passed over or is in two domains."""
    sources = people.sources
    for sentence in shared:
        logbook.say(f"shared    {sentence}")
    one = sources[PRETRAIN] is sources[META]
    for stage, verb in ((PRETRAIN, "train on" if one else "stage one"), *([] if one else [(META, "stage two")])):
        for domain in sources[stage].domains:
            alone = domain.single if single == "drop" else 0
            drawn = f"; people with one image, never drawn: {alone:,} (data.single drop)" if alone else ""
            logbook.say(f"{verb:<9} {domain.name}: {domain.identities:,} people, {domain.images:,} images{drawn}")
        if sources[stage].labels is not None:
            number = sum(domain.identities for domain in sources[stage].domains)
            logbook.say(f"{verb:<9} {sources[stage].identities:,} people in all, under {number:,} labels of domains")
    for name, domain in people.validation.items():
        logbook.say(f"choose by {name}: {domain.identities:,} people, {domain.images:,} images, in no stage")
    for name, target in people.targets.items():
        kind = "never seen in training" if target.unseen else "people held out of training"
        logbook.say(f"score on  {name}: {target.domain.identities:,} people, {target.domain.images:,} images, {kind}")
    unseen = [target.domain for target in people.targets.values() if target.unseen]
    _warn_of(people.trained.values(), unseen, logbook)


def _warn_of(trained: Iterable[Domain], unseen: Iterable[Domain], logbook: Logbook) -> None:
    trained, unseen = list(trained), list(unseen)
    for note in dict.fromkeys(note for domain in (*trained, *unseen) for note in domain.notes):
        logbook.warn(note)
    for sentence in shared_images(trained, unseen):
        logbook.warn(sentence)


def _open(paths: Mapping[str, str], config: Config, logbook: Logbook) -> dict[str, Domain]:
    """{name: domain} of {name: path}, those on disk before faces are made, which takes long."""
    real = {name: path for name, path in paths.items() if not path.startswith(SYNTHETIC)}
    domains = {name: open_domain(path, name) for name, path in real.items()}
    made = _make_faces({name: path for name, path in paths.items() if name not in real}, config, logbook)
    return domains | {name: open_domain(path, name) for name, path in made.items()}


def _make_faces(paths, config, logbook):
    """{name: folder} for {name: "synthetic:DOMAIN"}; faces made before with the same settings are found again."""
    wanted = {name: path.removeprefix(SYNTHETIC) for name, path in paths.items()}
    for domain in wanted.values():
        if domain not in synthetic.DOMAINS:
            raise ValueError(f"there is no synthetic domain {domain!r}; want one of {', '.join(synthetic.DOMAINS)}")
    if not wanted:
        return {}
    settings = config.data.synthetic
    shares = {name: share for name in ("single", "twins") if (share := getattr(settings, name))}
    kept = f"{settings.identities}x{settings.images}-{settings.size}px"
    kept += "".join(f"-{name}{share}" for name, share in shares.items())
    with progress_of("making faces", logbook.console) as progress:
        made = synthetic.make(
            Path(settings.folder) / kept,
            domains=tuple(wanted.values()),
            identities=settings.identities,
            images=settings.images,
            size=settings.size,
            progress=progress,
            **shares,
        )
    return {name: made[domain] for name, domain in wanted.items()}
