"""A run to be counted: how many GPUs, identities and images, which network, and what the machines have."""

from dataclasses import dataclass, replace

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from fastmfr.backbone import build

FLOAT = 4  # bytes of a parameter, a momentum, a gradient
GB = 1e9
MACHINE = 8  # GPUs of a machine


@dataclass(frozen=True)
class Network:
    """What is counted of a backbone.

    Attributes:
        parameters: Elements of each parameter, in the network's order.
        buffers: Bytes of the buffers.
        channels: Channels of each BatchNorm.
    """

    parameters: tuple[int, ...]
    buffers: int
    channels: tuple[int, ...]

    @property
    def size(self) -> int:
        """Return the elements of all parameters."""
        return sum(self.parameters)


@dataclass(frozen=True)
class Plan:
    """A run of two stages, each step with `people` identities on each GPU, two images of each.

    Attributes:
        network: The backbone.
        gpus: Processes in all, one for each GPU.
        identities: Rows of the classifier.
        images: Images in all domains.
        embedding: Numbers of an embedding, D.
        people: Identities of a batch of pretraining on each GPU.
        pairs: Pairs of each half of a split of meta-training on each GPU.
        domains: Source domains: splits of a meta step.
        sample_rate: Part of the identities in each step of pretraining.
        sync: Whether pretraining takes BatchNorm's statistics over all GPUs.
        batch_norm: Statistics of a meta step: "batch", over all GPUs, or "frozen".
        unit: Bytes of a number of the embeddings that the classifier gathers: 2 under bf16, 4 under fp32.
        activation: Bytes that an image takes on a GPU in a forward and backward pass.
        size: Width and height of a decoded image in pixels.
        jpeg: Bytes of an image on disk.
    """

    network: Network
    gpus: int = 8
    identities: int = 10_000_000
    images: int = 100_000_000
    embedding: int = 512
    people: int = 64
    pairs: int = 16
    domains: int = 4
    sample_rate: float = 1.0
    sync: bool = True
    batch_norm: str = "batch"
    unit: int = 2
    activation: float = 27.5e6
    size: int = 112
    jpeg: float = 10e3

    @property
    def rows(self) -> int:
        """Return the most rows of the classifier that a GPU has."""
        return -(-self.identities // self.gpus)

    @property
    def drawn(self) -> int:
        """Return how many of these rows take part in a step, as a mean: the batch's own always do."""
        if self.sample_rate == 1:
            return self.rows
        return min(self.rows, int(self.sample_rate * self.rows) + self.people)

    @property
    def batch(self) -> int:
        """Return the images of a batch of pretraining on each GPU."""
        return 2 * self.people

    @property
    def machines(self) -> int:
        """Return how many machines the GPUs fill."""
        return -(-self.gpus // MACHINE)

    def but(self, **changes) -> "Plan":
        """Return the plan with some attributes changed."""
        return replace(self, **changes)


@dataclass(frozen=True)
class Machines:
    """What the run has; sizes in bytes, rates in bytes, images or operations a second.

    Attributes:
        gpu: Memory of a GPU.
        host: Memory of a machine.
        disk: Room that all machines share, for states and images.
        inside: Rate at which a GPU sends within a machine.
        between: Rate at which a GPU sends to another machine.
        latency: Seconds that a message takes at least from one GPU to the next.
        speed: Images a second of forward and backward pass on a GPU, without the classifier.
        operations: Rate of the classifier's arithmetic, of which a step takes 8 B C D.
        writing: Rate at which one process writes.
    """

    gpu: float = 80 * GB
    host: float = 2000 * GB
    disk: float = 30_000 * GB
    inside: float = 450 * GB
    between: float = 50 * GB
    latency: float = 10e-6
    speed: float = 3750
    operations: float = 197e12
    writing: float = 2 * GB


def network_of(backbone: nn.Module) -> Network:
    """Return what is counted of a backbone, which may lie on the meta device."""
    return Network(
        tuple(value.numel() for value in backbone.parameters()),
        sum(value.numel() * value.element_size() for value in backbone.buffers()),
        tuple(module.num_features for module in backbone.modules() if isinstance(module, _BatchNorm)),
    )


def network_by_name(name: str, embedding: int, parameters: int | None = None) -> Network:
    """Return a backbone by its name; with `parameters`, as many in all, each tensor larger or smaller in proportion.

    Raises:
        ValueError: If there is no backbone of this name.
    """
    with torch.device("meta"):
        network = network_of(build(name, embedding))
    if parameters is None:
        return network
    sizes = tuple(max(1, round(size * parameters / network.size)) for size in network.parameters)
    return replace(network, parameters=sizes)
