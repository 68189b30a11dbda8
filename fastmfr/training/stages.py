"""The two stages of training: margin softmax over all identities, then MFR over splits of the source domains.

Shape suffixes: B = batch or pairs, H W = image.
"""

import math
from collections import deque
from dataclasses import fields
from functools import partial
from itertools import islice

import numpy as np
import torch
from torch import nn

from fastmfr.decode import DecodedCache, Preprocess, choose_cache, open_stream
from fastmfr.fused import AS_IT_IS, fused
from fastmfr.head import MarginHead, make_margin
from fastmfr.losses import LOSSES, MfrLosses
from fastmfr.meta import MetaSettings, MetaTrainer, PairBatch
from fastmfr.runtime import peak_bytes, to_device
from fastmfr.sampler import GroupedDomainSampler, Pairs
from fastmfr.training.optim import meta_rates, pretrain_rate, set_rate, sgd
from fastmfr.training.pretraining_step import PretrainingStep, to_host

SCHEDULED = ("alpha", "beta", "tau_p", "tau_n", "decay_every")
ORDERS = {"mfr": 2, "mldg": 2, "first_order": 1, "no_meta": 0}  # of differentiability, by meta.method
KEPT_BACK = {"cuda": 1}  # losses that are not read before the next step is queued, by device


class NonFiniteLoss(RuntimeError):
    """A loss became NaN or infinite; the message names the domain, the loss and the step."""


def preprocess(data) -> Preprocess:
    """What a run's `data` settings do to every training image."""
    names = ("size", "mean", "std", "flip", "translate", "low_resolution", "brightness", "contrast")
    return Preprocess(**{name: getattr(data, name) for name in names})


def _sampler(sources, config, batch_identities, **options):
    offsets = {domain.name: domain.offsets for domain in sources.domains}
    return GroupedDomainSampler(offsets, batch_identities, config.seed, single=config.data.single, **options)


def check_batches(sources, config):
    """Raises ValueError, before anything is trained, where a stage that is to run could not draw its batches."""
    domains, meta = sources.domains, config.meta
    if config.pretrain.steps:
        _sampler(sources, config, config.pretrain.batch_identities)
    if meta.steps and len(domains) < 2:
        raise ValueError(
            "meta-training leaves out one source domain at a time, so it needs two or more; there is one, "
            f"{domains[0].name}. Add sources, or set meta.steps to 0"
        )
    if meta.steps:
        splits = Splits(sources, config)
        for i in range(splits.of_a_step):
            splits.pairs(i)


def image_opener(sources, config, device, decoding, logbook):
    """open(requests, batch_images=, first=, last=) -> a stream of training images, for both stages.

    Images are kept as data.cache asks: it says where and why, and decodes them now. `decoding`: threads, decoder, vet
    and verdicts, as ImageStream takes them.
    """
    pairs = config.pretrain.steps * config.pretrain.batch_identities
    pairs += config.meta.steps * config.meta.batch_identities * 2 * len(sources.domains)
    look = preprocess(config.data)
    place, sentence = choose_cache(config.data.cache, sources.domains, look, 2 * pairs, device)
    logbook.say(sentence)
    cache = "none"
    if place != "none":
        images = sum(domain.images for domain in sources.domains)
        with logbook.progress("decoding", 0, images) as meter:
            cache = DecodedCache(
                sources.domains,
                look,
                place=place,
                device=device,
                **decoding,
                progress=lambda done, _: meter.step(done, done),
            )
    return partial(
        open_stream, sources.domains, preprocess=look, cache=cache, seed=config.seed, device=str(device), **decoding
    )


def _images(*pairs):
    """(domain_B, image_B) of all galleries and probes, in the order gallery, probe of the first, then of the next."""
    domain = [part for pair in pairs for part in (pair.domain, pair.domain)]
    image = [part for pair in pairs for part in (pair.gallery, pair.probe)]
    return np.concatenate(domain), np.concatenate(image)


class Splits:
    """The splits of all meta steps, one after the other: `of_a_step` in each, a pure function of their number i."""

    def __init__(self, sources, config):
        settings, self._domains, self._seed = config.meta, len(sources.domains), config.seed
        self._one = settings.method == "mldg"
        self.of_a_step = 1 if self._one else self._domains
        identities = settings.batch_identities
        self._sampler = _sampler(sources, config, identities, per_domain=settings.per_domain)
        self._everyone = None
        if settings.sharing == "per_domain":
            self._everyone = _sampler(sources, config, identities * self._domains)

    def left_out(self, i):
        """Number of the domain that split i tests on."""
        if self._one:
            return int(np.random.default_rng([self._seed, i]).integers(self._domains))
        return i % self._domains

    def pairs(self, i):
        """(train, test) Pairs of split i; where domains share their gradients, both of the domain left out."""
        step, domain = i // self.of_a_step, self.left_out(i)
        train, test = self._sampler.split(step, domain)
        if self._everyone is not None:
            everyone = self._everyone.batch(step)
            mine = everyone.domain == domain
            train = Pairs(*(getattr(everyone, field.name)[mine] for field in fields(Pairs)))
        return train, test


def pretrain(backbone, sources, config, open_images, device, logbook, checkpoints, watch=lambda steps: None):
    """Trains the backbone, in place, to tell all identities of all sources apart.

    `open_images` as image_opener makes it; `watch(steps done)` is called after each step.
    """
    settings = config.pretrain
    sampler = _sampler(sources, config, settings.batch_identities)
    margin = make_margin(settings.margin, settings.margin_values)
    head = MarginHead(
        backbone.embedding,
        sources.identities,
        margin,
        settings.scale,
        sample_rate=settings.sample_rate,
        seed=config.seed,
    ).to(device)
    both = nn.ModuleDict({"backbone": backbone, "head": head})
    optimizer = sgd(backbone.parameters(), settings.momentum, settings.weight_decay)
    first = checkpoints.resume(both, optimizer)
    logbook.rewind("pretrain", first)
    both.train()
    network = _network(backbone, settings, device, logbook)
    run = PretrainingStep(network, head, settings.precision, cuda_graph=settings.cuda_graph)
    requests = lambda step: _images(sampler.batch(step))  # noqa: E731
    with (
        open_images(requests, batch_images=2 * settings.batch_identities, first=first, last=settings.steps) as stream,
        logbook.progress("pretrain", first, settings.steps) as meter,
    ):
        losses = _Losses(partial(_tell_loss, sources, logbook, meter, stream, first), device)
        for step, image_B3HW in stream:
            pairs = sampler.batch(step)  # drawn again: a few microseconds, and nothing to carry beside the images
            label_B = to_device(np.tile(sources.label(pairs.domain, pairs.identity), 2), device)
            rate = pretrain_rate(step, settings.steps, settings.learning_rate, settings.warmup)
            set_rate(optimizer, rate)
            loss_B = run(image_B3HW, label_B, step)
            optimizer.step()
            head.update(rate, settings.momentum, settings.weight_decay)
            losses.add(loss_B, step, pairs, rate)
            if (step + 1) % config.save_every == 0:
                losses.tell()
                checkpoints.save(step + 1, both, optimizer)
            watch(step + 1)
        losses.tell()
    optimizer.zero_grad()  # a few gradients left of a CUDA graph would keep all of its memory
    logbook.say(f"pretrain: {run.state}; peak memory {peak_bytes(device) / 2**20:,.0f} MB")


def _network(backbone, settings, device, logbook):
    """What runs in place of the backbone, whose parameters and buffers it shares; on the CPU the backbone itself."""
    if device.type != "cuda":
        return backbone
    network, sentence = fused(backbone) if settings.fused else (backbone, f"{AS_IT_IS}, as was asked for")
    logbook.say(f"pretrain: {sentence}")
    return network


class _Losses:
    """Has each step's losses told in order: on the CPU at once, on a GPU when the next step is queued.

    Reading a loss waits for its step, the only thing in a step that does. So told, the GPU has work meanwhile.
    """

    def __init__(self, tell, device):
        self._tell, self._waiting, self._kept_back = tell, deque(), KEPT_BACK.get(device.type, 0)

    def add(self, loss_B, *what):
        self._waiting.append((to_host(loss_B), *what))
        self.tell(self._kept_back)

    def tell(self, kept_back=0):
        """Tells all but the last few. Before a state is saved all must be told: one may be of a loss gone wrong."""
        while len(self._waiting) > kept_back:
            read, *what = self._waiting.popleft()
            self._tell(read(), *what)


def _tell_loss(sources, logbook, meter, stream, first, loss_B, step, pairs, rate):
    """Records a step of pretraining. Raises NonFiniteLoss."""
    loss = loss_B.mean().item()
    if not math.isfinite(loss):
        raise NonFiniteLoss(_blame_rows(loss_B, pairs, sources, step))
    seen = (step + 1 - first) * len(loss_B)
    speed, wait = meter.step(step + 1, seen, stream.wait_seconds, f"loss {loss:.3f}")
    logbook.record("pretrain", step, loss=loss, learning_rate=rate, images_per_second=speed, data_wait=wait)


def meta_train(backbone, sources, config, open_images, device, logbook, checkpoints, watch=lambda steps: None):
    """Trains the backbone, in place, by MFR, one optimizer step a meta-batch; the rest as in `pretrain`."""
    settings, splits = config.meta, Splits(sources, config)
    optimizer = sgd(backbone.parameters(), settings.momentum, settings.weight_decay)
    first = checkpoints.resume(backbone, optimizer)
    logbook.rewind("meta", first)
    backbone.train()
    rates_of = partial(meta_rates, **{name: getattr(settings, name) for name in SCHEDULED})
    trainer = MetaTrainer(backbone, optimizer, _meta_settings(settings), cuda_graph=settings.cuda_graph)
    logbook.say(f"engine {trainer.engine}{f': {trainer.reason}' if trainer.reason else ''}")
    requests = lambda i: _images(*splits.pairs(i))  # noqa: E731
    batch_images, of_a_step = len(requests(0)[0]), splits.of_a_step
    shares, numbers = [], {"first": first * of_a_step, "last": settings.steps * of_a_step}
    with (
        open_images(requests, batch_images=batch_images, **numbers) as stream,
        logbook.progress("meta", first, settings.steps) as meter,
    ):
        images = iter(stream)
        for step in range(first, settings.steps):
            rates = rates_of(step)
            result = trainer.step(
                (_split(image_B3HW, splits.pairs(i)) for i, image_B3HW in islice(images, of_a_step)),
                alpha=rates.alpha,
                rate=rates.beta,
                losses=_losses(settings, rates),
            )
            values_by_split, gradient_norm = _to_host(result)
            left_out = [sources.domains[splits.left_out(step * of_a_step + i)].name for i in range(of_a_step)]
            _refuse_non_finite(values_by_split, left_out, step)
            values = {name: float(np.mean(value)) for name, value in values_by_split.items()}
            seen = (step + 1 - first) * batch_images * of_a_step
            speed, wait = meter.step(step + 1, seen, stream.wait_seconds, f"loss {values['total_test']:.3f}")
            logbook.record(
                "meta",
                step,
                loss=values["total_test"],
                gradient_norm=gradient_norm,
                **values,
                **vars(rates),
                learning_rate=rates.beta,
                images_per_second=speed,
                data_wait=wait,
            )
            shares.append(values)
            if len(shares) == 5:
                _warn_of_imbalance(shares, rates.alpha, settings, logbook)
            if (step + 1) % config.save_every == 0:
                checkpoints.save(step + 1, backbone, optimizer)
            watch(step + 1)
    logbook.say(f"meta: {trainer.graph}; peak memory {peak_bytes(device) / 2**20:,.0f} MB")


def _meta_settings(settings) -> MetaSettings:
    shared = ("gamma", "engine", "memory", "batch_norm", "sharing", "precision", "curvature")
    return MetaSettings(order=ORDERS[settings.method], **{name: getattr(settings, name) for name in shared})


def _to_host(result):
    """({name: its values by split}, gradient norm): the step's one synchronisation, after all of its work is queued."""
    named = {**result.losses, **result.norms}
    table = torch.stack([value.double() for value in named.values()]).cpu().numpy()
    return dict(zip(named, table, strict=True)), result.gradient_norm.item()


def _channels_last(image_B3HW):
    return image_B3HW.contiguous(memory_format=torch.channels_last)


def _split(image_B3HW, pairs):
    """(train, test) batches out of the images of one split, laid as `_images` asked for them."""
    halves = []
    for pair, images in zip(pairs, image_B3HW.split([2 * len(pair.domain) for pair in pairs]), strict=True):
        domain_B = to_device(pair.domain, images.device)
        gallery_B3HW, probe_B3HW = map(_channels_last, images.chunk(2))
        halves.append(PairBatch(gallery_B3HW, probe_B3HW, domain_B))
    return tuple(halves)


def _losses(settings, rates) -> MfrLosses:
    shared = ("scale", *LOSSES, "mining", "share_p", "share_n", "detach_prototypes")
    return MfrLosses(rates.tau_p, rates.tau_n, **{name: getattr(settings, name) for name in shared})


def _blame_rows(loss_B, pairs, sources, step):
    """The sentence for a pretraining loss that is not finite."""
    bad = (~torch.isfinite(loss_B.detach())).cpu().numpy()
    guilty = np.unique(np.tile(pairs.domain, 2)[bad] if bad.any() else pairs.domain)
    names = ", ".join(sources.domains[number].name for number in guilty)
    return (
        f"the margin-softmax loss is not finite at pretraining step {step}, on images of {names}; the state before is "
        "in checkpoints/. Lower pretrain.learning_rate or lengthen pretrain.warmup, and look at that domain's images"
    )


def _refuse_non_finite(values_by_split, left_out, step):
    """Raises NonFiniteLoss for the first split and loss that is NaN or infinite, or whose gradient is."""
    for name, value_by_split in values_by_split.items():
        for domain, value in zip(left_out, value_by_split, strict=True):
            if not math.isfinite(value):
                raise NonFiniteLoss(
                    f"{name} is not finite at meta step {step}, in the split that leaves out {domain}; the state "
                    "before is in checkpoints/. Lower meta.alpha and meta.beta, or the largest loss's weight"
                )


def _warn_of_imbalance(records, alpha, settings, logbook):
    """After the first steps: says so when one loss does nearly all the pulling, or alpha makes H v overwhelm v."""
    for name in LOSSES:
        share = float(np.mean([record[f"share_{name}"] for record in records]))
        if share > 0.95:
            logbook.warn(
                f"{name} supplies {100 * share:.0f} % of the gradient, the other losses next to nothing; lower "
                f"--meta.{name} (now {getattr(settings, name):g})"
            )
    ratio = float(np.mean([record["alpha_hv_over_v"] for record in records]))
    if ratio > 1:
        logbook.warn(
            f"the second-order term is {ratio:.1f} times the first-order one, so the look-ahead is no small step; "
            f"lower --meta.alpha (now {alpha:g}) until alpha |Hv| / |v| is about 0.1 to 0.3"
        )
