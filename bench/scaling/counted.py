"""What ranks over gloo really send in a step, beside the formulas: every operation that reaches torch's c10d library.

DistributedDataParallel's buckets are among them, which functions of torch.distributed do not see.
"""

import multiprocessing
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode

from fastmfr.backbone import build
from fastmfr.distributed import Ranks, over_ranks
from fastmfr.fused import fused
from fastmfr.head import MarginHead, make_margin
from fastmfr.losses import MfrLosses
from fastmfr.meta import MetaSettings, MetaTrainer, PairBatch
from fastmfr.runtime import to_channels_last
from fastmfr.training.averages import Averages
from fastmfr.training.checkpoint import Checkpoints
from fastmfr.training.optim import sgd
from fastmfr.training.pretrain import of_all_ranks
from fastmfr.training.pretraining_step import PretrainingStep

from . import messages, room
from .messages import Message
from .plan import Plan, network_of

SIZE = 32  # pixels of an image
WARM = 2  # steps before the one that is counted: DistributedDataParallel lays out its buckets anew after the first
KINDS = {
    "c10d::allreduce_": ("all_reduce", lambda args: args[0]),
    "c10d::broadcast_": ("broadcast", lambda args: args[0]),
    "c10d::allgather_": ("all_gather", lambda args: args[0][0]),
    "c10d::_allgather_base_": ("all_gather", lambda args: [args[0]]),
    "c10d::_reduce_scatter_base_": ("reduce_scatter", lambda args: [args[1]]),
}
CASES = {
    "pretraining, all classes": {},
    "pretraining, 30 % of the classes": {"sample_rate": 0.3},
    "pretraining, own statistics": {"sync": False},
    "meta step, statistics of all": {},
    "meta step, frozen statistics": {"batch_norm": "frozen"},
}


class Counted(TorchDispatchMode):
    """A block in which every collective operation of this process is noted in `messages`."""

    def __init__(self):
        super().__init__()
        self.messages: list[Message] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        """Note an operation of c10d, and do it."""
        name = func.name()
        if name in KINDS:
            kind, tensors_of = KINDS[name]
            self.messages.append(Message(kind, sum(map(_bytes, tensors_of(args)))))
        elif func.namespace == "c10d":
            raise NotImplementedError(f"{name} is not counted yet; give it a line in KINDS")
        return func(*args, **(kwargs or {}))


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def plan_of(world: int, name: str = "mfr28", **changes) -> Plan:
    """Return the plan of the small steps that are counted here, with a backbone of NETWORKS."""
    network = network_of(_backbone(name))
    return Plan(network, world, 41 * world, people=4, pairs=2, domains=2, embedding=16, unit=4).but(**changes)


def _backbone(name):
    torch.manual_seed(0)
    return to_channels_last(NETWORKS[name](), torch.device("cpu")).train()


def _three_layers():
    return nn.Sequential(
        *(nn.Conv2d(3, 6, 3, 2, 1, bias=False), nn.BatchNorm2d(6), nn.PReLU(6)),
        *(nn.Conv2d(6, 8, 3, 2, 1), nn.BatchNorm2d(8)),
        *(nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Linear(72, 16), nn.BatchNorm1d(16)),
    )


NETWORKS = {"mfr28": lambda: build("mfr28", 16, width=0.125), "three layers": _three_layers}


def step_of_pretraining(name: str, plan: Plan, ranks: Ranks):
    """Return a function that takes a step of a backbone of NETWORKS, and what a state holds: (networks, optimizer)."""
    group = ranks.group
    if group is None:
        raise ValueError("want ranks that form a group, got a process alone")
    backbone = _backbone(name)
    network = over_ranks(fused(backbone, group if plan.sync else None)[0], group, same_buffers=not plan.sync)
    margin = make_margin("cosface")
    head = MarginHead(plan.embedding, plan.identities, margin, sample_rate=plan.sample_rate, group=group)
    optimizer, step_of = sgd(backbone.parameters(), 0.9, 5e-4), PretrainingStep(network, head)
    lot = torch.Generator().manual_seed(ranks.number)
    image_B3HW = torch.randn(plan.batch, 3, SIZE, SIZE, generator=lot)
    label_B = torch.randint(plan.identities, (plan.batch,), generator=lot)

    def step():
        loss_B = step_of(image_B3HW, label_B)
        optimizer.step()
        head.update(0.1, 0.9, 5e-4)
        of_all_ranks(loss_B, ranks)
        ranks.any(False)

    averages = Averages(backbone, 0.999, 0)
    return step, (torch.nn.ModuleDict({"backbone": backbone, "head": head, "averages": averages}), optimizer)


def step_of_meta(name: str, plan: Plan, ranks: Ranks):
    """Return a function that takes a meta step of the second order, of a backbone of NETWORKS."""
    backbone = _backbone(name)
    settings = MetaSettings(order=2, batch_norm=plan.batch_norm, memory="kept")
    trainer = MetaTrainer(backbone, sgd(backbone.parameters(), 0.9, 5e-4), settings, group=ranks.group)
    lot = torch.Generator().manual_seed(ranks.number)

    def half():
        gallery, probe = (torch.randn(plan.pairs, 3, SIZE, SIZE, generator=lot) for _ in range(2))
        return PairBatch(gallery, probe, torch.arange(plan.pairs) % 2)

    def step():
        splits = [(half(), half()) for _ in range(plan.domains)]
        trainer.step(splits, alpha=0.05, rate=0.02, losses=MfrLosses(mining="share"))
        ranks.any(False)

    return step


def _on_rank(rank, world, folder, network):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world)
    ranks, found = Ranks(dist.group.WORLD), {}
    for name, changes in CASES.items():
        plan, kept = plan_of(world, network, **changes), None
        if name.startswith("meta"):
            step = step_of_meta(network, plan, ranks)
        else:
            step, kept = step_of_pretraining(network, plan, ranks)
        for _ in range(WARM):
            step()
        with Counted() as counted:
            step()
        found[name] = counted.messages
        if kept and plan.sync:
            Checkpoints(Path(folder) / "states", "pretrain", ranks=ranks).save(WARM + 1, *kept)
    torch.save({name: [tuple(each) for each in noted] for name, noted in found.items()}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def count(world: int, network: str = "mfr28") -> tuple[dict[str, tuple[Counter, Counter]], tuple[int, int]]:
    """Count the messages of a step of each of CASES, on each of `world` ranks over gloo.

    Args:
        world: How many ranks are started.
        network: The backbone, one of NETWORKS.

    Returns:
        {case: (messages of a rank, messages by the formula)}; and the bytes of the tensors in the files of a state, and
        those by the formula.

    Raises:
        ValueError: If ranks differ in what they send.
    """
    with tempfile.TemporaryDirectory() as folder:
        start_ranks(_on_rank, world, folder, network)
        noted = [torch.load(f"{folder}/{rank}.pt") for rank in range(world)]
        if any(of_rank != noted[0] for of_rank in noted):
            raise ValueError(f"want the same messages on all {world} ranks, got {noted}")
        written = sum(map(_tensors_in, Path(folder).glob("states/*/*.safetensors")))
    found = {}
    for name, changes in CASES.items():
        plan = plan_of(world, network, **changes)
        wanted = messages.meta(plan) if name.startswith("meta") else messages.pretraining(plan)
        found[name] = Counter(Message(*each) for each in noted[0][name]), Counter(wanted)
    return found, (written, room.state(plan_of(world, network)))


def start_ranks(call: Callable[..., None], world: int, *arguments: Any) -> None:
    """Run call(rank, world, *arguments) in `world` processes, forked from one that has imported torch and fastmfr."""
    multiprocessing.set_forkserver_preload(["torch", "fastmfr.kernels", "fastmfr.meta", "fastmfr.training.pretrain"])
    torch.multiprocessing.start_processes(call, (world, *arguments), nprocs=world, start_method="forkserver")


def _tensors_in(path: Path) -> int:
    """The bytes of a safetensors file behind its head, whose length the first eight bytes say."""
    with path.open("rb") as file:
        return path.stat().st_size - 8 - int.from_bytes(file.read(8), "little")
