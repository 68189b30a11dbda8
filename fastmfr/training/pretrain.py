"""Stage one: margin softmax over all identities of all source domains.

Shape suffixes: B = images of a batch, H W = image.
"""

import math
from collections import deque
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from fastmfr.classifier_files import open_classifier
from fastmfr.distributed import ALONE, Ranks, gather_whole, over_ranks
from fastmfr.freezing import hold_statistics
from fastmfr.fused import AS_IT_IS, fused, has_batch_norm
from fastmfr.head import MarginHead, make_margin
from fastmfr.profiling import RECORDS, UPDATE, part_of_step
from fastmfr.results import PRETRAIN
from fastmfr.runtime import peak_bytes, to_device
from fastmfr.training.after_step import AfterStep
from fastmfr.training.choosing import Candidates, Choosing, first_batches
from fastmfr.training.compiling import compiled_or_not
from fastmfr.training.data import images_of, sampler_of_stage_one, share_of, slots_of
from fastmfr.training.errors import NonFiniteLoss
from fastmfr.training.optim import pretrain_rate, set_rate, sgd
from fastmfr.training.pretraining_step import PretrainingStep, obstacle, to_host
from fastmfr.training.run import Run

KEPT_BACK = {"cuda": 1}  # losses that are not read before the next step is queued, by device


def pretrain(run: Run, backbone: nn.Module, choosing: Choosing | None = None) -> MarginHead:
    """Train the backbone, in place, to tell all identities of all source domains apart.

    Training goes on from the newest state in the run's folder, if there is one.

    Args:
        run: the run.
        backbone: the network.
        choosing: is offered the weights, and averages of them, to be handed out; None makes no averages.

    Returns:
        The classifier, as trained.

    Raises:
        NonFiniteLoss: the loss or a weight became NaN or infinite.
        KeyboardInterrupt: a signal asked the process to end; the state is kept.
    """
    settings, data = run.config.pretrain, run.data[PRETRAIN]
    sampler = sampler_of_stage_one(data.sources, run.config, settings.people)
    head = _new_head(run, backbone)
    candidates = Candidates(choosing, run, PRETRAIN, settings.steps, backbone)
    networks = nn.ModuleDict({"backbone": backbone, "head": head, "averages": candidates.averages})
    optimizer = sgd(backbone.parameters(), settings.momentum, settings.weight_decay)
    first = run.checkpoints(PRETRAIN).resume(networks, optimizer)
    if settings.classifier and not first:
        with run.ranks.alike():
            _begin_with(run, head, settings.classifier)
    stream = partial(data.images.open, lambda step: images_of(sampler.batch(step)))
    if first < settings.steps:
        _train(run, backbone, head, networks, optimizer, candidates, sampler, stream, first)
    frozen = settings.batch_norm == "frozen"
    everything = slots_of(ALONE, sampler.batch(0))
    whole = partial(stream, slot_B=everything)
    candidates.finish(None if frozen else partial(first_batches, whole, settings.steps))
    return head


def _train(run, backbone, head, networks, optimizer, candidates, sampler, stream, first):
    """Takes the steps from `first` on."""
    settings, sources, logbook = run.config.pretrain, run.data[PRETRAIN].sources, run.logbook
    logbook.rewind(PRETRAIN, first)
    networks.train()
    if settings.batch_norm == "frozen":
        hold_statistics(backbone)
    ranks = run.ranks
    own_B = slots_of(ranks, sampler.batch(0))
    network = _network(run, backbone, head, len(own_B), settings.steps - first)
    step_of = PretrainingStep(network, head, settings.precision, cuda_graph=settings.cuda_graph)
    settle = lambda: losses.read()  # noqa: E731
    with (
        stream(slot_B=own_B, first=first, last=settings.steps) as images,
        logbook.progress(PRETRAIN, first, settings.steps) as meter,
        AfterStep(run, PRETRAIN, first, settings.steps, backbone, networks, optimizer, candidates, settle) as after,
    ):
        losses = _Losses(partial(_record, run, meter, images, first), run.device)
        for step, image_B3HW in images:
            pairs = sampler.batch(step)  # drawn again: a few microseconds, and nothing to carry beside the images
            own = share_of(ranks, pairs)
            label_B = to_device(np.tile(sources.label(own.domain, own.identity), 2), run.device)
            rate = pretrain_rate(step, settings.steps, settings.learning_rate, settings.warmup)
            set_rate(optimizer, settings.backbone_multiplier * rate)
            loss_B = step_of(image_B3HW, label_B, step)
            with part_of_step(UPDATE):
                optimizer.step()
                head.update(rate, settings.momentum, settings.weight_decay)
            with part_of_step(RECORDS):
                losses.add(of_all_ranks(loss_B, ranks), step, pairs, rate)
            after(step + 1)
    optimizer.zero_grad()  # a few gradients left of a CUDA graph would keep all of its memory
    logbook.say(f"pretrain: {step_of.state}; peak memory {peak_bytes(run.device) / 2**20:,.0f} MB")


def _new_head(run, backbone):
    """The classifier with fresh weights, on the run's device."""
    settings = run.config.pretrain
    head = MarginHead(
        backbone.embedding,
        run.data[PRETRAIN].sources.identities,
        make_margin(settings.margin, settings.margin_values),
        settings.scale,
        sample_rate=settings.sample_rate,
        seed=run.config.seed,
        group=run.ranks.group,
    )
    return head.to(run.device)


@torch.no_grad()
def _begin_with(run, head, path):
    """Puts the rows of a classifier that was handed on in the place of fresh ones, and says how many."""
    classifier, (begin, end) = open_classifier(path, head.weight_CD.shape[1]), head.rows
    row_C = classifier.row_of(run.data[PRETRAIN].sources)
    for places, weight_CD in classifier.rows(row_C[begin:end]):
        head.weight_CD[torch.from_numpy(places).to(run.device)] = weight_CD.to(run.device)
    found = int((row_C >= 0).sum())
    tell = run.logbook.say if found else run.logbook.warn
    tell(f"classifier: {found:,} of {len(row_C):,} rows are those of {path}, {len(row_C) - found:,} are drawn new")


def _network(run, backbone, head, images, steps):
    """What runs in place of the backbone, for `steps` steps, and shares its parameters and buffers."""
    settings, group = run.config.pretrain, run.ranks.group
    sync = group is not None and settings.sync_batch_norm and settings.batch_norm == "batch"
    sync = sync and has_batch_norm(backbone)
    if sync and settings.compile == "on":
        raise ValueError(
            "pretrain.compile on: the statistics of all processes' images are taken by a kernel, which torch.compile "
            "cannot make; want pretrain.sync_batch_norm false, or pretrain.compile off"
        )
    reason = "" if sync else _why_not_fused(settings, run.device, backbone, head)
    network, sentence = (backbone, f"{AS_IT_IS}, {reason}") if reason else fused(backbone, group if sync else None)
    run.logbook.say(f"pretrain: {sentence}")
    if sync and has_batch_norm(network):
        raise ValueError(
            f"pretrain.sync_batch_norm: {sentence}, so the statistics of all processes' images cannot be had; want "
            "pretrain.sync_batch_norm false"
        )
    network = compiled_or_not(run, backbone, network, head, images, steps)
    if group is None:
        return network
    return over_ranks(network, group, same_buffers=not sync)


def _why_not_fused(settings, device, backbone, head):
    """Why BatchNorms run as PyTorch has them, or ""."""
    if settings.compile == "on":
        return "and torch.compile joins them as it sees fit"
    if settings.fused is not None:
        return "" if settings.fused else "as was asked for"
    if device.type == "cpu":
        return "" if settings.precision == "fp32" else f"for on the CPU {settings.precision} has no fused passes"
    is_recorded = settings.cuda_graph and not obstacle(backbone, head)
    return "" if is_recorded else "for fused kernels that are not replayed would keep the host busy for longer"


def of_all_ranks(loss_B: Tensor, ranks: Ranks) -> Tensor:
    """Return the losses of the images of all ranks, in the order of the slots; `loss_B` are this rank's."""
    if ranks.group is None:
        return loss_B
    return gather_whole(loss_B.view(2, -1).T.contiguous(), ranks.group).T.flatten()


class _Losses:
    """Records each step's losses in order: on the CPU at once, on a GPU when the next step is queued.

    Reading a loss waits for its step, the only wait in a step. Read one step late, the GPU has work meanwhile.
    """

    def __init__(self, record: Callable, device: torch.device):
        self._record, self._waiting, self._kept_back = record, deque(), KEPT_BACK.get(device.type, 0)

    def add(self, loss_B: Tensor, *what):
        self._waiting.append((to_host(loss_B), *what))
        self.read(self._kept_back)

    def read(self, kept_back: int = 0):
        """Record all losses but the last `kept_back`. Before a state is kept none may wait: one may not be finite."""
        while len(self._waiting) > kept_back:
            read, *what = self._waiting.popleft()
            self._record(read(), *what)


def _record(run, meter, images, first, loss_B, step, pairs, rate):
    """Records a step of pretraining. Raises NonFiniteLoss."""
    loss = loss_B.mean().item()
    if not math.isfinite(loss):
        raise NonFiniteLoss(_blame_rows(loss_B, pairs, run.data[PRETRAIN].sources, step))
    seen = (step + 1 - first) * len(loss_B)
    epoch = (step + 1) * len(loss_B) / run.data[PRETRAIN].sources.images
    note = f"loss {loss:.3f} · learning rate {rate:.3g} · epoch {epoch:.2f}"
    speed, wait = meter.step(step + 1, seen, images.wait_seconds, note)
    run.logbook.record(PRETRAIN, step, loss=loss, learning_rate=rate, images_per_second=speed, data_wait=wait)


def _blame_rows(loss_B, pairs, sources, step):
    """The sentence for a pretraining loss that is not finite."""
    bad = (~torch.isfinite(loss_B.detach())).cpu().numpy()
    guilty = np.unique(np.tile(pairs.domain, 2)[bad] if bad.any() else pairs.domain)
    names = ", ".join(sources.domains[number].name for number in guilty)
    return (
        f"the margin-softmax loss is not finite at pretraining step {step}, on images of {names}; the state before is "
        "in checkpoints/. Lower pretrain.learning_rate or lengthen pretrain.warmup, and look at that domain's images"
    )
