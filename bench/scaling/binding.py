"""What a run takes of its machines, what binds first, and the largest run that fits."""

from collections.abc import Callable
from dataclasses import dataclass

from . import messages, room
from .plan import Machines, Plan

MANY = 1 << 40  # identities or images: more than any run has


@dataclass(frozen=True)
class Taken:
    """What a run takes; sizes in bytes, times in seconds.

    Attributes:
        gpu: Memory of a GPU in pretraining, by what takes it.
        meta: Memory of a GPU in meta-training, likewise.
        host: Memory of a machine, likewise.
        disk: Room on the disk, likewise.
        computing: A step of pretraining without messages.
        sending: Its messages, one after the other.
        meta_sending: The messages of a meta step.
        writing: A state, each rank writing its part, the first one also what all have in common.
    """

    gpu: dict[str, float]
    meta: dict[str, float]
    host: dict[str, float]
    disk: dict[str, float]
    computing: float
    sending: float
    meta_sending: float
    writing: float

    @property
    def of_gpu(self) -> float:
        """Return the bytes of the stage that takes more memory of a GPU."""
        return max(sum(self.gpu.values()), sum(self.meta.values()))

    def shares(self, machines: Machines) -> dict[str, float]:
        """Return {what: what is taken of it, as a part}; of the interconnect, its time beside that of computing."""
        return {
            "GPU memory": self.of_gpu / machines.gpu,
            "host memory": sum(self.host.values()) / machines.host,
            "disk": sum(self.disk.values()) / machines.disk,
            "interconnect": self.sending / self.computing,
        }

    def binds(self, machines: Machines) -> str:
        """Return what is taken to the largest part."""
        shares = self.shares(machines)
        return max(shares, key=lambda name: shares[name])

    def fits(self, machines: Machines) -> bool:
        """Return whether the run fits in the memory of GPUs and machines and on the disk."""
        return all(share <= 1 for name, share in self.shares(machines).items() if name != "interconnect")


def taken(plan: Plan, machines: Machines) -> Taken:
    """Count what a run takes."""
    return Taken(
        gpu=room.on_gpu(plan),
        meta=room.on_gpu_in_meta(plan),
        host=room.on_host(plan),
        disk=room.on_disk(plan),
        computing=plan.batch / machines.speed + classifier_operations(plan) / machines.operations,
        sending=messages.seconds(messages.pretraining(plan), plan, machines),
        meta_sending=messages.seconds(messages.meta(plan), plan, machines),
        writing=(plan.rows * 2 * plan.embedding * 4 + room.backbone_state(plan)) / machines.writing,
    )


def classifier_operations(plan: Plan) -> float:
    """Return the floating point operations of a GPU's part of the classifier in a step: 8 B C D."""
    return 8 * plan.gpus * plan.batch * plan.drawn * plan.embedding


def most(fits: Callable[[int], bool]) -> int:
    """Return the largest number that fits, where all smaller ones do; 0 if none does."""
    low, high = 0, MANY
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def most_identities(plan: Plan, machines: Machines) -> int:
    """Return the most identities that fit, as many images as the plan has."""
    return most(lambda count: count == 0 or taken(plan.but(identities=count), machines).fits(machines))


def most_images(plan: Plan, machines: Machines) -> int:
    """Return the most images that fit, as many identities as the plan has."""
    return most(lambda count: taken(plan.but(images=count), machines).fits(machines))
