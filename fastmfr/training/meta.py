"""Stage two: MFR. Every meta-batch leaves each source domain out once and takes one optimizer step.

Shape suffixes: B = pairs, H W = image.
"""

import math
from collections.abc import Callable
from functools import partial
from itertools import islice

import numpy as np
import torch
from torch import nn

from fastmfr.config import narrowed
from fastmfr.distributed import ALONE
from fastmfr.losses import MfrLosses
from fastmfr.meta import MetaSettings, MetaTrainer, PairBatch
from fastmfr.profiling import RECORDS, part_of_step
from fastmfr.results import META
from fastmfr.runtime import peak_bytes, to_device
from fastmfr.training.after_step import AfterStep
from fastmfr.training.balance import AlignmentWeight, warn_of_curvature, warn_of_shares
from fastmfr.training.choosing import Candidates, Choosing, first_batches
from fastmfr.training.data import Splits, images_of, share_of, slots_of
from fastmfr.training.errors import NonFiniteLoss
from fastmfr.training.optim import meta_rates, sgd
from fastmfr.training.run import Run

SCHEDULED = ("alpha", "beta", "tau_p", "tau_n", "decay_every")
ORDERS = {"mfr": 2, "mldg": 2, "first_order": 1, "no_meta": 0}  # of differentiability, by meta.method
FIRST_STEPS = 5  # over which the strength of the second order is looked at


def mfr_trainer(run: Run, backbone: nn.Module, optimizer: torch.optim.SGD) -> MetaTrainer:
    """The MetaTrainer that the run's settings name; the logbook says which engine it has and why."""
    settings = run.config.meta
    meta_settings = narrowed(settings, MetaSettings, order=ORDERS[settings.method])
    graph, group = settings.cuda_graph, run.ranks.group
    trainer = MetaTrainer(backbone, optimizer, meta_settings, cuda_graph=graph, group=group)
    run.logbook.say(f"engine {trainer.engine}{f': {trainer.reason}' if trainer.reason else ''}")
    return trainer


def meta_train(
    run: Run, backbone: nn.Module, choosing: Choosing | None = None, make_trainer: Callable = mfr_trainer
) -> None:
    """Train the backbone, in place, by MFR.

    Training goes on from the newest state in the run's folder, if there is one.

    Args:
        run: the run.
        backbone: the network.
        choosing: is offered the weights, and averages of them, to be handed out; None makes no averages.
        make_trainer: (run, backbone, optimizer) -> an object with `step` and `graph` as MetaTrainer has them.

    Raises:
        NonFiniteLoss: a loss, the gradient or a weight became NaN or infinite.
        KeyboardInterrupt: a signal asked the process to end; the state is kept.
    """
    settings, data, logbook = run.config.meta, run.data[META], run.logbook
    splits = Splits(data.sources, run.config)
    optimizer = sgd(backbone.parameters(), settings.momentum, settings.weight_decay)
    candidates = Candidates(choosing, run, META, settings.steps, backbone)
    alignment = AlignmentWeight(settings).to(run.device)
    networks = nn.ModuleDict({"backbone": backbone, "averages": candidates.averages, "alignment": alignment})
    first = run.checkpoints(META).resume(networks, optimizer)
    requests = lambda i: images_of(*splits.pairs(i))  # noqa: E731
    stream = partial(data.images.open, requests)
    whole = partial(stream, slot_B=slots_of(ALONE, *splits.pairs(0)))
    if first < candidates.steps:
        logbook.rewind(META, first)
        backbone.train()
        if alignment.is_auto and not first:
            alignment.choose(backbone, _first_train_batches(whole, splits), logbook)
        trainer = make_trainer(run, backbone, optimizer)
        after = AfterStep(run, META, first, settings.steps, backbone, networks, optimizer, candidates)
        _train(run, trainer, splits, stream, after, first, alignment.value)
    frozen = settings.batch_norm == "frozen"
    candidates.finish(None if frozen else partial(first_batches, whole, settings.steps * splits.of_a_step))


def _train(run, trainer, splits, stream, after, first, weight):
    """Takes the steps from `first` on."""
    settings, logbook, of_a_step = run.config.meta, run.logbook, splits.of_a_step
    slot_B = slots_of(run.ranks, *splits.pairs(0))
    with (
        stream(slot_B=slot_B, first=first * of_a_step, last=settings.steps * of_a_step) as images_of_splits,
        logbook.progress(META, first, settings.steps) as meter,
        after,
    ):
        images_of_a_step = len(slot_B) * run.ranks.world * of_a_step
        told = _Records(run, splits, meter, images_of_splits, first, images_of_a_step, weight)
        images = iter(images_of_splits)
        for step in range(first, settings.steps):
            rates = meta_rates(step, **{name: getattr(settings, name) for name in SCHEDULED})
            result = trainer.step(
                (_split(image_B3HW, splits.pairs(i), run.ranks) for i, image_B3HW in islice(images, of_a_step)),
                alpha=rates.alpha,
                rate=rates.beta,
                losses=narrowed(settings, MfrLosses, tau_p=rates.tau_p, tau_n=rates.tau_n, domain_alignment=weight),
            )
            with part_of_step(RECORDS):
                told.add(step, result, rates)
            if after(step + 1):
                break
    logbook.say(f"meta: {trainer.graph}; peak memory {peak_bytes(run.device) / 2**20:,.0f} MB")


def _first_train_batches(stream, splits):
    """The meta-train batches of the first step."""
    with stream(first=0, last=splits.of_a_step) as images:
        for i, image_B3HW in images:
            yield _split(image_B3HW, splits.pairs(i), ALONE)[0]


def _split(image_B3HW, pairs, ranks):
    """This rank's (train, test) batches out of its images of one split, laid as `images_of` asked for them."""
    halves, pairs = [], [share_of(ranks, pair) for pair in pairs]
    for pair, images in zip(pairs, image_B3HW.split([2 * len(pair.domain) for pair in pairs]), strict=True):
        domain_B = to_device(pair.domain, images.device)
        gallery_B3HW, probe_B3HW = map(_channels_last, images.chunk(2))
        halves.append(PairBatch(gallery_B3HW, probe_B3HW, domain_B))
    return tuple(halves)


def _channels_last(image_B3HW):
    return image_B3HW.contiguous(memory_format=torch.channels_last)


class _Records:
    """Checks, records and shows every meta step."""

    def __init__(self, run: Run, splits, meter, stream, first, images_of_a_step, weight):
        self._run, self._splits, self._meter, self._stream = run, splits, meter, stream
        self._first, self._images_of_a_step = first, images_of_a_step
        self._weight, self._ratios = weight, []

    def add(self, step, result, rates):
        """Record a step. Raises NonFiniteLoss."""
        values_by_split, gradient_norm = _to_host(result)
        of_a_step, domains = self._splits.of_a_step, self._run.data[META].sources.domains
        left_out = [domains[self._splits.left_out(step * of_a_step + i)].name for i in range(of_a_step)]
        _refuse_non_finite(values_by_split, left_out, step)
        values = {name: float(np.mean(value)) for name, value in values_by_split.items()}
        loss, seen = values["total_test"], (step + 1 - self._first) * self._images_of_a_step
        epoch = (step + 1) * self._images_of_a_step / self._run.data[META].sources.images
        note = f"loss {loss:.3f} · learning rate {rates.beta:.3g} · epoch {epoch:.2f}"
        speed, wait = self._meter.step(step + 1, seen, self._stream.wait_seconds, note)
        rest = {"learning_rate": rates.beta, "images_per_second": speed, "data_wait": wait}
        rest["alignment_weight"] = self._weight
        self._run.logbook.record(META, step, loss=loss, gradient_norm=gradient_norm, **values, **vars(rates), **rest)
        if "alpha_hv_over_v" in values:
            self._warn(step, values, rates)

    def _warn(self, step, values, rates):
        """Warn in the first steps that this process takes."""
        done, logbook = step + 1 - self._first, self._run.logbook
        if done == 1:
            warn_of_shares(values, self._run.config, self._weight, logbook)
        if done <= FIRST_STEPS:
            self._ratios.append(values["alpha_hv_over_v"])
        if done == FIRST_STEPS:
            warn_of_curvature(float(np.mean(self._ratios)), rates.alpha, logbook)


def _to_host(result):
    """({name: its values by split}, gradient norm): the step's one synchronisation, after all of its work is queued."""
    named = {**result.losses, **result.norms}
    table = torch.stack([value.double() for value in named.values()]).cpu().numpy()
    return dict(zip(named, table, strict=True)), result.gradient_norm.item()


def _refuse_non_finite(values_by_split, left_out, step):
    """Raises NonFiniteLoss for the first split and loss that is NaN or infinite, or whose gradient is."""
    for name, value_by_split in values_by_split.items():
        for domain, value in zip(left_out, value_by_split, strict=True):
            if not math.isfinite(value):
                raise NonFiniteLoss(
                    f"{name} is not finite at meta step {step}, in the split that leaves out {domain}; the state "
                    "before is in checkpoints/. Lower meta.alpha and meta.beta, or the largest loss's weight"
                )
